"""The multi-head layer around scaled dot-product attention."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models import sparse_attention
from recvis_jax.models.layers import Dense
from recvis_jax.operations import Mask, attention

xavier_uniform = nn.initializers.xavier_uniform()


class MultiHeadAttention(nn.Module):
    """Attention in `heads` subspaces: out(concat_k(attention(query_k, key_k, value_k))).

    Four dense layers `query`, `key`, `value` and `out` with bias, as wide as the query tokens; head i reads columns
    i d / heads to (i + 1) d / heads.

    Attributes:
      heads: number of heads; divides the width.
      uniform: equal attention weights: a baseline without attention.
      keeps: for cross-attention in decoding: `key` and `value` are given only at the first call, with their mask, and
        their projections are kept in the collection `cache`.
      sparse: pattern of causal self-attention that saves time and memory: `kind` and the other arguments of
        `sparse_attention.blocks`. Attention weights are then not returned. None for full attention.
      length: positions that the collection `cache` holds. With a length above 0 the layer decodes: it is given one
        token of each sequence at a time, which attends to itself and to all that came before. 0 for whole sequences.
      dtype: of the computation.

    Raises:
      BadRequest: the heads do not divide the width of the query.

    Reference: Vaswani et al. 2017, "Attention is all you need", section 3.2.2.
    """

    heads: int
    length: int = 0
    uniform: bool = False
    keeps: bool = False
    sparse: Any = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b n d"],
        key: Float[Array, "b m c"] | None = None,
        value: Float[Array, "b m e"] | None = None,
        mask: Mask | None = None,
    ) -> tuple[Float[Array, "b n d"], Any]:
        """Returns the new tokens and the attention weights (b k n m), or None if `sparse` does not compute them.

        Args:
          query: tokens that attend.
          key: tokens that are attended to; the query by default (self-attention).
          value: what is averaged by the attention weights; the key by default.
          mask: true where a query may attend to a key, broadcast to (b k n m).
        """
        given = key is not None
        key = query if key is None else key
        value = key if value is None else value
        width = query.shape[-1]
        check_heads(width, self.heads)

        def project(x: Array, name: str) -> Array:
            x = Dense(width, kernel_init=xavier_uniform, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], self.heads, width // self.heads)

        q = project(query, "query")
        if self.uniform:
            q = jnp.zeros_like(q)
        k: Any
        v: Any
        if self.keeps and not given:
            k, v, mask = (self.get_variable("cache", name) for name in ("keys", "values", "mask"))
        else:
            k, v = project(key, "key"), project(value, "value")
        if self.keeps and given:
            mask = jnp.ones((k.shape[0], 1, 1, k.shape[1]), bool) if mask is None else mask
            for name, kept in (("keys", k), ("values", v), ("mask", mask)):
                self.put_variable("cache", name, kept)
        if self.length:
            k, v, mask = self.remember(k, v)
        if self.sparse and not self.length:
            out, weights = self.attend_sparsely(q, k, v), None
        else:
            out, weights = attention(q, k, v, mask)
        out = Dense(width, kernel_init=xavier_uniform, dtype=self.dtype, name="out")(out.reshape(query.shape))
        return out, weights

    def attend_sparsely(
        self, q: Float[Array, "b n k d"], k: Float[Array, "b n k d"], v: Float[Array, "b n k d"]
    ) -> Float[Array, "b n k d"]:
        """Returns the attention's output; the kinds of heads of the pattern follow one another."""
        kinds = sparse_attention.of_sequence(self.sparse, q.shape[1])
        check_heads(self.heads, len(kinds), "kinds of heads do not divide {} heads")
        parts = zip(*(jnp.split(x, len(kinds), axis=2) for x in (q, k, v)), kinds, strict=True)
        return jnp.concatenate([sparse_attention.attend(*part) for part in parts], axis=2)

    def remember(
        self, key: Float[Array, "b 1 k d"], value: Float[Array, "b 1 k d"]
    ) -> tuple[Float[Array, "b m k d"], Float[Array, "b m k d"], Bool[Array, "1 _ 1 m"]]:
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
        past = (jnp.arange(self.length) <= at)[None, None, None]
        if self.sparse:
            masks = sparse_attention.masks_of_sequence(self.sparse, self.length)
            row = jnp.repeat(jnp.asarray(masks)[:, at], self.heads // len(masks), axis=0)
            past = past & row[None, :, None]
        return keys.value, values.value, past


def check_heads(width: int, heads: int, text: str = "heads do not divide a width of {}") -> None:
    """Raises `BadRequest` unless `heads` cuts `width` into equal parts."""
    if heads < 1 or width % heads:
        raise BadRequest(f"{heads} {text.format(width)}.")
