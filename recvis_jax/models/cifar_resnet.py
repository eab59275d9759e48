"""Residual networks for small images, and the same networks without shortcuts."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.layers import Acts, Conv, activation, batch_split, global_avg_pool, he_normal, linear_head
from recvis_jax.models.norms import make_norm


class BasicBlock(nn.Module):
    """act(x' + norm(conv(act(norm(conv(x)))))), where x' is x or its shortcut to another width and resolution.

    Attributes:
      width: channels of the output.
      stride: of the first convolution and of the shortcut.
      shortcut: 'A' takes every stride-th pixel and fills new channels with zeros, 'B' is a strided 1x1 convolution
        wherever the shape changes, 'none' leaves the shortcut out.
      norm: constructor of normalisers.
      act: elementwise function.
      use_bias: whether convolutions have a bias (they need none before a norm).
      zero_init: starts the scale of the second norm at 0, so that the block starts as its shortcut.
      dtype: of the computation.
    """

    width: int
    stride: int
    shortcut: str
    norm: Callable[..., nn.Module]
    act: Callable[[Array], Array]
    use_bias: bool = False
    zero_init: bool = False
    dtype: Any = jnp.float32

    def conv(self, name: str, size: int, stride: int = 1) -> nn.Conv:
        kw = dict(strides=stride, padding=size // 2, use_bias=self.use_bias, kernel_init=he_normal, dtype=self.dtype)
        return Conv(self.width, (size, size), name=name, **kw)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j d"]:
        y = self.conv("conv1", 3, self.stride)(x)
        y = self.act(self.norm(name="norm1")(y, train=train))
        y = self.conv("conv2", 3)(y)
        y = self.norm(name="norm2", zero_init=self.zero_init)(y, train=train)
        if self.shortcut == "none":
            return batch_split(self.act(y))
        if x.shape != y.shape and self.shortcut == "B":
            x = self.norm(name="norm_proj")(self.conv("proj", 1, self.stride)(x), train=train)
        elif x.shape != y.shape:
            new = self.width - x.shape[-1]
            x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
        return batch_split(self.act(x + y))


class CifarResNet(nn.Module):
    """6n + 2 layers: a 3x3 stem, 3 stages of n blocks of two 3x3 convolutions, global mean, head.

    Stages have `width`, 2 `width` and 4 `width` channels; the second and third start with stride 2.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out, and the features are the output.
      depth: number of layers with weights, 6n + 2.
      width: channels of the first stage.
      shortcut: 'A' (no parameters; the paper's choice for small images), 'B' (projection), or 'none' (plain network).
      norm: 'batch', 'layer', 'instance', 'group' or 'none'.
      norm_groups: runs of channels for norm 'group'; 0 takes gcd(32, channels).
      activation: name of the elementwise function.
      zero_init: starts the last norm of each block with scale 0.
      bn_groups: parts of the global batch with batch-norm statistics of their own.
      dtype: of the computation.

    Raises:
      BadRequest: a depth that is not 6n + 2, or an unknown shortcut, norm or activation.

    Reference: He et al. 2015, "Deep residual learning for image recognition", section 4.2; Wu & He 2018 for the norms.
    """

    num_classes: int = 10
    depth: int = 20
    width: int = 16
    shortcut: str = "A"
    norm: str = "batch"
    norm_groups: int = 0
    activation: str = "relu"
    zero_init: bool = False
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        if self.depth < 8 or self.depth % 6 != 2:
            raise BadRequest(f"depth must be 6n + 2 (8, 14, 20, ...), not {self.depth}.")
        if self.shortcut not in ("A", "B", "none"):
            raise BadRequest(f"unknown shortcut {self.shortcut!r}. There are: A, B, none.")
        act, acts = activation(self.activation), {}
        norm = make_norm(self.norm, bn_groups=self.bn_groups, norm_groups=self.norm_groups, dtype=self.dtype)
        kw = dict(use_bias=self.norm == "none", dtype=self.dtype)
        x = Conv(self.width, (3, 3), padding=1, kernel_init=he_normal, name="stem", **kw)(x.astype(self.dtype))
        acts["stem"] = x = act(norm(name="stem_norm")(x, train=train))
        for stage in (1, 2, 3):
            for block in range(1, (self.depth - 2) // 6 + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                x = BasicBlock(
                    width=self.width * 2 ** (stage - 1),
                    stride=stride,
                    shortcut=self.shortcut,
                    norm=norm,
                    act=act,
                    zero_init=self.zero_init,
                    name=f"stage{stage}_block{block}",
                    **kw,
                )(x, train=train)
                acts[f"stage{stage}/block{block}"] = x
        acts["features"] = x = global_avg_pool(x)
        return linear_head(acts, x, self.num_classes, self.dtype)
