"""Evaluates a checkpoint of a run.

  python -m recvis_jax.evaluate --workdir=runs/lenet5 --split=test [--checkpoint=best|last|STEP]

  python -m recvis_jax.evaluate --workdir=runs/adaptation --split=test --windows=fashion_scenes

Prints the metrics and adds them to the run's `summary.json` under "evaluations".

With --windows the model sees windows of several sizes of each image of a data set of several classes an image, and the
images are ranked by the mean of their windows' probabilities to the fifth power: the average precision of every
class, as Oquab et al. 2014 measure it. The data set's classes are the first of the model's. The windows are those of
the run's `data.windows`, by default the paper's, resized to the size of the run's images.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from recvis_jax import cli, errors, reading

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("split", "test", "train, val or test as the run's config has them, or a split expression.")
    flags.DEFINE_string(
        "checkpoint", None, "best, last or a step. By default the best; the last of a run without validation."
    )
    flags.DEFINE_list("metrics", [], "Further metrics, as per_class_accuracy,confusion_matrix,top_3.")
    flags.DEFINE_string(
        "windows",
        None,
        "Data set of several classes an image whose images are ranked by their windows, as fashion_scenes.",
    )
    flags.DEFINE_integer("batch_size", None, "Examples a batch; the result does not depend on it.")
    flags.DEFINE_string("data_dir", None, "Where the data lie, if not where the run had them.")
    flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> int:
    del argv
    if not FLAGS.workdir:
        raise errors.BadRequest("--workdir is missing, for instance --workdir=runs/lenet5.")
    folder = Path(FLAGS.workdir).expanduser().absolute()
    if not (folder / "config.json").exists():  # at once, before JAX starts
        raise errors.BadRequest(f"{folder} is not the folder of a run: it has no config.json.")
    cli.start_jax(FLAGS.compile_cache)
    from recvis_jax import trained

    config = trained.read_config(folder)
    _check_summary(folder)
    if FLAGS.data_dir:
        config["data"]["data_dir"] = FLAGS.data_dir
    if FLAGS.windows:
        if FLAGS.metrics:
            raise errors.BadRequest("--windows reports average precisions; it takes no --metrics.")
        evaluate_windows(folder, config, FLAGS.windows, FLAGS.split, FLAGS.checkpoint, FLAGS.batch_size)
    else:
        evaluate(folder, config, FLAGS.split, FLAGS.checkpoint, FLAGS.metrics, FLAGS.batch_size)
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

    if batch_size:
        config = {**config, "eval_batch_size": batch_size}
    model = trained.of_run(folder, config, which)
    run = model.run
    measured = classify.build_metrics([*run.task.metrics, *metrics], run.data.info.num_classes)
    source = trained.open_named(run.data, split)
    measure = classify.make_evaluate(run.task.predict, run.task.losses, measured, run.data.preprocess, run.mesh)
    values = measure(model.params, model.model_state, build.eval_batches(run, source)) or {}
    _report(folder, model, f"{source.name}, {source.length:,} examples", split, values, source.class_names)
    return values


def evaluate_windows(
    folder: Path, config: dict[str, Any], name: str, split: str, which: str | None, batch_size: int | None = None
) -> dict[str, Any]:
    """Ranks the images of a split of the data set `name` by their windows; returns and prints average precisions."""
    from recvis_jax import build, trained
    from recvis_jax.data import sources, windows
    from recvis_jax.evaluation import windows as scoring

    if batch_size:
        config = {**config, "eval_batch_size": batch_size}
    model = trained.of_run(folder, config, which)
    run, data = model.run, config["data"]
    if run.data.info.multi_label:
        raise errors.BadRequest("windows are scored by a model of one class an image; this run's labels are several.")
    own = data["name"] == name
    expression = {k: data.get(k) or k for k in ("train", "val", "test")}.get(split, split) if own else split
    keys = {k: data[k] for k in ("image_key", "label_key", "mock") if k in data} if own else {}
    images = sources.open_split(name, expression, data_dir=data.get("data_dir"), **keys)
    if (known := run.data.info.class_names[: images.num_classes]) != images.class_names:
        raise errors.BadRequest(f"the run's classes, {', '.join(known)}, do not begin with those of {name}.")
    height, width, _ = run.data.image_shape
    if height != width:
        raise errors.BadRequest(f"windows are square; the run's images are of {height}x{width}.")
    given = {k: v for k, v in (data.get("windows") or {}).items() if k in ("scales", "overlap")}
    found = windows.every(images, size=height, **given)
    values = scoring.evaluate(
        run.task.predict, scoring.image_ranking(found.labels), run.data.preprocess, run.mesh,
        model.params, model.model_state, build.eval_batches(run, found.source),
    )  # fmt: skip
    what = f"{images.name}, {images.length:,} images by {found.source.length:,} windows"
    _report(folder, model, what, f"windows of {name}/{split}", values, images.class_names)
    return values


def _report(
    folder: Path, model: Any, what: str, entry_name: str, values: dict[str, Any], names: tuple[str, ...]
) -> None:
    """Prints the metrics and writes them to the run's summary."""
    from recvis_jax.training import distributed, log

    print(f"checkpoint {model.name} (step {model.step:,}) of {folder} on {what}")
    for name, value in values.items():
        print(_show(name, value, names))
    if distributed.is_main():
        path = folder / "summary.json"
        entry = {"step": model.step, **{k: np.asarray(v).tolist() for k, v in values.items()}}

        def add(summary: dict[str, Any]) -> None:
            _evaluations(summary, path).setdefault(entry_name, {})[model.name] = entry

        try:
            log.update_json(path, add)
        except errors.Failure as e:  # a run on a read-only disk, or someone else's
            print(f"note: {e}")


def _evaluations(summary: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the part of a summary that evaluations are added to; `BadRequest` where it is damaged."""
    found = summary.setdefault("evaluations", {})
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise errors.BadRequest(f"{path} is damaged: 'evaluations' is {str(found)[:60]!r}; move it away.")
    return found


def _check_summary(folder: Path) -> None:
    """Refuses a damaged summary now, and not when the numbers are there."""
    path = folder / "summary.json"
    if path.exists():
        _evaluations(reading.read_json(path, "summary of a run"), path)


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
    cli.run(main, define_flags)
