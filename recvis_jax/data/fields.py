"""The parts of an example: fields that a source declares, and how they are stacked to batches.

A field has a kind, which says what its numbers mean and how a geometric transform of the image moves them, and a shape.
A first axis of varying length is padded to a declared maximum; for such a field NAME a batch also holds `NAME_mask`,
false on the padding.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from recvis_jax.errors import BadRequest, nearest, printable

Kind = Literal["image", "label", "tokens", "boxes", "masks", "points", "map", "number", "video", "frame"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SPATIAL = ("image", "boxes", "masks", "points", "map", "video", "frame")  # move with the image

# Trailing axes of one example by kind; None if the field's own declaration sets the length.
_ENDS: dict[str, tuple[int | None, ...]] = {
    "image": (None, None, None),  # h w c
    "video": (None, None, None, None),  # t h w c
    "boxes": (None, 4),  # n, x0 y0 x1 y1 in pixels, ends excluded
    "points": (None, None, 3),  # n k, x y in pixels and visibility: 0 unlabelled, 1 hidden, 2 visible
    "masks": (None, None, None),  # n h w
    "map": (None, None),  # h w, a class or a number per pixel
    "frame": (4,),  # x0 y0 x1 y1 in pixels: where the whole picture lies
}


class Field(NamedTuple):
    """One named part of an example.

    Attributes:
      name: its name in batches.
      kind: one of `KINDS`. Boxes are (n 4), x0 y0 x1 y1 in pixels with the ends excluded; points (n k 3),
        x y in pixels and a visibility (0 unlabelled, 1 hidden, 2 visible); masks (n h w); a map (h w) has a class or a
        number per pixel; a video is (t h w c). A frame is (4): x0 y0 x1 y1 of the whole picture, which is (0, 0, w, h)
        before any transform and may reach beyond the image after one. It says which pixels are padding, and where a
        prediction lies in the original picture.
      shape: of one example; None for an axis of varying length. Only a varying first axis can be padded. None instead
        of a tuple allows any shape, if it is the same for all examples.
      dtype: its name in numpy.
      most: the length that the first axis is padded to in a batch; None if it does not vary.
      padding: the value of the padding; for a map, the value of pixels beyond the picture.
      of: the field of boxes that this field has one row per box of (their classes, masks, ...). A row follows its box:
        both are dropped together, and the mask of the boxes is the mask of both. Empty for an independent field.
      pairs: points that are swapped in a mirrored image, such as the left and the right eye.
    """

    name: str
    kind: Kind
    shape: tuple[int | None, ...] | None
    dtype: str
    most: int | None = None
    padding: float = 0
    of: str = ""
    pairs: tuple[tuple[int, int], ...] = ()

    @property
    def padded_shape(self) -> tuple[int | None, ...] | None:
        """Shape of one example in a batch."""
        return self.shape if self.most is None or self.shape is None else (self.most, *self.shape[1:])

    @property
    def bytes(self) -> int | None:
        """Bytes of one example in a batch; None if its size varies."""
        shape = self.padded_shape
        if shape is None or None in shape:
            return None
        return math.prod(n or 0 for n in shape) * np.dtype(self.dtype).itemsize

    @property
    def mask_name(self) -> str | None:
        """Name of its mask in a batch; None if nothing is padded."""
        return None if self.most is None else f"{self.of or self.name}_mask"


def image_and_label(
    image_shape: tuple[int | None, int | None, int], num_classes: int, multi_label: bool = False
) -> tuple[Field, Field]:
    """Declares an image and its label, the most common example.

    Args:
      image_shape: (h, w, c); h and w are None if images differ in size.
      num_classes: 0 for a number or a vector of numbers instead of a class.
      multi_label: the label is multi-hot (num_classes).
    """
    image = Field("image", "image", tuple(image_shape), "uint8")
    if num_classes and not multi_label:
        return image, Field("label", "label", (), "int32")
    return image, Field("label", "label", (num_classes,) if multi_label else None, "float32")


def resizable(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Declares the same fields after a host transform, which may change the sizes and channels of spatial fields.

    Example:
      >>> [f.shape for f in resizable(image_and_label((28, 28, 1), 10))]
      [(None, None, None), ()]
    """
    free = {"image": 0, "map": 0, "masks": 1, "video": 1}  # axes that stay as declared
    return tuple(
        f._replace(shape=(*f.shape[: free[f.kind]], *(None for _ in f.shape[free[f.kind] :])))
        if f.kind in free and f.shape
        else f
        for f in fields
    )


