"""LeNet-5 in its modern form."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest, choose
from recvis_jax.models.layers import POOLS, Acts, Conv, activation, flatten, linear_head


class LeNet5(nn.Module):
    """conv 6@5x5, pool, conv 16@5x5, pool, fully connected 120, 84, and the head.

    Differences from the paper: all feature maps are connected, pooling has no weights, and the head is linear instead
    of radial basis functions. 61,706 parameters for 28x28x1.

    The first convolution pads by 2 (the paper pads 28x28 digits to 32x32). The second has no padding if its input has
    at least 6 rows and columns; for smaller images (under 12x12, such as 8x8 digits) it pads by 2.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out, and the features are the output.
      activation: 'tanh' as in 1998, or 'relu', ...
      pool: 'avg' as in 1998, or 'max'.
      dtype: of the computation.

    Raises:
      BadRequest: images smaller than 4x4.

    Reference: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B.
    """

    num_classes: int = 10
    activation: str = "tanh"
    pool: str = "avg"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        if min(x.shape[1:3]) < 4:
            raise BadRequest(f"LeNet-5 needs images of at least 4x4, not {x.shape[1]}x{x.shape[2]}.")
        act, pool, acts = activation(self.activation), choose(POOLS, self.pool, "pool"), {}
        x = Conv(6, (5, 5), padding=2, dtype=self.dtype, name="conv1")(x.astype(self.dtype))
        acts["stem"] = x = pool(act(x), 2)
        padding = 0 if min(x.shape[1:3]) >= 6 else 2
        x = Conv(16, (5, 5), padding=padding, dtype=self.dtype, name="conv2")(x)
        acts["stage1/block1"] = x = pool(act(x), 2)
        acts["stage2/block1"] = x = act(nn.Dense(120, dtype=self.dtype, name="fc1")(flatten(x)))
        acts["features"] = x = act(nn.Dense(84, dtype=self.dtype, name="fc2")(x))
        return linear_head(acts, x, self.num_classes, self.dtype)
