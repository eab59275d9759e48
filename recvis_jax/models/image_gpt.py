"""Image GPT: a causal Transformer that predicts the colours of an image, pixel by pixel."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recvis_jax.errors import BadRequest
from recvis_jax.models import sparse_attention
from recvis_jax.models.attention import MultiHeadAttention, check_heads
from recvis_jax.models.attention_patterns import causal
from recvis_jax.models.layers import Acts, Dense, activation
from recvis_jax.models.norms import RMSNorm
from recvis_jax.models.tokens import Mlp, check_rates

# Chen et al. 2020, section 3.2.
VARIANTS = {
    "igpt_s": dict(width=512, depth=24, heads=8),
    "igpt_m": dict(width=1024, depth=36, heads=8),
    "igpt_l": dict(width=1536, depth=48, heads=16),
}

_normal = nn.initializers.normal(0.02)


def even_greys(key: Any, colours: int) -> Float[Array, "v 3"]:
    """Returns a palette of evenly spaced greys, which stands until one is learned from images."""
    return jnp.repeat(jnp.linspace(0, 1, colours)[:, None], 3, axis=1)


def nearest(images: Float[Array, "b h w 3"], palette: Float[Array, "v 3"]) -> Int[Array, "b n"]:
    """Returns the number of the nearest colour of a palette for every pixel, row by row; in ties the lowest.

    Raises:
      BadRequest: images without colours.

    Example:
      >>> nearest(jnp.array([0.9, 0.1, 0.0]).reshape(1, 1, 1, 3), jnp.eye(3)).tolist()
      [[0]]
    """
    if images.shape[-1] != 3:
        raise BadRequest(f"images of {images.shape[-1]} channels; a palette has colours of three.")
    x = images.reshape(len(images), -1, 3)
    return jnp.argmin((palette**2).sum(-1) - 2 * x @ palette.T, axis=-1).astype(jnp.int32)


def greys(images: Float[Array, "b h w c"], levels: int) -> Int[Array, "b n"]:
    """Returns the nearest of evenly spaced greys for every pixel, row by row.

    Args:
      images: in [0, 1].
      levels: number of greys; the first is 0, the last 1.

    Raises:
      BadRequest: images with colours.

    Example:
      >>> greys(jnp.array([0.0, 0.2, 0.8, 1.0]).reshape(1, 2, 2, 1), 4).tolist()
      [[0, 1, 2, 3]]
    """
    if images.shape[-1] != 1:
        raise BadRequest(f"images of {images.shape[-1]} channels; a sequence of greys is of one.")
    return jnp.clip(jnp.round(images.reshape(len(images), -1) * (levels - 1)), 0, levels - 1).astype(jnp.int32)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with an MLP of 4 times the width.

    Attributes:
      heads: of the attention.
      act: elementwise function of the MLP.
      norm_eps: added to the mean square in norms.
      dropout: probability that a unit of a branch is dropped, in training.
      length: positions of the attention's cache; 0 for whole sequences.
      sparse: pattern of the attention, see `MultiHeadAttention`; None for full attention.
      train: whether it is training.
      dtype: of the computation.
    """

    heads: int
    act: Any
    norm_eps: float = 1e-5
    dropout: float = 0.0
    length: int = 0
    sparse: Any = None
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> tuple[Float[Array, "b n d"], Any]:
        norm = partial(RMSNorm, epsilon=self.norm_eps, dtype=self.dtype)
        attention = MultiHeadAttention(self.heads, self.length, sparse=self.sparse, dtype=self.dtype, name="attention")
        mask = None if self.length or self.sparse else jnp.asarray(causal(x.shape[1]))
        y, weights = attention(norm(name="norm1")(x), mask=mask)
        x = x + nn.Dropout(self.dropout, deterministic=not self.train)(y)
        inits = dict(kernel_init=_normal, bias_init=nn.initializers.zeros)
        mlp = Mlp(4 * x.shape[-1], self.act, self.dropout, self.train, **inits, dtype=self.dtype, name="mlp")
        return x + mlp(norm(name="norm2")(x)), weights


