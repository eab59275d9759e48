"""Sources: random access to the examples of one split, decoded, without TensorFlow."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recvis_jax import errors
from recvis_jax.data import DATASETS, image_file, mock, objects, writing
from recvis_jax.data.fields import Field, image_and_label, of_json
from recvis_jax.data.prepared import digest_of, feature_of, find_builder, first_line, prepare_hint

Example = dict[str, Any]
Indices = Sequence[int] | np.ndarray


_NO_BOXES = "{} has no boxed objects, but data.fields and data.most_objects are only for such data sets."


class NoSplit(errors.BadRequest):
    """A data set has no such split."""


class Source(NamedTuple):
    """One split of a data set.

    Attributes:
      name: data set and split, for messages.
      length: number of examples.
      read: indices -> examples, each a dict with a value for every field; most often `image` uint8 (h w c) and `label`
        (int, multi-hot float or float). If the data set has boxed objects, also `objects`: `bbox` (n 4), ymin xmin ymax
        xmax in [0, 1], and `label` (n).
      image_shape: (h, w, c); h and w are None if images differ in size. (0, 0, 0) without images.
      num_classes: number of classes, 0 for a regression target.
      class_names: one name per class.
      parts: (split, first, last + 1) of every range of examples in the split expression.
      multi_label: whether `label` is a multi-hot vector.
      digest: hash of the data set's description and the sizes of its files; it changes with the examples.
      declared: the fields of an example; empty means an image and its label, as the attributes above describe them.
      notes: sentences on examples or objects that are left out.
    """

    name: str
    length: int
    read: Callable[[Indices], list[Example]]
    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    class_names: tuple[str, ...]
    parts: tuple[tuple[str, int, int], ...]
    multi_label: bool = False
    digest: str = ""
    declared: tuple[Field, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of an example, which determine how batches are stacked."""
        return self.declared or image_and_label(self.image_shape, self.num_classes, self.multi_label)


