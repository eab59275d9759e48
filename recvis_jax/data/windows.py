"""Sliding windows of images with boxed objects, as examples for a classifier: the protocol of Oquab et al. 2014.

A window is a square of an image, given in pixels as ymin xmin ymax xmax, ends excluded. `labelled` and `every` turn a
source of images into one of windows: the first for training, the second to score whole images
(`evaluation.window_scores`). A split expression still counts images, so windows of one image are never in two splits.

Reference: Oquab, Bottou, Laptev and Sivic 2014, "Learning and transferring mid-level image representations using
convolutional neural networks", sections 3.2 to 3.4.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from recvis_jax.data import transform_geometry
from recvis_jax.data.sources import Example, Indices, Source
from recvis_jax.errors import BadRequest

SCALES = (1, 1.3, 1.6, 2, 2.4, 2.8, 3.2, 3.6, 4)  # the paper's λ: windows of 1/λ of the image's shorter side
REJECTED = -1
BACKGROUND = "background"

_CHUNK = 256  # images read at a time for their sizes and boxes


def grid(height: int, width: int, scales: Sequence[float] = SCALES, overlap: float = 0.5) -> Int[np.ndarray, "m 4"]:
    """Returns the square windows of an image: at each scale a regular grid from edge to edge.

    Args:
      height, width: of the image, pixels.
      scales: λ >= 1; the windows' side is min(height, width) / λ, rounded.
      overlap: smallest overlap of neighbouring windows in a row or column, a fraction in [0, 1) of their side.

    Raises:
      BadRequest: scales or an overlap out of range, or windows smaller than two pixels.
    """
    if not scales or min(scales) < 1:
        raise BadRequest(f"windows: scales are {list(scales)}; they must be at least 1.")
    if not 0 <= overlap < 1:
        raise BadRequest(f"windows: overlap is {overlap}; it must be in [0, 1).")
    out = []
    for scale in scales:
        side = round(min(height, width) / scale)
        if side < 2:
            raise BadRequest(f"windows: scale {scale} of an image of {height}x{width} is a side of {side} pixels.")
        y, x = np.meshgrid(_starts(height, side, overlap), _starts(width, side, overlap), indexing="ij")
        corner = np.stack([y.ravel(), x.ravel()], 1)
        out.append(np.concatenate([corner, corner + side], 1))
    return np.concatenate(out)


def _starts(length: int, side: int, overlap: float) -> Int[np.ndarray, " n"]:
    """Returns where windows begin along an axis, as few as possible for the overlap."""
    step = max(1, int(side * (1 - overlap) + 1e-9))
    gaps = -(-(length - side) // step)
    # Whole pixels: neighbours are at most (length - side) / gaps apart, rounded up, which is <= step.
    return np.arange(gaps + 1) * (length - side) // max(1, gaps)


def assign(
    windows: Int[np.ndarray, "m 4"],
    boxes: Float[np.ndarray, "n 4"],
    classes: Int[np.ndarray, " n"],
    background: int,
    *,
    of_window: float = 0.2,
    of_object: float = 0.6,
) -> Int[np.ndarray, " m"]:
    """Labels windows P by the boxes B of the objects in their image.

    P has the class of an object if |P ∩ B| >= 0.2 |P| (the object is not too small in the window), |P ∩ B| >= 0.6 |B|
    (most of the object is in the window), and P does not intersect the box of another object. If only the last
    condition fails, the window is `REJECTED`, because it shows an object and more. All others are background: they are
    empty, or show an object that is too small or cut off.

    Args:
      windows, boxes: ymin xmin ymax xmax in pixels.
      classes: of the objects.
      background: the label of background.
      of_window, of_object: the two fractions.
    """
    if not len(boxes):
        return np.full(len(windows), background)
    ends = np.minimum(windows[:, None, 2:], boxes[None, :, 2:]) - np.maximum(windows[:, None, :2], boxes[None, :, :2])
    shared = ends.clip(0).prod(2)  # areas (m n)
    sizes, areas = ((x[:, 2:] - x[:, :2]).prod(1) for x in (windows, boxes))
    # Boxes are float32 fractions of the image: values that differ only by rounding count as equal.
    shown = (shared >= of_window * sizes[:, None] * (1 - 1e-5)) & (shared >= of_object * areas * (1 - 1e-5))
    alone = (shared > 1e-3).sum(1) == 1
    label = np.where(alone, classes[shown.argmax(1)], REJECTED)
    return np.where(shown.any(1), label, background)


def cut(image: UInt8[np.ndarray, "h w c"], windows: Int[np.ndarray, "m 4"], size: int) -> list[np.ndarray]:
    """Returns the windows of an image, each resized to uint8 (size size c) like the host operation `resize`."""
    resize = transform_geometry.resize((size, size))
    return [resize(None, image[top:bottom, left:right]) for top, left, bottom, right in windows.tolist()]


def labelled(
    source: Source,
    *,
    size: int,
    scales: Sequence[float] = SCALES,
    overlap: float = 0.5,
    background: float = 0.1,
    seed: int = 0,
) -> Source:
    """Returns the windows of all images of a source as examples with one class each; the last class is background.

    Args:
      source: images with `objects`.
      size: side of the resized windows, pixels.
      scales, overlap: see `grid`.
      background: the fraction of the background windows that is kept, because there are very many.
      seed: for their choice.

    Raises:
      BadRequest: a source without boxes, a fraction outside [0, 1], or see `grid`.
    """
    _check(source, size)
    if not 0 <= background <= 1:
        raise BadRequest(f"windows: background is {background}; it must be in [0, 1].")
    rows, labels = [], []
    rng = np.random.default_rng(seed)
    for number, example in _examples(source):
        if "objects" not in example:
            raise BadRequest(f"{source.name} has no boxes to label windows with: it lacks the feature 'objects/bbox'.")
        height, width = example["image"].shape[:2]
        places = grid(height, width, scales, overlap)
        boxes = example["objects"]["bbox"] * np.array((height, width, height, width))
        found = assign(places, boxes, example["objects"]["label"], source.num_classes)
        # One draw per window of an image: the choice in one image does not depend on the boxes of others.
        drawn = rng.random(len(places)) < background
        kept = np.flatnonzero((found != REJECTED) & ((found != source.num_classes) | drawn))
        rows.append(np.column_stack([np.full(len(kept), number), places[kept]]))
        labels.append(found[kept])
    table, label = np.concatenate(rows), np.concatenate(labels)
    if not len(table):
        raise BadRequest(f"{source.name} has no windows that show one object, and no background.")
    return _view(source, table, label, size, "windows")._replace(
        num_classes=source.num_classes + 1,
        class_names=(*source.class_names, BACKGROUND) if source.class_names else (),
        multi_label=False,
    )


class Every(NamedTuple):
    """All windows of all images.

    Attributes:
      source: of the windows in the order of the images; a window's `label` is the number of its image.
      labels: of the images, multi-hot float32 (n k).
    """

    source: Source
    labels: Float[np.ndarray, "n k"]


def every(source: Source, *, size: int, scales: Sequence[float] = SCALES, overlap: float = 0.5) -> Every:
    """Returns all windows of all images of a source, to score the images.

    Args:
      source: images with several classes each; boxes are not needed.
      size, scales, overlap: see `labelled`.

    Raises:
      BadRequest: a source of another kind, or see `grid`.
    """
    _check(source, size)
    rows, labels = [], []
    for number, example in _examples(source):
        height, width = example["image"].shape[:2]
        places = grid(height, width, scales, overlap)
        rows.append(np.column_stack([np.full(len(places), number), places]))
        labels.append(example["label"])
    table = np.concatenate(rows)
    view = _view(source, table, table[:, 0], size, "all windows")
    return Every(view._replace(num_classes=source.length, class_names=(), multi_label=False), np.stack(labels))


def _check(source: Source, size: int) -> None:
    if not source.multi_label:
        raise BadRequest(f"windows need images with several labels each; {source.name} has one class per image.")
    if not 1 <= size <= 4096:
        raise BadRequest(f"windows: size is {size}; it must be a number of pixels from 1 to 4,096.")


def _examples(source: Source) -> Iterator[tuple[int, Example]]:
    for first in range(0, source.length, _CHUNK):
        numbers = np.arange(first, min(first + _CHUNK, source.length))
        yield from zip(numbers.tolist(), source.read(numbers), strict=True)


def _view(source: Source, rows: np.ndarray, labels: np.ndarray, size: int, what: str) -> Source:
    """Returns a source of windows, given as rows (n 5): number of the image, and window."""
    labels = labels.astype(np.int32)

    def read(indices: Indices) -> list[Example]:
        indices = np.asarray(indices, int)
        images, place = np.unique(rows[indices, 0], return_inverse=True)
        out: list[Any] = [None] * len(indices)
        for k, example in enumerate(source.read(images)):  # each image is read once
            here = np.flatnonzero(place == k)
            for i, picture in zip(here, cut(example["image"], rows[indices[here], 1:], size), strict=True):
                out[i] = {"image": picture, "label": labels[indices[i]]}
        return out

    return source._replace(
        name=f"{source.name} ({what} of {size}x{size})",
        length=len(rows),
        read=read,
        image_shape=(size, size, source.image_shape[2]),
        declared=(),
        digest=f"{source.digest}+{zlib.crc32(rows.tobytes() + labels.tobytes()):08x}+{size}",
    )