class ImageGPT(nn.Module):
    """Colours to vectors, learned positions, causal blocks, a norm, and a score of every colour for the next pixel.

    With `sparse` it attends as the Image Transformer (Parmar et al. 2018: 1-D and 2-D local attention) or the Sparse
    Transformer (Child et al. 2019: strided and fixed patterns) do; its blocks stay those of Image GPT.

    It reads sequences of tokens, or images, whose pixels become tokens row by row, or with 2-D local attention block by
    block.

    Attributes:
      colours: number of colours of the palette. The token `colours` starts a sequence.
      pixels: longest sequence, the start token included.
      width: of a token.
      depth: number of blocks.
      heads: of every attention.
      activation: elementwise function of the MLPs.
      norm_eps: added to the mean square in norms.
      dropout: probability that a unit is dropped in training, of the embedded tokens and in every branch.
      palette: whether colours are those of the collection `palette`, which a run learns from its training images; the
        images then have three channels. Otherwise they are evenly spaced greys.
      sparse: pattern of the attention: `kind` and the other arguments of `sparse_attention.blocks`, such as {"kind":
        "strided", "stride": 28}; sequences are then whole images. None for full attention.
      remat: computes the blocks' intermediates again in the backward pass instead of keeping them.
      length: positions of the cache. Above 0 the model decodes: it is given one token a sequence, and its collection
        `cache` holds what came before; see `recvis_jax.generation`. 0 for whole sequences.
      dtype: of the computation.

    Raises:
      BadRequest: more tokens than positions; heads that do not divide the width; an unknown activation; a probability
        outside [0, 1).

    Reference: Chen et al. 2020, "Generative pretraining from pixels"; names and details as in the published code.

    Example:
      >>> model = ImageGPT(colours=16, pixels=64, width=32, depth=2, heads=4)
      >>> tokens = jnp.zeros((2, 64), jnp.int32)
      >>> (logits, acts), variables = model.init_with_output(jax.random.key(0), tokens, train=False)
      >>> logits.shape, acts["block1/attention"].shape
      ((2, 64, 16), (2, 4, 64, 64))
    """

    colours: int = 512
    pixels: int = 1024
    width: int = 512
    depth: int = 24
    heads: int = 8
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    palette: bool = False
    sparse: Any = None
    remat: bool = False
    length: int = 0
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_heads(self.width, self.heads)
        check_rates(dropout=self.dropout)
        activation(self.activation)
        if self.sparse is not None:
            sparse_attention.of_sequence(self.sparse, self.pixels)  # refuses invalid values
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Int[Array, "b n"] | Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b n v"], Acts]:
        """Returns the scores of the next token's colours at every position, and intermediates.

        Args:
          x: numbers of colours, or `colours` for the start. Or images in [0, 1] (b h w c): the scores (b h*w v) are
            then those of each pixel given those before it, and acts["targets"] has the pixels' tokens in that order.
          train: whether dropout is on.
        """
        acts: Acts = {}
        tokens = x
        if self.palette:
            self.variable("palette", "colours", even_greys, None, self.colours)
        if x.ndim == 4:
            targets = self.tokens_of(x)
            acts["targets"] = targets = targets[:, self.order] if self.sparse else targets
            tokens = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=self.colours)
        n = tokens.shape[1]
        if n > self.pixels or self.length > self.pixels:
            raise BadRequest(f"a sequence of {max(n, self.length)} tokens; the model has {self.pixels} positions.")
        embed = partial(nn.Embed, features=self.width, embedding_init=_normal, dtype=self.dtype)
        places = self.places(n)
        if self.sparse:
            places = jnp.asarray(self.order)[places]
        positions = embed(self.pixels, name="positions")(places)
        x = embed(self.colours + 1, name="colours_embed")(tokens) + positions
        acts["stem"] = x
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        kw = dict(norm_eps=self.norm_eps, dropout=self.dropout, length=self.length, train=train, dtype=self.dtype)
        kw |= dict(sparse=self.sparse)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            x, weights = block(self.heads, activation(self.activation), **kw, name=f"block{i}")(x)
            acts |= {f"block{i}": x} | ({} if weights is None else {f"block{i}/attention": weights})
        acts["tokens"] = x = RMSNorm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x)
        logits = Dense(self.colours, use_bias=False, kernel_init=_normal, dtype=self.dtype, name="head")(x)
        acts["logits"] = logits = logits.astype(jnp.float32)
        return logits, acts

    def tokens_of(self, images: Float[Array, "b h w c"]) -> Int[Array, "b n"]:
        """Returns the tokens of images in [0, 1], row by row."""
        if self.palette:
            return nearest(images, self.get_variable("palette", "colours"))
        return greys(images, self.colours)

    def images_of(self, tokens: Int[Array, "b n"], h: int, w: int) -> Float[Array, "b h w c"]:
        """Returns the images of tokens that are ordered row by row."""
        found = self.get_variable("palette", "colours")[tokens] if self.palette else tokens / (self.colours - 1)
        return found.reshape(len(tokens), h, w, -1)

    @property
    def order(self) -> Int[np.ndarray, " n"]:
        """The index of the pixel (row by row) that is generated at each time."""
        return sparse_attention.order(self.sparse, self.pixels)

    def places(self, n: int) -> Int[Array, "n"]:
        """Returns the positions of the tokens; one after those of the cache in decoding."""
        if not self.length:
            return jnp.arange(n)
        filled = self.variable("cache", "filled", jnp.zeros, (), jnp.int32)
        at = filled.value
        if not self.is_initializing():
            filled.value = at + 1
        return at[None]
