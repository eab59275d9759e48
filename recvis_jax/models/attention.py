"""The multi-head layer around scaled dot-product attention."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

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

        heads = project(query, "query"), project(key, "key"), project(value, "value")
        out, weights = attention(*heads, mask)
        out = Dense(width, kernel_init=xavier_uniform, dtype=self.dtype, name="out")(out.reshape(query.shape))
        return out, weights


def check_heads(width: int, heads: int) -> None:
    """Raises `BadRequest` unless `heads` cuts `width` into equal parts."""
    if heads < 1 or width % heads:
        raise BadRequest(f"{heads} heads do not divide a width of {width}.")
