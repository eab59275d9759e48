"""Winograd's convolutions: large 3x3 convolutions with a quarter of the products."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from recvis_jax.kernels import onednn, pool
from recvis_jax.kernels.blocks import in_blocks, one_device, padded, turned_pads
from recvis_jax.kernels.own_gradient import own_gradient

# Bytes of a block's activations, with XLA's products and with oneDNN's; the next loop then reads them from the second
# or third cache.
_BLOCKS = (4 << 20, 2 << 20)

# Smallest number of multiplications of the plain sum for which the compilation is worth it.
_LEAST = 2**28

# Possible numbers of outputs on a side of a tile; larger tiles have larger rounding errors.
_SIZES = (3, 4)

# Smallest number of channels, with oneDNN's convolutions to choose from and without, as measured (AVX-512 and AVX2).
_CHANNELS = (64, 32)

# The plain sum must have this many times more products, to make up for the transforms.
_FEWER = 2.5


class _Tiling(NamedTuple):
    """Tiles of m x m outputs, from (m + 2) x (m + 2) inputs: F(m x m, 3x3) of Lavin & Gray 2016, "Fast algorithms for
    convolutional neural networks", section 4.

    Attributes:
      m: outputs on a side of a tile.
      rows, columns: how many tiles.
    """

    m: int
    rows: int
    columns: int

    @property
    def products(self) -> int:
        """Multiplications of an input by an entry of the kernel, for all pixels of one channel."""
        return self.rows * self.columns * (self.m + 2) ** 2


def _tiling(rows: int, columns: int) -> _Tiling:
    """Returns the tiling with the fewest products for these rows and columns of outputs."""
    return min((_Tiling(m, -(-rows // m), -(-columns // m)) for m in _SIZES), key=lambda tiling: tiling.products)


@cache
def _matrices(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns B, G and A: the tile of outputs is A^T ((G k G^T) * (B^T x B)) A, of a kernel k and a tile x of inputs.

    By the algorithm of Toom and Cook with the first m + 1 of the points 0, 1, -1, 2, -2, and infinity.
    """
    points = np.array([0, 1, -1, 2, -2][: m + 1], np.float64)
    others = [np.delete(points, i) for i in range(len(points))]
    scale = np.array([np.prod(p - o) for p, o in zip(points, others, strict=True)])
    infinity = np.zeros((1, m + 2))
    infinity[0, -1] = 1
    b = np.stack([*(np.append(np.poly(o)[::-1], 0) for o in others), np.poly(points)[::-1]])
    g = np.concatenate([points[:, None] ** np.arange(3) / scale[:, None], infinity[:, -3:]])
    a = np.concatenate([points[:, None] ** np.arange(m), infinity[:, -m:]])
    return b.T.astype(np.float32), g.astype(np.float32), a.astype(np.float32)


def tiles_pay(image: tuple, kernel: tuple, pads: Any) -> bool:
    """Whether `winograd` is faster by enough to be worth its compilation, as measured."""
    rows, columns = _outputs(image, pads)
    if kernel[:2] != (3, 3) or min(kernel[2:]) < _CHANNELS[not onednn.available()] or min(rows, columns) < 1:
        return False
    tiling, outputs = _tiling(rows, columns), rows * columns  # without outputs of tiles beyond the border
    tiles = image[0] * tiling.rows * tiling.columns  # there must be enough to make up for the kernel's transform
    fewer = 9 * outputs > _FEWER * tiling.products
    return tiles >= 128 and fewer and image[0] * outputs * math.prod(kernel) > _LEAST and one_device()


@partial(own_gradient, static=(2,))
def winograd(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], pads: Any) -> Float[Array, "b p q d"]:
    """A convolution with a 3x3 kernel that computes 4x4 outputs with 36 products instead of 144, or 3x3 outputs with
    25 instead of 81; its gradients likewise.

    Rounding errors are about five times those of the plain sum. The transforms of the tiles are cheap: they are sums of
    shifted images, in blocks of examples that stay in the cache.
    """
    return in_blocks(_of_block(x.shape, kernel, pads), max(kernel.shape[2:]), x, size=_block(len(x)), least=1)


