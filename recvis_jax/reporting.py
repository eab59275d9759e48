"""Writes the page of one or more runs: what is known of each, in words and pictures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from recvis_jax import errors, evidence, figure, network, patches, trained, trees, worst_objects
from recvis_jax.data.opened import Data
from recvis_jax.evaluation import diagnosis, outcomes, symptoms
from recvis_jax.training import log
from recvis_jax.vis import filters, pictures, run_page, structure

FILE = "report.html"
_PICTURES = 12  # of a group of predictions
_MOST_RUNS = 50
_PATCHED = 1000  # images in which the best patches are looked for
_BYTES = 64_000_000  # that these may take
_UNITS = 24  # whose patches are shown
_GROUPS = (
    ("Worst", outcomes.worst, "The examples with the lowest probability of the true class: often with wrong labels."),
    ("Most confident and wrong", outcomes.confident, "Wrong predictions with the highest probability."),
    ("Random", outcomes.drawn, "Examples drawn at random, always the same ones."),
)


def of_runs(
    folders: Sequence[Path],
    checkpoint: str | None = None,
    data_dir: str | None = None,
    examples: int = evidence.EXAMPLES,
    say: evidence.Say = lambda *_: None,
) -> str:
    """Returns the page of runs; parts that need missing data are left out, with a note.

    Args:
      folders: of the runs.
      checkpoint: "best", "last" or a step; None for the best, or the last of a run without validation.
      data_dir: the folder of the data, if not the one that the runs used.
      examples: maximum number of examples of a split for predictions.
      say: called with (what, done, total).

    Raises:
      BadRequest: a folder is not that of a run, or is damaged; or there are too many.
    """
    if len(folders) > _MOST_RUNS:
        raise errors.BadRequest(f"{len(folders)} runs are given; a page shows at most {_MOST_RUNS}.")
    records = [evidence.read(folder) for folder in folders]  # errors come before any work
    runs = []
    for found, name in zip(records, _names(folders), strict=True):
        seen = _look(found, checkpoint, data_dir, examples, say)
        runs.append(content(found, seen, name))
    return run_page.document(runs)


def of_run(
    folder: Path, model: trained.Trained | None, data: Data | None, examples: int = evidence.EXAMPLES
) -> tuple[str, diagnosis.Finding]:
    """Returns the page of a run whose model and data are already open, and the headline of its diagnosis.

    Args:
      folder: of the run.
      model, data: None if there are none, such as for a failed run.
      examples: see `of_runs`.
    """
    found = evidence.read(folder)
    if model and data:
        seen = evidence.look(model, data, examples)
    else:
        command = errors.command("python", "-m", "recvis_jax.report", folder.name)
        seen = evidence.Seen(missing=f"Predictions were not computed; {command} does that.", model=model)
    return run_page.document([content(found, seen, folder.name)]), diagnosis.diagnose(evidence.of_run(found, seen))[0]


def write(page: str, path: Path) -> None:
    """Replaces the file at `path` by a page.

    Raises:
      Failure: it cannot be written.
    """
    log.write_atomically(path, page)


def _names(folders: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the folders' paths that are different."""
    for length in range(1, 1 + max(len(f.parts) for f in folders)):
        names = ["/".join(f.parts[-length:]) for f in folders]
        if len(set(names)) == len(folders):
            return names
    return [f"{f.name} ({i})" for i, f in enumerate(folders, 1)]


def _look(
    found: evidence.Records, checkpoint: str | None, data_dir: str | None, examples: int, say: evidence.Say
) -> evidence.Seen:
    """Opens the model and the data as far as available."""
    config = found.config
    if data_dir and isinstance(config.get("data"), dict):
        config = {**config, "data": {**config["data"], "data_dir": data_dir}}
    try:
        model = trained.of_run(found.folder, config, checkpoint)
    except errors.BadRequest as e:
        if checkpoint:
            raise
        return evidence.Seen(missing=f"There is no model: {e}")
    try:
        return evidence.look(model, model.run.data, examples, say)
    except (errors.BadRequest, errors.Failure) as e:  # missing or changed data
        return evidence.Seen(missing=f"The data are not available, so no predictions are shown: {e}", model=model)


