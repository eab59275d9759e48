"""Image Transformer and Sparse Transformer: every channel of every pixel is a token, with restricted attention."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recvis_jax.errors import BadRequest, shown
from recvis_jax.models import logistics, sparse_attention
from recvis_jax.models.attention import check_heads
from recvis_jax.models.attention_patterns import causal
from recvis_jax.models.layers import Acts, Dense, activation
from recvis_jax.models.norms import LayerNorm
from recvis_jax.models.tokens import check_rates
from recvis_jax.models.transformer import Layer

# Parmar et al. 2018, section 5.1, CIFAR-10; Child et al. 2019, section 7: CIFAR-10 (without its halved widths inside a
# block) and ImageNet of 64x64 pixels.
_SPARSE = dict(pre_norm=True, activation="quick_gelu")
VARIANTS = {
    "image_transformer": dict(width=512, depth=12, heads=4, hidden=2048),
    "sparse_transformer_s": dict(width=256, depth=128, heads=2, hidden=1024, **_SPARSE),
    "sparse_transformer_b": dict(width=512, depth=48, heads=16, hidden=2048, **_SPARSE),
}

_normal = nn.initializers.normal(0.02)


class ImageTransformer(nn.Module):
    """Predicts the channels of an image one after the other, each from those generated before it.

    Tokens are ordered row by row, in a row pixel by pixel, in a pixel channel by channel; with 2-D local attention
    block by block, in an image whose rows have w c tokens. The position of a token is a sum of learned vectors of its
    row, column and channel. With `encoder_depth` the model is told the image `factor` times smaller, by an encoder
    whose tokens the decoder attends to: it then draws details (super-resolution).

    Attributes:
      shape: (h, w, c) of the images.
      levels: values that the model tells apart, evenly spaced from 0 to 1. The token `levels` starts a sequence.
      width, depth, heads, hidden: of the decoder, and except for `depth` of the encoder; see `transformer.Layer`.
      pre_norm: norms before the branches, and one at the end.
      activation: elementwise function of the MLPs.
      dropout: probability that a unit of a branch or of the embedded tokens is dropped, in training.
      mixtures: number of logistic distributions that give the values their probabilities, see `logistics`; 0 gives
        each value a score of its own (categorical).
      encoder_depth: layers of the encoder of the small image; 0 for none.
      factor: rows, and columns, of the image for one of the small image.
      sparse: pattern of the decoder's self-attention: `kind` and the other arguments of `sparse_attention.blocks`; None
        for full attention.
      remat: computes the layers' intermediates again in the backward pass instead of keeping them.
      length: positions of the cache in decoding, see `recvis_jax.generation`; 0 for whole images.
      dtype: of the computation.

    Raises:
      BadRequest: a shape that is none, that `factor` does not divide or that does not fit `sparse`; heads that do not
        divide the width; an unknown activation; values out of range.

    Reference: Parmar et al. 2018, "Image transformer"; Child et al. 2019, "Generating long sequences with sparse
    transformers".

    Example:
      >>> model = ImageTransformer((2, 2, 3), levels=8, width=16, depth=1, heads=2, hidden=16, mixtures=2)
      >>> images = jnp.zeros((5, 2, 2, 3))
      >>> (logits, acts), _ = model.init_with_output(jax.random.key(0), images, train=False)
      >>> logits.shape, acts["targets"].shape
      ((5, 12, 8), (5, 12))
    """

    shape: tuple[int, int, int] = (32, 32, 3)
    levels: int = 256
    width: int = 512
    depth: int = 12
    heads: int = 4
    hidden: int = 2048
    pre_norm: bool = False
    activation: str = "relu"
    dropout: float = 0.0
    mixtures: int = 0
    encoder_depth: int = 0
    factor: int = 4
    sparse: Any = None
    remat: bool = False
    length: int = 0
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_heads(self.width, self.heads)
        check_rates(dropout=self.dropout)
        activation(self.activation)
        sides = self.shape if isinstance(self.shape, tuple | list) else ()
        if len(sides) != 3 or not all(type(n) is int and n > 0 for n in sides):
            raise BadRequest(f"model.shape is {shown(self.shape)}; it takes (rows, columns, channels).")
        if self.levels < 2 or self.mixtures < 0 or self.encoder_depth < 0 or self.factor < 1:
            raise BadRequest(
                f"levels={self.levels}, mixtures={self.mixtures}, encoder_depth={self.encoder_depth} and "
                f"factor={self.factor}; they are at least 2, 0, 0 and 1."
            )
        if self.encoder_depth and (sides[0] % self.factor or sides[1] % self.factor):
            raise BadRequest(f"images of {sides[0]}x{sides[1]} are not {self.factor} times as large as smaller ones.")
        if self.sparse is not None:
            sparse_attention.of_sequence(self.sparse, self.pixels)  # refuses invalid values
        super().__post_init__()

    @property
    def pixels(self) -> int:
        """Number of tokens of an image."""
        return int(np.prod(self.shape))

    @property
    def colours(self) -> int:
        """Number of values of a token, and the token that starts a sequence."""
        return self.levels

    @property
    def order(self) -> Int[np.ndarray, " n"]:
        """The index of the token (row by row) that is generated at each time."""
        return sparse_attention.order(self.sparse, self.pixels)

    def tokens_of(self, images: Float[Array, "b h w c"]) -> Int[Array, "b n"]:
        """Returns the tokens of images in [0, 1], row by row."""
        found = jnp.round(images.reshape(len(images), -1) * (self.levels - 1))
        return jnp.clip(found, 0, self.levels - 1).astype(jnp.int32)

    def images_of(self, tokens: Int[Array, "b n"], h: int, w: int) -> Float[Array, "b h w c"]:
        """Returns the images of tokens that are ordered row by row."""
        return (tokens / (self.levels - 1)).reshape(len(tokens), h, w, self.shape[2])

    def small(self, images: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
        """Returns images `factor` times smaller, by the mean of their pixels: what the encoder is told."""
        h, w, c = self.shape
        f = self.factor
        return images.reshape(len(images), h // f, f, w // f, f, c).mean((2, 4))

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> tuple[Float[Array, "b n v"], Acts]:
        """Returns the scores of every token's values given the tokens before it, and intermediates.

        Args:
          x: images in [0, 1] (b h w c), whose tokens in the order of generation are acts["targets"]. In decoding, the
            token at one time (b 1); with an encoder, the first call takes {"small": (b i j c)}, see `small`.
          train: whether dropout is on.
        """
        acts: Acts = {}
        memory = None
        if isinstance(x, Mapping):
            memory, x = self.encode(x["small"], train), jnp.full((len(x["small"]), 1), self.levels)
        if x.ndim == 4:
            if self.encoder_depth:
                memory = self.encode(self.small(x), train)
            acts["targets"] = targets = self.tokens_of(x)[:, self.order]
            x = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=self.levels)
        n = x.shape[1]
        if n > self.pixels or self.length > self.pixels:
            raise BadRequest(f"{max(n, self.length)} tokens; images of this model have {self.pixels:,}.")
        order, times = jnp.asarray(self.order), self.times(n)
        before = order[jnp.maximum(times - 1, 0)] % self.shape[2]  # the channel of the token that is given
        x = self.embed(x, before, "values_embed") + self.positions(order[times], self.shape, "")
        acts["stem"] = x
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        mask = None if self.length or self.sparse else jnp.asarray(causal(n))
        for i in range(self.depth):
            x, inner = self.layer(train, f"block{i}", length=self.length, sparse=self.sparse)(x, mask, memory)
            acts |= {f"block{i}": x, **{f"block{i}/{k}": a for k, a in inner.items()}}
        if self.pre_norm:
            x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        acts["tokens"] = x
        if self.mixtures:
            count = logistics.PARAMETERS * self.mixtures
            x = Dense(count, kernel_init=_normal, bias_init=logistics.initial, dtype=self.dtype, name="head")(x)
            logits = logistics.log_probabilities(x, self.levels)
        else:
            logits = Dense(self.levels, kernel_init=_normal, dtype=self.dtype, name="head")(x).astype(jnp.float32)
        acts["logits"] = logits
        return logits, acts

    def encode(self, small: Float[Array, "b i j c"], train: bool) -> Float[Array, "b m d"]:
        """Returns the encoder's tokens of the small image."""
        shape, places = small.shape[1:], jnp.arange(np.prod(small.shape[1:]))
        x = self.embed(self.tokens_of(small), places % shape[2], "small_embed")
        x = nn.Dropout(self.dropout, deterministic=not train)(x + self.positions(places, shape, "small_"))
        for i in range(self.encoder_depth):
            x = self.layer(train, f"encoder{i}")(x)[0]
        return LayerNorm(epsilon=1e-5, dtype=self.dtype, name="encoder_norm")(x) if self.pre_norm else x

    def embed(self, tokens: Int[Array, "b n"], channels: Int[Array, " n"], name: str) -> Float[Array, "b n d"]:
        """Returns a learned vector of every token's value and channel; the start has one of its own."""
        start = self.levels * self.shape[2]
        rows = jnp.where(tokens == self.levels, start, channels * self.levels + tokens)
        return nn.Embed(start + 1, self.width, embedding_init=_normal, dtype=self.dtype, name=name)(rows)

    def positions(self, places: Int[Array, " n"], shape: tuple[int, ...], prefix: str) -> Float[Array, "n d"]:
        """Returns the vectors of places, which are counted row by row in images of this shape."""
        embed = partial(nn.Embed, features=self.width, embedding_init=_normal, dtype=self.dtype)
        h, w, c = shape
        y = embed(h, name=f"{prefix}rows")(places // (w * c))
        x = embed(w, name=f"{prefix}columns")(places // c % w)
        return y + x + embed(c, name=f"{prefix}channels")(places % c)

    def times(self, n: int) -> Int[Array, " n"]:
        """Returns when the tokens are generated; in decoding, after those of the cache."""
        if not self.length:
            return jnp.arange(n)
        filled = self.variable("cache", "filled", jnp.zeros, (), jnp.int32)
        at = filled.value
        if not self.is_initializing():
            filled.value = at + 1
        return at[None]

    def layer(self, train: bool, name: str, **kw: Any) -> Layer:
        """Returns the layer of that name."""
        kw |= dict(pre_norm=self.pre_norm, dropout=self.dropout, train=train, dtype=self.dtype)
        kw |= dict(crosses=bool(self.encoder_depth))
        make = nn.remat(Layer) if self.remat else Layer
        return make(self.heads, self.hidden, activation(self.activation), name=name, **kw)
