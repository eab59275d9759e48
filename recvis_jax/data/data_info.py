"""What a run knows of its data: classes, shape, preprocessing, and which examples its splits held.

It is written to `data.json` in the run's folder. So a run can be opened, predict and be exported without its data set,
with the class names of its training, and a data set that has changed since is noticed.
"""

from pathlib import Path
from typing import Any, NamedTuple

from recvis_jax import errors, reading
from recvis_jax.data import fields, text
from recvis_jax.data.fields import Field
from recvis_jax.data.sources import Source

FILE = "data.json"
_MOST_PIXELS = 100_000  # most rows or columns of an image in a record


class Split(NamedTuple):
    """A split at the start of the run.

    Attributes:
      split: the split expression.
      examples: number of examples.
      digest: of the data, see `Source.digest`.
    """

    split: str
    examples: int
    digest: str


class DataInfo(NamedTuple):
    """What a run knows of its data.

    Attributes:
      name: of the data set, for messages.
      num_classes: number of classes, 0 for a regression target.
      class_names: one name per class, or empty.
      multi_label: whether an image may have several classes.
      image_shape: (h, w, c) of the model's input in training; (0, 0, 0) without images.
      eval_transform: the host operations of evaluation, see `data.transforms`.
      statistics: mean and standard deviation, by name or as a pair.
      splits: "train", "val", "test" -> the split, for those that the run has.
      fields: of an example, as the data set declares them; empty for runs of earlier versions, of images and labels.
      vocabulary: of texts, learnt from the training split; None without texts.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    multi_label: bool
    image_shape: tuple[int, int, int]
    eval_transform: str
    statistics: Any
    splits: dict[str, Split]
    fields: tuple[Field, ...] = ()
    vocabulary: text.Vocabulary | None = None

    @property
    def labelled(self) -> bool:
        """Whether an example has one label as a whole, as classification and regression need."""
        return not self.fields or any(f.name == "label" for f in self.fields)

    def with_split(self, name: str, expression: str, source: Source | None) -> "DataInfo":
        """Returns a copy with another split recorded; without a source, nothing changes."""
        if source is None:
            return self
        return self._replace(splits=self.splits | {name: Split(expression, source.length, source.digest)})


class Recorded(NamedTuple):
    """What a run recorded of its data, and the folder of the run."""

    info: DataInfo
    folder: Path


def read(folder: Path) -> Recorded | None:
    """Returns what the run in `folder` recorded; None for runs of earlier versions, which recorded nothing.

    Raises:
      BadRequest: the record is damaged; the message names the file and the key.
    """
    path = folder / FILE
    if not path.exists():
        return None
    found = reading.read_json(path, "the run's record of its data")

    def take(of: dict, key: str, *kinds: type, inside: str = "") -> Any:
        where = f"{inside}{key}"
        if key not in of:
            raise errors.BadRequest(f"{path} is damaged: it has no {where!r}.")
        if type(of[key]) not in kinds:
            raise errors.BadRequest(f"{path} is damaged: {where!r} is {str(of[key])[:60]!r}.")
        return of[key]

    names, shape = take(found, "class_names", list), take(found, "image_shape", list)
    count, splits = take(found, "num_classes", int), take(found, "splits", dict)
    found = {"fields": [], **found}  # runs of earlier versions record none
    declared = fields.of_json(take(found, "fields", list), str(path))
    least = 1 if not declared or any(f.kind == "image" for f in declared) else 0
    if len(shape) != 3 or not all(type(n) is int and least <= n <= _MOST_PIXELS for n in shape):
        raise errors.BadRequest(
            f"{path} is damaged: 'image_shape' is {str(shape)[:60]}, not (rows, columns, channels)."
        )
    if count < 0 or not all(type(n) is str for n in names) or (names and len(names) != count):
        raise errors.BadRequest(f"{path} is damaged: {len(names)} names for {count} classes.")
    unknown = set(splits) - {"train", "val", "test"}
    if unknown or "train" not in splits:
        raise errors.BadRequest(f"{path} is damaged: its splits are {', '.join(map(str, splits))[:60] or 'none'}.")
    held = {}
    for name in splits:
        of, inside = take(splits, name, dict, inside="splits."), f"splits.{name}."
        held[name] = Split(
            take(of, "split", str, inside=inside),
            take(of, "examples", int, inside=inside),
            take(of, "digest", str, inside=inside),
        )
        if held[name].examples < 1:
            raise errors.BadRequest(f"{path} is damaged: {inside}examples is {held[name].examples}.")
    info = DataInfo(
        name=take(found, "name", str),
        num_classes=count,
        class_names=tuple(names),
        multi_label=take(found, "multi_label", bool),
        image_shape=tuple(shape),
        eval_transform=take(found, "eval_transform", str),
        statistics=take(found, "statistics", str, list),
        splits=held,
        fields=declared,
        vocabulary=text.of_json(found["vocabulary"], str(path)) if found.get("vocabulary") is not None else None,
    )
    return Recorded(info, folder)


def as_json(info: DataInfo) -> dict[str, Any]:
    """Returns the record as nested dicts of JSON types."""
    splits = {name: split._asdict() for name, split in info.splits.items()}
    vocabulary = {} if info.vocabulary is None else {"vocabulary": text.as_json(info.vocabulary)}
    rest = {k: v for k, v in info._asdict().items() if k != "vocabulary"}
    return rest | {"splits": splits, "fields": fields.as_json(info.fields)} | vocabulary


def differences(old: DataInfo, new: DataInfo) -> list[str]:
    """Returns a phrase for each difference between the data of a run then and now; empty if nothing differs."""
    out = []
    if old.class_names != new.class_names:
        gone = [n for n in old.class_names if n not in new.class_names]
        came = [n for n in new.class_names if n not in old.class_names]
        pairs = (("no longer there", gone), ("new", came))
        found = [f"{what}: {_some(names)}" for what, names in pairs if names]
        out.append(f"classes {'; '.join(found) or 'in another order'}")
    elif old.num_classes != new.num_classes:
        out.append(f"{old.num_classes} classes then, {new.num_classes} now")
    if old.multi_label != new.multi_label:
        out.append(f"{'several classes' if old.multi_label else 'one class'} per image then, not now")
    if old.image_shape != new.image_shape:
        out.append("images of {} then, {} now".format(*("x".join(map(str, i.image_shape)) for i in (old, new))))
    if old.fields and [_meaning(f) for f in old.fields] != [_meaning(f) for f in new.fields]:
        gone, came = ([f.name for f in a if _meaning(f) not in map(_meaning, b)] for a, b in
                      ((old.fields, new.fields), (new.fields, old.fields)))  # fmt: skip
        out.append(f"fields {_some(gone) or 'none'} then, {_some(came) or 'none'} now")
    if old.vocabulary and new.vocabulary and old.vocabulary != new.vocabulary:
        out.append("a vocabulary of {:,} tokens then, another of {:,} now".format(
            *(v.size for v in (old.vocabulary, new.vocabulary))
        ))  # fmt: skip
    for name, was in old.splits.items():
        now = new.splits.get(name)
        if now is None or now.split != was.split:
            continue  # a different split was requested; that is up to the config
        if now.examples != was.examples:
            out.append(f"{name} ({was.split}) had {was.examples:,} examples, now {now.examples:,}")
        elif now.digest != was.digest:
            out.append(f"{name} ({was.split}) holds different examples than then")
    return out


def _meaning(field: Field) -> Field:
    """Returns the part of a field that a model depends on: without the length that it is padded to."""
    return field._replace(most=None if field.most is None else 1)


def check(recorded: Recorded, new: DataInfo, going_on: bool) -> None:
    """Refuses data that differ from the run's.

    Args:
      recorded: what the run recorded.
      new: the data now.
      going_on: whether the run will be trained further, not only evaluated.

    Raises:
      BadRequest: they differ; the message says in what.
    """
    found, folder = differences(recorded.info, new), recorded.folder
    if found:
        remedy = "start a run in another --workdir" if going_on else "use the original data"
        raise errors.BadRequest(
            f"the data {errors.printable(new.name)} changed since the run {folder} began: {'; '.join(found)}. Prepare "
            f"them as they were, or {remedy}; to use them anyway, delete {folder / FILE}."
        )


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return errors.printable(", ".join(n[:40] for n in names[:most])) + more