def content(found: evidence.Records, seen: evidence.Seen, name: str) -> run_page.Content:
    """Returns the content of a run's page.

    Args:
      found: its files.
      seen: what was found besides the files.
      name: of the run.
    """
    known = evidence.of_run(found, seen)
    findings = [(f.level, f.title, f.why, f.advice) for f in diagnosis.diagnose(known)]
    shown = next((seen.splits[s] for s in ("val", "test") if s in seen.splits), None)
    counts, of = _confusion(found, shown)
    train_counts = seen.counts.get("train")
    layers = _layers(seen.model) if seen.model else []
    return run_page.Content(
        name=name,
        facts=_facts(found, known, seen),
        numbers=_numbers(found),
        findings=findings,
        notes=[*([seen.missing] if seen.missing else []), *_limits(known, shown)],
        records=found.records,
        classes=found.info.class_names if found.info else (),
        confusion=counts,
        confused=of,
        train_counts=train_counts if counts is not None and train_counts is not None else None,
        groups=[(title, about, _chosen(shown, choose)) for title, choose, about in _GROUPS] if shown else (),
        images=[*worst_objects.images(seen.model), *_filters(seen.model, layers), *_patches(seen.model, shown)]
        if seen.model
        else (),
        cost=_cost(found, known, sum(layer.macs for layer in layers)),
        origin=_origin(found),
        command=str(found.lives[0].get("command", "")) if found.lives else "",
        config=found.config,
    )


def _limits(known: symptoms.Evidence, shown: evidence.Split | None) -> list[str]:
    """Sentences on the limits of the diagnosis."""
    out = []
    if shown and len(shown.places) < shown.source.length:
        out.append(
            f"Predictions are of {len(shown.places):,} of the {shown.source.length:,} examples of {shown.name}, spread "
            "evenly."
        )
    if known.pictures is None and len(known.val.steps):
        out.append("Images were not compared: shared images or shuffled labels would not be noticed.")
    if known.clean_train is None and len(known.train.steps) and known.classes:
        out.append("Training accuracy was recorded during training, with any augmentation and dropout.")
    return out


def _chosen(shown: evidence.Split, choose: Any) -> list[run_page.Prediction]:
    rows = choose(shown.outcomes, _PICTURES)
    o = shown.outcomes
    return [
        run_page.Prediction(
            image,
            int(shown.places[i]),
            int(o.label[i]),
            int(o.predicted[i]),
            float(o.p_true[i]),
            float(o.p_predicted[i]),
        )
        for i, image in zip(rows, evidence.images(shown, rows), strict=True)
    ]


_SPLITS = {"train": "training", "val": "validation", "test": "test"}


def _confusion(found: evidence.Records, shown: evidence.Split | None) -> tuple[np.ndarray | None, str]:
    """Counts from predictions made just now, or else from what `evaluate` wrote to the summary."""
    classes = found.info.num_classes if found.info else 0
    if shown:
        of = f"{len(shown.places):,} {_SPLITS[shown.name]} examples"
        return outcomes.confusion(shown.outcomes, classes), of
    evaluations = found.summary.get("evaluations")
    for split, by_name in sorted(evaluations.items()) if isinstance(evaluations, dict) else ():
        for name, values in sorted(by_name.items()) if isinstance(by_name, dict) else ():
            counts = values.get("confusion_matrix") if isinstance(values, dict) else None
            if counts is None:
                continue
            try:
                counts = np.array(counts, np.float64)
            except (ValueError, TypeError):
                counts = np.zeros(0)
            if counts.shape != (classes, classes) or not (counts >= 0).all() or not np.isfinite(counts).all():
                raise errors.BadRequest(
                    f"{found.folder / 'summary.json'} is damaged: the confusion matrix of {errors.brief(split)} is not "
                    f"{classes} x {classes} counts."
                )
            return counts.astype(np.int64), f"{split}, checkpoint {name} (counted by evaluate)"
    return None, ""


# --- numbers ---