def _of_block(image: tuple[int, ...], kernel: Float[Array, "3 3 c d"], pads: Any) -> Callable[[Array], Array]:
    """Returns a function from a block of images to their outputs; the whole batch has shape `image`."""
    tiling = _tiling(*_outputs(image, pads))
    _, g, _ = _matrices(tiling.m)
    down = lax.optimization_barrier(jnp.stack(_combined(g, list(kernel))))
    tile = _combined(g, [down[:, j] for j in range(3)])
    large = _by_onednn(image[0])
    whole = _together(tile) if large else None

    def products(tiles: list[Array]) -> list[Array]:
        if large:
            found = onednn.matmul(_together(tiles), whole)
            return list(found.reshape(len(tiles), len(tiles), *found.shape[1:]))
        return [lax.optimization_barrier(_rows(x) @ k) for x, k in zip(tiles, tile, strict=True)]

    return partial(_tiled, products=products, pads=pads, tiling=tiling)


def _winograd_forward(x: Array, kernel: Array, pads: Any) -> tuple[Array, tuple[Array, Array]]:
    return winograd(x, kernel, pads), (x, kernel)


def _winograd_backward(pads: Any, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    d_x = winograd(d_y, _in_order(kernel[::-1, ::-1].swapaxes(2, 3)), turned_pads(kernel.shape, pads))
    return d_x, kernel_gradient(x, d_y, pads)


winograd.define(_winograd_forward, _winograd_backward)


@partial(own_gradient, static=(2,))
def winograd_pooled(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], pads: Any) -> Float[Array, "b p q d"]:
    """The maximum over 2x2 windows of `winograd`'s outputs, which must have even numbers of rows and columns.

    The outputs are never in memory, only the share of each in the gradient, as one byte.
    """
    of_block = _of_block(x.shape, kernel, pads)

    def work(block: Array) -> Array:
        return pool.max_pool_2x2(of_block(block))

    return in_blocks(work, max(kernel.shape[2:]), x, size=_block(len(x)), least=1)


def _pooled_forward(x: Array, kernel: Array, pads: Any) -> tuple[Array, tuple[Array, Array, Array]]:
    of_block = _of_block(x.shape, kernel, pads)

    def work(block: Array) -> tuple[Array, Array]:
        y = of_block(block)
        return pool.max_pool_2x2(y), (4 * pool.shares(y)).astype(jnp.int8)

    y, quarters = in_blocks(work, max(kernel.shape[2:]), x, size=_block(len(x)), least=1)
    return y, (x, kernel, quarters)


def _pooled_backward(pads: Any, kept: tuple[Array, Array, Array], d_y: Array) -> tuple[Array, Array]:
    (x, kernel, quarters), (b, p, q, d) = kept, d_y.shape
    turned = _in_order(kernel[::-1, ::-1].swapaxes(2, 3))
    of_block = _of_block((b, 2 * p, 2 * q, d), turned, turned_pads(kernel.shape, pads))

    def of_windows(d_y: Array, quarters: Array) -> Array:
        return lax.optimization_barrier(pool.shared(d_y, quarters.astype(jnp.float32) / 4))

    def to_kernel(x: Array, *windows: Array) -> Array:
        return _tiled_kernel_gradient(x, of_windows(*windows), pads, _by_onednn(b))

    how = dict(size=_block(b), least=1)
    channels = max(kernel.shape[2:])
    # Count four times the channels, as the pooled images have a quarter of the pixels.
    d_x = in_blocks(lambda *windows: of_block(of_windows(*windows)), 4 * channels, d_y, quarters, **how)
    return d_x, in_blocks(to_kernel, channels, x, d_y, quarters, total=True, **how)


winograd_pooled.define(_pooled_forward, _pooled_backward)


def kernel_gradient(x: Float[Array, "b h w c"], d_y: Float[Array, "b p q d"], pads: Any) -> Float[Array, "3 3 c d"]:
    """The gradient to the kernel of a 3x3 convolution, from its input and its output's gradient."""
    work = partial(_tiled_kernel_gradient, pads=pads, large=_by_onednn(len(x)))
    return in_blocks(work, max(x.shape[-1], d_y.shape[-1]), x, d_y, size=_block(len(x)), least=1, total=True)


def _by_onednn(examples: int) -> bool:
    """Whether a convolution for which `tiles_pay` holds uses oneDNN's products."""
    return onednn.large(examples, _LEAST)


def _block(examples: int) -> int:
    return _BLOCKS[_by_onednn(examples)]


def _outputs(image: tuple[int, ...], pads: Any) -> tuple[int, int]:
    """Returns the rows and columns of the outputs."""
    rows, columns = (n + sum(pad) - 2 for n, pad in zip(image[1:3], pads, strict=True))
    return rows, columns


