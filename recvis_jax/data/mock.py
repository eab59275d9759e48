"""Artificial examples of declared fields, for trials without data; a class is a grey level, which a model can learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from recvis_jax.data.fields import Field

_SIDES = (64, 96)  # of images without a declared size


def example(fields: Sequence[Field], num_classes: int, rng: np.random.Generator) -> dict[str, Any]:
    """Returns one example that fits a declaration.

    Args:
      fields: the declaration; the length of varying fields is between 0 and their maximum, at most ten.
      num_classes: of labels; 0 for numbers.
      rng: random generator; equal states give equal examples.

    Example:
      >>> boxes = Field("boxes", "boxes", (None, 4), "float32", most=3)
      >>> example([Field("image", "image", (8, 8, 3), "uint8"), boxes], 5, np.random.default_rng(0))["image"].shape
      (8, 8, 3)
    """
    image = next((f.shape for f in fields if f.kind in ("image", "video") and f.shape), None)
    h, w = ((n or int(rng.integers(*_SIDES))) for n in (image[-3:-1] if image else (None, None)))
    counts = {f.name: int(rng.integers(min(f.most, 10) + 1)) for f in fields if f.most is not None and not f.of}
    out: dict[str, Any] = {}
    for field in sorted(fields, key=lambda f: bool(f.of)):
        n = counts.get(field.of or field.name)
        rest = field.shape or ()
        shape = (*(() if n is None else (n,)), *(rest if n is None else rest[1:]))
        out[field.name] = _value(field, shape, (h, w), num_classes, rng, out)
    for field in fields:  # the image shows what is to be learned
        if field.kind == "label" and "image" in out and num_classes:
            _paint(out, field, num_classes)
    return {f.name: out[f.name] for f in fields}


def _value(
    field: Field, shape: tuple, size: tuple[int, int], num_classes: int, rng: np.random.Generator, out: dict[str, Any]
) -> np.ndarray:
    h, w = size
    dtype = np.dtype(field.dtype)
    if field.kind in ("image", "video"):
        pixels = rng.integers(0, 128, (*(1 if n is None else n for n in shape[:-3]), h, w, shape[-1] or 3))
        return (pixels if dtype.kind in "iu" else pixels / 255).astype(dtype)
    if field.kind == "boxes":
        corner = rng.integers(0, [w // 2, h // 2], (*shape[:-1], 2))
        return np.concatenate([corner, corner + rng.integers(2, [w // 2, h // 2], corner.shape)], -1).astype(dtype)
    if field.kind == "masks":
        masks = np.zeros((shape[0], h, w), dtype)
        boxes = out[field.of].astype(int).tolist() if field.of else [(0, 0, w, h)] * shape[0]
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[y0:y1, x0:x1] = 1
        return masks
    if field.kind == "points":
        place = rng.uniform(0, [w, h], (*shape[:-1], 2))
        return np.concatenate([place, rng.integers(0, 3, (*shape[:-1], 1))], -1).astype(dtype)
    if field.kind == "frame":
        return np.array([0, 0, w, h], dtype)
    if field.kind == "map":
        return rng.integers(0, num_classes or 2, (h, w)).astype(dtype)
    if field.kind == "label" and num_classes and dtype.kind == "f":  # multi-hot
        return np.eye(num_classes, dtype=dtype)[int(rng.integers(num_classes))]
    if field.kind in ("label", "tokens") and dtype.kind in "iu":
        return rng.integers(0, num_classes or 2, shape).astype(dtype)
    if dtype.kind == "b":
        return np.zeros(shape, bool)
    whole = tuple(1 if n is None else n for n in shape)
    return (rng.integers(0, 100, whole) if dtype.kind in "iu" else rng.random(whole)).astype(dtype)


def _paint(out: dict[str, Any], field: Field, num_classes: int) -> None:
    """Adds the level of the class to the image, or to the boxes that the labels belong to."""
    image = out["image"]
    top = 127 if image.dtype.kind in "iu" else 127 / 255
    step = top / max(1, num_classes - 1)
    if not field.of:
        label = int(np.argmax(out[field.name])) if np.ndim(out[field.name]) else int(out[field.name])
        image += np.asarray(step * label).astype(image.dtype)
        return
    for (x0, y0, x1, y1), label in zip(out[field.of].astype(int), out[field.name], strict=True):
        part = image[y0:y1, x0:x1]
        part[:] = np.minimum(part + step * int(label), 2 * top).astype(image.dtype)