def _shown(name: str, value: float, examples: int) -> str:
    """A metric as text, an accuracy with its 95 % interval."""
    if name == "accuracy" and 0 <= value <= 1 and examples > 0:
        return f"{100 * value:.2f} ± {100 * symptoms.half_width(value, examples):.2f} %"
    share = name == "accuracy" or name.startswith(("top_", "mean_average", "mean_per_class", "probe_"))
    return f"{100 * value:.2f} %" if share else f"{value:.4g}"


def _facts(found: evidence.Records, known: symptoms.Evidence, seen: evidence.Seen) -> list[tuple[str, str]]:
    model = found.config.get("model")
    out = [("model", str(model.get("name", "")) if isinstance(model, dict) else "the author's own")]
    if found.info:
        out.append(("data", found.info.name))
    for (split, name), by in _values(found).items():
        which = next(iter(by))
        if name == "accuracy" or (name == "loss" and not known.classes) or name == "mean_average_precision":
            out.append((f"{_SPLITS[split]} {name.replace('_', ' ')}, {which}", by[which]))
    if not found.summary:
        for name, looked in seen.splits.items():
            out.append((f"{_SPLITS[name]} accuracy, checkpoint", f"{100 * looked.outcomes.accuracy:.2f} %"))
    elif "train" in seen.splits:
        out.append(("training accuracy, in evaluation mode", f"{100 * seen.splits['train'].outcomes.accuracy:.2f} %"))
    if seen.model:
        out.append(("checkpoint shown", f"{seen.model.name}, step {seen.model.step:,}"))
    done, planned = known.steps
    ended = f", {known.ended}" if known.ended else ""
    out.append(("steps", f"{done:,}{f' of {planned:,}' if planned > done else ''}{ended}"))
    if evidence.is_number(found.summary.get("parameters")):
        out.append(("parameters", f"{found.summary['parameters']:,}"))
    return out


def _values(found: evidence.Records) -> dict[tuple[str, str], dict[str, str]]:
    """Returns (split, metric) -> {"best" or "final": value as text} of a run's summary; `BadRequest` if damaged."""
    out: dict[tuple[str, str], dict[str, str]] = {}
    for which in ("best", "final"):
        for split in ("val", "test"):
            of = found.summary.get(which, {})
            numbers = of.get(split, {}) if isinstance(of, dict) else None
            if not isinstance(numbers, dict):
                path = found.folder / "summary.json"
                raise errors.BadRequest(f"{path} is damaged: {which}.{split} is {errors.shown(numbers or of)}.")
            for name, value in numbers.items():
                if evidence.is_number(value):
                    examples = found.info.splits[split].examples if found.info and split in found.info.splits else 0
                    out.setdefault((split, name), {})[which] = _shown(name, value, examples)
    return out


def _numbers(found: evidence.Records) -> list[tuple[str, ...]]:
    """Returns rows of metrics: name, then validation and test of the best checkpoint and of the last."""
    values = _values(found)
    columns = [(which, split) for which in ("best", "final") for split in ("val", "test")]
    names = dict.fromkeys(name for _, name in values)
    rows = [(name, *(values.get((split, name), {}).get(which, "") for which, split in columns)) for name in names]
    kept = [i for i in range(1, 5) if any(row[i] for row in rows)]
    head = ("", *(f"{_SPLITS[split]}, {which}" for which, split in columns))
    return [tuple(row[i] for i in (0, *kept)) for row in (head, *rows)] if rows else []


def _cost(found: evidence.Records, known: symptoms.Evidence, macs: int) -> list[tuple[str, str]]:
    """Speed and cost of the training; `macs` are multiplications per image, 0 if unknown."""
    speeds, times = (_positive(found.records, name) for name in ("images_per_second", "seconds"))
    out = []
    if speeds:
        out.append(
            ("training images / second", f"{np.median(speeds):,.0f} (median), {min(speeds):,.0f} to {max(speeds):,.0f}")
        )
    if times:
        out.append(("time of training, including evaluation", _duration(max(times))))
    batch = found.config.get("batch_size") or 128
    images = known.steps[0] * batch if evidence.is_number(batch) else 0
    if images:
        epochs = f", {images / known.train_examples:.3g} epochs" if known.train_examples else ""
        out.append(("training images seen", f"{images:,}{epochs}"))
    if macs:
        out.append(("multiplications per image, forward", f"{macs:,}"))
        if images:
            out.append(("operations of the training, 6 FLOPs each", f"{_scaled(6 * macs * images)}FLOPs"))
    return out


