"""The multi-head layer around scaled dot-product attention."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.layers import Dense
from recvis_jax.operations import Mask, attention

xavier_uniform = nn.initializers.xavier_uniform()


class MultiHeadAttention(nn.Module):
    """Attention in `heads` subspaces: out(concat_k(attention(query_k, key_k, value_k))).

    Four dense layers `query`, `key`, `value` and `out` with bias, as wide as the query tokens; head i reads columns
    i d / heads to (i + 1) d / heads.

    Attributes:
      heads: number of heads; divides the width.
      length: positions that the collection `cache` holds. With a length above 0 the layer decodes: it is given one
        token of each sequence at a time, which attends to itself and to all that came before. 0 for whole sequences.
      dtype: of the computation.

    Raises:
      BadRequest: the heads do not divide the width of the query.

    Reference: Vaswani et al. 2017, "Attention is all you need", section 3.2.2.
    """

    heads: int
    length: int = 0
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
          query: tokens that attend.
          key: tokens that are attended to; the query by default (self-attention).
          value: what is averaged by the attention weights; the key by default.
          mask: true where a query may attend to a key, broadcast to (b k n m).
        """
        key = query if key is None else key
        value = key if value is None else value
        width = query.shape[-1]
        check_heads(width, self.heads)

        def project(x: Array, name: str) -> Array:
            x = Dense(width, kernel_init=xavier_uniform, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], self.heads, width // self.heads)

        q, k, v = project(query, "query"), project(key, "key"), project(value, "value")
        if self.length:
            k, v, mask = self.remember(k, v)
        out, weights = attention(q, k, v, mask)
        out = Dense(width, kernel_init=xavier_uniform, dtype=self.dtype, name="out")(out.reshape(query.shape))
        return out, weights

    def remember(
        self, key: Float[Array, "b 1 k d"], value: Float[Array, "b 1 k d"]
    ) -> tuple[Float[Array, "b m k d"], Float[Array, "b m k d"], Bool[Array, "1 1 1 m"]]:
        """Appends keys and values to the cache; returns all of them, and which positions are filled."""
        if key.shape[1] != 1:
            raise BadRequest(f"decoding takes one token at a time, not {key.shape[1]}.")
        shape = (len(key), self.length, *key.shape[2:])
        keys = self.variable("cache", "keys", jnp.zeros, shape, key.dtype)
        values = self.variable("cache", "values", jnp.zeros, shape, value.dtype)
        filled = self.variable("cache", "filled", jnp.zeros, (), jnp.int32)
        at = filled.value
        if not self.is_initializing():
            keys.value = lax.dynamic_update_slice(keys.value, key, (0, at, 0, 0))
            values.value = lax.dynamic_update_slice(values.value, value, (0, at, 0, 0))
            filled.value = at + 1
        return keys.value, values.value, (jnp.arange(self.length) <= at)[None, None, None]


def check_heads(width: int, heads: int) -> None:
    """Raises `BadRequest` unless `heads` cuts `width` into equal parts."""
    if heads < 1 or width % heads:
        raise BadRequest(f"{heads} heads do not divide a width of {width}.")
