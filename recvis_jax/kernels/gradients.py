"""The gradient to a convolution's kernel, as one matrix product of shifted images."""

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from recvis_jax.kernels import onednn
from recvis_jax.kernels.blocks import in_blocks

# Bytes of a block's images: the product then reads their copies from the second or third cache.
_BLOCK = 2 << 20


def pays(image: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether this form is fastest for (b h w c) and (i j c d) with stride 1, as measured: it is for narrow layers."""
    fits = all(n >= k for n, k in zip(image[1:3], kernel[:2], strict=True))
    return fits and min(kernel[2:]) >= 8 and max(kernel[2:]) < 64


def kernel_gradient(
    x: Float[Array, "b h w c"], d_y: Float[Array, "b p q d"], size: tuple[int, int], pads: Any
) -> Float[Array, "i j c d"]:
    """The gradient to a kernel of `size` (i j) and stride 1, from the input and the gradient to the output.

    The channels of j copies of the input, each shifted by one more column, are concatenated, and so are those of i
    copies of the output's gradient, each shifted by one more row. One product of the two covers all pairs of shifts.
    This takes i + j copies; patches would take i j.
    """
    channels = max(x.shape[-1], d_y.shape[-1])
    return in_blocks(partial(_of_block, size=size, pads=pads), channels, x, d_y, size=_BLOCK, least=1, total=True)


def _of_block(
    x: Float[Array, "b h w c"], d_y: Float[Array, "b p q d"], size: tuple[int, int], pads: Any
) -> Float[Array, "i j c d"]:
    (i, j), ((top, _), (left, _)) = size, pads
    (h, w, c), (p, q, d) = x.shape[1:], d_y.shape[1:]
    wide = _side_by_side([_moved(x, 2, left - k, q - w - left + k) for k in range(j)])
    high = _side_by_side([_moved(d_y, 1, k - top, h - p - k + top) for k in range(i)])
    return _product(wide, high).reshape(j, c, i, d).transpose(2, 0, 1, 3)


def _moved(x: Array, axis: int, low: int, high: int) -> Array:
    """Pads an axis with zeros, or crops if negative; written so that XLA concatenates several of them fast."""
    x = lax.slice_in_dim(x, max(0, -low), x.shape[axis] - max(0, -high), axis=axis)
    shape = list(x.shape)

    def zeros(n: int) -> list[Array]:
        shape[axis] = max(0, n)
        return [jnp.zeros(shape, x.dtype)] if n > 0 else []

    return jnp.concatenate([*zeros(low), x, *zeros(high)], axis)


def _side_by_side(images: list[Float[Array, "b h w _"]]) -> Float[Array, "b h w _"]:
    return lax.optimization_barrier(jnp.concatenate(images, -1)) if len(images) > 1 else images[0]


def _product(x: Float[Array, "b h w c"], y: Float[Array, "b h w d"]) -> Float[Array, "c d"]:
    # Use a batch of a few products, which the threads share; one product with such long sums would be split inside.
    n = math.gcd(len(x), 8)
    parts = onednn.matmul(x.reshape(n, -1, x.shape[-1]), y.reshape(n, -1, y.shape[-1]), transpose_a=True)
    return parts.sum(0)
