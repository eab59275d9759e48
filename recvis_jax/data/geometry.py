"""Geometric transforms of an image together with everything that lies in it: boxes, masks, points, maps.

A transform is drawn once and is a `View`: which window of the image is looked at, how large it becomes, and whether it
is mirrored. One view moves every spatial field of an example, so that they cannot come apart. Crops, padding, resizing
and flips are views, and views compose.

Coordinates: x to the right, y down, in pixels; the pixel in row i and column j covers [j, j + 1) x [i, i + 1). A
mirrored x becomes w - x, both for edges of boxes and for points.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Shaped

from recvis_jax.data.fields import Field
from recvis_jax.errors import BadRequest

Example = dict[str, Any]


class View(NamedTuple):
    """What is seen of an image, in its pixels.

    Attributes:
      window: (x0, y0, x1, y1) of what is seen, whole numbers; it may reach beyond the image, which is then padded.
      size: (rows, columns) that the window becomes.
      mirrored: whether left and right are exchanged afterwards.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    mirrored: bool = False

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels after for each pixel before, along x and y."""
        x0, y0, x1, y1 = self.window
        return self.size[1] / (x1 - x0), self.size[0] / (y1 - y0)


def whole(height: int, width: int) -> View:
    """The image as it is."""
    return View((0, 0, width, height), (height, width))


def flip(height: int, width: int) -> View:
    """Exchanges left and right."""
    return whole(height, width)._replace(mirrored=True)


def resize(height: int, width: int, size: tuple[int, int]) -> View:
    """Makes an image of `size` (rows, columns) of all of it."""
    return whole(height, width)._replace(size=size)


def crop(top: int, left: int, rows: int, columns: int) -> View:
    """Cuts a window out; where it reaches beyond the image it is padded."""
    return View((left, top, left + columns, top + rows), (rows, columns))


def pad(height: int, width: int, bottom: int, right: int) -> View:
    """Adds rows below and columns to the right, as detection pads images to one size."""
    return crop(0, 0, height + bottom, width + right)


def move_boxes(
    boxes: Float[np.ndarray, "n 4"], view: View, visible: float = 0.0
) -> tuple[Float[np.ndarray, "m 4"], np.ndarray]:
    """Moves boxes, clips them to what is seen, and drops those of which too little is left.

    Args:
      boxes: x0 y0 x1 y1 in pixels.
      view: of the image.
      visible: smallest share of its area that must be inside for a box to be kept; one of which nothing is inside is
        always dropped.

    Returns:
      The boxes that are kept, in pixels of the view, and which they are (n) bool.

    Example:
      >>> move_boxes(np.array([[2.0, 2.0, 6.0, 6.0], [8.0, 8.0, 9.0, 9.0]]), crop(0, 0, 4, 4))[0].tolist()
      [[2.0, 2.0, 4.0, 4.0]]
    """
    moved = _move(boxes.reshape(-1, 2, 2), view)
    moved = np.concatenate([moved.min(1), moved.max(1)], 1)  # mirrored, left and right are exchanged
    rows, columns = view.size
    clipped = moved.clip(0, [columns, rows, columns, rows])
    area, inside = ((b[:, 2:] - b[:, :2]).prod(1) for b in (moved, clipped))
    kept = (inside > 0) & (inside >= visible * area * (1 - 1e-6))
    return clipped[kept].astype(boxes.dtype), kept


def move_points(
    points: Float[np.ndarray, "n k 3"], view: View, pairs: Sequence[tuple[int, int]] = ()
) -> Float[np.ndarray, "n k 3"]:
    """Moves points; those that leave the image become unlabelled (x = y = visibility = 0), as COCO writes them.

    Args:
      points: x y in pixels and visibility.
      view: of the image.
      pairs: points that exchange their places in a mirrored image, as the left and the right eye.
    """
    place, (x0, y0, x1, y1) = points[..., :2], view.window
    there = (points[..., 2] > 0) & ((place >= (x0, y0)) & (place < (x1, y1))).all(-1)
    out = np.concatenate([_move(place, view), points[..., 2:]], -1) * there[..., None]
    if view.mirrored and pairs:
        order = np.arange(points.shape[1])
        for a, b in pairs:
            order[[a, b]] = order[[b, a]]
        out = out[:, order]
    return out.astype(points.dtype)


def move_pixels(
    image: Shaped[np.ndarray, "h w *c"], view: View, fill: float = 0, nearest: bool = False
) -> Shaped[np.ndarray, "p q *c"]:
    """Returns what the view shows of an image or of a map.

    Args:
      image: (h w) or (h w c).
      view: of it.
      fill: value of what lies beyond it.
      nearest: takes the nearest pixel, as classes must; otherwise averages where it shrinks and is bilinear where it
        grows.
    """
    x0, y0, x1, y1 = view.window
    height, width = image.shape[:2]
    out = image[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
    edges = [(max(0, -y0), max(0, y1 - max(height, y0))), (max(0, -x0), max(0, x1 - max(width, x0)))]
    if any(map(any, edges)):
        edges = [(min(a, n), min(b, n)) for (a, b), n in zip(edges, (y1 - y0, x1 - x0), strict=True)]
        out = np.pad(out, [*edges, *[(0, 0)] * (image.ndim - 2)], constant_values=fill)
    if out.shape[:2] != view.size:
        if nearest:  # centres of pixels, as torch's "nearest-exact"; OpenCV's nearest takes their corners
            rows, columns = (
                ((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(out.shape, view.size, strict=False)
            )
            out = out[rows[:, None], columns]
        else:
            smaller = view.size[0] * view.size[1] < out.shape[0] * out.shape[1]
            way = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            out = cv2.resize(np.ascontiguousarray(out), view.size[::-1], interpolation=way).reshape(
                *view.size, *image.shape[2:]
            )
    return np.ascontiguousarray(out[:, ::-1] if view.mirrored else out)


def apply(
    example: Example,
    view: View,
    fields: Sequence[Field],
    *,
    fill: float = 0,
    fills: Mapping[str, float] | None = None,
    visible: float = 0.0,
    pairs: Sequence[tuple[int, int]] = (),
    rows_of: Mapping[str, Sequence[str]] | None = None,
) -> Example:
    """Moves every spatial field of an example by one view.

    Args:
      example: its values by name.
      view: what is seen of the image.
      fields: what the values are; those that do not lie in the image stay as they are.
      fill: value of what lies beyond the image.
      fills: the same for fields by name, as the label to be ignored of a map; 0 for maps and masks that are not named.
      visible: see `move_boxes`.
      pairs: see `move_points`.
      rows_of: boxes -> further fields with a row a box (labels, masks, points), which are dropped with it.

    Raises:
      BadRequest: a row a box is declared, and their numbers differ.
    """
    out = dict(example)
    for field in fields:
        value = example[field.name]
        own = (fills or {}).get(field.name, 0)
        if field.kind == "image":
            out[field.name] = move_pixels(value, view, fill)
        elif field.kind == "video":
            out[field.name] = np.stack([move_pixels(frame, view, fill) for frame in value])
        elif field.kind == "map":
            classes = np.dtype(field.dtype).kind in "iub"
            out[field.name] = move_pixels(value, view, own, nearest=classes)
        elif field.kind == "masks":
            moved = [move_pixels(mask, view, own, nearest=True) for mask in value]
            out[field.name] = np.stack(moved) if moved else np.zeros((0, *view.size), value.dtype)
        elif field.kind == "points":
            out[field.name] = move_points(value, view, pairs)
    for field in fields:
        if field.kind == "boxes":
            out[field.name], kept = move_boxes(np.asarray(example[field.name]), view, visible)
            for other in (rows_of or {}).get(field.name, ()):
                if len(out[other]) != len(kept):
                    raise BadRequest(f"{len(out[other])} {other} beside {len(kept)} {field.name}.")
                out[other] = np.asarray(out[other])[kept]
    return out


def _move(points: Float[np.ndarray, "*n 2"], view: View) -> Float[np.ndarray, "*n 2"]:
    out = (points.astype(np.float64) - view.window[:2]) * view.scale
    if view.mirrored:
        out[..., 0] = view.size[1] - out[..., 0]
    return out
