"""Residual networks for ImageNet, and their wide forms."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.conv_layers import dense_head, he_fan_out
from recvis_jax.models.layers import Acts, Conv, activation, batch_split, global_avg_pool
from recvis_jax.models.norms import make_norm
from recvis_jax.operations import max_pool

VARIANTS: dict[str, dict[str, Any]] = {
    "resnet18": dict(blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet34": dict(blocks=(3, 4, 6, 3), bottleneck=False),
    "resnet50": dict(blocks=(3, 4, 6, 3)),
    "resnet101": dict(blocks=(3, 4, 23, 3)),
    "resnet152": dict(blocks=(3, 8, 36, 3)),
    "wide_resnet50_2": dict(blocks=(3, 4, 6, 3), widen=2),
    "wide_resnet101_2": dict(blocks=(3, 4, 23, 3), widen=2),
}


FROZEN_NORMS = r"(^|/)(stem_norm|norm\d|norm_proj)/(scale|bias)$"


class ResidualBlock(nn.Module):
    """act(x' + F(x)), where F is two 3x3 convolutions, or 1x1, 3x3, 1x1 with a bottleneck, each with a norm.

    x' is x, or a strided 1x1 convolution of x with a norm if the shape changes. The stride of a bottleneck is in its
    3x3 convolution (as in torchvision's "v1.5"; in the paper it is in the first 1x1).

    Attributes:
      width: channels inside; the output has `width`, or 4 `width` / `widen` with a bottleneck.
      widen: how many times wider than the paper's a bottleneck is inside.
      stride: of the first 3x3 convolution and of the shortcut.
      dilation: distance between the pixels that a 3x3 convolution reads; above 1 only with bottlenecks.
      norm: constructor of normalisers.
      use_bias: whether convolutions have a bias (they need none before a norm).
    """

    width: int
    widen: int
    stride: int
    bottleneck: bool
    norm: Callable[..., nn.Module]
    act: Callable[[Array], Array]
    use_bias: bool
    zero_init: bool
    dtype: Any
    dilation: int = 1

    def conv(self, name: str, width: int, size: int, stride: int = 1) -> nn.Conv:
        dilation = self.dilation if size > 1 else 1
        kw = dict(strides=stride, padding=size // 2 * dilation, use_bias=self.use_bias, kernel_init=he_fan_out)
        kw |= dict(kernel_dilation=dilation, dtype=self.dtype)
        return Conv(width, (size, size), name=name, **kw)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b i j d"]:
        out = 4 * self.width // self.widen if self.bottleneck else self.width
        if self.bottleneck:
            layers = [(self.width, 1, 1), (self.width, 3, self.stride), (out, 1, 1)]
        else:
            layers = [(self.width, 3, self.stride), (out, 3, 1)]
        y = x
        for i, layer in enumerate(layers, 1):
            last = i == len(layers)
            y = self.conv(f"conv{i}", *layer)(y)
            y = self.norm(name=f"norm{i}", zero_init=last and self.zero_init)(y, train=train)
            y = y if last else self.act(y)
        if x.shape != y.shape:
            x = self.norm(name="norm_proj")(self.conv("proj", out, 1, self.stride)(x), train=train)
        return batch_split(self.act(x + y))


class ResNet(nn.Module):
    """A 7x7 stem of stride 2, max pool, 4 stages of residual blocks, global mean, head; images of any size.

    Stages have `width`, 2, 4 and 8 `width` channels (four times that with bottlenecks); all but the first start with
    stride 2.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out.
      blocks: number of blocks of each stage.
      bottleneck: 1x1, 3x3, 1x1 convolutions in a block instead of two 3x3.
      width: channels of the stem and of the first stage.
      widen: factor on the channels inside a bottleneck.
      stem_width: channels of the stem, where they are not `width`; 0 for `width`.
      output_stride: pixels of the image for one of the last feature map: 32, or 16 or 8, for which the last one or two
        stages keep their size and dilate their 3x3 convolutions instead (with bottlenecks).
      norm: 'batch', 'frozen' (a batch norm that is not trained), 'layer', 'instance', 'group' or 'none'.
      norm_groups: runs of channels for norm 'group'; 0 takes gcd(32, channels).
      activation: name of the elementwise function.
      zero_init: starts the last norm of each block with scale 0.
      bn_groups: parts of the global batch with batch-norm statistics of their own.
      remat: recomputes a block's intermediates in the backward pass instead of keeping them.
      dtype: of the computation.

    Raises:
      BadRequest: sizes below 1, `widen` or dilation without bottlenecks, an unknown norm or activation.

    Reference: He et al. 2015, "Deep residual learning for image recognition"; Zagoruyko & Komodakis 2016, "Wide
      residual networks"; Goyal et al. 2017 for `zero_init`; Chen et al. 2017, "Rethinking atrous convolution for
      semantic image segmentation", for `output_stride`. Equal to torchvision's `resnet.py`.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    width: int = 64
    widen: int = 1
    stem_width: int = 0
    output_stride: int = 32
    norm: str = "batch"
    norm_groups: int = 0
    activation: str = "relu"
    zero_init: bool = False
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks or min(*self.blocks, self.width, self.widen) < 1 or self.num_classes < 0:
            raise BadRequest(
                f"blocks={self.blocks}, width={self.width} and widen={self.widen} must be at least 1, "
                f"num_classes={self.num_classes} at least 0."
            )
        if self.widen > 1 and not self.bottleneck:
            raise BadRequest(f"widen={self.widen} needs bottleneck=True; without bottlenecks set width instead.")
        if self.output_stride not in (8, 16, 32):
            raise BadRequest(f"output_stride={self.output_stride}; it takes 8, 16 or 32.")
        if self.output_stride < 32 and not self.bottleneck:
            raise BadRequest(f"output_stride={self.output_stride} needs bottleneck=True.")
        activation(self.activation)
        make_norm(self.norm)

    @property
    def frozen_parameters(self) -> str | None:
        """Regular expression of the parameters that the optimizer must not change."""
        return FROZEN_NORMS if self.norm == "frozen" else None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        act, acts = activation(self.activation), {}
        norm = make_norm(self.norm, bn_groups=self.bn_groups, norm_groups=self.norm_groups, dtype=self.dtype)
        kw = dict(use_bias=self.norm == "none", dtype=self.dtype)
        block_type = nn.remat(ResidualBlock, static_argnums=(2,)) if self.remat else ResidualBlock
        stem = Conv(
            self.stem_width or self.width, (7, 7), strides=2, padding=3, kernel_init=he_fan_out, name="stem", **kw
        )
        x = act(norm(name="stem_norm")(stem(x.astype(self.dtype)), train=train))
        acts["stem"] = x = max_pool(x, 3, 2, padding=1)
        for stage, blocks in enumerate(self.blocks, 1):
            dilated = stage > 1 and 2 ** (stage + 1) > self.output_stride
            dilation = 2 ** (stage + 1) // self.output_stride if dilated else 1
            for block in range(1, blocks + 1):
                acts[f"stage{stage}/block{block}"] = x = block_type(
                    width=self.width * self.widen * 2 ** (stage - 1),
                    widen=self.widen,
                    stride=2 if stage > 1 and block == 1 and not dilated else 1,
                    dilation=max(1, dilation // 2) if block == 1 else dilation,
                    bottleneck=self.bottleneck,
                    norm=norm,
                    act=act,
                    zero_init=self.zero_init,
                    name=f"stage{stage}_block{block}",
                    **kw,
                )(x, train)
        acts["features"] = global_avg_pool(x)
        return dense_head(acts, self.num_classes, self.dtype)
