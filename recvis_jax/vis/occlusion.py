"""Occlusion: the decrease of a score when a window of the image is covered."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.vis import targets
from recvis_jax.vis.layers import Apply, Images
from recvis_jax.vis.targets import Target


def occlusion(
    apply: Apply,
    variables: Any,
    images: Images,
    target: Target = None,
    *,
    window: int = 8,
    stride: int | None = None,
    fill: float = 0.0,
    at_once: int = 16,
) -> Float[Array, "b h w"]:
    """For each pixel the mean decrease of the score over all windows that cover the pixel.

    Args:
      apply, variables, images, target: see `saliency.gradient`; the predicted class is that of the image itself.
      window: side of the covered square; it is cut off at the right and bottom edges.
      stride: from one window to the next; half a window by default.
      fill: value of the covered pixels, in the form of the network's input: 0 is the mean if images are normalised.
      at_once: number of windows computed together; changes the memory needed, not the result.

    Raises:
      BadRequest: a window that does not fit, or a stride that skips pixels between windows.

    Reference: Zeiler & Fergus 2013, "Visualizing and understanding convolutional networks", section 4.2.

    Example:
      >>> occlusion(apply, variables, images, window=7, stride=7).shape
      (2, 28, 28)
    """
    h, w = images.shape[1:3]
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= window <= min(h, w):
        raise BadRequest(f"a window of {window}x{window} does not fit into {h}x{w} images.")
    if not 1 <= stride <= window:
        raise BadRequest(f"stride={stride} is outside 1 to the window's {window}: every pixel must be covered.")
    starts = [range(0, stride * math.ceil((n - window) / stride) + 1, stride) for n in (h, w)]
    corners = np.array([(i, j) for i in starts[0] for j in starts[1]])
    at_once = min(at_once, len(corners))
    missing = -len(corners) % at_once
    corners = np.concatenate([corners, np.full((missing, 2), max(h, w))])  # windows outside the image cover nothing
    target = targets.fixed(apply, variables, images, target)
    blocks = jnp.asarray(corners.reshape(-1, at_once, 2))
    return _occlusion(apply, window, variables, jnp.asarray(images), target, blocks, fill)


@partial(jax.jit, static_argnums=(0, 1))
def _occlusion(
    apply: Apply, window: int, variables: Any, images: Array, target: Any, blocks: Array, fill: Array
) -> Array:
    whole = targets.scores(apply, variables, images, target)
    h, w = images.shape[1:3]

    def add(kept: tuple[Array, Array], corners: Array) -> tuple[tuple[Array, Array], None]:
        total, count = kept
        rows = jnp.arange(h)[:, None] - corners[:, 0, None, None]
        columns = jnp.arange(w)[None, :] - corners[:, 1, None, None]
        covered = (rows >= 0) & (rows < window) & (columns >= 0) & (columns < window)
        found = masked_scores(apply, variables, images, target, ~covered, fill)
        covered = covered.astype(images.dtype)
        drop = jnp.einsum("kb,khw->bhw", whole[None] - found, covered)
        return (total + drop, count + covered.sum(0)), None

    begin = jnp.zeros(images.shape[:3], images.dtype), jnp.zeros((h, w), images.dtype)
    total, count = jax.lax.scan(add, begin, blocks)[0]
    return total / count


def masked_scores(
    apply: Apply, variables: Any, images: Array, target: Any, visible: Array, fill: float | Array = 0.0
) -> Float[Array, "k b"]:
    """Returns the scores of partly visible images.

    Args:
      apply, variables, images: see `saliency.gradient`.
      target: from `targets.fixed`.
      visible: (k h w), visibility of each pixel in [0, 1]; the rest is `fill`.
    """
    visible = visible[:, None, :, :, None].astype(images.dtype)
    several = images * visible + fill * (1 - visible)
    k, b = several.shape[:2]
    repeated = jax.tree.map(lambda x: jnp.tile(x, k) if jnp.shape(x) == (b,) else x, target)
    return targets.scores(apply, variables, several.reshape(k * b, *images.shape[1:]), repeated).reshape(k, b)
