"""Attention with few passes over the scores of all token pairs: on CPUs it is limited by memory bandwidth."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from recvis_jax.kernels.own_gradient import own_gradient
from recvis_jax.kernels.products import mixtures, pay, scores

_Kept = tuple[Array, Array, Array, Array, Array, Array]


def attention(plain: Callable, q: Array, k: Array, v: Array, mask: Any = None) -> tuple[Array, Array]:
    """The form of `operations.attention`."""
    if mask is None and pay(len(q), q.size * k.shape[1], q, k, v):
        return unmasked(q, k, v)
    return plain(q, k, v, mask)


@own_gradient
def unmasked(
    q: Float[Array, "b n k d"], k: Float[Array, "b m k d"], v: Float[Array, "b m k e"]
) -> tuple[Float[Array, "b n k e"], Float[Array, "b k n m"]]:
    """`operations.attention` without a mask, in float32.

    The softmax's sums divide the output tokens, not the scores. The softmax's gradient needs one scalar product per
    output token, of the token and its gradient, instead of a sum over all pairs (Dao et al. 2022, "FlashAttention",
    appendix B.2).
    """
    return _forward(q, k, v)[0]


def _forward(q: Array, k: Array, v: Array) -> tuple[tuple[Array, Array], _Kept]:
    q = q * jnp.float32(q.shape[-1] ** -0.5)
    s = scores(q, k)
    e = lax.optimization_barrier(jnp.exp(s - s.max(-1, keepdims=True)))
    total = e.sum(-1)
    out = mixtures(e, v) / _of_tokens(total)
    return (out, e / total[..., None]), (q, k, v, e, total, out)


def _backward(kept: _Kept, given: tuple[Any, Any]) -> tuple[Array, Array, Array]:
    q, k, v, e, total, out = kept
    d_out, d_weights = given
    d_s: Any = 0.0
    d_q: Any = 0.0
    d_k: Any = 0.0
    d_v: Any = 0.0
    if not isinstance(d_weights, SymbolicZero):
        weights = e / total[..., None]
        d_s = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True))
    if not isinstance(d_out, SymbolicZero):
        part = d_out / _of_tokens(total)
        along = (part * out).sum(-1).swapaxes(1, 2)
        d_s += e * (scores(part, v) - along[..., None])
        d_v = mixtures(e, part, transposed=True)
    if not isinstance(d_s, float):
        d_s = lax.optimization_barrier(d_s)
        d_q = mixtures(d_s, k) * jnp.float32(q.shape[-1] ** -0.5)
        d_k = mixtures(d_s, q, transposed=True)
    return tuple(jnp.broadcast_to(d, x.shape) for d, x in ((d_q, q), (d_k, k), (d_v, v)))  # type: ignore[return-value]


def _of_tokens(x: Float[Array, "b k n"]) -> Float[Array, "b n k 1"]:
    return x.swapaxes(1, 2)[..., None]


unmasked.define(_forward, _backward)
