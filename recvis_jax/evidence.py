"""What is known of a run: its records and, if its data are available, its predictions and the look of its images."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from recvis_jax import build, environment, errors, reading, trained
from recvis_jax.data import data_info, similar
from recvis_jax.data.opened import Data
from recvis_jax.data.sources import Source
from recvis_jax.evaluation import outcomes, symptoms
from recvis_jax.training import log

EXAMPLES = 10_000  # of a split that are predicted, at most
_COMPARED = 10_000  # training images compared with validation images, at most
_ASKED = 2_000  # training images predicted, and validation images compared, at most
_CHUNK = 256  # images read at a time

Say = Callable[[str, int, int], None]


class Records(NamedTuple):
    """The files of a run.

    Attributes:
      folder: of the run.
      config: its config.
      info: its record of its data; None for runs of earlier versions.
      records: lines of `metrics.jsonl`.
      summary: content of `summary.json`, empty for a run that has not ended.
      lives: see `environment`.
    """

    folder: Path
    config: dict[str, Any]
    info: data_info.DataInfo | None
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    lives: list[dict[str, Any]]


class Split(NamedTuple):
    """Examples of a split, and the model's predictions of them.

    Attributes:
      name: "train", "val" or "test".
      source: where they are read from.
      places: indices of the examples in the source (n).
      outcomes: of the examples.
    """

    name: str
    source: Source
    places: np.ndarray
    outcomes: outcomes.Outcomes


@dataclasses.dataclass
class Seen:
    """What was found besides the files.

    Attributes:
      missing: the reason why there is nothing; empty if there is something.
      model: the checkpoint.
      splits: by name.
      pictures: the comparison of the images.
      counts: number of examples read of each class, by split.
    """

    missing: str = ""
    model: trained.Trained | None = None
    splits: dict[str, Split] = dataclasses.field(default_factory=dict)
    pictures: symptoms.Pictures | None = None
    counts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def read(folder: Path) -> Records:
    """Reads the files of a run.

    Raises:
      BadRequest: it is not the folder of a run, or a file is damaged.
    """
    config = trained.read_config(folder)
    recorded = data_info.read(folder)
    summary = folder / "summary.json"
    return Records(
        folder,
        config,
        recorded.info if recorded else None,
        list(map(_plain, filter(_placed, log.read_records(folder / "metrics.jsonl")))),
        reading.read_json(summary, "summary of a run") if summary.exists() else {},
        environment.read(folder),
    )


def _placed(record: dict[str, Any]) -> bool:
    """Whether a record has a step that arrays can hold."""
    return 0 <= record["step"] < 2**53


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Leaves out values that are neither text nor numbers that arrays can hold."""
    return {name: value for name, value in record.items() if isinstance(value, str) or is_number(value)}


def look(model: trained.Trained, data: Data, examples: int = EXAMPLES, say: Say = lambda *_: None) -> Seen:
    """Computes the predictions of a classifier on its data, and compares the images of its splits.

    Args:
      model: the checkpoint.
      data: of the run.
      examples: maximum number of examples of the reported split (validation, or test if there is none), spread evenly
        over it. At most twice as many training images are compared with them.
      say: called with (what, done, total).
    """
    seen = Seen(model=model)
    if not data.info.num_classes or data.info.multi_label or model.run.task.gives not in ("classes", "numbers"):
        seen.missing = "Single predictions are only shown for classifiers with one class per image."
        return seen
    there = {name: source for name in ("val", "train", "test") if (source := _open(data, name)) is not None}
    if "val" in there:
        there.pop("test", None)
    predict = _make_predict(model)
    for name, source in there.items():
        count = min(source.length, examples, *([_ASKED] if name == "train" else []))
        places = np.linspace(0, source.length, count, endpoint=False).astype(int)
        part = source._replace(length=count, read=_taken(source, places))
        found = []
        for i, batch in enumerate(build.eval_batches(model.run, part)):
            found.append((predict(model.params, model.model_state, batch), batch["mask"]))
            say(name, min(count, (i + 1) * model.run.eval_batch_size), count)
        seen.splits[name] = Split(name, source, places, outcomes.collect(found))
        seen.counts[name] = np.bincount(seen.splits[name].outcomes.label, minlength=data.info.num_classes)
    if {"val", "train"} <= there.keys():
        most = min(2 * examples, _COMPARED), min(examples, _ASKED)
        seen.pictures = _compare(there["train"], there["val"], data.info.num_classes, most, seen.counts, say)
    return seen


