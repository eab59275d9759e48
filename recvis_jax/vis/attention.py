"""What tokens attend to: a network's attention weights, over all blocks, and how far they reach."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.vis.layers import Grid

_NAME = re.compile(r"block(\d+)/attention")


def attention_weights(acts: Mapping[str, Any]) -> list[Float[Array, "b k n n"]]:
    """Returns the attention weights of all blocks in order, of the intermediates that a network names.

    Args:
      acts: with `block{i}/attention` (b k n n), rows of which sum to 1.

    Raises:
      BadRequest: a network without attention.

    Example:
      >>> len(attention_weights({"block0/attention": jnp.full((1, 2, 3, 3), 1 / 3)}))
      1
    """
    found = {int(match[1]): x for name, x in acts.items() if (match := _NAME.fullmatch(name))}
    if not found:
        raise BadRequest(f"the network names no attention weights; it names {', '.join(acts) or 'nothing'}.")
    return [found[i] for i in sorted(found)]


def rollout(acts: Mapping[str, Any]) -> Float[Array, "b n n"]:
    """Returns how much of each token at the end comes from each token at the beginning, by attention and residuals.

    The product over blocks of (A + I) / 2, with A the mean over the heads. Rows sum to 1.

    Args:
      acts: as of `attention_weights`.

    Reference: Abnar & Zuidema 2020, "Quantifying attention flow in transformers", section 3.

    Example:
      >>> found = rollout({"block0/attention": jnp.full((1, 2, 3, 3), 1 / 3)})
      >>> jnp.allclose(found[0, 0], jnp.array([2 / 3, 1 / 6, 1 / 6]))
      Array(True, dtype=bool)
    """
    of_blocks = []
    for weights in attention_weights(acts):
        mixed = (weights.astype(jnp.float32).mean(1) + jnp.eye(weights.shape[-1])) / 2
        of_blocks.append(mixed / mixed.sum(-1, keepdims=True))
    return functools.reduce(lambda before, mixed: mixed @ before, of_blocks)


def from_class_token(weights: Float[Array, "*b n n"], where: Grid) -> Float[Array, "*b i j"]:
    """Returns what the class token, or without one the mean of all tokens, attends to, as maps of the patches.

    Args:
      weights: of `attention_weights` (b k n n), or of `rollout` (b n n).
      where: the tokens' grid, see `layers.grid`.

    Example:
      >>> from_class_token(jnp.full((1, 7, 7), 1 / 7), Grid(1, 2, 3)).shape
      (1, 2, 3)
    """
    rows = weights[..., 0, :] if where.extra else weights.mean(-2)
    return rows[..., where.extra :].reshape(*rows.shape[:-1], where.rows, where.columns)


def attention_distance(
    weights: Float[Array, "b k n n"], where: Grid, patch: tuple[float, float] = (1.0, 1.0)
) -> Float[Array, "b k"]:
    """Returns the mean distance from a patch to what it attends to, of every head.

    Args:
      weights: of one block, see `attention_weights`; other tokens than patches count on neither side.
      where: the tokens' grid, see `layers.grid`.
      patch: rows and columns of a patch in pixels: the unit of the result.

    Reference: Dosovitskiy et al. 2020, "An image is worth 16x16 words", figure 11.

    Example: of uniform attention on a line of three patches: (1 + 2 + 1 + 0 + 1 + 2 + 1) / 9
      >>> attention_distance(jnp.full((1, 1, 3, 3), 1 / 3), Grid(0, 1, 3)).round(4)
      Array([[0.8889]], dtype=float32)
    """
    at = np.stack(np.divmod(np.arange(where.rows * where.columns), where.columns), -1) * np.asarray(patch)
    distance = jnp.asarray(np.linalg.norm(at[:, None] - at[None], axis=-1), jnp.float32)
    of_patches = weights[..., where.extra :, where.extra :].astype(jnp.float32)
    of_patches = of_patches / jnp.maximum(of_patches.sum(-1, keepdims=True), 1e-30)
    return (of_patches * distance).sum(-1).mean(-1)
