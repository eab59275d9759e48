"""Pieces of the convolutional families: initialisers of their references, heads, pooling, weight standardisation."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from recvis_jax.models.layers import Acts
from recvis_jax.operations import max_pool

# He et al. 2015, "Delving deep into rectifiers", eq. 14: normal with variance 2 / fan_out, which preserves the variance
# of gradients.
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
    """Maximum over windows; incomplete ones at the right and bottom count if they start inside (`ceil_mode`).

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


def adaptive_avg_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b s s c"]:
    """Mean over size x size bins; neighbouring bins overlap by a row or column if the size does not divide the image.

    Bin i covers rows floor(i h / s) up to ceil((i + 1) h / s), as in PyTorch's `AdaptiveAvgPool2d`.
    """
    if x.shape[1:3] == (size, size):
        return x
    weights = []
    for n in x.shape[1:3]:
        w = np.zeros((size, n), np.float32)
        for i in range(size):
            start, stop = i * n // size, -(-(i + 1) * n // size)
            w[i, start:stop] = 1 / (stop - start)
        weights.append(jnp.asarray(w))
    return jnp.einsum("ih,jw,bhwc->bijc", *weights, x.astype(jnp.float32)).astype(x.dtype)


def local_response_norm(
    x: Float[Array, "b h w c"], size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> Float[Array, "b h w c"]:
    """x / (k + alpha sum of x^2 over `size` neighbouring channels)^beta.

    Reference: Krizhevsky et al. 2012, "ImageNet classification with deep convolutional networks", section 3.3.
    """
    half, c = size // 2, x.shape[-1]
    squares = jnp.pad(jnp.square(x.astype(jnp.float32)), ((0, 0), (0, 0), (0, 0), (half, size - 1 - half)))
    total = sum(squares[..., i : i + c] for i in range(size))
    return (x / (k + alpha * total) ** beta).astype(x.dtype)


class StdConv(nn.Module):
    """Convolution whose kernel has mean 0 and variance 1 for each output channel, without bias.

    w' = (w - mean) / sqrt(var + epsilon), over rows, columns and input channels, in float32.

    Attributes:
      width: output channels.
      size: rows and columns of the kernel.
      stride: step between windows.
      padding: 'SAME' as TensorFlow's, or None for size // 2 on every side.
      epsilon: added to the variance.
      dtype: of the computation.

    Reference: Qiao et al. 2019, "Micro-batch training with batch-channel normalization and weight standardization".
    """

    width: int
    size: int
    stride: int = 1
    padding: str | None = None
    epsilon: float = 1e-8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        kernel = self.param("kernel", he_fan_out, (self.size, self.size, x.shape[-1], self.width), jnp.float32)
        centred = kernel - kernel.mean((0, 1, 2))
        kernel = centred * lax.rsqrt(jnp.square(centred).mean((0, 1, 2)) + self.epsilon)
        return lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=self.padding or [(self.size // 2, self.size // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
