"""SIFT: histograms of gradient directions in 4 x 4 bins around a place (Lowe 2004), dense as VLFeat computes them."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.classical import local
from recvis_jax.classical.local import Grid, Local
from recvis_jax.errors import BadRequest

Window = Literal["flat", "gaussian"]

_EPSILON = float(np.finfo(np.float32).eps)
_MOST = 0.2  # of a normalised histogram, so that one strong edge does not decide
_BLOCK = 16  # places along an axis whose values one product computes
_WHOLE = 64  # pixels of an axis that one product takes at once

_dot = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def dense(
    images: Float[Array, "b h w"],
    *,
    step: int = 4,
    bin_size: int = 4,
    window: Window = "flat",
    window_size: float = 2.0,
    first: int = 0,
    contrast: float = 0.0,
    root: bool = False,
) -> Local:
    """Computes SIFT descriptors on a grid, all of one scale and upright.

    A descriptor has 4 x 4 spatial bins of 8 directions, from top left to bottom right; direction 0 points right, and
    2 down. The centres of its bins lie `bin_size` apart on whole pixels; a gradient counts for the bins around it
    by linear interpolation. Each histogram is scaled to length 1, cut at 0.2, and scaled again. The images are taken as
    they are: smooth them for the scale first, or use `phow`. Equal to `vl_dsift` of VLFeat within rounding.

    Memory is 512 bytes a descriptor and about as much again for each pixel: give large sets in batches.

    Args:
      images: grey, in [0, 1] (or any other range: only `norms` and `contrast` depend on it).
      step: pixels from one descriptor to the next.
      bin_size: side of a spatial bin in pixels.
      window: what gradients far from the centre count less by. "gaussian" weighs every gradient, "flat" every bin by
        the mean of the Gaussian over it, which is several times faster and as good in practice.
      window_size: standard deviation of the Gaussian in bins, above 0.
      first: pixels at the left and the top that are left out.
      contrast: descriptors with `norms` below it are zeros.
      root: whether descriptors are RootSIFT; see `rootsift`.

    Returns:
      `Local` of 128 numbers a descriptor; `norms` is the mass of the histogram over the pixels of the descriptor.

    Raises:
      BadRequest: images smaller than a descriptor, sizes below 1, an unknown window.

    Example:
      >>> ramp = jnp.broadcast_to(jnp.linspace(0.0, 1.0, 28), (1, 28, 28))  # brighter to the right
      >>> found = dense(ramp, step=4, bin_size=4)
      >>> found.descriptors.shape, found.descriptors[0, 0].reshape(16, 8).argmax(axis=1).tolist()
      ((1, 16, 128), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])

    Reference:
      Lowe 2004, "Distinctive image features from scale-invariant keypoints", section 6. Vedaldi and Fulkerson 2008,
      VLFeat, "Dense SIFT as a faster SIFT".
    """
    h, w = images.shape[1:]
    rows, columns = local.grids(h, w, step, bin_size, first)
    if window not in ("flat", "gaussian"):
        raise BadRequest(f"unknown window {window!r}. There are: flat, gaussian.")
    if not window_size > 0:
        raise BadRequest(f"window_size is {window_size}; it takes a number of bins above 0.")
    return _dense(images, rows, columns, window, float(window_size), contrast, root)


@partial(jax.jit, static_argnames=("rows", "columns", "window", "window_size", "root"))
def _dense(
    images: Float[Array, "b h w"],
    rows: Grid,
    columns: Grid,
    window: Window,
    window_size: float,
    contrast: float | Float[Array, ""],
    root: bool,
) -> Local:
    b, h, w = images.shape
    histogram = flat if window == "flat" else gaussian
    descriptors, mass = histogram(orientations(images), rows, columns, window_size)
    norms = mass / ((3 * rows.bin_size + 1) * (3 * columns.bin_size + 1))
    descriptors = jnp.where(norms[..., None] < contrast, 0, rootsift(descriptors) if root else descriptors)
    n = rows.places * columns.places
    places = local.fractions(rows.centers, columns.centers, h, w).reshape(n, 2)
    return Local(
        descriptors.reshape(b, n, -1),
        jnp.broadcast_to(places, (b, n, 2)),
        jnp.full((b, n), rows.bin_size, jnp.float32),
        jnp.ones((b, n), bool),
        norms.reshape(b, n),
    )


def rootsift(descriptors: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Takes square roots of descriptors that sum to 1: Euclidean distances of the results are Hellinger's.

    Zeros stay zeros.

    Example:
      >>> rootsift(jnp.array([[4.0, 0.0, 12.0], [0.0, 0.0, 0.0]])).round(3).tolist()
      [[0.5, 0.0, 0.8660000562667847], [0.0, 0.0, 0.0]]

    Reference:
      Arandjelovic and Zisserman 2012, "Three things everyone should know to improve object retrieval", section 3.
    """
    mass = jnp.sum(jnp.abs(descriptors), axis=-1, keepdims=True)
    return jnp.sqrt(descriptors / jnp.where(mass > 0, mass, 1))


