"""Semantic segmentation: a backbone of dense features, and a head that names the class of every pixel."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recvis_jax.errors import BadRequest, choose
from recvis_jax.models.conv_layers import torch_bias, torch_kernel
from recvis_jax.models.layer_head import feature_map, frozen_of
from recvis_jax.models.layers import Acts, Conv, global_avg_pool
from recvis_jax.models.norms import make_norm
from recvis_jax.models.tokens import check_rates

_DENSE = dict(output_stride=8)
VARIANTS: dict[str, dict[str, Any]] = {
    "fcn_r50": dict(backbone=dict(name="resnet50", **_DENSE), head="fcn"),
    "fcn_r101": dict(backbone=dict(name="resnet101", **_DENSE), head="fcn"),
    "deeplabv3_r50": dict(backbone=dict(name="resnet50", **_DENSE), head="deeplabv3"),
    "deeplabv3_r101": dict(backbone=dict(name="resnet101", **_DENSE), head="deeplabv3"),
    "segment_vit_s16": dict(backbone=dict(name="vit_s16"), head="linear"),
}


def enlarged(x: Float[Array, "b h w c"], size: Sequence[int]) -> Float[Array, "b i j c"]:
    """Bilinear interpolation to `size`, centres of pixels aligned (PyTorch's `align_corners=False`)."""
    return jax.image.resize(x, (len(x), *size, x.shape[-1]), "bilinear", antialias=False)


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


HEADS = ("deeplabv3", "fcn", "linear")


class Segmenter(nn.Module):
    """A backbone and a head, whose scores are enlarged to the size of the image.

    Attributes:
      backbone: `__call__(image, *, train) -> (output, acts)`; its output is not used. Residual networks want
        `output_stride` 8 or 16.
      num_classes: k, with the background where there is one.
      head: 'fcn', 'deeplabv3' or 'linear'.
      layer: name in the backbone's `acts` of what the head reads, maps or tokens of patches; empty for the last.
      auxiliary_layer: name of an earlier layer that an FCN head of its own reads, whose loss is added in training;
        empty for none.
      width: channels of DeepLab's branches.
      rates: dilations of DeepLab's branches.
      norm: of the heads, see `make_norm`.
      dropout: probability that a unit is dropped in the head, in training; in the auxiliary one at most 0.1.
      dtype: of the computation.

    Raises:
      BadRequest: an unknown head, norm or layer; a number out of range.

    Reference: Long et al. 2015; Chen et al. 2017; Strudel et al. 2021. Equal to torchvision's `fcn_resnet50` and
      `deeplabv3_resnet50` (for these `auxiliary_layer` is 'stage3/block6', and DeepLab's dropout 0.5).
    """

    backbone: nn.Module
    num_classes: int
    head: str = "fcn"
    layer: str = ""
    auxiliary_layer: str = ""
    width: int = 256
    rates: tuple[int, ...] = (12, 24, 36)
    norm: str = "batch"
    dropout: float = 0.1
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(dict.fromkeys(HEADS), self.head, "head")
        make_norm(self.norm)
        check_rates(dropout=self.dropout)
        if min(self.num_classes, self.width, *self.rates) < 1:
            raise BadRequest("num_classes, width and rates must be at least 1.")

    @property
    def frozen_parameters(self) -> str | None:
        """Regular expression of the parameters that the optimizer must not change: the backbone's frozen norms."""
        return frozen_of(self.backbone)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool, valid: Bool[Array, "b h w"] | None = None
    ) -> tuple[Float[Array, "b h w k"], Acts]:
        """Returns the scores of every pixel's classes, and the intermediates.

        Args:
          x: images.
          train: whether it is training.
          valid: unused; padding is seen as it is.

        Returns:
          logits in the size of the image. Among the intermediates `coarse`, the scores before they are enlarged, and
          `auxiliary/logits` (b h w k) where there is such a head.
        """
        size, acts = x.shape[1:3], self.backbone(x, train=train)[1]
        features = feature_map(acts, self.layer, size)
        acts["coarse"] = self.make_head()(features, train)
        acts["features"] = global_avg_pool(features)
        if self.auxiliary_layer:
            early = FCNHead(self.num_classes, self.norm, min(0.1, self.dropout), self.dtype, name="auxiliary_head")
            acts["auxiliary/logits"] = enlarged(early(feature_map(acts, self.auxiliary_layer, size), train), size)
        logits = enlarged(acts["coarse"], size)
        return logits, {**acts, "logits": logits}

    def make_head(self) -> nn.Module:
        """Returns the module of the head."""
        if self.head == "linear":
            return LinearHead(self.num_classes, self.dtype, name="head")
        if self.head == "fcn":
            return FCNHead(self.num_classes, self.norm, self.dropout, self.dtype, name="head")
        kw = dict(rates=self.rates, norm=self.norm, dropout=self.dropout, dtype=self.dtype, name="head")
        return DeepLabHead(self.num_classes, self.width, **kw)