def default_data_dir() -> Path:
    """Returns `$RECVIS_DATA_DIR`, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    path = os.environ.get("RECVIS_DATA_DIR") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(path).expanduser()


def open_split(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    image_key: str = "image",
    label_key: str = "label",
    fields: Sequence[str] = (),
    most_objects: int = 0,
    mock: int = 0,
) -> Source:
    """Opens one split.

    Args:
      name: a name of `DATASETS`, a tfds data set prepared in `data_dir`, or a folder that was prepared by
        `recvis_jax.prepare`.
      split: a tfds split expression, such as `train[:90%]`.
      data_dir: the folder of prepared data sets; None means `default_data_dir()`.
      image_key: feature that holds the image.
      label_key: feature that holds the label: a class, a sequence of classes (multi-label) or a number. A path such as
        `objects/label` names a nested feature.
      fields: for pictures with objects, names of the requested fields, such as ("boxes", "labels"), see
        `data.objects.declare`. Empty for all, if a data set has objects and no label of the whole picture.
      most_objects: objects per picture that batches are padded to; beyond that, crowds and the smallest objects are
        left out. 0 for the maximum of the data set.
      mock: if not zero, this many artificial examples with the right shapes and classes instead of the real ones.

    Raises:
      BadRequest: the data set does not exist (the message gives the command that prepares it), is stored as tfrecord,
        has no such split or feature, or the split is empty.
    """
    if mock and name in DATASETS and not (fields or most_objects):
        return _mock(name, split, mock)
    if mock:
        real = _declared_of(name, data_dir, image_key, label_key, fields, most_objects)
        return _mock_fields(real, name, split, mock)
    if name in DATASETS and DATASETS[name].embedded:
        if fields or most_objects:
            raise errors.BadRequest(_NO_BOXES.format(name))
        return _digits(split)
    return _tfds(name, split, data_dir, image_key, label_key, fields, most_objects)


def overlap(a: Source, b: Source) -> int:
    """Returns how many examples two splits of one data set share."""
    pairs = ((p, q) for p in a.parts for q in b.parts if p[0] == q[0])
    return sum(max(0, min(p[2], q[2]) - max(p[1], q[1])) for p, q in pairs)


def parts_of(split: str, lengths: dict[str, int], name: str) -> tuple[tuple[str, int, int], ...]:
    """Resolves a tfds split expression to at least one range (split, first, last + 1)."""
    import tensorflow_datasets as tfds

    try:
        infos = [tfds.core.SplitInfo(name=k, shard_lengths=[n], num_bytes=0) for k, n in lengths.items()]
        found = tfds.core.ReadInstruction.from_spec(own_names(split, lengths)).to_absolute({i.name: i for i in infos})
    except Exception as e:
        raise NoSplit(
            f"{name} has no split '{errors.printable(split)[:100]}'; its splits: "
            f"{', '.join(map(errors.printable, lengths))}. ({errors.printable(first_line(e))})"
        ) from e
    ends = ((p.splitname, *slice(p.from_, p.to).indices(lengths[p.splitname])[:2]) for p in found)
    parts = tuple((part, first, last) for part, first, last in ends if first < last)
    if not parts:
        raise errors.BadRequest(f"the split {split!r} of {name} is empty.")
    return parts


def own_names(split: str, there: Iterable[str]) -> str:
    """Returns a split expression with the data set's own names: "val" becomes "validation" if only the latter exists.

    Example:
      >>> own_names("train+val[:50%]", ["train", "validation"])
      'train+validation[:50%]'
    """
    there = set(there)

    def own(found: re.Match[str]) -> str:
        alike = next((row for row in _ALIKE if found[0] in row), ())
        return found[0] if found[0] in there else next((n for n in alike if n in there), found[0])

    return re.sub(r"[A-Za-z_]\w*", own, split)


_ALIKE = (("validation", "val", "valid"), ("train", "training"), ("test", "testing"))  # names of the same split


def rows_of(parts: tuple[tuple[str, int, int], ...], names: Sequence[str]) -> np.ndarray:
    """Returns (split number, index) for each example of `parts`, an int array (n 2)."""
    rows = [(names.index(name), i) for name, first, last in parts for i in range(first, last)]
    return np.asarray(rows, np.int64).reshape(-1, 2)


def _digits(split: str) -> Source:
    """scikit-learn's embedded 1,797 digits of 8x8 in 17 grey levels; one in five is for testing.

    The order is shuffled once with a fixed seed, because the file groups the digits by writer.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise errors.BadRequest("the digits come with scikit-learn: pip install 'recvis_jax[digits]'.") from e
    raw = load_digits()
    order = np.random.default_rng(0).permutation(len(raw.target))
    images = np.round(raw.images[order] * (255 / 16)).astype(np.uint8)[..., None]
    labels = raw.target[order].astype(np.int32)
    cut = 1437
    parts = ((images[:cut], labels[:cut]), (images[cut:], labels[cut:]))
    stretches = parts_of(split, {"train": cut, "test": len(labels) - cut}, "digits")
    rows = rows_of(stretches, ("train", "test"))

    def read(indices: Indices) -> list[Example]:
        return [{"image": parts[s][0][i], "label": parts[s][1][i]} for s, i in rows[np.asarray(indices, int)].tolist()]

    return Source(f"digits/{split}", len(rows), read, (8, 8, 1), 10, tuple("0123456789"), stretches, digest="digits")


class _Declared(NamedTuple):
    """The data set that mock data imitate."""

    fields: tuple[Field, ...]
    num_classes: int
    class_names: tuple[str, ...]
    splits: tuple[str, ...]


