"""Evaluates a checkpoint of a run.

  python -m recvis_jax.evaluate --workdir=runs/lenet5 --split=test [--checkpoint=best|last|STEP]

  python -m recvis_jax.evaluate --workdir=runs/adaptation --split=test --windows=fashion_scenes

Prints the metrics and adds them to the run's `summary.json` under "evaluations". A confusion matrix is also drawn, as
`confusion_matrix-SPLIT-CHECKPOINT.png` in the run's folder.

With --windows, the model classifies windows of several sizes in each image of a multi-label data set. Images are ranked
by the mean of their windows' probabilities to the fifth power, which gives the average precision of every class, as in
Oquab et al. 2014. The data set's classes are the first ones of the model. The windows are those of the run's
`data.windows`, by default the paper's, resized to the size of the run's images.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from recvis_jax import cli, errors, reading

FLAGS = flags.FLAGS

_MOST_NUMBERS = 2_000_000  # of one metric in summary.json


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string(
        "split", None,
        "train, val or test as in the run's config, or a split expression. By default test, or val if there is no test "
        "split.",
    )  # fmt: skip
    flags.DEFINE_string(
        "checkpoint", None, "best, last or a step. By default the best; the last of a run without validation."
    )
    flags.DEFINE_list("metrics", [], "Further metrics, such as per_class_accuracy,confusion_matrix,top_3.")
    flags.DEFINE_string(
        "windows",
        None,
        "Multi-label data set whose images are ranked by their windows, such as fashion_scenes.",
    )
    flags.DEFINE_integer("batch_size", None, "Examples per batch; does not change the result.", 1)
    flags.DEFINE_string("data_dir", None, "Where the data are, if not where the run had them.")
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
        evaluate_windows(folder, config, FLAGS.windows, FLAGS.split, FLAGS.checkpoint, FLAGS.batch_size, cli.progress)
    else:
        evaluate(folder, config, FLAGS.split, FLAGS.checkpoint, FLAGS.metrics, FLAGS.batch_size, cli.progress)
    return 0


def evaluate(
    folder: Path,
    config: dict[str, Any],
    split: str | None = None,
    which: str | None = None,
    metrics: Sequence[str] = (),
    batch_size: int | None = None,
    say: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Evaluates one checkpoint of a run on one split; returns and prints the metrics.

    Args:
      folder: of the run.
      config: its config.
      split: see `trained.open_named`; None for `trained.default_split`.
      which: 'best', 'last' or a step; None for the best, or the last of a run without validation.
      metrics: names of further metrics.
      batch_size: examples per batch; None for the config's.
      say: called with (name of the split, examples done, number of examples).
    """
    from recvis_jax import build, trained
    from recvis_jax.evaluation import evaluator
    from recvis_jax.training import distributed

    _check_summary(folder)
    if batch_size:
        config = {**config, "eval_batch_size": batch_size}
    model = trained.of_run(folder, config, which)
    run = model.run
    measured = {**run.task.metrics, **evaluator.build_metrics(metrics, run.data.info.num_classes)}
    split = trained.canonical(split) if split else trained.default_split(run.data)
    source = trained.open_named(run.data, split)
    measure = evaluator.make_evaluate(run.task.predict, measured, run.data.preprocess, run.mesh)
    batches = _counted(build.eval_batches(run, source), source.name, source.length, run.eval_batch_size, say)
    values = measure(model.params, model.model_state, batches) or {}
    _report(folder, model, f"{source.name}, {source.length:,} examples", split, values, source.class_names)
    if "confusion_matrix" in values:
        _draw(folder, model.name, split, values["confusion_matrix"], source.class_names)
    if distributed.is_main():
        if run.data.info.vocabulary:
            print("next:", errors.command("python", "-m", "recvis_jax.generate", f"--workdir={folder}", "TEXT"))
        elif run.task.gives == "other":
            print("next:", errors.command("python", "-m", "recvis_jax.probe", f"--workdir={folder}"))
        else:
            print("next:", errors.command("python", "-m", "recvis_jax.predict", f"--weights={folder}", "IMAGE"))
    return values


