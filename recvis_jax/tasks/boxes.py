"""Arithmetic of boxes: forms, overlap, and where a picture lies in its image.

A box is x0 y0 x1 y1, ends excluded, unless a name says centred: x y of the centre, width, height. Nothing is rounded.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


def corners(centred: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Returns x0 y0 x1 y1 of boxes given by centre, width and height.

    Example:
      >>> corners(jnp.array([0.5, 0.5, 1.0, 0.5])).tolist()
      [0.0, 0.25, 1.0, 0.75]
    """
    place, size = centred[..., :2], centred[..., 2:]
    return jnp.concatenate([place - size / 2, place + size / 2], -1)


def centred(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Returns centre, width and height of boxes given by their corners.

    Example:
      >>> centred(jnp.array([0.0, 0.25, 1.0, 0.75])).tolist()
      [0.5, 0.5, 1.0, 0.5]
    """
    first, last = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(first + last) / 2, last - first], -1)


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Returns the areas of boxes; 0 where an end lies before the start."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def overlaps(a: Float[Array, "... 4"], b: Float[Array, "... 4"]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns intersection over union, and its generalisation, of pairs of boxes; shapes broadcast.

    The generalised one is IoU - (hull - union) / hull, in (-1, 1], where the hull is the smallest box around both. It
    also has a gradient where the boxes do not overlap. Boxes without an area give no NaN.

    Example:
      >>> a, b = jnp.array([0.0, 0, 2, 2]), jnp.array([1.0, 0, 3, 2])
      >>> [round(float(x), 4) for x in overlaps(a, b)]
      [0.3333, 0.3333]

    Reference: Rezatofighi et al. 2019, "Generalized intersection over union", algorithm 1.
    """
    shared = area(jnp.concatenate([jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])], -1))
    hull = area(jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], -1))
    union = area(a) + area(b) - shared
    iou = shared / jnp.where(union > 0, union, 1)
    return iou, iou - (hull - union) / jnp.where(hull > 0, hull, 1)


class Targets(NamedTuple):
    """The objects of a batch of images.

    Attributes:
      boxes: (b n 4), in pixels of the image.
      labels: (b n), classes.
      valid: (b n), false on padding, crowds and boxes without an area: of those nothing is learnt.
    """

    boxes: Float[Array, "b n 4"]
    labels: Shaped[Array, "b n"]
    valid: Bool[Array, "b n"]


def targets(batch: dict[str, Any]) -> Targets:
    """Returns what a detector learns of a batch with the fields `boxes`, `labels` and perhaps `crowd`."""
    boxes = jnp.asarray(batch["boxes"], jnp.float32)
    valid = jnp.asarray(batch["boxes_mask"], bool) & (area(boxes) > 0)
    valid = valid & ~jnp.asarray(batch["crowd"], bool) if "crowd" in batch else valid
    labels = jnp.where(valid, jnp.asarray(batch["labels"], jnp.int32), 0)
    return Targets(jnp.where(valid[..., None], boxes, jnp.array([0.0, 0, 1, 1])), labels, valid)


def region(batch: dict[str, Any]) -> Float[Array, "b 4"]:
    """Returns the part of each image, x0 y0 x1 y1 in pixels, that shows its picture; the rest is padding.

    It is the field `frame` cut to the image, or the whole image where there is no such field.
    """
    b, h, w = batch["image"].shape[:3]
    whole = jnp.array([w, h, w, h], jnp.float32)
    if "frame" not in batch:
        return jnp.broadcast_to(whole.at[:2].set(0), (b, 4))
    return jnp.clip(jnp.asarray(batch["frame"], jnp.float32), 0, whole)


def valid_pixels(batch: dict[str, Any]) -> Bool[Array, "b h w"]:
    """Returns which pixels of the images show the pictures: those whose centres lie in `region`."""
    h, w = batch["image"].shape[1:3]
    x0, y0, x1, y1 = (region(batch)[:, i, None] for i in range(4))
    x, y = jnp.arange(w) + 0.5, jnp.arange(h) + 0.5
    return ((y >= y0) & (y < y1))[:, :, None] & ((x >= x0) & (x < x1))[:, None]


