"""Products and convolutions of layers, in forms that are fast on CPUs; what they compute is the same everywhere.

Which form is fast was measured in whole models (`benchmarks/models.py`), on cores with AVX2. On accelerators all of
them are the plain operation, and blocks of examples are used only where one device has them all.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def held(x: Array) -> Array:
    """Returns x; on CPUs its readers read it, where XLA would rather compute it again from what it was made of."""
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


def dot_rows(x: Array, kernel: Array, dimensions: Any, precision: Any = None, **kw: Any) -> Array:
    """`lax.dot_general` of a dense layer, over (rows, d) for inputs (b n d).

    The gradient of the kernel is then one product of two matrices as they lie in memory. Contracted over two axes, XLA
    would first transpose copies of both on CPUs, and compute the sum of all later blocks' gradients again for each.
    """
    if dimensions != (((x.ndim - 1,), (0,)), ((), ())) or x.ndim == 2 or any(v is not None for v in kw.values()):
        return lax.dot_general(x, kernel, dimensions, precision=precision, **kw)
    return _product(x.reshape(-1, x.shape[-1]), kernel, precision).reshape(*x.shape[:-1], -1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Float[Array, "r c"], kernel: Float[Array, "c d"], precision: Any) -> Float[Array, "r d"]:
    return jnp.dot(x, kernel, precision=precision)


def _product_forward(x: Array, kernel: Array, precision: Any) -> tuple[Array, tuple[Array, Array]]:
    return jnp.dot(x, kernel, precision=precision), (x, kernel)


def _product_backward(precision: Any, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    dot = partial(jnp.dot, precision=precision)

    def narrow(x: Array, d_y: Array) -> Array:
        # Twice as fast on CPUs as the tall product; without the barrier XLA turns the one into the other.
        return lax.optimization_barrier(dot(d_y.T, x)).T

    def plain(x: Array, d_y: Array) -> Array:
        return dot(x.T, d_y)

    tall = kernel.shape[0] > kernel.shape[1]
    d_kernel = lax.platform_dependent(x, d_y, cpu=narrow, default=plain) if tall else plain(x, d_y)
    return dot(d_y, kernel.T), d_kernel


_product.defvjp(_product_forward, _product_backward)


def convolve(x: Array, kernel: Array, strides: Any, padding: Any, **kw: Any) -> Array:
    """`lax.conv_general_dilated` for flax's `Conv`, in forms that are fast on CPUs.

    Its operands in the gradient of the kernel are read, not computed again: XLA's CPU convolutions want both of them
    transposed there, and it would compute what comes before a convolution while transposing, element by element: four
    fifths of the time of a small ResNet. Where a matrix product would be wasted on them, convolutions of stride 1 are
    sums of shifted images: `_depthwise`, and `_by_products` for few channels, which `_by_neighbours` may find.
    """

    def plain(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **kw)

    dilated = any(d != 1 for name in ("lhs_dilation", "rhs_dilation") for d in kw.get(name) or ())
    form = plain
    if kernel.ndim == 4 and tuple(strides) == (1, 1) and not dilated and math.prod(kernel.shape[:2]) > 1:
        pads = padding
        if isinstance(pads, str):
            pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, pads)
        pads = tuple(tuple(p) for p in pads)
        groups = kw.get("feature_group_count", 1)
        if groups == x.shape[-1] == kernel.shape[-1] > 1:
            form = partial(_depthwise, pads=pads)
        elif groups == 1:
            form = _of_few_channels(x.shape, kernel.shape, pads, plain, kw.get("precision"))
    if form is plain:
        return held(plain(held(x), kernel))
    return held(lax.platform_dependent(held(x), kernel, cpu=form, default=plain))


def _of_few_channels(image: tuple, kernel: tuple, pads: Any, plain: Callable, precision: Any) -> Callable:
    """Returns a form of the convolution `plain` of shapes (b h w c) and (i j c d), stride 1: itself or a faster one."""
    form, (across, c, d) = plain, kernel[1:]
    out = image[2] + sum(pads[1]) - across + 1
    if c < 8 and across >= 5 and out > 0:
        fits = [n for n in (4, 2) if n * d <= 40 and out % n == image[2] % n == 0]
        if fits:
            form = partial(_by_neighbours, n=fits[0], pads=pads, precision=precision)
    return partial(_by_products, pads=pads, other=form) if _few(c, d) else form


def _few(c: int, d: int) -> bool:
    """Whether a sum of products is faster than a matrix product from c to d channels, as measured with AVX2."""
    return c <= 16 and d % 8 == 0 and c * d <= 256


def _by_neighbours(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"], n: int, pads: Any, precision: Any
) -> Float[Array, "b p q d"]:
    """A convolution that computes n neighbours of a row at once, as n d channels from n c: 1 to 3 times as fast.

    A pixel's channels fill no vector register where they are fewer than 8, the outputs' only with luck. In memory n
    neighbours are one pixel of n c channels; the kernel is repeated, shifted by one for each of the n outputs, with
    zeros for what an output does not see. Of wide kernels the zeros are few.
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


