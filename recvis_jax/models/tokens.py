"""Pieces of the models over tokens: patches, positions, the MLP, and stacks of equal blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.attention import xavier_uniform
from recvis_jax.models.conv_layers import dense_head
from recvis_jax.models.layers import Acts, Conv, Dense, batch_split

# The initialiser of the DeiT family: normal with standard deviation 0.02, truncated at two standard deviations.
trunc_normal = nn.initializers.truncated_normal(0.02)


class PatchEmbed(nn.Module):
    """A linear map of every patch, computed as a convolution; tokens are ordered row by row.

    Attributes:
      width: of a token.
      patch_size: rows and columns of a patch.
      kernel_init: initialiser of the (p p c d) kernel.
      dtype: of the computation.

    Raises:
      BadRequest: the image is not made of whole patches.

    Reference: Dosovitskiy et al. 2020, "An image is worth 16x16 words", eq. 1.
    """

    width: int
    patch_size: int
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        patch_grid(x.shape[1:3], self.patch_size)
        size = (self.patch_size, self.patch_size)
        conv = partial(Conv, strides=size, padding="VALID", kernel_init=self.kernel_init, dtype=self.dtype)
        x = conv(self.width, size, name="proj")(x.astype(self.dtype))
        return x.reshape(x.shape[0], -1, self.width)


def patch_grid(size: tuple[int, ...], patch_size: int) -> tuple[int, int]:
    """Returns rows and columns of patches of an image of `size` (h, w); `BadRequest` if the patches do not fit."""
    h, w = size
    if patch_size < 1:
        raise BadRequest(f"patch_size must be at least 1, not {patch_size}.")
    if min(h, w) < patch_size or h % patch_size or w % patch_size:
        p = patch_size
        raise BadRequest(f"{h}x{w} images are not made of {p}x{p} patches: both sides must be multiples, at least {p}.")
    return h // patch_size, w // patch_size


def prepend(token: Float[Array, "1 1 d"], x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
    """Puts the same token before the tokens of every example."""
    return jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[-1])), x], axis=1)


def sincos2d(h: int, w: int, width: int, last: bool = False) -> Float[np.ndarray, "n d"]:
    """Position embeddings: sines and cosines of the column in the first half of the width, of the row in the second.

    Position x and frequency i of f = d / 4 give sin(x / 10000^(i / f)) and the cosine. Rows of the result are the
    patches of the h w grid, row by row.

    Args:
      h, w: rows and columns of the grid.
      width: d.
      last: spaces the frequencies so that the last one is 1 / 10000, i / (f - 1), as big_vision does.

    Raises:
      BadRequest: 4 does not divide the width.

    Reference: Vaswani et al. 2017, section 3.5, on two axes; Chen et al. 2021 ("MoCo v3"), He et al. 2022 ("MAE").
    """
    f = width // 4
    if width % 4 or f <= last:
        raise BadRequest(f"sin-cos positions on two axes need a width divisible by 4, of more than 4, not {width}.")
    y, x = np.divmod(np.arange(h * w), w)
    angles = [p[:, None] / 10_000 ** (np.arange(f) / (f - last)) for p in (x, y)]
    return np.concatenate([g(a) for a in angles for g in (np.sin, np.cos)], axis=1).astype(np.float32)


def check_tokens(module: nn.Module, n: int, path: str, axis: int, images: str) -> None:
    """Raises `BadRequest` if the variable `path` below `module` was made for a number of tokens other than `n`.

    Args:
      module: the calling module.
      n: number of tokens.
      path: names joined by '/', starting with the collection.
      axis: the variable's axis over tokens.
      images: what has these tokens, for the message.
    """
    found = module.variables
    for key in path.split("/"):
        found = found.get(key, {})
    if hasattr(found, "shape") and found.shape[axis] != n:
        have, name = found.shape[axis], path.split("/", 1)[1]
        raise BadRequest(f"{images} give {n} tokens, but {name} was made for {have}; the image size is fixed.")


class Mlp(nn.Module):
    """fc2(act(fc1(x))), on the last axis.

    Attributes:
      hidden: width between the layers.
      act: elementwise function.
      dropout: probability that a unit is dropped after either layer, in training.
      train: whether it is training.
      kernel_init, bias_init: initialisers, by default those of the Vision Transformer.
      dtype: of the computation.
    """

    hidden: int
    act: Callable[[Array], Array]
    dropout: float = 0.0
    train: bool = False
    kernel_init: Callable[..., Array] = xavier_uniform
    bias_init: Callable[..., Array] = nn.initializers.normal(1e-6)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        dense = partial(Dense, kernel_init=self.kernel_init, bias_init=self.bias_init, dtype=self.dtype)
        drop = partial(nn.Dropout, self.dropout, deterministic=not self.train)
        h = drop()(self.act(dense(self.hidden, name="fc1")(x)))
        return drop()(dense(x.shape[-1], name="fc2")(h))


def drop_path(branch: Float[Array, "b n d"], keep: Float[Array, "b 2"] | None, i: int) -> Float[Array, "b n d"]:
    """Multiplies a residual branch, the first or second of its block (i = 0, 1), by its examples' factors, if any."""
    return branch if keep is None else branch * keep[:, i, None, None].astype(branch.dtype)