def gradients(images: Float[Array, "b h w"]) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"]]:
    """Returns the slopes along x and y: central differences, at the borders those of the two pixels there."""

    def along(axis: int) -> Array:
        shape = [1, 1, 1]
        shape[axis] = -1
        over = np.full(images.shape[axis], 0.5, np.float32)
        over[[0, -1]] = 1
        edges = [(1, 1) if a == axis else (0, 0) for a in range(3)]
        padded = jnp.pad(images, edges, mode="edge")
        take = partial(jax.lax.slice_in_dim, padded, axis=axis)
        return (take(2, None) - take(0, -2)) * over.reshape(shape)

    return along(2), along(1)


def orientations(images: Float[Array, "b h w"]) -> Float[Array, "b 8 h w"]:
    """Shares each pixel's gradient among the two directions next to its own, of eight.

    The angle is a polynomial of VLFeat's, right within 0.01 radians and the same in all four quadrants.
    """
    gx, gy = gradients(images)
    strength = jnp.sqrt(gx * gx + gy * gy)
    tall = jnp.abs(gy) + _EPSILON
    right = gx >= 0
    r = jnp.where(right, gx - tall, gx + tall) / (jnp.abs(gx) + tall)
    turn = 4 / math.pi * (jnp.where(right, 1, 3) * (math.pi / 4) + (0.1821 * r * r - 0.9675) * r)
    turn = jnp.where(gy < 0, 8 - turn, turn)  # from 0 to 8
    away = jnp.abs(turn[:, None] - jnp.arange(8.0)[:, None, None])
    return jnp.maximum(0, 1 - jnp.minimum(away, 8 - away)) * strength[:, None]


