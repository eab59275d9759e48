"""Scaled dot-product attention, and the multi-head layer around it."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models import cpu_attention, cpu_products
from recvis_jax.models.cpu import held
from recvis_jax.models.layers import Dense

# True where a query may attend to a key; of a shape that broadcasts to (b k n m).
Mask = Bool[Array, "..."] | Bool[np.ndarray, "..."]

xavier_uniform = nn.initializers.xavier_uniform()


def attention(
    q: Float[Array, "b n k d"],
    k: Float[Array, "b m k d"],
    v: Float[Array, "b m k e"],
    mask: Mask | None = None,
) -> tuple[Float[Array, "b n k e"], Float[Array, "b k n m"]]:
    """softmax(Q K^T / sqrt(d)) V in every head; the softmax is computed in float32.

    Args:
      q: queries, of n tokens and k heads.
      k, v: keys and values, of m tokens.
      mask: true where a query may attend to a key; of a shape that broadcasts to (b k n m). A masked key has no
        influence at all, and a query without any key gets zeros.

    Returns:
      out: per head, the weighted mean of the values.
      weights: the softmax, rows of which sum to 1.

    Reference: Vaswani et al. 2017, "Attention is all you need", section 3.2.1.
    """
    if mask is None and cpu_products.pay(len(q), q.size * k.shape[1], q, k, v):
        return cpu_attention.attention(q, k, v)
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    scores = jnp.einsum("bnkd,bmkd->bknm", q, k, preferred_element_type=jnp.float32)
    if mask is None:
        weights = held(nn.softmax(scores))
    else:
        scores = jnp.where(mask, scores, -jnp.inf)
        peak = scores.max(-1, keepdims=True)
        e = jnp.exp(scores - jnp.where(jnp.isfinite(peak), peak, 0.0))
        weights = e / jnp.maximum(e.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return jnp.einsum("bknm,bmke->bnke", weights.astype(v.dtype), v), weights


class MultiHeadAttention(nn.Module):
    """Attention in `heads` subspaces: out(concat_k(attention(query_k, key_k, value_k))).

    Four dense layers `query`, `key`, `value` and `out` with bias, as wide as the query tokens; head i reads columns
    i d / heads to (i + 1) d / heads.

    Attributes:
      heads: number of heads; divides the width.
      dtype: of the computation.

    Raises:
      BadRequest: the heads do not divide the width of the query.

    Reference: Vaswani et al. 2017, "Attention is all you need", section 3.2.2.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b n d"],
        key: Float[Array, "b m c"] | None = None,
        value: Float[Array, "b m e"] | None = None,
        mask: Mask | None = None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b k n m"]]:
        """Returns the new tokens and the attention weights.

        Args:
          query: tokens that ask.
          key: tokens that are asked; the query itself by default (self-attention).
          value: what they answer with; the key by default.
          mask: true where a query may attend to a key, broadcast to (b k n m).
        """
        key = query if key is None else key
        value = key if value is None else value
        width = query.shape[-1]
        check_heads(width, self.heads)

        def project(x: Array, name: str) -> Array:
            x = Dense(width, kernel_init=xavier_uniform, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], self.heads, width // self.heads)

        heads = project(query, "query"), project(key, "key"), project(value, "value")
        out, weights = attention(*heads, mask)
        out = Dense(width, kernel_init=xavier_uniform, dtype=self.dtype, name="out")(out.reshape(query.shape))
        return out, weights


def check_heads(width: int, heads: int) -> None:
    """Raises `BadRequest` unless `heads` cuts `width` into equal parts."""
    if heads < 1 or width % heads:
        raise BadRequest(f"{heads} heads do not divide a width of {width}.")