def _declared_of(
    name: str, data_dir: str | None, image_key: str, label_key: str, fields: Sequence[str], most_objects: int
) -> _Declared:
    """Returns the fields of a data set: from `DATASETS` if it has boxes there, else from the prepared data set."""
    row = DATASETS.get(name)
    if row and row.boxes:
        known = objects.declare(objects.MOST, channels=row.image_shape[2], masks=row.masks)
        known = tuple(f._replace(shape=row.image_shape) if f.name == "image" else f for f in known)
        chosen = objects.choose(known, fields, most_objects, name)
        names = tuple(str(k) for k in range(row.num_classes))
        return _Declared(chosen, row.num_classes, names, row.splits)
    if row:
        raise errors.BadRequest(_NO_BOXES.format(name))
    try:
        found = open_split(
            name, "train", data_dir=data_dir, image_key=image_key, label_key=label_key, fields=fields,
            most_objects=most_objects,
        )  # fmt: skip
    except errors.BadRequest as e:
        raise errors.BadRequest(f"mock data imitate {', '.join(DATASETS)}, or a prepared data set: {e}") from None
    return _Declared(found.fields, found.num_classes, found.class_names, ("train", "validation", "test"))


def _mock_fields(real: _Declared, name: str, split: str, count: int) -> Source:
    """Artificial examples with the fields of a data set."""
    stretches = parts_of(split, dict.fromkeys(real.splits, count), name)
    rows = rows_of(stretches, real.splits)

    def read(indices: Indices) -> list[Example]:
        seeds = rows[np.asarray(indices, int)].tolist()
        return [mock.example(real.fields, real.num_classes, np.random.default_rng(seed)) for seed in seeds]

    image = next((f.shape for f in real.fields if f.name == "image" and f.shape), (0, 0, 0))
    return Source(
        f"mock {name}/{split}", len(rows), read, image, real.num_classes, real.class_names, stretches, False, "mock",
        real.fields,
    )  # fmt: skip


