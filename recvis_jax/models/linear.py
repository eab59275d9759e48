"""The perceptron: one layer on the pixels."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.models.layers import Acts, activation, flatten


class Linear(nn.Module):
    """Linear classifier on the pixels, act(W x + b).

    Attributes:
      num_classes: number of outputs; 0 leaves the head out, and the features are the output.
      activation: function of the outputs. 'identity' with cross-entropy is softmax regression; another one with a
        squared loss is Rosenblatt's or Widrow's unit with a smooth threshold.
      dtype: of the computation.

    Reference: Rosenblatt 1958, "The perceptron".
    """

    num_classes: int = 10
    activation: str = "identity"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        x = flatten(x).astype(self.dtype)
        acts = {"stem": x, "features": x}
        if not self.num_classes:
            return x.astype(jnp.float32), acts
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)
        acts["logits"] = activation(self.activation)(x).astype(jnp.float32)
        return acts["logits"], acts
