"""The small convolutional network of PyTorch's MNIST tutorial."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.layers import Acts, Conv, activation, flatten, linear_head
from recvis_jax.operations import max_pool


class ConvNet(nn.Module):
    """conv 10@5x5, pool, act; conv 20@5x5, channel dropout, pool, act; fully connected 50, dropout; head.

    21,840 parameters for 28x28x1.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out, and the features are the output.
      activation: name of the elementwise function.
      dropout: probability that a channel, and a hidden unit, is dropped in training, in [0, 1).
      dtype: of the computation.

    Raises:
      BadRequest: images smaller than 16x16.

    Reference: https://github.com/pytorch/examples/tree/main/mnist, until 2019; Tompson et al. 2015 for channel dropout.
    """

    num_classes: int = 10
    activation: str = "relu"
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        if min(x.shape[1:3]) < 16:
            raise BadRequest(f"convnet needs images of at least 16x16, not {x.shape[1]}x{x.shape[2]}.")
        act, acts = activation(self.activation), {}
        x = Conv(10, (5, 5), padding="VALID", dtype=self.dtype, name="conv1")(x.astype(self.dtype))
        acts["stem"] = x = act(max_pool(x, 2))
        x = Conv(20, (5, 5), padding="VALID", dtype=self.dtype, name="conv2")(x)
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
        acts["stage1/block1"] = x = act(max_pool(x, 2))
        acts["features"] = x = act(nn.Dense(50, dtype=self.dtype, name="fc1")(flatten(x)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return linear_head(acts, x, self.num_classes, self.dtype)
