"""Geometric transforms of an image together with everything that lies in it: boxes, masks, points, maps.

A transform is drawn once and is a `View`: which window of the image is shown, the size of the result, and whether it is
mirrored. One view moves all spatial fields of an example, so they stay aligned. Crops, padding, resizing and flips are
views, and views compose.

Coordinates: x to the right, y down, in pixels; the pixel in row i and column j covers [j, j + 1) x [i, i + 1). A
mirrored x becomes w - x, both for edges of boxes and for points.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped

from recvis_jax.data.fields import Field, spatial
from recvis_jax.errors import BadRequest

Example = dict[str, Any]


class View(NamedTuple):
    """The visible part of an image, in its pixels.

    Attributes:
      window: (x0, y0, x1, y1) of the visible part, whole numbers; it may reach beyond the image, which is then padded.
      size: (rows, columns) of the result.
      mirrored: whether left and right are swapped afterwards.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    mirrored: bool = False

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the result per pixel of the image, along x and y."""
        x0, y0, x1, y1 = self.window
        return self.size[1] / (x1 - x0), self.size[0] / (y1 - y0)


def whole(height: int, width: int) -> View:
    """The image as it is."""
    return View((0, 0, width, height), (height, width))


def flip(height: int, width: int) -> View:
    """Swaps left and right."""
    return whole(height, width)._replace(mirrored=True)


def resize(height: int, width: int, size: tuple[int, int]) -> View:
    """Resizes the whole image to `size` (rows, columns)."""
    return whole(height, width)._replace(size=size)


def crop(top: int, left: int, rows: int, columns: int) -> View:
    """Cuts a window out; beyond the image it is padded."""
    return View((left, top, left + columns, top + rows), (rows, columns))


def pad(height: int, width: int, bottom: int, right: int) -> View:
    """Adds rows below and columns to the right, as detection pads images to one size."""
    return crop(0, 0, height + bottom, width + right)


def move_boxes(
    boxes: Float[np.ndarray, "n 4"], *views: View, visible: float = 0.0
) -> tuple[Float[np.ndarray, "m 4"], Bool[np.ndarray, " n"]]:
    """Moves boxes, clips them to the visible part, and drops those with too little area left.

    Args:
      boxes: x0 y0 x1 y1 in pixels.
      *views: of the image, one after the other. What one view clips does not come back in the next.
      visible: smallest share of a box's area that must be inside in the end for the box to be kept; boxes entirely
        outside are always dropped.

    Returns:
      The kept boxes, in pixels of the last view, and their indices.

    Example:
      >>> move_boxes(np.array([[2.0, 2.0, 6.0, 6.0], [8.0, 8.0, 9.0, 9.0]]), crop(0, 0, 4, 4))[0].tolist()
      [[2.0, 2.0, 4.0, 4.0]]
    """
    uncut = seen = boxes.astype(np.float64)
    for view in views:
        rows, columns = view.size
        uncut, seen = _move_corners(uncut, view), _move_corners(seen, view).clip(0, [columns, rows, columns, rows])
    area, inside = ((b[:, 2:] - b[:, :2]).prod(1) for b in (uncut, seen))
    kept = (inside > 0) & (inside >= visible * area * (1 - 1e-6))
    return seen[kept].astype(boxes.dtype), kept


def move_points(
    points: Float[np.ndarray, "n k 3"], view: View, pairs: Sequence[tuple[int, int]] = ()
) -> Float[np.ndarray, "n k 3"]:
    """Moves points; those that leave the image become unlabelled (x = y = visibility = 0), as COCO writes them.

    Args:
      points: x y in pixels and visibility.
      view: of the image.
      pairs: points that are swapped in a mirrored image, such as the left and the right eye.
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
    """Returns an image or a map as the view shows it.

    Args:
      image: (h w) or (h w c).
      view: of it.
      fill: value beyond the image.
      nearest: takes the nearest pixel, as class maps need; otherwise averages if it shrinks and is bilinear if it
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
        if nearest:  # by pixel centres, like torch's "nearest-exact"; OpenCV's nearest uses corners
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


def apply(example: Example, view: View, fields: Sequence[Field], *, fill: float = 0, visible: float = 0.0) -> Example:
    """Moves all spatial fields of an example by one view.

    Args:
      example: its values by name.
      view: the visible part of the image.
      fields: declarations of the values; fields that do not lie in the image are not changed.
      fill: value beyond the image; beyond maps it is their field's padding, beyond masks 0.
      visible: see `move_boxes`.

    Raises:
      BadRequest: a field should have one row per box, but their numbers differ.

    Example:
      >>> fields = [Field("image", "image", (8, 8, 1), "uint8"), Field("boxes", "boxes", (None, 4), "float32", most=9)]
      >>> example = {"image": np.zeros((8, 8, 1), np.uint8), "boxes": np.float32([[1, 2, 4, 6]])}
      >>> apply(example, flip(8, 8), fields)["boxes"].tolist()
      [[4.0, 2.0, 7.0, 6.0]]
    """
    out = follow(example, [view], fields, visible)
    return out | {f.name: move_pixels(out[f.name], view, fill) for f in fields if f.name == "image"}


def follow(example: Example, views: Sequence[View], fields: Sequence[Field], visible: float = 0.0) -> Example:
    """Moves everything that lies in the image by the views that already moved the image itself.

    Args:
      example: its values by name.
      views: one after the other.
      fields: declarations of the values; the one called "image" is not changed.
      visible: see `move_boxes`.

    Raises:
      BadRequest: see `apply`.
    """
    out = dict(example)
    for field in fields:
        if field.kind == "boxes":
            out[field.name], kept = move_boxes(np.asarray(example[field.name]), *views, visible=visible)
            for other in (f.name for f in fields if f.of == field.name):
                if len(example[other]) != len(kept):
                    raise BadRequest(f"{len(example[other])} {other} for {len(kept)} {field.name}.")
                out[other] = np.asarray(example[other])[kept]
    for view in views:
        for field in spatial(fields):
            if field.kind != "boxes":
                out[field.name] = _move_value(out[field.name], view, field)
    return out


def _move_value(value: Any, view: View, field: Field) -> Any:
    if field.kind == "image":
        return move_pixels(value, view)
    if field.kind == "video":
        return np.stack([move_pixels(frame, view) for frame in value])
    if field.kind == "map":
        return move_pixels(value, view, field.padding, nearest=np.dtype(field.dtype).kind in "iub")
    if field.kind == "masks":
        return np.moveaxis(move_pixels(np.moveaxis(value, 0, -1), view, nearest=True), -1, 0)
    if field.kind == "points":
        return move_points(value, view, field.pairs)
    return _move_corners(np.asarray(value)[None], view)[0].astype(field.dtype)  # the frame


def _move_corners(boxes: Float[np.ndarray, "n 4"], view: View) -> Float[np.ndarray, "n 4"]:
    """Moves boxes, without clipping them."""
    moved = _move(boxes.reshape(-1, 2, 2), view)
    return np.concatenate([moved.min(1), moved.max(1)], 1)  # mirroring swaps left and right


def _move(points: Float[np.ndarray, "*n 2"], view: View) -> Float[np.ndarray, "*n 2"]:
    out = (points.astype(np.float64) - view.window[:2]) * view.scale
    if view.mirrored:
        out[..., 0] = view.size[1] - out[..., 0]
    return out