def _positive(records: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Returns the positive values of an entry, as a clock gives them."""
    values = (r[name] for r in records if evidence.is_number(r.get(name)))
    return [float(v) for v in values if 0 <= v < 1e12]


def _layers(model: trained.Trained) -> list[structure.Layer]:
    if model.run.data.info.vocabulary:  # of texts, whose cost depends on their length
        return []

    def apply(variables: Any, image: jax.Array) -> Any:
        return model.run.model.apply(variables, image, train=False)[0]

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.variables)
    return structure.layers(apply, shapes, model.run.data.image_shape)


def _filters(model: trained.Trained, layers: list[structure.Layer]) -> list[run_page.Images]:
    """Pictures of the first layer's weights, if they can be shown as pictures."""
    flat = trees.flatten(model.params)
    first = next((layer.name for layer in layers if layer.parameters), "")
    kernel = flat.get(f"{first}/kernel".removeprefix("(model)/"))
    if kernel is None:
        return []
    found = filters.pictures(np.asarray(kernel, np.float32), model.run.data.image_shape)
    if found is None:
        return []
    n = kernel.shape[-1]
    most = f", the {len(found):,} with the largest weights" if len(found) < n else ""
    about = f"The weights of {n:,} units of {first}{most}; grey is zero, each is scaled by its largest weight."
    return [run_page.Images("What the first layer looks for", about, list(found))]


def _patches(model: trained.Trained, shown: evidence.Split | None) -> list[run_page.Images]:
    """Pictures of the patches that units like best, where there are units that see a part of the image."""
    shape = model.run.data.image_shape
    if shown is None or shape[2] not in (1, 3):
        return []
    apply = network.forward(model)
    layer = patches.last_layer_of_parts(apply, model.variables, shape)
    if layer is None:
        return []
    count = min(len(shown.places), _PATCHED, max(1, _BYTES // math.prod(shape)))
    held = list(evidence.batches(model, shown, count))
    try:
        found = patches.best(
            apply, model.variables, shape, lambda: (figure.as_float(images) for images in held), layer, most=_UNITS
        )
    except errors.BadRequest:  # a network whose units are all silent
        return []
    tiles = [pictures.mosaic(crops, columns=3) for crops in found.crops]
    rows, columns = found.window.size  # type: ignore[union-attr]
    about = (
        f"Of {count:,} {_SPLITS[shown.name]} images the nine patches that excite a unit of {layer} most, {len(tiles)} "
        f"units, the strongest first. A unit sees {rows}x{columns} pixels."
    )
    return [run_page.Images("What later units look for", about, tiles, 120)]


def _scaled(n: float) -> str:
    power = max(0, min(7, int(math.log10(max(n, 1)) // 3)))
    return f"{n / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z')[power]}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _origin(found: evidence.Records) -> list[tuple[str, str]]:
    out = []
    if found.info:
        shape, classes = "x".join(map(str, found.info.image_shape)), found.info.num_classes
        what = f"images {shape}, {classes:,} classes"
        if found.info.vocabulary:
            what = f"texts in {found.info.vocabulary.size:,} tokens ({found.info.vocabulary.kind})"
        out.append(("data", f"{found.info.name}: {what}"))
        for name, split in found.info.splits.items():
            out.append((f"  {_SPLITS[name]}", f"{split.examples:,} examples, {split.split} (digest {split.digest})"))
    if found.lives:
        first, last = found.lives[0], found.lives[-1]
        for what, key in (("began", "began"), ("commit", "commit"), ("devices", "devices"), ("CPU", "cpu")):
            if first.get(key):
                out.append((what, str(first[key])))
        out.append(("cores, processes", f"{first.get('cores')}, {first.get('processes')}"))
        versions = (f"{name} {last.get(name)}" for name in ("recvis_jax", "jax", "python"))
        out.append(("versions", f"{', '.join(versions)}, {last.get('system')}"))
        if len(found.lives) > 1:
            out.append(("resumed", f"{len(found.lives) - 1} times, last {last.get('began')}"))
    else:
        out.append(("machine", "not recorded"))
    return out
