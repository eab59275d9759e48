"""Heads of segmenters: from a backbone's maps to the scores of classes, before these are enlarged to the image."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.models.conv_layers import torch_bias, torch_kernel
from recvis_jax.models.layers import Conv, activation, global_avg_pool
from recvis_jax.models.norms import LayerNorm, make_norm
from recvis_jax.models.tokens import trunc_normal
from recvis_jax.models.vit import Block


def enlarged(x: Float[Array, "b h w c"], size: Sequence[int]) -> Float[Array, "b i j c"]:
    """Bilinear interpolation to `size`, centres of pixels aligned (PyTorch's `align_corners=False`)."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear", antialias=False)


class ConvNorm(nn.Module):
    """relu(norm(convolution)), without bias.

    Attributes:
      width: output channels.
      size: rows and columns of the kernel.
      dilation: distance between the pixels that it reads.
      norm: see `make_norm`.
      dtype: of the computation.
    """

    width: int
    size: int = 1
    dilation: int = 1
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w d"]:
        kw = dict(padding=self.size // 2 * self.dilation, kernel_dilation=self.dilation, use_bias=False)
        x = Conv(self.width, (self.size, self.size), kernel_init=torch_kernel, dtype=self.dtype, name="conv", **kw)(x)
        return nn.relu(make_norm(self.norm, dtype=self.dtype)(name="norm")(x, train=train))


class FCNHead(nn.Module):
    """A 3x3 convolution with a norm to a quarter of the channels, dropout, and the classes by a 1x1 convolution.

    Reference: Long, Shelhamer & Darrell 2015, "Fully convolutional networks for semantic segmentation", in the form of
      torchvision, on dilated features.
    """

    num_classes: int
    norm: str
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w k"]:
        x = ConvNorm(max(1, x.shape[-1] // 4), 3, norm=self.norm, dtype=self.dtype, name="hidden")(x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return _classes(self.num_classes, x, self.dtype)


class DeepLabHead(nn.Module):
    """Atrous spatial pyramid pooling: 1x1 and dilated 3x3 convolutions and the mean of the image, side by side.

    Attributes:
      num_classes: k.
      width: channels of every branch.
      rates: dilations of the 3x3 convolutions.
      norm: of all convolutions.
      dropout: probability that a unit is dropped behind the branches, in training.
      dtype: of the computation.

    Reference: Chen et al. 2017, "Rethinking atrous convolution for semantic image segmentation", section 3.3.
    """

    num_classes: int
    width: int
    rates: tuple[int, ...]
    norm: str
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w k"]:
        unit = partial(ConvNorm, self.width, norm=self.norm, dtype=self.dtype)
        branches = [unit(name="branch0")(x, train)]
        for i, rate in enumerate(self.rates, 1):
            branches.append(unit(3, rate, name=f"branch{i}")(x, train))
        whole = unit(name="pooled")(global_avg_pool(x)[:, None, None], train)
        branches.append(jnp.broadcast_to(whole, branches[0].shape))
        x = unit(name="project")(jnp.concatenate(branches, -1), train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return _classes(self.num_classes, unit(3, name="hidden")(x, train), self.dtype)


class LinearHead(nn.Module):
    """The classes by a 1x1 convolution: what the features alone tell.

    Reference: Strudel et al. 2021, "Segmenter: transformer for semantic segmentation", section 3.2, the linear decoder.
    """

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w k"]:
        return _classes(self.num_classes, x, self.dtype)


def _classes(num_classes: int, x: Array, dtype: Any) -> Array:
    kw = dict(kernel_init=torch_kernel, bias_init=torch_bias(x.shape[-1]), dtype=dtype, name="classes")
    return Conv(num_classes, (1, 1), **kw)(x).astype(jnp.float32)


class SkipHead(nn.Module):
    """The classes by 1x1 convolutions of the last map and of finer ones, each sum enlarged to the next finer map.

    The convolutions of the finer maps start at zero, so that at first it is the head without them. FCN-32 reads the
    last map of a network of stride 32 alone, FCN-16 and FCN-8 one and two finer ones. (Enlarging is bilinear and not
    learnt; the paper's starts so and is learnt between the maps.)

    Attributes:
      num_classes: k.
      dropout: probability that a unit of the last map is dropped, in training.
      dtype: of the computation.

    Reference: Long, Shelhamer & Darrell 2015, "Fully convolutional networks for semantic segmentation", section 4.2.
    """

    num_classes: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b _ _ _"]], train: bool) -> Float[Array, "b h w k"]:
        last = nn.Dropout(self.dropout, deterministic=not train)(maps[0])
        x = _classes(self.num_classes, last, self.dtype)
        for i, finer in enumerate(maps[1:]):
            kw = dict(kernel_init=nn.initializers.zeros, dtype=self.dtype, name=f"skip{i}")
            x = enlarged(x, finer.shape[1:3]) + Conv(self.num_classes, (1, 1), **kw)(finer).astype(jnp.float32)
        return x


class UNetHead(nn.Module):
    """The expanding path: 2x2 up-convolution, concatenation of the backbone's map of that size, two 3x3 convolutions.

    Every level has as many channels as the backbone's map; the backbone is the contracting path.

    Attributes:
      num_classes: k.
      norm: behind each 3x3 convolution.
      dtype: of the computation.

    Reference: Ronneberger, Fischer & Brox 2015, "U-Net: convolutional networks for biomedical image segmentation",
      figure 1, with padded convolutions.
    """

    num_classes: int
    norm: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b _ _ _"]], train: bool) -> Float[Array, "b h w k"]:
        x = maps[0]
        for i, finer in enumerate(maps[1:]):
            _, h, w, width = finer.shape
            x = nn.ConvTranspose(width, (2, 2), strides=(2, 2), dtype=self.dtype, name=f"up{i}")(x)[:, :h, :w]
            x = jnp.concatenate([x, finer], -1)
            for j in range(2):
                x = ConvNorm(width, 3, norm=self.norm, dtype=self.dtype, name=f"level{i}_{j}")(x, train)
        return _classes(self.num_classes, x, self.dtype)


class MaskHead(nn.Module):
    """Learned tokens of the classes attend to the patches and they to them; their products are the scores.

    Both are projected, scaled to length 1 and multiplied; the scores of a patch have a layer norm. As many layers as in
    the paper, two, with one head of attention for 64 channels.

    Attributes:
      num_classes: k.
      dropout: probability that a unit of a branch is dropped, in training.
      dtype: of the computation.

    Reference: Strudel et al. 2021, "Segmenter: transformer for semantic segmentation", section 3.2, the mask
      Transformer.
    """

    num_classes: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w k"]:
        b, h, w, d = x.shape
        heads = next(n for n in range(max(1, d // 64), 0, -1) if d % n == 0)
        tokens = nn.Dense(d, kernel_init=trunc_normal, dtype=self.dtype, name="embed")(x.reshape(b, h * w, d))
        own = jnp.asarray(self.param("class_tokens", trunc_normal, (1, self.num_classes, d)), tokens.dtype)
        tokens = jnp.concatenate([tokens, jnp.broadcast_to(own, (b, *own.shape[1:]))], 1)
        for i in range(2):
            block = Block(heads, activation("gelu"), 1e-5, self.dropout, train, dtype=self.dtype, name=f"layer{i}")
            tokens, _ = block(tokens)
        tokens = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(tokens)
        parts = []
        for name, part in (("patches", tokens[:, : h * w]), ("classes", tokens[:, h * w :])):
            scaled = nn.initializers.normal(1 / math.sqrt(d))
            part = nn.Dense(d, use_bias=False, kernel_init=scaled, dtype=self.dtype, name=name)(part)
            parts.append(part / jnp.maximum(jnp.linalg.norm(part, axis=-1, keepdims=True), 1e-6))
        scores = jnp.einsum("bnd,bkd->bnk", *parts).astype(jnp.float32)
        return LayerNorm(epsilon=1e-5, name="score_norm")(scores).reshape(b, h, w, self.num_classes)