def _tiled(
    x: Float[Array, "b h w c"], products: Callable[[list], list], pads: Any, tiling: _Tiling
) -> Float[Array, "b p q d"]:
    """Returns the outputs; `products` maps arrays of input tiles (m+2 n c) to equally many (m+2 n d)."""
    b, (p, q), (m, rows, columns) = len(x), _outputs(x.shape, pads), tiling
    _, _, a = _matrices(m)
    found = products(_input_tiles(x, pads, tiling))
    d = found[0].shape[-1]
    across = [lax.optimization_barrier(part) for part in _combined(a.T, found)]
    down = [_combined(a.T, list(part)) for part in across]
    wide = [jnp.concatenate([part[i].reshape(b, rows, 1, columns, 1, d) for part in down], 4) for i in range(m)]
    y = lax.optimization_barrier(jnp.concatenate(wide, 2))
    return y.reshape(b, m * rows, m * columns, d)[:, :p, :q]


def _tiled_kernel_gradient(
    x: Float[Array, "b h w c"], d_y: Float[Array, "b p q d"], pads: Any, large: bool
) -> Float[Array, "3 3 c d"]:
    p, q = d_y.shape[1:3]
    tiling = m, rows, columns = _tiling(p, q)
    _, g, a = _matrices(m)
    tiles = _input_tiles(x, pads, tiling)
    whole = padded(d_y, ((0, m * rows - p), (0, m * columns - q)))
    of_outputs = _both_sides(a, whole, tiling)

    def product(c: Array, d: Array) -> Float[Array, "n c d"]:
        if c.shape[-1] > d.shape[-1]:
            return product(d, c).swapaxes(1, 2)
        # Transpose the operand with fewer channels when it is computed: up to 1.4 times as fast as in the product.
        return lax.optimization_barrier(c.reshape(len(c), -1, c.shape[-1]).swapaxes(1, 2)) @ _rows(d)

    if large:
        found = onednn.matmul(_together(tiles), _together(of_outputs), transpose_a=True)
        products = list(found.reshape(m + 2, m + 2, *found.shape[1:]))
    else:
        products = [product(of_input, of_output) for of_input, of_output in zip(tiles, of_outputs, strict=True)]
    across = [lax.optimization_barrier(part) for part in _combined(g.T, products)]
    return jnp.stack([jnp.stack(_combined(g.T, list(part))) for part in across], 1)


def _input_tiles(x: Float[Array, "b h w c"], pads: Any, tiling: _Tiling) -> list[Float[Array, "n b _ _ c"]]:
    """Returns B^T x B of all tiles: a list over the columns of a tile, of arrays whose first axis is its rows."""
    (top, _), (left, _) = pads
    (h, w), (m, rows, columns) = x.shape[1:3], tiling
    moved = padded(x, ((top, m * rows + 2 - h - top), (left, m * columns + 2 - w - left)))
    b, _, _ = _matrices(m)
    return _both_sides(b.T, moved, tiling)


def _both_sides(matrix: np.ndarray, x: Float[Array, "b _ _ c"], tiling: _Tiling) -> list[Array]:
    """Returns matrix @ tile @ matrix.T of the tiles that begin at every m-th pixel."""
    size, (m, rows, columns) = matrix.shape[1], tiling
    parts = _combined(matrix, [x[:, i : i + m * (rows - 1) + 1 : m] for i in range(size)])
    down = lax.optimization_barrier(jnp.stack(parts))
    return _combined(matrix, [down[:, :, :, j : j + m * (columns - 1) + 1 : m] for j in range(size)])


def _combined(matrix: np.ndarray, parts: list[Array]) -> list[Array]:
    """Returns matrix @ parts, where the parts are arrays."""

    def entry(row: np.ndarray) -> Array:
        terms = [(float(v), part) for v, part in zip(row, parts, strict=True) if v]
        return sum((v * part for v, part in terms[1:]), terms[0][0] * terms[0][1])

    return [entry(row) for row in matrix]


def _in_order(x: Array) -> Array:
    """Returns x with its axes in memory order; reshaped to two axes, as XLA would keep the layout of four."""
    return lax.optimization_barrier(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def _rows(x: Float[Array, "k *_ c"]) -> Float[Array, "k n c"]:
    """Returns the pixels of images as rows, kept in memory, for matrix products."""
    return lax.optimization_barrier(x.reshape(len(x), -1, x.shape[-1]))


def _together(tiles: list[Float[Array, "k *_ c"]]) -> Float[Array, "_ n c"]:
    """Returns the rows of all images in one array, for one call of oneDNN."""
    rows = jnp.stack([x.reshape(len(x), -1, x.shape[-1]) for x in tiles])
    return lax.optimization_barrier(rows).reshape(-1, *rows.shape[2:])
