"""Semantic segmentation: a backbone of dense features, and a head that names the class of every pixel."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recvis_jax.errors import BadRequest, choose
from recvis_jax.models.layer_head import feature_map, frozen_of
from recvis_jax.models.layers import Acts, global_avg_pool
from recvis_jax.models.norms import make_norm
from recvis_jax.models.segment_heads import (
    DeepLabHead,
    FCNHead,
    LinearHead,
    MaskHead,
    SkipHead,
    UNetHead,
    enlarged,
)
from recvis_jax.models.tokens import check_rates

_DENSE = dict(output_stride=8)
VARIANTS: dict[str, dict[str, Any]] = {
    "fcn_r50": dict(backbone=dict(name="resnet50", **_DENSE), head="fcn"),
    "fcn_r101": dict(backbone=dict(name="resnet101", **_DENSE), head="fcn"),
    "deeplabv3_r50": dict(backbone=dict(name="resnet50", **_DENSE), head="deeplabv3"),
    "deeplabv3_r101": dict(backbone=dict(name="resnet101", **_DENSE), head="deeplabv3"),
    **{f"{head}_vgg16": dict(backbone=dict(name="vgg16"), head=head) for head in ("fcn32", "fcn16", "fcn8")},
    "unet_r18": dict(backbone=dict(name="resnet18"), head="unet"),
    "segment_vit_s16": dict(backbone=dict(name="vit_s16"), head="linear"),
    "segment_vit_s16_mask": dict(backbone=dict(name="vit_s16"), head="mask"),
}


# Of these heads, how many maps are read that are finer than the last; -1 for all.
SKIPS = {"fcn32": 0, "fcn16": 1, "fcn8": 2, "unet": -1}
HEADS = ("deeplabv3", "fcn", *SKIPS, "linear", "mask")


class Segmenter(nn.Module):
    """A backbone and a head, whose scores are enlarged to the size of the image.

    Attributes:
      backbone: `__call__(image, *, train) -> (output, acts)`; its output is not used. Residual networks want
        `output_stride` 8 or 16.
      num_classes: k, with the background where there is one.
      head: 'fcn', 'deeplabv3', 'linear' or 'mask' read one map; 'fcn32' does, too, 'fcn16' and 'fcn8' one and two finer
        maps beside it, 'unet' all finer ones: the last map of each size. These want a backbone without dilation.
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
        read = features if self.head not in SKIPS else [features, *finer(acts, features, SKIPS[self.head])]
        acts["coarse"] = self.make_head()(read, train)
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
        if self.head == "mask":
            return MaskHead(self.num_classes, self.dropout, self.dtype, name="head")
        if self.head == "unet":
            return UNetHead(self.num_classes, self.norm, self.dtype, name="head")
        if self.head in SKIPS:
            return SkipHead(self.num_classes, self.dropout, self.dtype, name="head")
        if self.head == "fcn":
            return FCNHead(self.num_classes, self.norm, self.dropout, self.dtype, name="head")
        kw = dict(rates=self.rates, norm=self.norm, dropout=self.dropout, dtype=self.dtype, name="head")
        return DeepLabHead(self.num_classes, self.width, **kw)


def finer(acts: Acts, last: Float[Array, "b h w d"], most: int) -> list[Float[Array, "b _ _ _"]]:
    """Returns the maps that are finer than the last, the last one of each size, from coarse to fine.

    Args:
      acts: a model's named intermediates.
      last: the map that they are finer than.
      most: how many are returned; -1 for all.

    Raises:
      BadRequest: the backbone has fewer.

    Example:
      >>> acts = {"a": jnp.zeros((1, 8, 8, 3)), "b": jnp.zeros((1, 4, 4, 5)), "c": jnp.zeros((1, 2, 2, 7))}
      >>> [x.shape[1] for x in finer(acts, acts["c"], 1)], [x.shape[1] for x in finer(acts, acts["c"], -1)]
      ([4], [4, 8])
    """
    ordered = sorted(acts.items(), key=lambda item: item[0] != "stem")  # some models name it last
    sizes = {x.shape[1:3]: x for _, x in ordered if x.ndim == 4 and x.shape[1] > last.shape[1]}
    found = [sizes[size] for size in sorted(sizes)]
    if (not found and most) or len(found) < most:
        raise BadRequest(
            f"the head reads {max(most, 1)} maps that are finer than the last, and the backbone has {len(found)}: take "
            "a convolutional one without output_stride, or head='linear'."
        )
    return found if most < 0 else found[:most]
