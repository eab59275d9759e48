"""Convolutions with few channels, and depthwise ones, as sums of shifted images: faster than matrix products there."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from recvis_jax.kernels.blocks import in_blocks, padded, turned_pads
from recvis_jax.kernels.own_gradient import own_gradient

# Number of products that one loop adds up; the operands of more would not stay in the first cache.
_TERMS = 16

# Bytes of a block's activations, which the next loop then reads from the second or third cache; and the number of
# blocks from which on this is faster. With less data, long loops are faster.
_SHIFTED = dict(size=2 << 20, least=4)


def of_few_channels(image: tuple, kernel: tuple, pads: Any, plain: Callable, precision: Any) -> Callable:
    """Returns the fastest form of the convolution `plain` of shapes (b h w c) and (i j c d) and stride 1."""
    form, (across, c, d) = plain, kernel[1:]
    out = image[2] + sum(pads[1]) - across + 1
    if c < 8 and across >= 5 and out > 0:
        fits = [n for n in (4, 2) if n * d <= 40 and out % n == image[2] % n == 0]
        if fits:
            form = partial(_by_neighbours, n=fits[0], pads=pads, precision=precision)
    return partial(_by_products, pads=pads, other=form) if _few(c, d) else form


def _few(c: int, d: int) -> bool:
    """Whether a sum of products is faster than a matrix product from c to d channels, as measured with AVX2."""
    return c <= 16 and d % 8 == 0 and c * d < 256


def _by_neighbours(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"], n: int, pads: Any, precision: Any
) -> Float[Array, "b p q d"]:
    """A convolution that computes n neighbours in a row at once, as n d channels from n c: 1 to 3 times as fast.

    Fewer than 8 channels do not fill a vector register. In memory, n neighbours are one pixel of n c channels. The
    kernel is repeated n times, shifted by one pixel for each output, with zeros where an output does not depend on an
    input. Wide kernels need few zeros.
    """
    rows, across, c, d = kernel.shape
    left, right = pads[1]
    before = -(-left // n)  # groups of n pixels left of the first
    shift = before * n - left
    groups = -(-(shift + n - 1 + across) // n)
    moved = [jnp.pad(kernel, ((0, 0), (shift + k, groups * n - across - shift - k), (0, 0), (0, 0))) for k in range(n)]
    wide = jnp.stack(moved, axis=3).reshape(rows, groups, n * c, n * d)
    b, h, w, _ = x.shape
    out = w + left + right - across + 1
    wide_pads = (pads[0], (before, out // n - 1 + groups - before - w // n))

    def plain(x: Array, kernel: Array) -> Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), wide_pads, dimension_numbers=numbers, precision=precision)

    form = partial(_by_products, pads=wide_pads, other=plain) if _few(n * c, n * d) else plain
    y = form(x.reshape(b, h, w // n, n * c), wide)
    return y.reshape(b, y.shape[1], out, d)


@partial(own_gradient, static=(2, 3))
def _by_products(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"], pads: Any, other: Callable
) -> Float[Array, "b p q d"]:
    """A convolution as a sum over pixels and channels of x times a row of the kernel, vectorised over the outputs.

    XLA's form copies patches for a matrix product; for narrow layers the copies cost more than the product. From 3
    to 16 channels this form is three times as fast; from 16 to 16 it is slower. `other` is the same convolution in
    another form, whose gradients are used if they are faster.
    """
    del other
    channels = [slice(k, k + 1) for k in range(kernel.shape[2])]
    return in_blocks(lambda x: _sum_of_products(x, kernel, pads, channels), max(kernel.shape[2:]), x, **_SHIFTED)


def _by_products_forward(x: Array, kernel: Array, pads: Any, other: Callable) -> tuple[Array, tuple[Array, Array]]:
    return _by_products(x, kernel, pads, other), (x, kernel)


def _by_products_backward(pads: Any, other: Callable, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    d_x, d_kernel = jax.vjp(other, x, kernel)[1](d_y)
    if _few(kernel.shape[3], kernel.shape[2]):
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        d_x = _by_products(d_y, turned, turned_pads(kernel.shape, pads), other)
    return d_x, d_kernel


_by_products.define(_by_products_forward, _by_products_backward)


@partial(own_gradient, static=(2,))
def depthwise(x: Float[Array, "b h w c"], kernel: Float[Array, "i j 1 c"], pads: Any) -> Float[Array, "b p q c"]:
    """A depthwise convolution as a sum of shifted images, each times its row of the kernel; gradients likewise.

    XLA's form computes one channel after another; with a 9x9 kernel on 256 channels this is some 25 times as fast.
    """
    return in_blocks(lambda x: _sum_of_products(x, kernel, pads, [slice(None)]), x.shape[-1], x, **_SHIFTED)


def _depthwise_forward(x: Array, kernel: Array, pads: Any) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(x, kernel, pads), (x, kernel)


def _depthwise_backward(pads: Any, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    d_x = depthwise(d_y, kernel[::-1, ::-1], turned_pads(kernel.shape, pads))
    gradient = partial(_depthwise_kernel_gradient, size=kernel.shape[:2], pads=pads)
    d_kernel = in_blocks(gradient, x.shape[-1], x, d_y, total=True, **_SHIFTED)
    return d_x, d_kernel[:, :, None].astype(kernel.dtype)


depthwise.define(_depthwise_forward, _depthwise_backward)


def _depthwise_kernel_gradient(
    x: Float[Array, "b h w c"], d_y: Float[Array, "b p q c"], size: tuple[int, int], pads: Any
) -> Float[Array, "i j c"]:
    """Returns the gradient to the kernel; sums over the pixels of a row come first, as their result is small."""
    (rows, across), (h, w) = size, d_y.shape[1:3]
    moved, d_y = padded(x, pads), lax.optimization_barrier(d_y.astype(jnp.float32))
    d_kernel = []
    for i in range(rows):
        sums = jnp.zeros((across, x.shape[-1]), jnp.float32)
        for first in range(0, w, _TERMS):
            pixels = range(first, min(first + _TERMS, w))
            terms = [moved[:, i : i + h, v : v + across] * d_y[:, :, v : v + 1] for v in pixels]
            sums += lax.optimization_barrier(_sum(terms)).sum((0, 1))
        d_kernel.append(sums)
    return jnp.stack(d_kernel)


def _sum_of_products(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j k d"], pads: Any, channels: list[slice]
) -> Float[Array, "b p q d"]:
    """Returns the sum over i, j, k of x, padded and moved by (-i, -j), its channels[k], times kernel[i, j, k].

    Computed in float32, in loops of `_TERMS` products. XLA would recompute operands that are not in memory.
    """
    rows, across, _, d = kernel.shape
    moved = padded(x, pads)
    # Reshape to two axes: XLA would keep a transposed kernel of four axes in its layout, and gather its entries.
    vectors = lax.optimization_barrier(kernel.reshape(-1, d).astype(jnp.float32))
    h, w = moved.shape[1] - rows + 1, moved.shape[2] - across + 1
    places = list(itertools.product(range(rows), range(across), channels))
    y = jnp.float32(0)
    for first in range(0, len(places), _TERMS):
        at_once = enumerate(places[first : first + _TERMS], first)
        terms = [moved[:, i : i + h, j : j + w, k] * vectors[n] for n, (i, j, k) in at_once]
        y = lax.optimization_barrier(y + _sum(terms))
    return y.astype(x.dtype)


def _sum(terms: list[Array]) -> Array:
    """Returns the sum of the terms as two independent sums, as each addition waits for the one before it."""
    return sum(terms[2::2], terms[0]) + sum(terms[3::2], terms[1]) if len(terms) > 1 else terms[0]
