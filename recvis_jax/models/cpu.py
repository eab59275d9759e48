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

from recvis_jax.models import onednn


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
    sums of shifted images: `_depthwise`, and `_by_products` for few channels, which `_by_neighbours` may find. Large
    ones of 3x3 are `_winograd`.
    """

    def plain(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **kw)

    dilated = any(d != 1 for name in ("lhs_dilation", "rhs_dilation") for d in kw.get(name) or ())
    form, groups, strides = plain, kw.get("feature_group_count", 1), tuple(strides)
    if kernel.ndim == 4 and not dilated and math.prod(kernel.shape[:2]) > 1:
        pads = padding
        if isinstance(pads, str):
            pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, pads)
        pads = tuple(tuple(p) for p in pads)
        dense = groups == 1 and x.dtype == kernel.dtype == jnp.float32 and _one_device()
        if dense and onednn.pays(x.shape, kernel.shape, strides, pads):
            form = partial(onednn.convolution, strides=strides, pads=pads)
        elif strides != (1, 1):
            pass
        elif groups == x.shape[-1] == kernel.shape[-1] > 1:
            form = partial(_depthwise, pads=pads)
        elif dense and _tiles_pay(x.shape, kernel.shape, pads):
            form = partial(_winograd, pads=pads)
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

# Bytes of a block's activations: what one loop wrote and the next one reads is then in the second or third cache; and
# from how many blocks on it matters: sums of shifted images are better in long loops until then.
_SHIFTED = dict(size=2 << 20, least=4)
_TILED = dict(size=4 << 20, least=1)


def _in_blocks(
    work: Callable[..., Array],
    channels: int,
    *images: Float[Array, "b _ _ _"],
    size: int,
    least: int,
    total: bool = False,
) -> Array:
    """Returns work(*images), done for one block of examples after the other, where one device has all of them.

    Args:
      work: maps images of as many examples to an array with a row an example, or to a sum over the examples.
      channels: of the largest array that it reads or writes, of about the images' size.
      images: whose examples are cut into equal blocks, of `size` bytes or down to half of that, if they are of at
        least `least` times as many.
      total: whether it is a sum.
    """
    b, h, w, _ = images[0].shape
    most = max(1, size // (4 * h * w * channels))
    n = max(k for k in range(1, min(b, most) + 1) if b % k == 0)
    if n == b or b < least * most or 2 * n < most or not _one_device():
        return work(*images)
    parts = lax.map(lambda block: work(*block), [x.reshape(-1, n, *x.shape[1:]) for x in images])
    return parts.sum(0) if total else parts.reshape(b, *parts.shape[2:])


def _one_device() -> bool:
    """Whether the program being traced is for one device, or for each alone."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


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
    return _in_blocks(lambda x: _sum_of_products(x, kernel, pads, channels), max(kernel.shape[2:]), x, **_SHIFTED)


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
    return _in_blocks(lambda x: _sum_of_products(x, kernel, pads, [slice(None)]), x.shape[-1], x, **_SHIFTED)


def _depthwise_forward(x: Array, kernel: Array, pads: Any) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(x, kernel, pads), (x, kernel)


def _depthwise_backward(pads: Any, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    d_x = _depthwise(d_y, kernel[::-1, ::-1], _turned_pads(kernel.shape, pads))
    gradient = partial(_depthwise_kernel_gradient, size=kernel.shape[:2], pads=pads)
    d_kernel = _in_blocks(gradient, x.shape[-1], x, d_y, total=True, **_SHIFTED)
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


# F(4x4, 3x3) of Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", section 4.3: the tile of
# outputs is A^T ((G k G^T) * (B^T x B)) A, of a kernel k of 3x3 and a tile x of 6x6 inputs.
_B = np.array(
    [
        [4, 0, 0, 0, 0, 0],
        [0, -4, 4, -2, 2, 4],
        [-5, -4, -4, -1, -1, 0],
        [0, 1, -1, 2, -2, -5],
        [1, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ],
    np.float32,
)
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32) / 24
_A = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 2, 4, 8], [1, -2, 4, -8], [0, 0, 0, 1]], np.float32)


def _tiles_pay(image: tuple, kernel: tuple, pads: Any) -> bool:
    """Whether `_winograd` is faster, and by enough to be worth its compilation, as measured."""
    rows, columns = (n + sum(p) - 2 for n, p in zip(image[1:3], pads, strict=True))
    if kernel[:2] != (3, 3) or min(kernel[2:]) < 64 or min(rows, columns) < 1:
        return False
    tiles = image[0] * -(-rows // 4) * -(-columns // 4)  # which the kernel's own transform has to pay for
    outputs = image[0] * rows * columns  # not all that tiles compute
    return tiles >= 128 and outputs > 8 * tiles and outputs * math.prod(kernel) > 2**28 and _one_device()


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _winograd(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], pads: Any) -> Float[Array, "b p q d"]:
    """A convolution by a kernel of 3x3 that computes 4x4 outputs with 36 products instead of 144, and gradients alike.

    Rounding errors are some five times those of the plain sum. What the tiles add to the work is done where it is
    cheap: they are sums of shifted images, in blocks of examples that stay in the cache.
    """
    down = lax.optimization_barrier(jnp.stack(_combined(_G, list(kernel))))
    tile = _combined(_G, [down[:, j] for j in range(3)])
    return _in_blocks(lambda x: _tiled(x, tile, pads), max(kernel.shape[2:]), x, **_TILED)