def _open(data: Data, name: str) -> Source | None:
    try:
        return data.named(name)
    except errors.BadRequest as e:
        if name == "test":  # configs may name a test split that does not exist
            return None
        raise e


def _taken(source: Source, places: np.ndarray) -> Callable[[Any], list[dict[str, Any]]]:
    return lambda indices: source.read(places[np.asarray(indices, int)])


def _make_predict(model: trained.Trained) -> Callable[[Any, Any, dict], Any]:
    run = model.run

    def predict(params: Any, model_state: Any, batch: dict) -> dict[str, jax.Array]:
        batch = run.data.preprocess(batch)
        with jax.sharding.use_abstract_mesh(run.mesh.abstract_mesh):
            scores = run.task.predict(params, model_state, batch)["logits"]
        return outcomes.of_scores(scores, batch["label"])

    return jax.jit(predict, out_shardings=NamedSharding(run.mesh, PartitionSpec()))


def _looks(source: Source, places: np.ndarray, what: str, say: Say) -> tuple[similar.Looks, np.ndarray]:
    """Reads images chunk by chunk, and returns their looks and their classes."""
    parts, labels = [], []
    for start in range(0, len(places), _CHUNK):
        rows = source.read(places[start : start + _CHUNK])
        parts.append(similar.look(r["image"] for r in rows))
        labels += [int(r["label"]) for r in rows]
        say(what, start + len(rows), len(places))
    return similar.join(parts), np.array(labels)


def _compare(
    train: Source, val: Source, num_classes: int, most: tuple[int, int], counts: dict[str, np.ndarray], say: Say
) -> symptoms.Pictures:
    """Compares validation images with training images, which are drawn at random so that they represent all."""

    def places(source: Source, most: int) -> np.ndarray:
        if source.length <= most:
            return np.arange(source.length)
        return np.sort(np.random.default_rng(0).choice(source.length, most, replace=False))

    order = np.random.default_rng(1).permutation(min(train.length, most[0]))
    there, there_labels = _looks(train, places(train, most[0])[order], "training images", say)
    mine, mine_labels = _looks(val, places(val, most[1]), "validation images", say)
    counts["train"], counts["val"] = (np.bincount(x, minlength=num_classes) for x in (there_labels, mine_labels))
    few = min(len(order), 1000)
    own = similar.first(there, few)
    found, own_found = similar.neighbours(mine, there), similar.neighbours(own, there, itself=True)
    copied = similar.copies(mine, there)
    near = similar.near_copies(mine, there, found) >= 0
    new = ~near  # copies share their class and have no distance
    spread = np.maximum(there.light.std(0), 1e-3)
    darker, flatter = (mine.light.mean(0) - there.light.mean(0)) / spread
    alike = similar.vote(found, there_labels, num_classes) == mine_labels
    own_alike = similar.vote(own_found, there_labels, num_classes) == there_labels[:few]
    fresh = similar.Neighbours(found.places[new], found.distance[new])
    return symptoms.Pictures(
        compared=(len(order), len(mine.small)),
        copies=float(copied.mean()),
        near=float(near.mean()),
        expected=len(order) / train.length,
        vote=float(alike[new].mean()) if new.any() else math.nan,
        own_vote=float(own_alike.mean()),
        further=similar.further(fresh, own_found) if new.any() else 0.5,
        darker=float(darker),
        flatter=float(flatter),
    )