def _mock(name: str, split: str, count: int) -> Source:
    """Artificial images with the shape and classes of `name`; a class is a mean colour, which a model can learn."""
    row = DATASETS[name]
    stretches = parts_of(split, dict.fromkeys(row.splits, count), name)
    rows = rows_of(stretches, row.splits)
    h, w, c = row.image_shape

    def one(part: int, i: int) -> Example:
        rng = np.random.default_rng((part, i))
        label = int(rng.integers(row.num_classes))
        shape = (h or int(rng.integers(64, 96)), w or int(rng.integers(64, 96)), c)
        image = rng.integers(0, 128, shape)
        offset = 127 * label // max(1, row.num_classes - 1)
        if not row.boxes:
            return {"image": (image + offset).astype(np.uint8), "label": label}
        image[shape[0] // 4 : shape[0] // 2, : shape[1] // 4] += offset
        objects = {"bbox": np.float32([[0.25, 0, 0.5, 0.25]]), "label": np.array([label])}
        return {"image": image.astype(np.uint8), "label": np.eye(row.num_classes)[label], "objects": objects}

    def read(indices: Indices) -> list[Example]:
        return [one(s, i) for s, i in rows[np.asarray(indices, int)].tolist()]

    names = tuple(str(k) for k in range(row.num_classes))
    return Source(
        f"mock {name}/{split}", len(rows), read, row.image_shape, row.num_classes, names, stretches, row.boxes, "mock"
    )


def _tfds(
    name: str,
    split: str,
    data_dir: str | None,
    image_key: str,
    label_key: str,
    fields: Sequence[str],
    most_objects: int,
) -> Source:
    import tensorflow_datasets as tfds

    root = Path(data_dir).expanduser() if data_dir else default_data_dir()
    builder = find_builder(tfds, name, root)
    features = builder.info.features
    inside = getattr(features["objects"], "feature", {}) if "objects" in features.keys() else {}
    boxed = {"bbox", "label"} <= set(inside.keys())
    if (fields or most_objects) and not boxed:
        raise errors.BadRequest(_NO_BOXES.format(name))
    image = feature_of(features, image_key, name)
    stretches = parts_of(split, {k: v.num_examples for k, v in builder.info.splits.items()}, name)
    split = own_names(split, builder.info.splits)
    try:
        data = builder.as_data_source(
            split=tfds.core.ReadInstruction.from_spec(split), decoders={image_key: tfds.decode.SkipDecoding()}
        )
    except NotImplementedError as e:
        raise errors.BadRequest(
            f"{name} in {errors.printable(root)} is stored as tfrecord, which has no random access without "
            f"TensorFlow. {prepare_hint(name, root)}"
        ) from e
    channels = (image.shape or (None, None, 3))[-1] or 3
    notes: tuple[str, ...] = ()
    example: Callable[[dict[str, Any], np.ndarray], Example]
    if fields or most_objects or (boxed and label_key == "label" and "label" not in features.keys()):
        label, multi = inside["label"], False
        record = writing.recorded(Path(builder.data_dir))
        where = errors.printable(Path(builder.data_dir) / writing.RECORD)
        known = of_json(record["fields"], where) if "fields" in record else objects.there(inside, features)
        declared = objects.choose(known, fields, most_objects, name)
        example = objects.reader(declared, bool(most_objects), f"{name}/{split}")
        if most_objects:
            notes = objects.cut_off(record.get("objects"), [part for part, _, _ in stretches], most_objects)
    else:
        label = feature_of(features, label_key, name)
        classes = getattr(label, "num_classes", None) or getattr(getattr(label, "feature", None), "num_classes", 0)
        within = hasattr(features[label_key.split("/")[0]], "feature") and "/" in label_key  # in a sequence of objects
        multi = bool(classes) and (within or len(label.shape or ()) > 0)
        declared, example = (), _labelled(label_key, classes if multi else 0, boxed)

    def read(indices: Indices) -> list[Example]:
        try:
            rows = data.__getitems__([int(i) for i in indices])
        except Exception as e:  # array_record and tfds raise all kinds of errors on damaged files
            where = errors.printable(builder.data_dir)
            raise errors.Failure(f"{name}/{split} in {where} cannot be read: {errors.printable(first_line(e))}") from e
        pairs = zip(indices, rows, strict=True)
        return [example(row, decode(row[image_key], channels, f"example {i} of {name}/{split}")) for i, row in pairs]

    inner = getattr(label, "feature", None)  # of a sequence of classes
    classes = getattr(label, "num_classes", None) or getattr(inner, "num_classes", 0)
    names = getattr(label, "names", None) or getattr(inner, "names", None) or ()
    return Source(
        f"{name}/{split}", len(data), read, tuple(image.shape or (None, None, channels)), int(classes or 0),
        tuple(names), stretches, multi, digest_of(builder), declared, notes,
    )  # fmt: skip


def _labelled(label_key: str, several: int, boxed: bool) -> Callable[[dict[str, Any], np.ndarray], Example]:
    """Returns (row of tfds, decoded image) -> image and label, and the boxed objects if there are any."""
    top, *inner = label_key.split("/")

    def example(row: dict[str, Any], image: np.ndarray) -> Example:
        target = row[top]
        for key in inner:
            target = target[key]
        if several:
            target = np.bincount(np.asarray(target, int), minlength=several).clip(0, 1).astype(np.float32)
        out = {"image": image, "label": target}
        if boxed:
            bbox, kind = (np.asarray(row["objects"][k], t) for k, t in (("bbox", np.float32), ("label", np.int64)))
            out["objects"] = {"bbox": bbox.reshape(-1, 4), "label": kind}
        return out

    return example


def decode(data: bytes | np.ndarray, channels: int, where: str) -> np.ndarray:
    """Decodes an encoded image to uint8 (h w c) with OpenCV; arrays pass through.

    Raises:
      BadRequest: the bytes are empty, not an image in a supported format, or of too many pixels; it names `where`.
    """
    if isinstance(data, np.ndarray):
        return data
    import cv2

    if len(data) == 0:
        raise errors.BadRequest(f"{where} is an image of zero bytes.")
    try:
        known = image_file.is_readable_kind(data)
    except errors.BadRequest as e:
        raise errors.BadRequest(f"{where} {e}.") from None
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION) if known else None
    except cv2.error:
        image = None
    if image is None:
        raise errors.BadRequest(f"{where} does not decode as an image ({len(data)} bytes).")
    return image[..., None] if image.ndim == 2 else image
