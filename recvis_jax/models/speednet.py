"""A small convolutional network that reaches a given accuracy quickly, on images of about 28x28."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.layers import Acts, Conv, ConvMaxPool, activation, global_max_pool, he_normal
from recvis_jax.models.norms import make_norm


class SpeedNet(nn.Module):
    """A strided stem, stages of conv, 2x2 max pool and residual convolutions, global maximum, scaled head.

    It is fast on a CPU because the stem halves the image while there are few channels, all other layers have at least
    64 channels, with which convolutions run near the machine's peak, and one fused norm and activation follows each
    convolution.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out, and the features are the output.
      widths: channels of the stem and of each stage.
      blocks: number of residual convolutions at the end of each stage.
      stem_size: rows and columns of the stem's kernel; its stride is 2.
      activation: name of the elementwise function.
      head_scale: factor of the logits, which are large under a global maximum.
      bn_groups: parts of the global batch with batch-norm statistics of their own.
      dtype: of the computation.

    Raises:
      BadRequest: widths and blocks for different numbers of stages, or images too small for the stages.

    Reference: the ideas of Page 2019, "How to train your ResNet", and Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on
    a single GPU".
    """

    num_classes: int = 10
    widths: tuple[int, ...] = (64, 128, 128, 256)
    blocks: tuple[int, ...] = (0, 1, 0)
    stem_size: int = 5
    activation: str = "relu"
    head_scale: float = 0.125
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        if len(self.blocks) != len(self.widths) - 1:
            raise BadRequest(
                f"widths={self.widths} must have one entry more than blocks={self.blocks}: the stem and every stage."
            )
        smallest = 2 ** len(self.widths)
        if min(x.shape[1:3]) < smallest:
            raise BadRequest(f"images of at least {smallest}x{smallest} are needed, not {x.shape[1]}x{x.shape[2]}.")
        act, acts = activation(self.activation), {}
        norm = make_norm("batch", bn_groups=self.bn_groups, dtype=self.dtype)

        def conv(x: Array, width: int, name: str, size: int = 3, stride: int = 1, kind: Any = Conv) -> Array:
            kw = dict(strides=stride, padding=(size - 1) // 2, use_bias=False, kernel_init=he_normal)
            return kind(width, (size, size), dtype=self.dtype, name=name, **kw)(x)

        x = conv(x.astype(self.dtype), self.widths[0], "stem", self.stem_size, 2)
        acts["stem"] = x = act(norm(name="stem_norm")(x, train=train))
        for stage, (width, blocks) in enumerate(zip(self.widths[1:], self.blocks, strict=True), 1):
            x = conv(x, width, f"stage{stage}_conv", kind=ConvMaxPool)
            x = act(norm(name=f"stage{stage}_norm")(x, train=train))
            for block in range(1, blocks + 1):
                y = conv(x, width, f"stage{stage}_block{block}_conv")
                x = x + act(norm(name=f"stage{stage}_block{block}_norm")(y, train=train))
                acts[f"stage{stage}/block{block}"] = x
            acts[f"stage{stage}"] = x
        acts["features"] = x = global_max_pool(x)
        if not self.num_classes:
            return x.astype(jnp.float32), acts
        x = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, name="head")(x)
        acts["logits"] = x.astype(jnp.float32) * self.head_scale
        return acts["logits"], acts
