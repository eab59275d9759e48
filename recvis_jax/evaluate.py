"""Evaluates a checkpoint of a run.

  python -m recvis_jax.evaluate --workdir=runs/lenet5 --split=test [--checkpoint=best|last|STEP]

Prints the metrics and adds them to the run's `summary.json` under "evaluations".
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from recvis_jax import cli, errors

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SPLIT = flags.DEFINE_string("split", "test", "train, val or test as the run's config has them, or a split expression.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "best, last or a step. By default the best; the last of a run without validation."
)
_METRICS = flags.DEFINE_list("metrics", [], "Further metrics, as per_class_accuracy,confusion_matrix,top_3.")
_BATCH = flags.DEFINE_integer("batch_size", None, "Examples a batch; the result does not depend on it.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data lie, if not where the run had them.")
_CACHE = flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> int:
    del argv
    if not _WORKDIR.value:
        raise errors.BadRequest("--workdir is missing, for instance --workdir=runs/lenet5.")
    folder = Path(_WORKDIR.value).expanduser().absolute()
    if not (folder / "config.json").exists():  # at once, before JAX starts
        raise errors.BadRequest(f"{folder} is not the folder of a run: it has no config.json.")
    cli.start_jax(_CACHE.value)
    from recvis_jax import trained

    config = trained.read_config(folder)
    if _DATA_DIR.value:
        config["data"]["data_dir"] = _DATA_DIR.value
    evaluate(folder, config, _SPLIT.value, _CHECKPOINT.value, _METRICS.value, _BATCH.value)
    return 0


def evaluate(
    folder: Path,
    config: dict[str, Any],
    split: str,
    which: str | None,
    metrics: list[str],
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Evaluates one checkpoint of the run in `folder` on one split; returns and prints the metrics."""
    from recvis_jax import build, trained
    from recvis_jax.evaluation import classify
    from recvis_jax.training import distributed, log

    if batch_size:
        config = {**config, "eval_batch_size": batch_size}
    model = trained.of_run(folder, config, which)
    run = model.run
    splits = {"train": config["data"].get("train", "train"), "val": config["data"].get("val"), "test": run.data.test}
    expression = splits.get(split, split)
    if expression is None:
        raise errors.BadRequest(
            f"the run has no {split} split; give a split expression, such as --split='train[90%:]'."
        )
    measured = classify.build_metrics([*run.task.metrics, *metrics], run.data.train.num_classes)
    source = run.data.open(expression)
    measure = classify.make_evaluate(run.task.predict, run.task.losses, measured, run.data.preprocess, run.mesh)
    values = measure(model.params, model.model_state, build.eval_batches(run, source)) or {}
    print(f"checkpoint {model.name} (step {model.step:,}) of {folder} on {source.name}, {source.length:,} examples")
    names = source.class_names
    for name, value in values.items():
        print(_show(name, value, names))
    if distributed.is_main():
        path = folder / "summary.json"
        summary = json.loads(path.read_text()) if path.exists() else {}
        entry = {"step": model.step, **{k: np.asarray(v).tolist() for k, v in values.items()}}
        summary.setdefault("evaluations", {}).setdefault(split, {})[model.name] = entry
        try:
            log.write_atomically(path, json.dumps(summary, indent=2) + "\n")
        except errors.Failure as e:  # a run on a read-only disk, or someone else's
            print(f"note: {e}")
    return values


def _show(name: str, value: Any, classes: tuple[str, ...]) -> str:
    value = np.asarray(value)
    if value.ndim == 0:
        return f"  {name}: {float(value):.4f}"
    width = max((len(c) for c in classes), default=4)
    if value.ndim == 1:
        rows = (f"    {classes[i] if i < len(classes) else i:<{width}}  {v:.4f}" for i, v in enumerate(value))
    else:
        cells = len(str(int(value.max()))) + 1
        rows = (
            f"    {classes[i] if i < len(classes) else i:<{width}} " + "".join(f"{int(v):{cells}d}" for v in row)
            for i, row in enumerate(value)
        )
    return f"  {name}:\n" + "\n".join(rows)


if __name__ == "__main__":
    cli.run(main)
