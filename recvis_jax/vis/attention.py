"""What tokens attend to: the attention weights of all blocks of a network, and their distances."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest, choose
from recvis_jax.vis.layers import Grid

_NAME = re.compile(r"block(\d+)/attention")


def attention_weights(acts: Mapping[str, Any]) -> list[Float[Array, "b k n n"]]:
    """Returns the attention weights of all blocks in order, from a network's named intermediates.

    Args:
      acts: with `block{i}/attention` (b k n n), whose rows sum to 1.

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


_KINDS = {"encoder": "encoder{}/attention", "decoder": "decoder{}/attention", "cross": "decoder{}/cross_attention"}


def of_sequences(acts: Mapping[str, Any], kind: str) -> list[Float[Array, "b k n m"]]:
    """Returns the attention weights of all layers of a sequence-to-sequence Transformer, in order.

    Args:
      acts: its named intermediates.
      kind: "encoder" (the source to itself), "decoder" (the target to itself) or "cross" (the target to the source).

    Raises:
      BadRequest: an unknown kind, or a network without such attention.

    Example:
      >>> len(of_sequences({"decoder0/cross_attention": jnp.full((1, 2, 3, 4), 1 / 4)}, "cross"))
      1
    """
    name = choose(_KINDS, kind, "attention")
    out: list[Any] = []
    while name.format(len(out)) in acts:
        out.append(acts[name.format(len(out))])
    if not out:
        raise BadRequest(f"the network names no {name.format(0)}; it names {', '.join(acts) or 'nothing'}.")
    return out


def of_queries(acts: Mapping[str, Any]) -> Float[Array, "b q i j"]:
    """Returns where in the image each query of DETR looks: the last decoder layer's attention, the mean of its heads.

    Args:
      acts: DETR's named intermediates, with `projected` (b i j d), the map that is attended to.

    Raises:
      BadRequest: another kind of network.

    Example:
      >>> acts = {"projected": jnp.zeros((1, 2, 3, 8)), "decoder0/cross_attention": jnp.full((1, 2, 5, 6), 1 / 6)}
      >>> of_queries(acts).shape
      (1, 5, 2, 3)

    Reference: Carion et al. 2020, "End-to-end object detection with transformers", figure 6.
    """
    weights = of_sequences(acts, "cross")[-1].mean(1)
    if "projected" not in acts or weights.shape[-1] != acts["projected"][0, :, :, 0].size:
        raise BadRequest("the network has no queries that look at a map of features, as DETR has.")
    return weights.reshape(*weights.shape[:2], *acts["projected"].shape[1:3])


def rollout(acts: Mapping[str, Any]) -> Float[Array, "b n n"]:
    """Returns how much each final token depends on each initial token, by attention and residuals.

    The product over blocks of (A + I) / 2, with A the mean over the heads. Rows sum to 1.

    Args:
      acts: see `attention_weights`.

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
    """Returns the attention of the class token (of the mean token if there is none) as maps of the patches.

    Args:
      weights: from `attention_weights` (b k n n), or from `rollout` (b n n).
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
    """Returns the mean distance between a patch and what it attends to, for every head.

    Args:
      weights: of one block, see `attention_weights`; tokens that are not patches are left out on both sides.
      where: the tokens' grid, see `layers.grid`.
      patch: rows and columns of a patch in pixels; sets the unit of the result.

    Reference: Dosovitskiy et al. 2020, "An image is worth 16x16 words", figure 11.

    Example: uniform attention on a line of three patches: (1 + 2 + 1 + 0 + 1 + 2 + 1) / 9
      >>> attention_distance(jnp.full((1, 1, 3, 3), 1 / 3), Grid(0, 1, 3)).round(4)
      Array([[0.8889]], dtype=float32)
    """
    at = np.stack(np.divmod(np.arange(where.rows * where.columns), where.columns), -1) * np.asarray(patch)
    distance = jnp.asarray(np.linalg.norm(at[:, None] - at[None], axis=-1), jnp.float32)
    of_patches = weights[..., where.extra :, where.extra :].astype(jnp.float32)
    of_patches = of_patches / jnp.maximum(of_patches.sum(-1, keepdims=True), 1e-30)
    return (of_patches * distance).sum(-1).mean(-1)
