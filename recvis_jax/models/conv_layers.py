"""Pieces of the convolutional families: initialisers of their references, the head, pooling with `ceil_mode`."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.models.layers import Acts, max_pool

# He et al. 2015, "Delving deep into rectifiers", eq. 14: normal with variance 2 / fan_out, kept in the backward pass.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# PyTorch's default for kernels: uniform in ±1 / sqrt(fan_in).
torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> nn.initializers.Initializer:
    """Returns PyTorch's default initialiser for biases: uniform in ±1 / sqrt(fan_in)."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_dense(features: int, fan_in: int, name: str, dtype: Any = jnp.float32) -> nn.Dense:
    """Returns a fully connected layer that starts as PyTorch's `Linear` does."""
    return nn.Dense(features, kernel_init=torch_kernel, bias_init=torch_bias(fan_in), dtype=dtype, name=name)


def dense_head(
    acts: Acts, num_classes: int, dtype: Any, kernel_init: Any = torch_kernel, bias_init: Any = None
) -> tuple[Float[Array, "b k"], Acts]:
    """Ends a network: a linear head on `acts["features"]`; called inside a compact method.

    Args:
      acts: intermediates, among them `features` (b d).
      num_classes: number of outputs; 0 returns the features.
      dtype: of the computation.
      kernel_init, bias_init: PyTorch's default for `Linear` unless given.

    Returns:
      Output in float32, and `acts` with `logits` where there is a head.
    """
    x = acts["features"]
    if not num_classes:
        return x.astype(jnp.float32), acts
    bias_init = bias_init or torch_bias(x.shape[-1])
    head = nn.Dense(num_classes, kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, name="head")
    logits = head(x).astype(jnp.float32)
    return logits, {**acts, "logits": logits}


def ceil_max_pool(x: Float[Array, "b h w c"], window: int, stride: int, padding: int = 0) -> Float[Array, "b i j c"]:
    """Maximum over windows, incomplete ones at the right and bottom included where they start inside (`ceil_mode`).

    Args:
      x: feature maps.
      window: rows and columns of a window.
      stride: step between windows.
      padding: rows and columns of -infinity added on every side.
    """
    extra = []
    for size in x.shape[1:3]:
        steps = math.ceil((size + 2 * padding - window) / stride)
        if steps * stride >= size + padding:  # the last window must not start in the padding
            steps -= 1
        extra.append(max(steps * stride + window - size - 2 * padding, 0))
    pads = ((0, 0), *((padding, padding + e) for e in extra), (0, 0))
    return max_pool(jnp.pad(x, pads, constant_values=-jnp.inf), window, stride)