def stack(
    block: Callable[..., nn.Module],
    x: Float[Array, "b n d"],
    depth: int,
    *,
    rate: float = 0.0,
    remat: bool = False,
    scan: bool = False,
    name: str = "block",
) -> tuple[Float[Array, "b n d"], Acts]:
    """Applies `depth` equal blocks one after the other, inside the compact method of the calling module.

    Args:
      block: a linen class, or a partial of one; its modules are called as `block(x, keep) -> (x, acts)`, where `keep`
        are the factors for `drop_path` (None if nothing is dropped) and `acts` the intermediates `{"out": x, ...}`.
      x: tokens.
      depth: number of blocks.
      rate: probability that a residual branch of the last block is dropped for an example (and scaled up for the
        others); it grows linearly from 0 in the first block. 0 in evaluation.
      remat: computes intermediates again in the backward pass instead of keeping them.
      scan: compiles one block and loops over it. Its parameters are stacked along a new first axis below
        `{name}s`; otherwise they are below `{name}0`, `{name}1`, ... (`recvis_jax.models.scan` converts).
      name: of a block.

    Returns:
      Tokens, and intermediates: `{name}{i}` is the output of block i, `{name}{i}/{key}` its named intermediates.

    Reference: Huang et al. 2016, "Deep networks with stochastic depth", for `rate`.
    """
    if depth < 1:
        raise BadRequest(f"depth must be at least 1, not {depth}.")
    make, kw = (block.func, block.keywords) if isinstance(block, partial) else (block, {})
    if remat:
        make = nn.remat(make, prevent_cse=not scan)
    x, keep = batch_split(x), None
    if rate:  # drawn outside of the loop, because the rates must be constants
        ones = jnp.ones((x.shape[0], 2))
        keep = jnp.stack([nn.Dropout(float(r), deterministic=False)(ones) for r in np.linspace(0, rate, depth)])
    if scan:
        axes = dict(variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True})

        def body(module: nn.Module, x: Array, keep: Array | None) -> tuple[Array, Acts]:
            x, named = module(x, keep)
            return batch_split(x), named

        x, stacked = nn.scan(body, in_axes=0, length=depth, **axes)(make(**kw, name=f"{name}s"), x, keep)
        inner = [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(depth)]
    else:
        inner = []
        for i in range(depth):
            x, named = make(**kw, name=f"{name}{i}")(x, None if keep is None else keep[i])
            x = batch_split(x)
            inner.append(named)
    acts = {f"{name}{i}/{key}": a for i, named in enumerate(inner) for key, a in named.items()}
    return x, {key.removesuffix("/out"): a for key, a in acts.items()}


def zero_head(acts: Acts, num_classes: int, dtype: Any) -> tuple[Float[Array, "b k"], Acts]:
    """Ends a network with a zero-initialised linear head on `acts["features"]`; no head if `num_classes` is 0."""
    zeros = nn.initializers.zeros
    return dense_head(acts, num_classes, dtype, kernel_init=zeros, bias_init=zeros)


def check_rates(**rates: float) -> None:
    """Raises `BadRequest` for a probability outside [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise BadRequest(f"{name}={rate} is outside [0, 1).")
