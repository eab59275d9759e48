"""AlexNet in its one-stream form."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.conv_layers import adaptive_avg_pool, dense_head, torch_bias, torch_dense, torch_kernel
from recvis_jax.models.layers import Acts, Conv, flatten
from recvis_jax.operations import max_pool


class AlexNet(nn.Module):
    """Five convolutions of 64, 192, 384, 256 and 256 channels, three max pools, three fully connected layers.

    The paper's two streams, made for two GPUs, are merged into one, and there is no local response normalisation.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out.
      hidden: width of the first two fully connected layers.
      dropout: probability that an input of the first two fully connected layers is dropped in training.
      dtype: of the computation.

    Raises:
      BadRequest: images smaller than 63x63, a dropout outside [0, 1), or a width below 1.

    Reference: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks"; Krizhevsky et al.
      2012, "ImageNet classification with deep convolutional neural networks". Equal to torchvision's `alexnet.py`.
    """

    num_classes: int = 1000
    hidden: int = 4096
    dropout: float = 0.5
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1 or self.hidden < 1 or self.num_classes < 0:
            raise BadRequest(
                f"dropout={self.dropout} must be in [0, 1), hidden={self.hidden} at least 1, "
                f"num_classes={self.num_classes} at least 0."
            )

    def conv(self, x: Float[Array, "b h w c"], i: int, width: int, size: int, stride: int = 1) -> Array:
        """Convolution i and its ReLU."""
        fan_in = size * size * x.shape[-1]
        init = dict(kernel_init=torch_kernel, bias_init=torch_bias(fan_in))
        padding = 2 if size > 3 else 1
        conv = Conv(width, (size, size), stride, padding, dtype=self.dtype, name=f"conv{i}", **init)
        return nn.relu(conv(x))

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        if min(x.shape[1:3]) < 63:
            raise BadRequest(f"AlexNet needs images of at least 63x63, not {x.shape[1]}x{x.shape[2]}.")
        acts = {}
        acts["stem"] = x = max_pool(self.conv(x.astype(self.dtype), 1, 64, 11, 4), 3, 2)
        acts["stage1/block1"] = x = self.conv(x, 2, 192, 5)
        x = max_pool(x, 3, 2)
        for block, width in enumerate((384, 256, 256), 1):
            acts[f"stage2/block{block}"] = x = self.conv(x, block + 2, width, 3)
        acts["stage2/pool"] = x = max_pool(x, 3, 2)
        x = flatten(adaptive_avg_pool(x, 6))
        drop = nn.Dropout(self.dropout, deterministic=not train)
        acts["fc6"] = x = nn.relu(torch_dense(self.hidden, x.shape[-1], "fc6", self.dtype)(drop(x)))
        acts["features"] = nn.relu(torch_dense(self.hidden, x.shape[-1], "fc7", self.dtype)(drop(x)))
        return dense_head(acts, self.num_classes, self.dtype)
