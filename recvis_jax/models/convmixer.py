"""ConvMixer: patches, then depthwise and pointwise convolutions at one resolution."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.conv_layers import dense_head, torch_bias, torch_kernel
from recvis_jax.models.layers import Acts, Conv, activation, global_avg_pool
from recvis_jax.models.norms import BatchNorm

# Trockman & Kolter 2022, table 1: width / depth, as published; only the smallest was trained with ReLU.
VARIANTS = {
    "convmixer_768_32": dict(width=768, depth=32, kernel_size=7, patch_size=7, activation="relu"),
    "convmixer_1024_20": dict(width=1024, depth=20, kernel_size=9, patch_size=14),
    "convmixer_1536_20": dict(width=1536, depth=20, kernel_size=9, patch_size=7),
}


class Block(nn.Module):
    """x + norm(act(depthwise(x))), then norm(act(pointwise(x))).

    Attributes:
      kernel_size: of the depthwise convolution.
      act: elementwise function.
      bn_groups: parts of the global batch with batch-norm statistics of their own.
      dtype: of the computation.
    """

    kernel_size: int
    act: Any
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w d"]:
        k, d = self.kernel_size, x.shape[-1]
        kw = dict(padding="SAME", kernel_init=torch_kernel, dtype=self.dtype)
        depthwise = Conv(d, (k, k), feature_group_count=d, bias_init=torch_bias(k * k), name="depthwise", **kw)
        pointwise = Conv(d, (1, 1), bias_init=torch_bias(d), name="pointwise", **kw)
        norm1, norm2 = (BatchNorm(self.bn_groups, dtype=self.dtype, name=f"norm{i}") for i in (1, 2))
        x = x + norm1(self.act(depthwise(x)), train=train)
        return norm2(self.act(pointwise(x)), train=train)


class ConvMixer(nn.Module):
    """A convolution of patches, blocks of depthwise and pointwise convolutions, global mean, head.

    Batch norm comes after the activation. Rows and columns that do not fill a patch are dropped.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out, and the features are the output.
      patch_size: rows and columns of a patch, in pixels.
      width: channels.
      depth: number of blocks.
      kernel_size: rows and columns of the depthwise convolutions.
      activation: elementwise function.
      bn_groups: parts of the global batch with batch-norm statistics of their own.
      remat: computes the blocks' intermediates again in the backward pass instead of keeping them.
      dtype: of the computation.

    Raises:
      BadRequest: an image smaller than a patch, or an unknown activation.

    Reference: Trockman & Kolter 2022, "Patches are all you need?".
    """

    num_classes: int = 1000
    patch_size: int = 7
    width: int = 768
    depth: int = 32
    kernel_size: int = 7
    activation: str = "gelu"
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        activation(self.activation)
        if min(self.patch_size, self.kernel_size, self.depth) < 1:
            raise BadRequest("patch_size, kernel_size and depth must be at least 1.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        p, act = self.patch_size, activation(self.activation)
        if min(x.shape[1:3]) < p:
            raise BadRequest(f"{x.shape[1]}x{x.shape[2]} images are smaller than a patch: at least {p}x{p}.")
        bias = torch_bias(p * p * x.shape[-1])
        kw = dict(strides=p, padding="VALID", kernel_init=torch_kernel, bias_init=bias, dtype=self.dtype)
        x = act(Conv(self.width, (p, p), name="stem", **kw)(x.astype(self.dtype)))
        x = BatchNorm(self.bn_groups, dtype=self.dtype, name="stem_norm")(x, train=train)
        acts = {"stem": x}
        block = nn.remat(Block, static_argnums=2) if self.remat else Block
        for i in range(self.depth):
            x = block(self.kernel_size, act, self.bn_groups, self.dtype, name=f"block{i}")(x, train)
            acts[f"block{i}"] = x
        return dense_head({**acts, "features": global_avg_pool(x)}, self.num_classes, self.dtype)
