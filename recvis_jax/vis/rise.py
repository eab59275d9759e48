"""RISE: which pixels are visible in the random masks that keep a score high."""

import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.vis import targets
from recvis_jax.vis.layers import Apply, Images
from recvis_jax.vis.occlusion import masked_scores
from recvis_jax.vis.targets import Target


def rise(
    apply: Apply,
    variables: Any,
    images: Images,
    target: Target = None,
    *,
    key: Array | None = None,
    masks: int = 4000,
    cells: int = 7,
    visible: float = 0.5,
    at_once: int = 16,
) -> Float[Array, "b h w"]:
    """The mean of random masks, weighted by the score of the masked image, divided by their visible share.

    Args:
      apply, variables, images, target: see `saliency.gradient`; the score of a class is its probability here, as in the
        paper.
      key: for the masks; `jax.random.key(0)` by default. All images get the same masks.
      masks: number of masks, rounded up to a multiple of `at_once`; the noise falls with its square root.
      cells: rows and columns of the grid that a mask is made from.
      visible: probability that a cell is visible.
      at_once: number of masks computed together; more need more memory.

    Raises:
      BadRequest: no mask, no cell, or a probability outside (0, 1).

    Reference: Petsiuk, Das & Saenko 2018, "RISE: randomized input sampling for explanation of black-box models".

    Example:
      >>> rise(apply, variables, images, masks=32).shape
      (2, 28, 28)
    """
    if masks < 1 or cells < 1 or not 0 < visible < 1 or at_once < 1:
        raise BadRequest(
            f"masks={masks}, cells={cells} and at_once={at_once} must be at least 1, visible={visible} in (0, 1)."
        )
    key = jax.random.key(0) if key is None else key
    target = targets.fixed(apply, variables, images, target)
    if isinstance(target, jax.Array):
        apply = _probable(apply)
    blocks = math.ceil(masks / at_once)
    return _rise(apply, blocks, at_once, cells, variables, jnp.asarray(images), target, key, visible)


def masks_of(
    key: Array, count: int, size: tuple[int, int], cells: int, visible: float | Array
) -> Float[Array, "k h w"]:
    """Draws masks: grids of visible and hidden cells, enlarged bilinearly and shifted by a fraction of a cell.

    Args:
      key: for all masks.
      count: k.
      size: rows and columns of the image.
      cells: rows and columns of the grid; one more is drawn for the shift.
      visible: probability that a cell is visible.
    """
    cell = tuple(math.ceil(n / cells) for n in size)
    whole = tuple((cells + 1) * n for n in cell)

    def one(key: Array) -> Array:
        of_cells, of_shift = jax.random.split(key)
        grid = jax.random.bernoulli(of_cells, visible, (cells + 1, cells + 1)).astype(jnp.float32)
        shift = jax.random.randint(of_shift, (2,), 0, jnp.array(cell))
        return jax.lax.dynamic_slice(jax.image.resize(grid, whole, "linear"), shift, size)

    return jax.vmap(one)(jax.random.split(key, count))


@cache  # so that each network is compiled once
def _probable(apply: Apply) -> Apply:
    """Returns the network with probabilities as its output."""

    def probable(variables: Any, images: Any) -> tuple[Any, dict[str, Any]]:
        output, acts = apply(variables, images)
        return jax.nn.softmax(output), acts

    return probable


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _rise(
    apply: Apply,
    blocks: int,
    at_once: int,
    cells: int,
    variables: Any,
    images: Array,
    target: Any,
    key: Array,
    visible: Array,
) -> Array:
    def add(total: Array, i: Array) -> tuple[Array, None]:
        drawn = masks_of(jax.random.fold_in(key, i), at_once, images.shape[1:3], cells, visible)
        found = masked_scores(apply, variables, images, target, drawn)
        return total + jnp.einsum("kb,khw->bhw", found, drawn), None

    total = jax.lax.scan(add, jnp.zeros(images.shape[:3], images.dtype), jnp.arange(blocks))[0]
    return total / (blocks * at_once * visible)
