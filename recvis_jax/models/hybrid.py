"""The hybrid Vision Transformer: patches of a residual network's feature map."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.conv_layers import StdConv
from recvis_jax.models.layers import Acts
from recvis_jax.models.norms import GroupNorm
from recvis_jax.models.tokens import PatchEmbed, patch_grid
from recvis_jax.models.vit import SIZES, ViT

# Bottlenecks of each stage; r50_s16 keeps three stages and moves the fourth's blocks to the third.
_STAGES = {"r_s4": (), "r26_s32": (2, 2, 2, 2), "r50_s16": (3, 4, 9), "r50_s32": (3, 4, 6, 3)}
VARIANTS = {
    "vit_ti_r_s16": dict(stages=_STAGES["r_s4"], patch_size=8, **SIZES["ti"]),
    "vit_s_r26_s32": dict(stages=_STAGES["r26_s32"], patch_size=1, **SIZES["s"]),
    "vit_b_r50_s16": dict(stages=_STAGES["r50_s16"], patch_size=1, **SIZES["b"]),
    "vit_l_r50_s32": dict(stages=_STAGES["r50_s32"], patch_size=1, **SIZES["l"]),
}


class Bottleneck(nn.Module):
    """relu(x' + F(x)), where F is 1x1, 3x3 and 1x1 convolutions with a group norm after each.

    x' is x, or a strided 1x1 convolution of it with a norm where the shape changes.

    Attributes:
      width: channels inside; the output has four times as many.
      stride: of the 3x3 convolution and of the shortcut.
      dtype: of the computation.
    """

    width: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        conv = partial(StdConv, padding="SAME", dtype=self.dtype)
        norm = partial(GroupNorm, 32, dtype=self.dtype)
        y = nn.relu(norm(name="norm1")(conv(self.width, 1, name="conv1")(x)))
        y = nn.relu(norm(name="norm2")(conv(self.width, 3, self.stride, name="conv2")(y)))
        y = norm(name="norm3", zero_init=True)(conv(4 * self.width, 1, name="conv3")(y))
        if x.shape != y.shape:
            x = norm(name="norm_proj")(conv(4 * self.width, 1, self.stride, name="proj")(x))
        return nn.relu(x + y)


class HybridViT(ViT):
    """A Vision Transformer on the feature map of a residual network with group norms and standardised weights.

    A 7x7 stem of stride 2, max pool, and stages of bottlenecks; all stages but the first start with stride 2. Padding
    is TensorFlow's. Everything else is as in `ViT`, with `patch_size` in pixels of the feature map.

    Attributes:
      stages: number of bottlenecks of each stage; without stages, patches are taken from the pooled stem.

    Raises:
      BadRequest: as in `ViT`; a feature map that is not made of whole patches.

    Reference: Dosovitskiy et al. 2020, "An image is worth 16x16 words", section 3.1 and appendix B.1; Steiner et al.
    2021, "How to train your ViT?", for the smaller ones. Equal to timm's `vit_*_r*`.
    """

    stages: tuple[int, ...] = (3, 4, 9)

    def embed(self, x: Float[Array, "b h w c"], train: bool) -> tuple[Float[Array, "b n d"], tuple[int, int], Acts]:
        image, acts = x, {}
        x = StdConv(64, 7, 2, padding="SAME", dtype=self.dtype, name="stem")(x)
        x = nn.relu(GroupNorm(32, dtype=self.dtype, name="stem_norm")(x))
        acts["stem"] = x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.stages, 1):
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                name = f"stage{stage}_block{block}"
                make = nn.remat(Bottleneck) if self.remat else Bottleneck
                acts[f"stage{stage}/block{block}"] = x = make(32 * 2**stage, stride, self.dtype, name=name)(x)
        try:
            grid = patch_grid(x.shape[1:3], self.patch_size)
        except BadRequest as e:
            raise BadRequest(f"the feature map of {image.shape[1]}x{image.shape[2]} images does not fit: {e}") from None
        x = PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(x)
        return x, grid, {**acts, "patches": x}
