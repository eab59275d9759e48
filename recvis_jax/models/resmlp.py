"""ResMLP: each block has a linear layer across tokens and an MLP across channels, without normalisation."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.models.conv_layers import dense_head
from recvis_jax.models.layers import Acts, Dense, activation
from recvis_jax.models.tokens import Mlp, PatchEmbed, check_rates, check_tokens, drop_path, stack, trunc_normal

# Touvron et al. 2021, tables 1 and 5; deeper networks start closer to the identity.
VARIANTS = {
    "resmlp_12": dict(depth=12, layer_scale=0.1),
    "resmlp_24": dict(depth=24, layer_scale=1e-5),
    "resmlp_36": dict(depth=36, layer_scale=1e-6),
    "resmlp_b24": dict(patch_size=8, width=768, depth=24, layer_scale=1e-6),
}


class Affine(nn.Module):
    """x * scale + bias per channel: a norm without statistics."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(self.dtype)
        return x * scale + bias


class Block(nn.Module):
    """x + scale1 * linear_tokens(affine(x)^T)^T, then x + scale2 * mlp_channels(affine(x)).

    Attributes:
      layer_scale: initial value of `scale1` and `scale2`, which are per channel.
      dropout: probability that a unit of the MLP is dropped, in training.
      train: whether it is training.
      dtype: of the computation.
    """

    layer_scale: float
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], keep: Float[Array, "b 2"] | None = None
    ) -> tuple[Float[Array, "b n d"], Acts]:
        n, d = x.shape[1:]
        start = nn.initializers.constant(self.layer_scale)
        scales = [self.param(f"scale{i}", start, (d,)).astype(self.dtype) for i in (1, 2)]
        y = Affine(self.dtype, name="norm1")(x).swapaxes(1, 2)
        y = Dense(n, kernel_init=trunc_normal, dtype=self.dtype, name="linear_tokens")(y).swapaxes(1, 2)
        x = x + drop_path(scales[0] * y, keep, 0)
        kw = dict(kernel_init=trunc_normal, bias_init=nn.initializers.zeros, dtype=self.dtype)
        mlp = Mlp(4 * d, activation("gelu"), self.dropout, self.train, name="mlp_channels", **kw)
        x = x + drop_path(scales[1] * mlp(Affine(self.dtype, name="norm2")(x)), keep, 1)
        return x, {"out": x}


class ResMLP(nn.Module):
    """Patches to tokens, blocks of a linear layer across tokens and an MLP across channels, affine, mean, head.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out, and the features are the output.
      patch_size: rows and columns of a patch, in pixels.
      width: channels of a token; the MLPs have 4 times as many.
      depth: number of blocks.
      layer_scale: initial value of the factors of the residual branches.
      dropout: probability that a unit of an MLP is dropped, in training.
      drop_path: probability that the last block's branches are dropped for an example in training, growing linearly
        from 0 in the first block.
      remat: computes the blocks' intermediates again in the backward pass instead of keeping them.
      scan: compiles one block and loops over stacked parameters (`recvis_jax.models.scan` converts them).
      dtype: of the computation.

    Raises:
      BadRequest: an image that is not made of whole patches, or has another number of them than the parameters; a
        probability outside [0, 1).

    Reference: Touvron et al. 2021, "ResMLP: feedforward networks for image classification with
    data-efficient training".
    """

    num_classes: int = 1000
    patch_size: int = 16
    width: int = 384
    depth: int = 12
    layer_scale: float = 0.1
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_rates(dropout=self.dropout, drop_path=self.drop_path)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        images = f"{x.shape[1]}x{x.shape[2]} images"
        x = PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(x)
        first = "blocks" if self.scan else "block0"
        check_tokens(self, x.shape[1], f"params/{first}/linear_tokens/kernel", -2, images)
        block = partial(Block, layer_scale=self.layer_scale, dropout=self.dropout, train=train, dtype=self.dtype)
        acts = {"stem": x}
        rate = self.drop_path if train else 0.0
        x, inner = stack(block, x, self.depth, rate=rate, remat=self.remat, scan=self.scan)
        x = Affine(self.dtype, name="norm")(x)
        features = x.mean(1, dtype=jnp.float32).astype(self.dtype)
        acts = {**acts, **inner, "tokens": x, "features": features}
        return dense_head(acts, self.num_classes, self.dtype, trunc_normal, nn.initializers.zeros)
