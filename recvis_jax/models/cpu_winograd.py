"""Winograd's convolutions: large ones of 3x3 with a quarter of the products."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from recvis_jax.models import cpu_onednn
from recvis_jax.models.cpu_blocks import in_blocks, one_device, padded, turned_pads

# Bytes of a block's activations, by XLA's products and by oneDNN's: what one loop wrote and the next one reads is then
# in the second or third cache.
_BLOCKS = (4 << 20, 2 << 20)

# Multiplications of the plain sum from which on it is worth its compilation.
_LEAST = 2**28

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


def tiles_pay(image: tuple, kernel: tuple, pads: Any) -> bool:
    """Whether `winograd` is faster, and by enough to be worth its compilation, as measured."""
    rows, columns = (n + sum(p) - 2 for n, p in zip(image[1:3], pads, strict=True))
    if kernel[:2] != (3, 3) or min(kernel[2:]) < 64 or min(rows, columns) < 1:
        return False
    tiles = image[0] * -(-rows // 4) * -(-columns // 4)  # which the kernel's own transform has to pay for
    outputs = image[0] * rows * columns  # not all that tiles compute
    return tiles >= 128 and outputs > 10 * tiles and outputs * math.prod(kernel) > _LEAST and one_device()


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def winograd(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], pads: Any) -> Float[Array, "b p q d"]:
    """A convolution by a kernel of 3x3 that computes 4x4 outputs with 36 products instead of 144, and gradients alike.

    Rounding errors are some five times those of the plain sum. What the tiles add to the work is done where it is
    cheap: they are sums of shifted images, in blocks of examples that stay in the cache.
    """
    down = lax.optimization_barrier(jnp.stack(_combined(_G, list(kernel))))
    tile = _combined(_G, [down[:, j] for j in range(3)])
    onednn, (c, d) = _by_onednn(x), kernel.shape[2:]
    whole = _together(tile) if onednn else None

    def products(tiles: list[Array]) -> list[Array]:
        if onednn:
            return list(cpu_onednn.matmul(_together(tiles), whole).reshape(6, 6, -1, d))
        return [lax.optimization_barrier(_rows(x) @ k) for x, k in zip(tiles, tile, strict=True)]

    return in_blocks(partial(_tiled, products=products, pads=pads), max(c, d), x, size=_BLOCKS[onednn], least=1)


def _winograd_forward(x: Array, kernel: Array, pads: Any) -> tuple[Array, tuple[Array, Array]]:
    return winograd(x, kernel, pads), (x, kernel)


def _winograd_backward(pads: Any, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    d_x = winograd(d_y, _in_memory(kernel[::-1, ::-1].swapaxes(2, 3)), turned_pads(kernel.shape, pads))
    return d_x, kernel_gradient(x, d_y, pads)


winograd.defvjp(_winograd_forward, _winograd_backward)


def kernel_gradient(x: Float[Array, "b h w c"], d_y: Float[Array, "b p q d"], pads: Any) -> Float[Array, "3 3 c d"]:
    """The gradient to the kernel of a convolution of 3x3, from its input and that to its output."""
    onednn, channels = _by_onednn(x), max(x.shape[-1], d_y.shape[-1])
    work = partial(_tiled_kernel_gradient, pads=pads, onednn=onednn)
    return in_blocks(work, channels, x, d_y, size=_BLOCKS[onednn], least=1, total=True)


def _by_onednn(x: Float[Array, "b h w c"]) -> bool:
    """Whether the products are oneDNN's, in a convolution for which tiles pay."""
    return cpu_onednn.large(len(x), _LEAST)


def _tiled(x: Float[Array, "b h w c"], products: Callable[[list], list], pads: Any) -> Float[Array, "b p q d"]:
    """Returns the outputs; `products` maps 6 arrays of input tiles to as many (6 n d)."""
    b = len(x)
    p, q = (n + sum(pad) - 2 for n, pad in zip(x.shape[1:3], pads, strict=True))
    rows, columns = -(-p // 4), -(-q // 4)
    found = products(_input_tiles(x, pads, rows, columns))
    d = found[0].shape[-1]
    across = [lax.optimization_barrier(part) for part in _combined(_A.T, found)]
    down = [_combined(_A.T, list(part)) for part in across]
    wide = [jnp.concatenate([part[i].reshape(b, rows, 1, columns, 1, d) for part in down], 4) for i in range(4)]
    y = lax.optimization_barrier(jnp.concatenate(wide, 2))
    return y.reshape(b, 4 * rows, 4 * columns, d)[:, :p, :q]


def _tiled_kernel_gradient(
    x: Float[Array, "b h w c"], d_y: Float[Array, "b p q d"], pads: Any, onednn: bool
) -> Float[Array, "3 3 c d"]:
    p, q = d_y.shape[1:3]
    rows, columns = -(-p // 4), -(-q // 4)
    tiles = _input_tiles(x, pads, rows, columns)
    whole = padded(d_y, ((0, 4 * rows - p), (0, 4 * columns - q)))
    of_outputs = _both_sides(_A, whole, rows, columns)

    def product(c: Array, d: Array) -> Float[Array, "6 c d"]:
        if c.shape[-1] > d.shape[-1]:
            return product(d, c).swapaxes(1, 2)
        # The fewer channels' side is transposed as it is computed; a product that does it is up to 1.4 times as slow.
        return lax.optimization_barrier(c.reshape(6, -1, c.shape[-1]).swapaxes(1, 2)) @ _rows(d)

    if onednn:
        found = cpu_onednn.matmul(_together(tiles), _together(of_outputs), transpose_a=True)
        products = list(found.reshape(6, 6, *found.shape[1:]))
    else:
        products = [product(of_input, of_output) for of_input, of_output in zip(tiles, of_outputs, strict=True)]
    across = [lax.optimization_barrier(part) for part in _combined(_G.T, products)]
    return jnp.stack([jnp.stack(_combined(_G.T, list(part))) for part in across], 1)


def _input_tiles(x: Float[Array, "b h w c"], pads: Any, rows: int, columns: int) -> list[Float[Array, "6 b _ _ c"]]:
    """Returns B^T x B of all tiles; the columns of tiles are the list's, their rows the first axis."""
    (top, _), (left, _) = pads
    h, w = x.shape[1:3]
    moved = padded(x, ((top, 4 * rows + 2 - h - top), (left, 4 * columns + 2 - w - left)))
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


def _together(tiles: list[Float[Array, "6 *_ c"]]) -> Float[Array, "36 n c"]:
    """Returns the rows of all images in one array, for one call of oneDNN's."""
    rows = jnp.stack([x.reshape(6, -1, x.shape[-1]) for x in tiles])
    return lax.optimization_barrier(rows).reshape(36, *rows.shape[2:])