def spatial(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Returns the fields that lie in the image, without the image itself.

    Example:
      >>> spatial([*image_and_label((8, 8, 1), 3), Field("boxes", "boxes", (None, 4), "float32", most=9)])[0].name
      'boxes'
    """
    return tuple(f for f in fields if f.kind in SPATIAL and f.name != "image")


def as_json(fields: Sequence[Field]) -> list[dict[str, Any]]:
    """Returns a declaration as JSON types; see `of_json`."""
    return [f._asdict() for f in fields]


def of_json(found: Any, where: str) -> tuple[Field, ...]:
    """Returns the declaration that `as_json` wrote.

    Raises:
      BadRequest: it is not a declaration; the message names `where`.

    Example:
      >>> of_json(as_json(image_and_label((8, 8, 1), 10)), "data.json") == image_and_label((8, 8, 1), 10)
      True
    """
    try:
        rows = [Field(**row) for row in found]
        out = tuple(
            f._replace(
                shape=None if f.shape is None else tuple(f.shape), pairs=tuple((int(a), int(b)) for a, b in f.pairs)
            )
            for f in rows
        )
        numbers = [n for f in out for n in (*(f.shape or ()), f.most) if n is not None]
        good = all(type(n) is int and 0 <= n < 10**9 for n in numbers)
        good = good and all(type(f.name) is str and type(f.of) is str and np.dtype(f.dtype) for f in out)
        if not good or any(type(f.padding) not in (int, float) for f in out):
            raise ValueError
        check(out)
    except (TypeError, ValueError):
        raise BadRequest(f"{where} is damaged: its 'fields' do not declare fields.") from None
    return out


def check(fields: Sequence[Field]) -> None:
    """Refuses declarations that contradict themselves.

    Raises:
      BadRequest: two fields of one name, an unknown kind, a shape that does not fit the kind, or a maximum for a field
        that does not vary.

    Example:
      >>> check([Field("image", "image", (8, 8, 1), "uint8"), Field("boxes", "boxes", (None, 4), "float32", most=20)])
    """
    names = [f.name for f in fields]
    taken = [*names, *{m for f in fields if (m := f.mask_name)}, "mask", "slot"]
    by_name = {f.name: f for f in fields}
    if twice := [n for n in names if taken.count(n) > 1]:
        raise BadRequest(f"the field {twice[0]!r} is declared twice, or has a name that batches reserve.")
    for f in fields:
        if f.kind not in KINDS:
            raise BadRequest(f"field {f.name!r} has the unknown kind {f.kind!r}.{nearest(f.kind, KINDS)}")
        end = _ENDS.get(f.kind)
        if f.shape is None:
            if end or f.most is not None:
                raise BadRequest(f"field {f.name!r} needs a shape; {f.kind} without one cannot be batched.")
            continue
        if end and (len(end) != len(f.shape) or any(e not in (None, s) for e, s in zip(end, f.shape, strict=True))):
            raise BadRequest(f"field {f.name!r} has shape {f.shape}; {f.kind} have {len(end)} axes, as {end}.")
        if f.most is not None and (f.most < 1 or not f.shape or f.shape[0] is not None):
            raise BadRequest(f"field {f.name!r} of shape {f.shape} cannot be padded to {f.most}.")
        boxes = by_name.get(f.of)
        if f.of and (boxes is None or boxes.kind != "boxes" or boxes.most != f.most or boxes is f):
            raise BadRequest(
                f"field {f.name!r} has a row for each of {f.of!r}, which must be boxes with the same maximum."
            )
        if f.most is None and f.kind in ("tokens", "boxes", "masks", "points") and f.shape and f.shape[0] is None:
            raise BadRequest(f"field {f.name!r} varies in length; declare the maximum that it is padded to.")


def stack(examples: Sequence[Mapping[str, Any]], fields: Sequence[Field], where: str = "data") -> dict[str, np.ndarray]:
    """Stacks examples to a batch by the declared fields.

    Args:
      examples: each with a value for every field; undeclared values are left out.
      fields: the declaration.
      where: where the examples come from, for messages.

    Returns:
      {name: (b ...)}, and {name_mask: (b n) bool} for each padded field.

    Raises:
      BadRequest: a field that is missing, differs in shape from the declaration or from other examples, is longer than
        the declared maximum, or is not finite. Nothing is truncated silently.

    Example:
      >>> words = Field("words", "tokens", (None,), "int32", most=3, padding=-1)
      >>> batch = stack([{"words": [5, 6]}, {"words": [7, 8, 9]}], [words])
      >>> batch["words"].tolist(), batch["words_mask"].tolist()
      ([[5, 6, -1], [7, 8, 9]], [[True, True, False], [True, True, True]])
    """
    out: dict[str, np.ndarray] = {}
    for field in sorted(fields, key=lambda f: bool(f.of)):  # boxes before their dependent fields
        values = [_value(example, field, where) for example in examples]
        if field.most is not None and field.mask_name:
            there = np.arange(field.most) < np.array([[len(v)] for v in values])
            if field.of and (out[field.mask_name] != there).any():
                raise BadRequest(f"{where}: an example has different numbers of {field.name} and {field.of}.")
            out[field.mask_name] = there
            values = [_pad(v, field) for v in values]
        shapes = sorted({v.shape for v in values})
        if len(shapes) > 1:
            raise BadRequest(
                f"{where}: {field.name} of different shapes cannot be batched ({shapes[0]} and {shapes[1]}). "
                "Set data.transform and data.eval_transform, such as 'resize_crop(224)'."
            )
        out[field.name] = np.stack(values)
    return out


def unpadded(batch: Mapping[str, np.ndarray], fields: Sequence[Field], row: int = 0) -> dict[str, np.ndarray]:
    """Returns one example of a batch as it was before stacking.

    Example:
      >>> words = Field("words", "tokens", (None,), "int32", most=3)
      >>> unpadded(stack([{"words": [5, 6]}], [words]), [words])["words"].tolist()
      [5, 6]
    """
    out = {}
    for field in fields:
        value = batch[field.name][row]
        out[field.name] = value if field.mask_name is None else value[batch[field.mask_name][row]]
    return out


def _value(example: Mapping[str, Any], field: Field, where: str) -> np.ndarray:
    if field.name not in example:
        there = ", ".join(map(printable, example))
        raise BadRequest(f"{where}: an example has no field {field.name!r}; it has {there or 'none'}.")
    value = np.asarray(example[field.name])
    shape = (None,) * value.ndim if field.shape is None else field.shape
    if value.size == 0 and value.ndim == 1 < len(shape) and shape[0] is None:
        value = value.reshape(0, *(n or 0 for n in shape[1:]))  # an empty list does not show the other axes
    fits = value.ndim == len(shape) and all(d is None or n == d for n, d in zip(value.shape, shape, strict=True))
    if not fits:
        raise BadRequest(f"{where}: {field.name} has shape {value.shape}, but {field.shape} is declared.")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise BadRequest(f"{where}: {field.name} holds a number that is not finite.")
    if field.most is not None and len(value) > field.most:
        raise BadRequest(
            f"{where}: an example has {len(value)} {field.name}, more than the declared maximum of {field.most}."
        )
    dtype = np.dtype(field.dtype)
    if dtype.kind in "iu" and value.dtype != dtype and value.size and not _holds(dtype, value):
        raise BadRequest(f"{where}: {field.name} holds {value.dtype} values that {field.dtype} cannot represent.")
    return value.astype(dtype, copy=False)


def _holds(dtype: np.dtype, value: np.ndarray) -> bool:
    if value.dtype.kind not in "biuf":
        return False
    if value.dtype.kind == "f" and (value != np.round(value)).any():
        return False
    limits = np.iinfo(dtype)
    return bool(limits.min <= value.min() and value.max() <= limits.max)


def _pad(value: np.ndarray, field: Field) -> np.ndarray:
    rest = [(0, 0)] * (value.ndim - 1)
    return np.pad(value, [(0, (field.most or 0) - len(value)), *rest], constant_values=field.padding)
