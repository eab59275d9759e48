"""Big Transfer: ResNet-v2 with group normalisation and weight standardisation."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.conv_layers import StdConv, dense_head
from recvis_jax.models.layers import Acts, batch_split, global_avg_pool
from recvis_jax.models.norms import GroupNorm
from recvis_jax.operations import max_pool

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
SIZES = ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
VARIANTS: dict[str, dict[str, Any]] = {
    f"bit_r{depth}x{factor}": dict(blocks=BLOCKS[depth], width=64 * factor) for depth, factor in SIZES
}


class PreActBottleneck(nn.Module):
    """x' + F(x), where F is 1x1, 3x3 and 1x1 convolutions, each after a group norm and ReLU.

    x' is x, or a strided 1x1 convolution of the first norm's activations where the shape changes.

    Attributes:
      width: channels inside; the output has four times as many.
      stride: of the 3x3 convolution and of the shortcut.
    """

    width: int
    stride: int
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        out = 4 * self.width
        conv = partial(StdConv, dtype=self.dtype)
        y = nn.relu(self.norm(name="norm1")(x))
        if x.shape[-1] != out or self.stride > 1:
            x = conv(out, 1, self.stride, name="proj")(y)
        y = conv(self.width, 1, name="conv1")(y)
        y = conv(self.width, 3, self.stride, name="conv2")(nn.relu(self.norm(name="norm2")(y)))
        return x + conv(out, 1, name="conv3")(nn.relu(self.norm(name="norm3")(y)))


class BiT(nn.Module):
    """A 7x7 stem of stride 2, max pool, 4 stages of pre-activation bottlenecks, norm, global mean, head.

    Images of any size. Stages have 4, 8, 16 and 32 `width` channels; all but the first start with stride 2. No
    statistics are shared between images, so training works with any batch size.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out.
      blocks: number of bottlenecks of each stage.
      width: channels of the stem and inside the first stage's bottlenecks.
      norm_groups: runs of channels of the norms.
      remat: recomputes a block's intermediates in the backward pass instead of keeping them.
      dtype: of the computation.

    Raises:
      BadRequest: sizes below 1, or a width that `norm_groups` does not divide.

    Reference: Kolesnikov et al. 2020, "Big transfer (BiT): general visual representation learning"; He et al. 2016,
      "Identity mappings in deep residual networks". Equal to timm's `resnetv2_*_bit`.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    norm_groups: int = 32
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks or min(*self.blocks, self.width, self.norm_groups) < 1 or self.num_classes < 0:
            raise BadRequest(
                f"blocks={self.blocks}, width={self.width} and norm_groups={self.norm_groups} must be at least 1, "
                f"num_classes={self.num_classes} at least 0."
            )
        if self.width % self.norm_groups:
            raise BadRequest(f"norm_groups={self.norm_groups} does not divide width={self.width}.")

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        norm, acts = partial(GroupNorm, self.norm_groups, dtype=self.dtype), {}
        block_type = nn.remat(PreActBottleneck) if self.remat else PreActBottleneck
        x = StdConv(self.width, 7, 2, dtype=self.dtype, name="stem")(x)
        # Pad with zeros, not minus infinity: the published weights were trained this way.
        acts["stem"] = x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)
        for stage, blocks in enumerate(self.blocks, 1):
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                width, name = self.width * 2 ** (stage - 1), f"stage{stage}_block{block}"
                x = batch_split(block_type(width, stride, norm, self.dtype, name=name)(x))
                acts[f"stage{stage}/block{block}"] = x
        acts["norm"] = x = nn.relu(norm(name="norm")(x))
        acts["features"] = global_avg_pool(x)
        return dense_head(acts, self.num_classes, self.dtype, nn.initializers.zeros, nn.initializers.zeros)