def evaluate_windows(
    folder: Path,
    config: dict[str, Any],
    name: str,
    split: str | None = None,
    which: str | None = None,
    batch_size: int | None = None,
    say: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Ranks the images of a split of the data set `name` by their windows; returns and prints average precisions."""
    from recvis_jax import build, trained
    from recvis_jax.data import sources, windows
    from recvis_jax.evaluation import window_scores

    _check_summary(folder)
    if batch_size:
        config = {**config, "eval_batch_size": batch_size}
    model = trained.of_run(folder, config, which)
    run, data = model.run, config["data"]
    if run.data.info.multi_label:
        raise errors.BadRequest("--windows needs a model with one class per image; this run is multi-label.")
    own = data["name"] == name
    split = trained.canonical(split or (trained.default_split(run.data) if own else "test"))
    expression = {k: data.get(k) or k for k in ("train", "val", "test")}.get(split, split) if own else split
    keys = {k: data[k] for k in ("image_key", "label_key", "mock") if k in data} if own else {}
    images = sources.open_split(name, expression, data_dir=data.get("data_dir"), **keys)
    if (known := run.data.info.class_names[: images.num_classes]) != images.class_names:
        names = errors.printable(", ".join(known))[:200]
        raise errors.BadRequest(f"the run's classes, {names}, do not begin with those of {errors.printable(name)}.")
    height, width, _ = run.data.image_shape
    if height != width:
        raise errors.BadRequest(f"windows are square, but the run's images are {height}x{width}.")
    given = {k: v for k, v in (data.get("windows") or {}).items() if k in ("scales", "overlap")}
    found = windows.every(images, size=height, **given)
    values = window_scores.evaluate(
        run.task.predict, window_scores.image_ranking(found.labels), run.data.preprocess, run.mesh,
        model.params, model.model_state,
        _counted(build.eval_batches(run, found.source), images.name, found.source.length, run.eval_batch_size, say),
    )  # fmt: skip
    what = f"{images.name}, {images.length:,} images by {found.source.length:,} windows"
    _report(folder, model, what, f"windows of {name}/{split}", values, images.class_names)
    return values


def _counted(
    batches: Iterable[dict], name: str, length: int, size: int, say: Callable[[str, int, int], None]
) -> Iterator[dict]:
    """Yields the batches, and reports before each how many examples are done."""
    for i, batch in enumerate(batches):
        say(name, i * size, length)
        yield batch
    say(name, length, length)


def _report(
    folder: Path, model: Any, what: str, entry_name: str, values: dict[str, Any], names: tuple[str, ...]
) -> None:
    """Prints the metrics and writes them to the run's summary."""
    from recvis_jax.evaluation import tables
    from recvis_jax.training import distributed, log

    if not distributed.is_main():
        return
    print(errors.printable(f"checkpoint {model.name} (step {model.step:,}) of {folder} on {what}"))
    for name, value in values.items():
        print(tables.show(name, value, names))
    kept = {k: v for k, v in values.items() if np.size(v) <= _MOST_NUMBERS}
    if left_out := sorted(values.keys() - kept.keys()):
        print(f"note: too large for summary.json: {', '.join(left_out)}.")
    path = folder / "summary.json"

    def add(summary: dict[str, Any]) -> None:
        _evaluations(summary, path).setdefault(entry_name, {})[model.name] = {"step": model.step, **kept}

    try:
        log.update_json(path, add)
    except errors.Failure as e:  # the run is on a read-only disk, or belongs to someone else
        print(f"note: {e}")


def _evaluations(summary: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the part of a summary that evaluations are added to; `BadRequest` if it is damaged."""
    found = summary.setdefault("evaluations", {})
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise errors.BadRequest(f"{path} is damaged: 'evaluations' is {str(found)[:60]!r}; move it away.")
    return found


def _check_summary(folder: Path) -> None:
    """Refuses a damaged summary before the evaluation, not after it."""
    path = folder / "summary.json"
    if path.exists():
        _evaluations(reading.read_json(path, "summary of a run"), path)


def _draw(folder: Path, checkpoint: str, split: str, counts: Any, names: tuple[str, ...]) -> None:
    """Draws a confusion matrix into the run's folder, and prints where it is."""
    from recvis_jax.training import distributed
    from recvis_jax.vis import plot

    if not distributed.is_main():
        return
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"confusion_matrix-{split}-{checkpoint}")[:150]
    path = folder / f"{name}.png"
    try:
        drawn = plot.confusion(np.asarray(counts), names, path, f"{split}, checkpoint {checkpoint}")
    except OSError as e:  # see the summary
        print(errors.printable(f"note: cannot write {path}: {e.strerror or e}."))
        return
    missing = "note: the matrix is not drawn, as matplotlib is not installed: pip install 'recvis_jax[plot]'."
    print(errors.printable(f"  drawn in {path}") if drawn else missing)


if __name__ == "__main__":
    cli.run(main, define_flags)