def _winograd_forward(x: Array, kernel: Array, pads: Any) -> tuple[Array, tuple[Array, Array]]:
    return _winograd(x, kernel, pads), (x, kernel)


def _winograd_backward(pads: Any, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    d_x = _winograd(d_y, _in_memory(kernel[::-1, ::-1].swapaxes(2, 3)), _turned_pads(kernel.shape, pads))
    gradient = partial(_tiled_kernel_gradient, pads=pads)
    # Blocks so large that adding up their gradients is not what takes the time.
    size = max(_TILED["size"] // 2, 64 * math.prod(kernel.shape[2:]))
    return d_x, _in_blocks(gradient, max(kernel.shape[2:]), x, d_y, total=True, size=size, least=1)


_winograd.defvjp(_winograd_forward, _winograd_backward)


def _tiled(x: Float[Array, "b h w c"], kernel: list[Float[Array, "6 c d"]], pads: Any) -> Float[Array, "b p q d"]:
    b, d = len(x), kernel[0].shape[-1]
    p, q = (n + sum(pad) - 2 for n, pad in zip(x.shape[1:3], pads, strict=True))
    rows, columns = -(-p // 4), -(-q // 4)
    tiles = _input_tiles(x, pads, rows, columns)
    products = [lax.optimization_barrier(_rows(x) @ k) for x, k in zip(tiles, kernel, strict=True)]
    across = [lax.optimization_barrier(part) for part in _combined(_A.T, products)]
    down = [_combined(_A.T, list(part)) for part in across]
    wide = [jnp.concatenate([part[i].reshape(b, rows, 1, columns, 1, d) for part in down], 4) for i in range(4)]
    y = lax.optimization_barrier(jnp.concatenate(wide, 2))
    return y.reshape(b, 4 * rows, 4 * columns, d)[:, :p, :q]


def _tiled_kernel_gradient(
    x: Float[Array, "b h w c"], d_y: Float[Array, "b p q d"], pads: Any
) -> Float[Array, "3 3 c d"]:
    p, q = d_y.shape[1:3]
    rows, columns = -(-p // 4), -(-q // 4)
    tiles = _input_tiles(x, pads, rows, columns)
    whole = _padded(d_y, ((0, 4 * rows - p), (0, 4 * columns - q)))
    of_outputs = _both_sides(_A, whole, rows, columns)

    def product(c: Array, d: Array) -> Float[Array, "6 c d"]:
        if c.shape[-1] > d.shape[-1]:
            return product(d, c).swapaxes(1, 2)
        # The fewer channels' side is transposed as it is computed; a product that does it is up to 1.4 times as slow.
        return lax.optimization_barrier(c.reshape(6, -1, c.shape[-1]).swapaxes(1, 2)) @ _rows(d)

    products = [product(of_input, of_output) for of_input, of_output in zip(tiles, of_outputs, strict=True)]
    across = [lax.optimization_barrier(part) for part in _combined(_G.T, products)]
    return jnp.stack([jnp.stack(_combined(_G.T, list(part))) for part in across], 1)


def _input_tiles(x: Float[Array, "b h w c"], pads: Any, rows: int, columns: int) -> list[Float[Array, "6 b _ _ c"]]:
    """Returns B^T x B of all tiles; the columns of tiles are the list's, their rows the first axis."""
    (top, _), (left, _) = pads
    h, w = x.shape[1:3]
    moved = _padded(x, ((top, 4 * rows + 2 - h - top), (left, 4 * columns + 2 - w - left)))
    return _both_sides(_B.T, moved, rows, columns)


def _both_sides(matrix: np.ndarray, x: Float[Array, "b _ _ c"], rows: int, columns: int) -> list[Array]:
    """Returns matrix @ tile @ matrix.T of tiles that begin at every fourth pixel."""
    size = matrix.shape[1]
    parts = _combined(matrix, [x[:, i : i + 4 * rows - 3 : 4] for i in range(size)])
    down = lax.optimization_barrier(jnp.stack(parts))
    return _combined(matrix, [down[:, :, :, j : j + 4 * columns - 3 : 4] for j in range(size)])


def _combined(matrix: np.ndarray, parts: list[Array]) -> list[Array]:
    """Returns matrix @ parts, of arrays."""

    def entry(row: np.ndarray) -> Array:
        terms = [(float(v), part) for v, part in zip(row, parts, strict=True) if v]
        return sum((v * part for v, part in terms[1:]), terms[0][0] * terms[0][1])

    return [entry(row) for row in matrix]


def _in_memory(x: Array) -> Array:
    """Returns x with its axes in order; of two only, as XLA would keep a transposed array as it lies, and gather."""
    return lax.optimization_barrier(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def _rows(x: Float[Array, "6 *_ c"]) -> Float[Array, "6 n c"]:
    """Returns the pixels of six images as rows that are in memory, for matrix products."""
    return lax.optimization_barrier(x.reshape(6, -1, x.shape[-1]))
