"""Boxes, masks and points drawn over a picture, as an array of pixels."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from recvis_jax.errors import BadRequest


def over(
    image: UInt8[np.ndarray, "h w c"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, " labels"] | None = None,
    *,
    names: Sequence[str] = (),
    masks: Bool[np.ndarray, "masks p q"] | None = None,
    points: Float[np.ndarray, "points k 3"] | None = None,
    scale: int = 1,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws objects over a picture; the outline of a box lies inside it, on its first and last pixels.

    Args:
      image: grey or RGB.
      boxes: x0 y0 x1 y1 in pixels.
      labels: class of each (n), which sets its colour; None gives each box its own colour.
      names: of the classes, written into the corners of the boxes if given.
      masks: (n h w), blended over the picture.
      points: (n k 3), x y in pixels and visibility; hidden ones are drawn as rings, unlabelled ones are not drawn.
      scale: a whole number by which the picture is enlarged first, because lines are one pixel wide.

    Raises:
      BadRequest: the number of masks, labels or points is not that of the boxes, or masks do not fit the image.

    Example:
      >>> over(np.zeros((8, 8, 3), np.uint8), np.array([[2.0, 3.0, 6.0, 7.0]]))[:, :, 0].astype(bool).astype(int)[3]
      array([0, 0, 1, 1, 1, 1, 0, 0])
    """
    for what, rows in (("labels", labels), ("masks", masks), ("points", points)):
        if rows is not None and len(rows) != len(boxes):
            raise BadRequest(f"{len(rows)} {what} for {len(boxes)} boxes.")
    if masks is not None and len(masks) and masks.shape[1:] != image.shape[:2]:
        raise BadRequest(f"masks of {masks.shape[1:]} over an image of {image.shape[:2]} (rows, columns).")
    out = np.repeat(image, 3, 2) if image.shape[2] == 1 else image
    out = out.repeat(scale, 0).repeat(scale, 1).copy()
    chosen = [colour(int(k)) for k in (range(len(boxes)) if labels is None else labels)]
    for mask, own in zip(masks if masks is not None else (), chosen, strict=False):
        large = mask.repeat(scale, 0).repeat(scale, 1)
        out[large] = (0.5 * out[large] + 0.5 * np.array(own)).astype(np.uint8)
    for k, (box, own) in enumerate(zip(boxes * scale, chosen, strict=True)):
        x0, y0 = (round(float(v)) for v in box[:2])
        x1, y1 = (max(low + 1, round(float(v))) for low, v in zip((x0, y0), box[2:], strict=True))
        cv2.rectangle(out, (x0, y0), (x1 - 1, y1 - 1), own, 1)
        if names and labels is not None and 0 <= labels[k] < len(names):
            cv2.putText(out, str(names[labels[k]]), (x0 + 2, y0 + 10), cv2.FONT_HERSHEY_PLAIN, 0.7, own, 1)
        for x, y, seen in points[k] if points is not None else ():
            if seen > 0:
                place = (int(x * scale), int(y * scale))
                cv2.circle(out, place, max(1, scale), own, -1 if seen > 1 else 1)
    return out


def colour(number: int) -> tuple[int, int, int]:
    """Returns a bright RGB colour; neighbouring numbers get hues far apart.

    Example:
      >>> colour(0), colour(1)
      ((255, 64, 64), (64, 120, 255))
    """
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 1.0)  # the golden section
    return round(255 * red), round(255 * green), round(255 * blue)
