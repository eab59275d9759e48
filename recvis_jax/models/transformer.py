"""The Transformer of Vaswani et al. 2017, on embedded tokens: encoder, decoder, sinusoidal positions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from recvis_jax.errors import BadRequest
from recvis_jax.models.attention import MultiHeadAttention, check_heads
from recvis_jax.models.attention_patterns import causal
from recvis_jax.models.layers import Acts, activation
from recvis_jax.models.norms import LayerNorm
from recvis_jax.models.tokens import Mlp, check_rates
from recvis_jax.operations import Mask


def sinusoidal(n: int, width: int) -> Float[np.ndarray, "n d"]:
    """Position embeddings: sin(p / 10000^(2 i / d)) in column 2 i, the cosine in column 2 i + 1.

    Raises:
      BadRequest: an odd width.

    Reference: Vaswani et al. 2017, "Attention is all you need", section 3.5.
    """
    if width % 2:
        raise BadRequest(f"sinusoidal positions need an even width, not {width}.")
    angles = np.arange(n)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(n, width).astype(np.float32)


class Layer(nn.Module):
    """Self-attention, attention to a memory if one is given, and an MLP; each with a residual and a norm.

    Attributes:
      heads: of every attention.
      hidden: width inside the MLP.
      act: elementwise function of the MLP.
      pre_norm: x + f(norm(x)) instead of norm(x + f(x)).
      uniform: equal attention weights, see `MultiHeadAttention`.
      sparse: pattern of the self-attention, see `MultiHeadAttention`.
      length: positions of the cache in decoding, where the memory is given only at the first call. 0 for whole
        sequences.
      crosses: whether there is a memory in decoding.
      norm_eps: added to the variance in layer norms.
      dropout: probability that a unit of a branch, or inside the MLP, is dropped, in training.
      train: whether it is training.
      dtype: of the computation.
    """

    heads: int
    hidden: int
    act: Any
    pre_norm: bool = False
    uniform: bool = False
    sparse: Any = None
    length: int = 0
    crosses: bool = True
    norm_eps: float = 1e-5
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        mask: Mask | None = None,
        memory: Float[Array, "b m c"] | None = None,
        memory_mask: Mask | None = None,
        positions: Float[Array, "#b n d"] | None = None,
        memory_positions: Float[Array, "#b m c"] | None = None,
    ) -> tuple[Float[Array, "b n d"], Acts]:
        """Returns the new tokens and the attention weights.

        Args:
          x: tokens.
          mask: true where a token may attend to another.
          memory: tokens that are attended to after the layer's own.
          memory_mask: true where a token may attend to one of the memory.
          positions, memory_positions: added to queries and keys in every attention, but not to what it averages
            (Carion et al. 2020); None where the tokens hold their positions themselves.
        """
        attention = partial(MultiHeadAttention, self.heads, uniform=self.uniform, dtype=self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        acts: Acts = {}

        def attend(name: str, y: Array, key: Array | None, value: Array | None, mask: Array | None, **kw: Any) -> Array:
            y, weights = attention(name=name, **kw)(y, key, value, mask)
            if weights is not None:
                acts[name] = weights
            return drop(y)

        def attend_self(y: Array) -> Array:
            kw = dict(length=self.length, sparse=self.sparse)
            if positions is None:
                return attend("attention", y, None, None, mask, **kw)
            return attend("attention", y + positions, y + positions, y, mask, **kw)

        def attend_memory(y: Array) -> Array:
            y, kw = y if positions is None else y + positions, dict(keeps=bool(self.length))
            if memory is None or memory_positions is None:
                return attend("cross_attention", y, memory, None, memory_mask, **kw)
            return attend("cross_attention", y, memory + memory_positions, memory, memory_mask, **kw)

        branches: list[Callable[[Array], Array]] = [attend_self]
        if memory is not None or (self.length and self.crosses):
            branches.append(attend_memory)
        inits = dict(bias_init=nn.initializers.zeros, dtype=self.dtype, name="mlp")
        branches.append(Mlp(self.hidden, self.act, self.dropout, self.train, **inits))
        for i, branch in enumerate(branches, 1):
            norm = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=f"norm{i}")
            x = x + branch(norm(x)) if self.pre_norm else norm(x + branch(x))
        return x, acts


class Transformer(nn.Module):
    """An encoder of the source, and a decoder of the target that attends to it and, causally, to itself.

    Tokens in, tokens out: the caller provides the embeddings and the output layer. `end_norm` adds a norm at the end of
    both stacks, which pre-norm needs.

    Attributes:
      width: of the tokens.
      heads: of every attention.
      encoder_depth, decoder_depth: numbers of layers.
      hidden: width inside the MLPs.
      pre_norm: norms before the branches, instead of after the sums as in the paper.
      end_norm: whether both stacks end with a norm.
      uniform: equal attention weights: a baseline without attention.
      length: maximum number of target tokens in decoding: one token per call, with the source only at the first call;
        the collection `cache` holds the tokens before. 0 for whole targets.
      positions: 'sinusoidal' adds them to source and target; with 'none' the caller does.
      activation: elementwise function of the MLPs.
      norm_eps: added to the variance in layer norms.
      dropout: probability that a unit of the tokens with positions, of a branch or of an MLP is dropped, in training.
      dtype: of the computation.

    Raises:
      BadRequest: tokens of another width; heads that do not divide the width; unknown positions or activation; a
        probability outside [0, 1).

    Reference: Vaswani et al. 2017, "Attention is all you need"; Xiong et al. 2020, "On layer normalization in the
    transformer architecture", for `pre_norm`.
    """

    width: int = 512
    heads: int = 8
    encoder_depth: int = 6
    decoder_depth: int = 6
    hidden: int = 2048
    pre_norm: bool = False
    end_norm: bool = True
    uniform: bool = False
    length: int = 0
    positions: str = "sinusoidal"
    activation: str = "relu"
    norm_eps: float = 1e-5
    dropout: float = 0.1
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_heads(self.width, self.heads)
        check_rates(dropout=self.dropout)
        activation(self.activation)
        if self.positions not in ("sinusoidal", "none"):
            raise BadRequest(f"unknown positions {self.positions!r}. There are: none, sinusoidal.")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        source: Float[Array, "b m d"] | None,
        target: Float[Array, "b n d"],
        source_mask: Bool[Array, "b m"] | None = None,
        target_mask: Bool[Array, "b n"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b n d"], Acts]:
        """Returns the decoder's tokens and intermediates, among them the attention weights (b k n m).

        Args:
          source, target: embedded tokens. In decoding, the source is given only at the first call.
          source_mask, target_mask: true for a token, false for padding; no query attends to padding.
          train: whether dropout is on.
        """
        acts: Acts = {}
        keys = None if source_mask is None else source_mask[:, None, None, :]
        memory = None
        if source is not None:
            x = self.start(source, train)
            for i in range(self.encoder_depth):
                x, inner = self.layer(train, f"encoder{i}")(x, keys)
                acts |= {f"encoder{i}": x, **{f"encoder{i}/{k}": a for k, a in inner.items()}}
            acts["memory"] = memory = self.end(x, "encoder_norm")
        elif not self.length:
            raise BadRequest("the source is missing.")
        past = None if self.length else jnp.asarray(causal(target.shape[1]))
        if past is not None and target_mask is not None:
            past = past & target_mask[:, None, None, :]
        x = self.start(target, train, decoding=bool(self.length))
        for i in range(self.decoder_depth):
            x, inner = self.layer(train, f"decoder{i}", self.length)(x, past, memory, keys)
            acts |= {f"decoder{i}": x, **{f"decoder{i}/{k}": a for k, a in inner.items()}}
        return self.end(x, "decoder_norm").astype(jnp.float32), acts

    def end(self, x: Float[Array, "b n d"], name: str) -> Float[Array, "b n d"]:
        """Returns what a stack ends with."""
        return LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)(x) if self.end_norm else x

    def start(self, x: Float[Array, "b n d"], train: bool, decoding: bool = False) -> Float[Array, "b n d"]:
        """Returns the tokens with their positions; in decoding, the next position of the cache."""
        if x.shape[-1] != self.width:
            raise BadRequest(f"tokens have width {x.shape[-1]}, but the model has {self.width}.")
        x = x.astype(self.dtype)
        if self.positions == "sinusoidal":
            n = self.length if decoding else x.shape[1]
            places = jnp.asarray(sinusoidal(n, self.width), self.dtype)
            x = x + (places[self.place()] if decoding else places)
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def place(self) -> Int[Array, ""]:
        """Returns the position of the token that is decoded."""
        filled = self.variable("cache", "filled", jnp.zeros, (), jnp.int32)
        at = filled.value
        if not self.is_initializing():
            filled.value = at + 1
        return at

    def layer(self, train: bool, name: str, length: int = 0) -> Layer:
        """Returns the layer of that name."""
        kw = dict(norm_eps=self.norm_eps, dropout=self.dropout, train=train, dtype=self.dtype, length=length)
        kw |= dict(pre_norm=self.pre_norm, uniform=self.uniform)
        return Layer(self.heads, self.hidden, activation(self.activation), name=name, **kw)