def flat(maps: Float[Array, "b t h w"], rows: Grid, columns: Grid, window_size: float) -> tuple[Array, Array]:
    """Returns descriptors (b r c 128) and their mass (b r c), with a window that is constant over each bin.

    Bins of neighbouring descriptors are the same sums: they are computed once, on the coarsest grid that has them all.
    Descriptors are read from there only when their length is known, which is the sum of 16 lengths of bins.
    """
    every_y, every_x = (math.gcd(g.step, g.bin_size) for g in (rows, columns))
    at_y, at_x = local.index(rows, every_y), local.index(columns, every_x)
    kernel_y, kernel_x = (triangle(g.bin_size) for g in (rows, columns))
    sums = sample(maps, kernel_y, rows.first, every_y, int(at_y.max()) + 1, axis=2)
    sums = sample(sums, kernel_x, columns.first, every_x, int(at_x.max()) + 1, axis=3)
    weights = np.outer(_weights(rows.bin_size, window_size), _weights(columns.bin_size, window_size))
    weights = weights.astype(np.float32)

    def bins(x: Array) -> list[Array]:
        """The values (b r c ...) of the bins, from the first to the sixteenth, of maps (b y x ...)."""
        strides = (1, rows.step // every_y, columns.step // every_x, *(1 for _ in x.shape[3:]))
        out = []
        for y, x_ in np.ndindex(4, 4):
            start = (0, at_y[0, y], at_x[0, x_], *(0 for _ in x.shape[3:]))
            end = (x.shape[0], at_y[-1, y] + 1, at_x[-1, x_] + 1, *x.shape[3:])
            out.append(jax.lax.slice(x, start, end, strides))
        return out

    def pooled(x: Array, scale: np.ndarray) -> Array:
        return sum((s * v for s, v in zip(scale.ravel().tolist(), bins(x), strict=True)), start=jnp.zeros(()))

    ones = jnp.ones(maps.shape[1])
    mass = pooled(_dot("t,btyx->byx", ones, sums), weights)
    inverse = 1 / (jnp.sqrt(pooled(_dot("t,btyx->byx", ones, sums * sums), weights**2)) + _EPSILON)
    sums = sums.transpose(0, 2, 3, 1)
    cut = [
        jnp.minimum(_MOST, v * (inverse * s)[..., None]) ** 2
        for s, v in zip(weights.ravel().tolist(), bins(sums), strict=True)
    ]
    again = 1 / (jnp.sqrt(_dot("brct,t->brc", sum(cut, start=jnp.zeros(())), ones)) + _EPSILON)
    found = sums[:, at_y[:, None, :, None], at_x[None, :, None, :]]  # b r c 4 4 t
    found = found.reshape(*inverse.shape, -1) * np.repeat(weights.ravel(), maps.shape[1])
    return jnp.minimum(_MOST, found * inverse[..., None]) * again[..., None], mass


def gaussian(maps: Float[Array, "b t h w"], rows: Grid, columns: Grid, window_size: float) -> tuple[Array, Array]:
    """Returns descriptors (b r c 128) and their mass (b r c), with a Gaussian window over each descriptor."""
    found = []
    for y in range(4):
        kernel = _windowed(rows.bin_size, y, window_size)
        strips = sample(maps, kernel, rows.first + y * rows.bin_size, rows.step, rows.places, axis=2)
        for x in range(4):
            kernel = _windowed(columns.bin_size, x, window_size)
            found.append(
                sample(strips, kernel, columns.first + x * columns.bin_size, columns.step, columns.places, axis=3)
            )
    histograms = jnp.stack(found, axis=1).transpose(0, 3, 4, 1, 2)  # b r c 16 t
    histograms = histograms.reshape(*histograms.shape[:3], -1)
    return normalise(histograms), histograms.sum(axis=-1)


def normalise(histograms: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Scales histograms to length 1, cuts them at 0.2, and scales them again; zeros stay zeros."""

    def unit(x: Array) -> Array:
        return x / (jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)) + _EPSILON)

    return unit(jnp.minimum(_MOST, unit(histograms)))


def triangle(bin_size: int) -> Float[np.ndarray, " k"]:
    """Returns by how much pixels around the centre of a bin count for it: 1 there, 0 at the next centres."""
    return (1 - np.abs(np.arange(1 - bin_size, bin_size)) / bin_size).astype(np.float32)


def _window(bin_size: int, which: int, window_size: float) -> Float[np.ndarray, " k"]:
    """Returns the Gaussian window of a descriptor at the pixels of its bin `which`."""
    away = np.arange(1 - bin_size, bin_size) + bin_size * (which - 1.5)
    return np.exp(-0.5 * (away / (bin_size * window_size)) ** 2)


def _windowed(bin_size: int, which: int, window_size: float) -> Float[np.ndarray, " k"]:
    return (triangle(bin_size) * _window(bin_size, which, window_size)).astype(np.float32)


def _weights(bin_size: int, window_size: float) -> Float[np.ndarray, "4"]:
    return np.array([_window(bin_size, i, window_size).mean() for i in range(4)])


def sample(
    maps: Float[Array, "b t h w"], kernel: Float[np.ndarray, " k"], first: int, every: int, count: int, axis: int
) -> Float[Array, "b t r c"]:
    """Correlates maps with a kernel of odd length along rows (2) or columns (3), at `count` places from `first`.

    Beyond its borders a map goes on as it is there. Places are taken in blocks, each the product of its part of the map
    with one matrix, a band of kernels: most of the matrix is zeros, and it is still what processors do fastest.
    """
    length, reach = maps.shape[axis], len(kernel) // 2
    places = count if length <= _WHOLE else min(_BLOCK, count)
    blocks = -(-count // places)
    width = (places - 1) * every + len(kernel)
    band = np.zeros((places, width), np.float32)
    for place in range(places):
        band[place, place * every : place * every + len(kernel)] = kernel
    of_block = first - reach + np.arange(blocks)[:, None] * (places * every) + np.arange(width)
    parts = jnp.take(maps, jnp.asarray(np.clip(of_block, 0, length - 1)), axis=axis)
    b, t = maps.shape[:2]
    if axis == 2:
        return _dot("pk,btnkw->btnpw", band, parts).reshape(b, t, blocks * places, -1)[:, :, :count]
    return _dot("bthnk,pk->bthnp", parts, band).reshape(b, t, -1, blocks * places)[..., :count]