def images(split: Split, chosen: Sequence[int]) -> list[np.ndarray]:
    """Reads the images of examples, by their index in `split.outcomes`."""
    return [row["image"] for row in split.source.read(split.places[list(chosen)])] if chosen else []


def batches(model: trained.Trained, split: Split, count: int) -> Iterator[np.ndarray]:
    """Yields images of a split's examples as the model is given them, not yet normalised; `count`, spread evenly."""
    places = split.places[np.linspace(0, len(split.places), count, endpoint=False).astype(int)]
    part = split.source._replace(length=count, read=_taken(split.source, places))
    for batch in build.eval_batches(model.run, part):
        yield np.asarray(batch["image"])[np.asarray(batch["mask"])]


def of_run(records: Records, seen: Seen) -> symptoms.Evidence:
    """Collects the evidence for a diagnosis."""
    known, config = records.info, records.config
    classes = known.num_classes if known and not known.multi_label else 0
    train, val = (_curve(records.records, split) for split in ("train", "val"))
    done = max((r["step"] for r in records.records if r["split"] != log.FAILURE), default=0)
    examples = {name: split.examples for name, split in known.splits.items()} if known else {}
    planned = config.get("steps")
    if planned is None:
        planned = round((config.get("epochs") or 0) * examples.get("train", 0) / (config.get("batch_size") or 128))
    failures = [str(r.get("message", "a number was not finite")) for r in records.records if r["split"] == log.FAILURE]
    failed = failures[0] if failures else ""
    reason = records.summary.get("reason")
    ended = reason if isinstance(reason, str) else "done" if planned and done >= planned else ""
    clean = {name: symptoms.Measured(split.outcomes.accuracy, len(split.places)) for name, split in seen.splits.items()}
    rates = [r["learning_rate"] for r in records.records if r["split"] == "train" and is_number(r.get("learning_rate"))]
    return symptoms.Evidence(
        train=train,
        val=val,
        steps=(done, max(planned, done)),
        failed=f"{failed[:1].upper()}{errors.brief(failed[1:], 200)}." if failed else "",
        classes=classes,
        chance_loss=math.log(classes) if classes > 1 and _softmax(config) else math.nan,
        rates=rates,
        train_examples=examples.get("train", 0),
        val_examples=examples.get("val", 0),
        train_counts=seen.counts.get("train"),
        val_counts=seen.counts.get("val"),
        clean_train=clean.get("train"),
        clean_val=clean.get("val"),
        test=_test(records, examples.get("test", 0)),
        pictures=seen.pictures,
        ended=ended,
    )


def _curve(records: list[dict[str, Any]], split: str) -> symptoms.Curve:
    rows = [r for r in records if r["split"] == split]

    def column(name: str) -> np.ndarray:
        return np.array([r[name] if is_number(r.get(name)) else math.nan for r in rows], float)

    accuracy = column("accuracy")
    accuracy[~((accuracy >= 0) & (accuracy <= 1))] = math.nan
    return symptoms.Curve(np.array([r["step"] for r in rows], int), column("loss"), accuracy)


def is_number(value: Any) -> bool:
    """Whether a value of a record is a number."""
    if isinstance(value, bool):
        return False
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _softmax(config: dict[str, Any]) -> bool:
    """Whether the loss of a run is the cross entropy of its classes."""
    task = config.get("task") or {}
    return (
        isinstance(task, dict) and task.get("name", "classify") == "classify" and task.get("loss") in (None, "softmax")
    )


def _test(records: Records, examples: int) -> symptoms.Measured | None:
    """Test accuracy of the kept checkpoint, from the summary."""
    for which in ("best", "final"):
        found = records.summary.get(which)
        values = found.get("test") if isinstance(found, dict) else None
        accuracy = values.get("accuracy") if isinstance(values, dict) else None
        if is_number(accuracy) and examples:
            return symptoms.Measured(float(accuracy), examples)  # type: ignore[arg-type]
    return None
