"""Data sets from what is in memory: arrays of images, examples with declared fields, texts and their translations."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recvis_jax import errors
from recvis_jax.data import data_info, pipeline, texts
from recvis_jax.data.fields import Field, check, image_and_label, stack, unpadded
from recvis_jax.data.opened import Data, assemble, first_shape, hosts
from recvis_jax.data.sources import Indices, NoSplit, Source, parts_of
from recvis_jax.data.text import Vocabulary

Held = float | tuple[Any, Any] | None


def from_arrays(
    images: Any,
    labels: Any,
    *,
    val: Held = None,
    test: Held = None,
    class_names: Sequence[str] = (),
    augment: str = "",
    transform: str = "",
    eval_transform: str = "",
    statistics: str | tuple = "measured",
    seed: int = 0,
    name: str = "arrays",
) -> Data:
    """Makes a data set from arrays, which stay in memory.

    Args:
      images: (n h w c) or (n h w); uint8, or float in [0, 1].
      labels: classes (n), integers from 0; or multi-hot (n k) of 0 and 1; or numbers (n), float, for regression.
      val, test: data for validation and for testing: a share of the examples, drawn with `seed`, or a pair (images,
        labels); None for no such split.
      class_names: one name per class.
      augment: device operations on training batches, such as "pad_crop(2)|flip"; see `data.augment.OPERATIONS`.
      transform, eval_transform: host operations of training and evaluation; see `data.transforms.OPERATIONS`.
      statistics: mean and standard deviation for the normalisation of images, by name (`data.augment.STATISTICS`) or as
        a pair; "measured" takes those of the training images, per channel.
      seed: for the draw of `val` and `test`.
      name: for messages.

    Raises:
      BadRequest: shapes, types or values that do not fit; the message says what would fit.

    Example:
      >>> data = from_arrays(np.zeros((100, 8, 8), np.uint8), np.arange(100) % 10, val=0.1)
      >>> data.train.length, data.val.length, data.info.num_classes, data.info.image_shape
      (90, 10, 10, (8, 8, 1))
    """
    images, labels = _checked(images, labels, "images", "labels")
    kinds = _kind(labels)
    count = len(class_names) or (
        labels.shape[1] if kinds == "multi" else int(labels.max()) + 1 if kinds == "class" else 0
    )
    if kinds != "number" and class_names and count < (labels.shape[1] if kinds == "multi" else int(labels.max()) + 1):
        raise errors.BadRequest(f"labels reach {labels.max()}, and class_names has {len(class_names)} names.")
    parts, rows = {}, np.random.default_rng(seed).permutation(len(images))
    for split, held in (("test", test), ("val", val)):
        if held is None:
            continue
        if isinstance(held, tuple) and len(held) == 2:
            parts[split] = _checked(*held, f"{split} images", f"{split} labels")
            continue
        cut = _cut(split, held, len(images), len(rows))
        parts[split] = (images[rows[:cut]], labels[rows[:cut]])
        rows = rows[cut:]
    parts["train"] = (images, labels) if len(rows) == len(images) else (images[np.sort(rows)], labels[np.sort(rows)])
    if statistics == "measured":
        statistics = _measure(parts["train"][0])
    sources = {s: _source(f"{name}/{s}", s, *p, count, tuple(class_names), kinds) for s, p in parts.items()}
    return _opened(name, sources, transform, eval_transform, augment, statistics)


def from_examples(
    examples: Sequence[Mapping[str, Any]],
    fields: Sequence[Field],
    *,
    val: float | Sequence[Mapping[str, Any]] | None = None,
    test: float | Sequence[Mapping[str, Any]] | None = None,
    class_names: Sequence[str] = (),
    augment: str = "",
    transform: str = "",
    eval_transform: str = "",
    visible: float = 0.0,
    statistics: str | tuple = "none",
    buckets: Mapping[str, Any] | None = None,
    seed: int = 0,
    name: str = "examples",
) -> Data:
    """Makes a data set from examples with any declared fields: boxes, masks, words, ... They stay in memory.

    Args:
      examples: each with a value for every field; fields of varying length are not padded yet.
      fields: the declaration; see `data.fields.Field`.
      val, test: data for validation and for testing: a share of the examples, drawn with `seed`, or examples; None for
        no such split.
      class_names: one name per class, for fields of kind "label".
      augment, transform, eval_transform, visible, buckets: see `data.opened.open_data`.
      statistics: mean and standard deviation of images, by name or as a pair.
      seed: for the draw of `val` and `test`.
      name: for messages.

    Raises:
      BadRequest: an example that does not fit the declaration; the message says which.

    Example:
      >>> words = Field("words", "tokens", (None,), "int32", most=4)
      >>> data = from_examples([{"words": [k] * (1 + k % 4)} for k in range(20)], [words], val=0.2)
      >>> data.train.length, data.val.length
      (16, 4)
      >>> batch = next(iter(data.batches(8)))
      >>> batch["words"].shape, batch["words_mask"].dtype.name
      ((8, 4), 'bool')
    """
    declared = tuple(fields)
    check(declared)
    parts = _shared(examples, {"test": test, "val": val}, seed)
    count = len(class_names) or _classes(declared, parts["train"])
    sources = {s: _of_examples(f"{name}/{s}", s, p, declared, count, tuple(class_names)) for s, p in parts.items()}
    return _opened(name, sources, transform, eval_transform, augment, statistics, visible, buckets)


def from_texts(
    pairs: Sequence[Any],
    *,
    val: float | Sequence[Any] | None = None,
    test: float | Sequence[Any] | None = None,
    text: Mapping[str, Any] | None = None,
    buckets: Mapping[str, Any] | None = None,
    seed: int = 0,
    name: str = "texts",
) -> Data:
    """Makes a data set from texts and their translations, which stay in memory.

    Args:
      pairs: (text, translation).
      val, test: data for validation and for testing: a share of the pairs, drawn with `seed`, or pairs; None for no
        such split.
      text: how texts become tokens, keys of `data.texts.Texts`, such as {"kind": "bpe", "tokens": 400, "most": 20}. The
        vocabulary is learnt from the training pairs alone.
      buckets: see `data.opened.open_data`.
      seed: for the draw of `val` and `test`.
      name: for messages.

    Raises:
      BadRequest: no pairs, a pair that is not two texts, or an empty text; an unknown key of `text`.

    Example:
      >>> data = from_texts([("one cat", "eine Katze"), ("two cats", "zwei Katzen")] * 5, test=0.2)
      >>> data.train.length, [f.name for f in data.info.fields]
      (8, ['source', 'target'])
      >>> data.info.vocabulary.pieces(data.train.read([0])[0]["target"])
      ['eine', '␣Katze', '<end>']
    """
    errors.check_kwargs(texts.Texts, text or {}, "text")
    how = texts.Texts(**(text or {}))
    shares = _shared(list(pairs), {"test": test, "val": val}, seed)
    raw = {split: texts.of_pairs(f"{name}/{split}", split, rows) for split, rows in shares.items()}
    vocabulary = texts.vocabulary_of(raw["train"], how)
    there = {split: texts.as_tokens(source, vocabulary, how, split == "train") for split, source in raw.items()}
    return _opened(name, there, "", "", "", "none", buckets=buckets, vocabulary=vocabulary)


def _shared(examples: Sequence[Any], held: Mapping[str, Any], seed: int) -> dict[str, list[Any]]:
    """Returns {split: examples}: those given, or a share that is drawn; the rest is "train", in order."""
    parts: dict[str, list[Any]] = {}
    rows = np.random.default_rng(seed).permutation(len(examples))
    for split, part in held.items():
        if isinstance(part, int | float):
            cut = _cut(split, part, len(examples), len(rows))
            parts[split] = [examples[i] for i in rows[:cut]]
            rows = rows[cut:]
        elif part is not None:
            parts[split] = list(part)
    return {**parts, "train": [examples[i] for i in np.sort(rows)]}


def _cut(split: str, held: Any, count: int, left: int) -> int:
    """Returns how many examples a share holds."""
    if isinstance(held, bool) or not isinstance(held, int | float) or not 0 < held < 1:
        raise errors.BadRequest(
            f"{split} is {errors.shown(held)}; it takes a share between 0 and 1, or a pair (images, labels)."
        )
    cut = round(held * count)
    if not 0 < cut < left:
        raise errors.BadRequest(f"{split}={held} of {count} examples leaves one side empty.")
    return cut


def _classes(fields: Sequence[Field], examples: Sequence[Mapping[str, Any]]) -> int:
    """Returns the number of classes, from the largest label; 0 without labels, or if labels are numbers."""
    names = [f.name for f in fields if f.kind == "label" and np.dtype(f.dtype).kind in "iu"]
    found = [int(np.max(e[n], initial=-1)) for e in examples for n in names if n in e]
    return 1 + max(found, default=-1)


def _of_examples(
    name: str,
    split: str,
    examples: Sequence[Mapping[str, Any]],
    fields: tuple[Field, ...],
    count: int,
    names: tuple[str, ...],
) -> Source:
    if not examples:
        raise errors.BadRequest(f"{name} has no examples.")
    kept, digest = [], hashlib.sha256()
    for k, example in enumerate(examples):
        one = unpadded(stack([example], fields, f"{name}, example {k}"), fields)
        kept.append(one)
        for field in fields:
            digest.update(repr((field.name, one[field.name].shape)).encode())
            digest.update(np.ascontiguousarray(one[field.name]).tobytes())
    image = next((f.shape for f in fields if f.name == "image"), (0, 0, 0))
    source = Source(
        name, len(kept), lambda indices: [dict(kept[i]) for i in np.asarray(indices, int)], image, count, names,
        ((split, 0, len(kept)),), digest=digest.hexdigest()[:16], declared=fields,
    )  # fmt: skip
    for one in kept:
        for field in fields:
            if field.kind == "label":
                pipeline.check_labels(one[field.name], source)
    return source


def _checked(images: Any, labels: Any, what: str, of: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise errors.BadRequest(f"{what} have shape {images.shape}; they must be (n h w c) or (n h w), n > 0.")
    if images.dtype.kind == "f":
        images = images.astype(np.float32, copy=False)
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise errors.BadRequest(
                f"{what} are {images.dtype} from {low:g} to {high:g}; give uint8 from 0 to 255, or floats from 0 to 1."
            )
    elif images.dtype != np.uint8:
        raise errors.BadRequest(
            f"{what} are {images.dtype}; give uint8 from 0 to 255 ({what}.astype(np.uint8)), or floats from 0 to 1."
        )
    if labels.ndim not in (1, 2) or len(labels) != len(images):
        raise errors.BadRequest(
            f"{of} have shape {labels.shape} for {len(images)} {what}; they must be ({len(images)},) classes or "
            f"numbers, or ({len(images)}, k) multi-hot."
        )
    if labels.dtype.kind not in "iufb":
        raise errors.BadRequest(
            f"{of} are {labels.dtype}; they must be integers from 0: names, labels = np.unique(labels, "
            "return_inverse=True)."
        )
    return images, labels


def _kind(labels: np.ndarray) -> str:
    if labels.ndim == 2:
        if not np.isin(labels, (0, 1)).all():
            raise errors.BadRequest("labels with two axes must be multi-hot, made of 0 and 1.")
        return "multi"
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise errors.BadRequest("labels hold a number that is not finite.")
        return "number"
    if labels.min() < 0:
        raise errors.BadRequest(f"labels reach down to {labels.min()}; classes are integers from 0.")
    return "class"


def _measure(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel, on the scale of [0, 1], from at most 10,000 images."""
    some = images[:: max(1, len(images) // 10_000)]
    scale = 255.0 if some.dtype == np.uint8 else 1.0
    mean, std = (np.asarray(f(some, (0, 1, 2), dtype=np.float64)) / scale for f in (np.mean, np.std))
    return tuple(np.round(mean, 6).tolist()), tuple(np.maximum(np.round(std, 6), 1e-3).tolist())


def _source(
    name: str, split: str, images: np.ndarray, labels: np.ndarray, count: int, names: tuple[str, ...], kind: str
) -> Source:
    labels = labels.astype(np.int32 if kind == "class" else np.float32)
    shape, n = images.shape[1:], len(images)
    declared = (Field("image", "image", shape, str(images.dtype)), image_and_label(shape, count, kind == "multi")[1])

    def read(indices: Indices) -> list[dict[str, Any]]:
        return [{"image": images[i], "label": labels[i]} for i in np.asarray(indices, int)]

    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(labels.tobytes())
    return Source(
        name, n, read, shape, count, names, ((split, 0, n),), kind == "multi", digest.hexdigest()[:16], declared
    )


def _opened(
    name: str,
    there: dict[str, Source],
    transform: str,
    eval_transform: str,
    operations: str,
    statistics: Any,
    visible: float = 0.0,
    buckets: Mapping[str, Any] | None = None,
    vocabulary: Vocabulary | None = None,
) -> Data:
    """Returns the data set made of sources that are in memory."""
    train = there["train"]
    host, eval_host = hosts(transform, eval_transform, train.fields, visible, "data")
    shape = first_shape(train, host if transform else None, "data")
    if "val" in there and there["val"].image_shape[2] != train.image_shape[2]:
        raise errors.BadRequest(f"val images have {there['val'].image_shape[2]} channels, the others {shape[2]}.")
    splits = {s: data_info.Split(s, source.length, source.digest) for s, source in there.items()}
    info = data_info.DataInfo(
        name, train.num_classes, train.class_names, train.multi_label, shape, eval_transform, statistics, splits,
        train.fields, vocabulary,
    )  # fmt: skip

    def part(expression: str, which: str = "") -> Source:
        parts = parts_of(expression, {s: source.length for s, source in there.items()}, name)
        if len(parts) > 1:
            raise NoSplit(f"{name}: the split {expression!r} has several parts; arrays are read from one.")
        split, low, high = parts[0]
        source = there[split]
        return source._replace(
            name=f"{name}/{expression}", length=high - low, read=lambda ix: source.read(np.asarray(ix, int) + low),
            parts=parts, digest=f"{source.digest}[{low}:{high}]",
        )  # fmt: skip

    return assemble(
        info, train, there.get("val"), host, eval_host, open=part, named=there.get,
        test_split="test" if "test" in there else None, operations=operations, visible=visible, buckets=buckets,
        where="data",
    )  # fmt: skip