def relative(boxes: Float[Array, "b n 4"], to: Float[Array, "b 4"]) -> Float[Array, "b n 4"]:
    """Returns boxes as fractions of the parts `to` of their images; `absolute` is its inverse."""
    start, side = _start_and_side(to)
    return (boxes - start) / side


def absolute(boxes: Float[Array, "b n 4"], of: Float[Array, "b 4"]) -> Float[Array, "b n 4"]:
    """Returns in pixels boxes that are fractions of the parts `of` of their images.

    Example:
      >>> absolute(jnp.array([[[0.0, 0.5, 1.0, 1.0]]]), jnp.array([[10.0, 0.0, 30.0, 10.0]]))[0].tolist()
      [[10.0, 5.0, 30.0, 10.0]]
    """
    start, side = _start_and_side(of)
    return start + boxes * side


def _start_and_side(part: Float[Array, "b 4"]) -> tuple[Array, Array]:
    start, side = part[:, None, :2], part[:, None, 2:] - part[:, None, :2]
    side = jnp.where(side > 0, side, jnp.ones_like(side))
    return jnp.concatenate([start, start], -1), jnp.concatenate([side, side], -1)


def suppressed(
    boxes: Float[Array, "n 4"], scores: Float[Array, "n"], labels: Shaped[Array, "n"], threshold: float = 0.5
) -> Float[Array, "n"]:
    """Non-maximum suppression: returns the scores, 0 for a box that a better one of its class overlaps.

    Args:
      boxes, scores, labels: of the detections, in any order.
      threshold: intersection over union from which the worse of two boxes is left out.

    Example:
      >>> boxes = jnp.array([[0.0, 0, 4, 4], [0.0, 0, 4, 3], [9.0, 9, 12, 12]])
      >>> suppressed(boxes, jnp.array([0.5, 0.75, 0.25]), jnp.zeros(3, int)).tolist()
      [0.0, 0.75, 0.25]
    """
    order = jnp.argsort(-scores)
    iou = overlaps(boxes[order][:, None], boxes[order][None])[0]
    rivals = (iou > threshold) & (labels[order][:, None] == labels[order][None])
    n = len(scores)

    def look(i: Array, kept: Array) -> Array:
        return kept & ~(kept[i] & rivals[i] & (jnp.arange(n) > i))

    kept = jax.lax.fori_loop(0, n, look, jnp.ones(n, bool))
    return jnp.where(jnp.zeros(n, bool).at[order].set(kept), scores, 0)


def softened(
    boxes: Float[Array, "n 4"], scores: Float[Array, "n"], labels: Shaped[Array, "n"], sigma: float = 0.5
) -> Float[Array, "n"]:
    """Soft non-maximum suppression: returns the scores, lowered where better boxes of the class overlap.

    The best box is taken, and exp(-IoU^2 / sigma) multiplies the scores of the others of its class; then the best of
    the others is taken, and so on.

    Args:
      boxes, scores, labels: of the detections, in any order.
      sigma: above 0; the smaller, the harder.

    Example:
      >>> boxes = jnp.array([[0.0, 0, 4, 4], [0.0, 0, 4, 2], [9.0, 9, 12, 12]])
      >>> found = softened(boxes, jnp.array([0.5, 0.75, 0.25]), jnp.zeros(3, int))
      >>> [round(float(x), 3) for x in found]  # the first is 0.5 exp(-0.5^2 / 0.5)
      [0.303, 0.75, 0.25]

    Reference: Bodla et al. 2017, "Soft-NMS: improving object detection with one line of code", eq. 3.
    """
    iou = overlaps(boxes[:, None], boxes[None])[0]
    factor = jnp.where(labels[:, None] == labels[None], jnp.exp(-(iou**2) / sigma), 1.0)

    def take(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        scores, left = state
        best = jnp.argmax(jnp.where(left, scores, -jnp.inf))
        left = left.at[best].set(False)
        return jnp.where(left, scores * factor[best], scores), left

    return jax.lax.fori_loop(0, len(scores), take, (scores, jnp.ones(len(scores), bool)))[0]
