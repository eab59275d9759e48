"""Multi-layer perceptron."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.models.layers import Acts, activation, flatten, he_normal, linear_head
from recvis_jax.models.norms import make_norm


class MLP(nn.Module):
    """Fully connected layers on the pixels, each followed by norm, activation and dropout.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out, and the features are the output.
      hidden: widths of the hidden layers.
      activation: name of the elementwise function.
      dropout: probability that a hidden unit is dropped in training, in [0, 1).
      norm: 'batch', 'layer', 'group' or 'none'.
      bn_groups: parts of the global batch with statistics of their own.
      dtype: of the computation.

    Reference: Rumelhart, Hinton & Williams 1986; Srivastava et al. 2014 for dropout.
    """

    num_classes: int = 10
    hidden: tuple[int, ...] = (512, 256)
    activation: str = "relu"
    dropout: float = 0.0
    norm: str = "none"
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        act = activation(self.activation)
        norm = make_norm(self.norm, bn_groups=self.bn_groups, dtype=self.dtype)
        x = flatten(x).astype(self.dtype)
        acts = {"stem": x}
        for i, width in enumerate(self.hidden, 1):
            x = nn.Dense(width, dtype=self.dtype, kernel_init=he_normal, name=f"dense{i}")(x)
            x = act(norm(name=f"norm{i}")(x, train=train))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            acts[f"stage1/block{i}"] = x
        acts["features"] = x
        return linear_head(acts, x, self.num_classes, self.dtype)