# Products that one loop adds up: with more of them the operands would no longer stay in the first cache.
_TERMS = 16

# Bytes of a block's activations: what one loop wrote and the next one reads is then in the second or third cache.
# All of them at once are, up to some blocks: then the loops are better long.
_BLOCK, _WHOLE = 2 << 20, 4


def _in_blocks(
    work: Callable[..., Array], channels: int, *images: Float[Array, "b _ _ _"], total: bool = False
) -> Array:
    """Returns work(*images), done for one block of examples after the other, where one device has all of them.

    Args:
      work: maps images of as many examples to an array with a row an example, or to a sum over the examples.
      channels: of the largest array that it reads or writes, of about the images' size.
      images: whose examples are cut into equal blocks, of `_BLOCK` bytes or down to half of that, if they are of at
        least `_WHOLE` times as many.
      total: whether it is a sum.
    """
    b, h, w, _ = images[0].shape
    most = max(1, _BLOCK // (4 * h * w * channels))
    n = max(k for k in range(1, min(b, most) + 1) if b % k == 0)
    mesh = jax.sharding.get_abstract_mesh()
    if b < _WHOLE * most or 2 * n < most or not (mesh.empty or mesh.size == 1):
        return work(*images)
    parts = lax.map(lambda block: work(*block), [x.reshape(-1, n, *x.shape[1:]) for x in images])
    return parts.sum(0) if total else parts.reshape(b, *parts.shape[2:])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_products(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"], pads: Any, other: Callable
) -> Float[Array, "b p q d"]:
    """A convolution as a sum over pixels and channels of x times a row of the kernel: outputs lie along registers.

    XLA's copies patches for a matrix product, and a narrow one does not pay for them: from 3 channels to 16 this is
    five times as fast. `other` is the same convolution, for the gradients where it is better.
    """
    del other
    channels = [slice(k, k + 1) for k in range(kernel.shape[2])]
    return _in_blocks(lambda x: _sum_of_products(x, kernel, pads, channels), max(kernel.shape[2:]), x)


def _by_products_forward(x: Array, kernel: Array, pads: Any, other: Callable) -> tuple[Array, tuple[Array, Array]]:
    return _by_products(x, kernel, pads, other), (x, kernel)


def _by_products_backward(pads: Any, other: Callable, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    d_x, d_kernel = jax.vjp(other, x, kernel)[1](d_y)
    if _few(kernel.shape[3], kernel.shape[2]):
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        d_x = _by_products(d_y, turned, _turned_pads(kernel.shape, pads), other)
    return d_x, d_kernel


_by_products.defvjp(_by_products_forward, _by_products_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: Float[Array, "b h w c"], kernel: Float[Array, "i j 1 c"], pads: Any) -> Float[Array, "b p q c"]:
    """A depthwise convolution as a sum of shifted images, each times its row of the kernel, and gradients alike.

    XLA's own takes the channels one by one: on CPUs this is some 25 times as fast, a kernel of 9x9 on 256 channels.
    """
    return _in_blocks(lambda x: _sum_of_products(x, kernel, pads, [slice(None)]), x.shape[-1], x)


def _depthwise_forward(x: Array, kernel: Array, pads: Any) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(x, kernel, pads), (x, kernel)


def _depthwise_backward(pads: Any, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    d_x = _depthwise(d_y, kernel[::-1, ::-1], _turned_pads(kernel.shape, pads))
    gradient = partial(_depthwise_kernel_gradient, size=kernel.shape[:2], pads=pads)
    d_kernel = _in_blocks(gradient, x.shape[-1], x, d_y, total=True)
    return d_x, d_kernel[:, :, None].astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_kernel_gradient(
    x: Float[Array, "b h w c"], d_y: Float[Array, "b p q c"], size: tuple[int, int], pads: Any
) -> Float[Array, "i j c"]:
    """Sums over a row's pixels first; what they leave is small."""
    (rows, across), (h, w) = size, d_y.shape[1:3]
    moved, d_y = _padded(x, pads), lax.optimization_barrier(d_y.astype(jnp.float32))
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

    In float32, in loops of `_TERMS` products each. What they read is in memory, or it would be made anew for each.
    """
    rows, across, _, d = kernel.shape
    moved = _padded(x, pads)
    # Two axes, as XLA would keep a transposed kernel as it lies, and gather what it multiplies by.
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
    """Two sums side by side: each of a processor's additions would wait for the one before."""
    return sum(terms[2::2], terms[0]) + sum(terms[3::2], terms[1]) if len(terms) > 1 else terms[0]


def _padded(x: Float[Array, "b h w c"], pads: Any) -> Float[Array, "b p q c"]:
    config = [(0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)]
    return lax.optimization_barrier(lax.pad(x.astype(jnp.float32), np.float32(0), config))


def _turned_pads(kernel: tuple, pads: Any) -> tuple:
    """Returns the padding of a convolution's gradient to its input: a convolution by the kernel turned around."""
    return tuple((n - 1 - low, n - 1 - high) for n, (low, high) in zip(kernel, pads, strict=False))
