"""What annotated pictures have in common in all formats: boxes, masks and points of the objects in each.

The readers (`coco`, `voc`, `yolo`) convert their format to `Annotations`. Coordinates are pixels, x to the right, y
down, and the pixel in row i and column j covers [j, j + 1) x [i, i + 1). COCO's boxes follow this already, VOC counts
from 1 and includes the last pixel, YOLO writes fractions.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from recvis_jax.errors import BadRequest, printable

_SMALLEST = 1e-3  # rows or columns of a box, pixels; smaller boxes show nothing


class Thing(NamedTuple):
    """One object of a picture.

    Attributes:
      label: number of its class.
      box: x0 y0 x1 y1 in pixels.
      mask: polygons (each rows of x y) or `Runs`; None if there is none.
      points: (k, 3) x y and visibility (0 unlabelled, 1 hidden, 2 visible); None if there are none.
      crowd: whether it stands for many objects; detectors neither learn it nor are evaluated on it.
      difficult: whether a detector may miss it (VOC's flag).
      area: in pixels; of the mask if there is one.
    """

    label: int
    box: tuple[float, float, float, float]
    mask: Any = None
    points: tuple[tuple[float, float, float], ...] | None = None
    crowd: bool = False
    difficult: bool = False
    area: float = 0.0


class Runs(NamedTuple):
    """A mask as lengths of runs, column by column; the first run is of zeros."""

    size: tuple[int, int]
    counts: tuple[int, ...]


class Picture(NamedTuple):
    """One picture.

    Attributes:
      path: of its file.
      size: rows and columns according to the annotation, None if it does not tell.
      things: the objects in it.
      id: its number in the annotation file, None if it has none.
    """

    path: Path
    size: tuple[int, int] | None
    things: tuple[Thing, ...]
    id: int | None = None


class Annotations(NamedTuple):
    """One split.

    Attributes:
      classes: names; the index is the label.
      pictures: the annotated pictures, including those annotated as empty.
      points: names of the points of an object, in order; empty if there are none.
      pairs: points that are swapped in a mirrored picture.
      notes: sentences on what was repaired or left out.
      ids: numbers of the classes in the files, which may have gaps; empty for 0, 1, ...
    """

    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    points: tuple[str, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()


class Mended:
    """Counts what a reader repaired or left out, and keeps the first place of each."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, what: str, where: str) -> None:
        count, first = self._found.get(what, (0, where))
        self._found[what] = (count + 1, first)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"{count:,} {what}, such as {first}" for what, (count, first) in self._found.items())


def number(value: Any, what: str, where: str) -> float:
    """Returns a finite number; `BadRequest` for anything else, naming `where`."""
    try:
        found = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if not np.isfinite(found) or abs(found) > 1e7:
        raise BadRequest(f"{where}: {what} is {printable(value)[:40]!r}, not a number of pixels.")
    return found


def box_within(
    box: Sequence[float], size: tuple[int, int] | None, where: str, mended: Mended
) -> tuple[float, float, float, float] | None:
    """Clips a box to its picture; None if nothing of it remains, which is counted.

    Args:
      box: x0 y0 x1 y1.
      size: rows and columns, None if unknown.
      where: which picture, for notes.
      mended: counts the boxes that were clipped or left out.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    if size:
        rows, columns = size
        clipped = (max(0.0, x0), max(0.0, y0), min(float(columns), x1), min(float(rows), y1))
        if max(abs(a - b) for a, b in zip(clipped, (x0, y0, x1, y1), strict=True)) > 1:  # not just rounding
            mended.add("boxes that reach beyond their picture were clipped", where)
        x0, y0, x1, y1 = clipped
    if x1 - x0 < _SMALLEST or y1 - y0 < _SMALLEST:
        mended.add("boxes without area were left out", where)
        return None
    return x0, y0, x1, y1


def file_below(folder: Path, name: Any, where: str) -> Path:
    """Returns the path of a picture that an annotation names; `BadRequest` if it leads out of the folder."""
    pure = PurePosixPath(str(name).replace("\\", "/"))
    if not isinstance(name, str) or not name or pure.is_absolute() or ".." in pure.parts or "\0" in name:
        raise BadRequest(f"{where}: the file name {printable(name)[:80]!r} is not below {printable(folder)}.")
    return folder / pure


def as_mask(thing: Thing, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Returns the mask of an object; its filled box if it has no mask.

    A pixel belongs to a polygon if its centre lies inside.

    Args:
      thing: the object.
      size: rows and columns of its picture.

    Raises:
      BadRequest: runs of another size.
    """
    if isinstance(thing.mask, Runs):
        if thing.mask.size != size:
            raise BadRequest(f"a mask of {thing.mask.size} in a picture of {size} (rows, columns).")
        values = np.arange(len(thing.mask.counts)) % 2
        return np.repeat(values, thing.mask.counts).reshape(size[::-1]).T.astype(bool)
    polygons = (_corners(thing.box),) if thing.mask is None else thing.mask
    return np.any([_inside(np.asarray(p, np.float64), size) for p in polygons], axis=0)


def _inside(corners: Float[np.ndarray, "n 2"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Returns which pixels' centres lie in a polygon: those with an odd number of its edges to their left."""
    out = np.zeros(size, bool)
    columns = np.arange(size[1]) + 0.5
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        low, high = sorted((y0, y1))
        first, last = (int(np.clip(np.ceil(y - 0.5), 0, size[0])) for y in (low, high))  # centres in [low, high)
        rows = np.arange(first, last)
        if len(rows):
            crossing = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            out[rows] ^= columns > crossing[:, None]
    return out


def boxes_of(things: Sequence[Thing]) -> Float[np.ndarray, "n 4"]:
    """Returns x0 y0 x1 y1 of objects; shape (0 4) if there are none."""
    return np.array([t.box for t in things], np.float32).reshape(-1, 4)


def _corners(box: tuple[float, float, float, float]) -> tuple[tuple[float, float], ...]:
    x0, y0, x1, y1 = box
    return (x0, y0), (x1, y0), (x1, y1), (x0, y1)
