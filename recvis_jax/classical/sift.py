"""SIFT: histograms of gradient directions in 4 x 4 bins around a place (Lowe 2004), computed densely like VLFeat's."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.classical import local
from recvis_jax.classical.local import Grid, Local
from recvis_jax.classical.sampling import barrier, sample
from recvis_jax.errors import BadRequest

Window = Literal["flat", "gaussian"]

_EPSILON = float(np.finfo(np.float32).eps)
_MOST = 0.2  # of a normalised histogram, to limit the influence of a single strong edge


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
    """Computes upright SIFT descriptors of one scale on a grid.

    A descriptor has 4 x 4 spatial bins of 8 directions, from top left to bottom right; direction 0 points right, and 2
    down. The centres of its bins are `bin_size` apart, at whole pixels; a gradient counts for the bins around it by
    linear interpolation. Each histogram is scaled to norm 1, clipped at 0.2, and scaled again. The images are not
    smoothed: smooth them for the scale first, or use `phow`. Equal to `vl_dsift` of VLFeat within rounding.

    Memory is 512 bytes per descriptor and about 150 per pixel: pass large data sets in batches.

    Args:
      images: grey, in [0, 1] (or any other range: only `norms` and `contrast` depend on it).
      step: pixels from one descriptor to the next.
      bin_size: side of a spatial bin in pixels.
      window: gives gradients far from the centre smaller weights. "gaussian" weights every gradient, "flat" every bin
        with the mean of the Gaussian over it, which is several times faster and as good in practice.
      window_size: standard deviation of the Gaussian in bins, above 0.
      first: pixels left out at the left and at the top.
      contrast: descriptors with smaller `norms` become zeros.
      root: whether descriptors are RootSIFT; see `rootsift`.

    Returns:
      `Local` with 128 numbers per descriptor; `norms` is the histogram's mass divided by the descriptor's pixels.

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
    """Scales descriptors to sum 1 and takes square roots: Euclidean distances of the results are Hellinger's.

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
    """Returns the slopes along x and y: central differences; at the borders, differences of the two pixels there."""

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
    """Divides each pixel's gradient between the two nearest of eight directions.

    The angle is computed with VLFeat's polynomial, exact within 0.01 radians and the same in all four quadrants.
    """
    gx, gy = gradients(images)
    strength = jnp.sqrt(gx * gx + gy * gy)
    tall = jnp.abs(gy) + _EPSILON
    right = gx >= 0
    r = jnp.where(right, gx - tall, gx + tall) / (jnp.abs(gx) + tall)
    turn = 4 / math.pi * (jnp.where(right, 1, 3) * (math.pi / 4) + (0.1821 * r * r - 0.9675) * r)
    turn, strength = barrier((jnp.where(gy < 0, 8 - turn, turn), strength))  # from 0 to 8
    away = jnp.abs(turn[:, None] - jnp.arange(8.0)[:, None, None])
    return jnp.maximum(0, 1 - jnp.minimum(away, 8 - away)) * strength[:, None]


def flat(maps: Float[Array, "b t h w"], rows: Grid, columns: Grid, window_size: float) -> tuple[Array, Array]:
    """Returns descriptors (b r c 128) and their mass (b r c), with a window that is constant over each bin.

    Neighbouring descriptors share bins: these are computed once, on the coarsest grid that contains all of them. Both
    norms of a descriptor are sums over its bins, too, so descriptors are written only once, in their final form.
    """
    every = [math.gcd(g.step, g.bin_size) for g in (rows, columns)]
    at = [local.index(g, e) for g, e in zip((rows, columns), every, strict=True)]
    weights = [_weights(g.bin_size, window_size) for g in (rows, columns)]
    sums = maps
    for axis, g, e, i in zip((2, 3), (rows, columns), every, at, strict=True):
        sums = sample(sums, triangle(g.bin_size), g.first + 1 - g.bin_size, e, int(i.max()) + 1, axis)

    def pooled(x: Float[Array, "b y x"], power: int) -> Float[Array, "b r c"]:
        """Sums over the bins of each descriptor."""
        x = x[:, None]
        for axis, g, e, weight in zip((2, 3), (rows, columns), every, weights, strict=True):
            kernel = np.zeros(3 * g.bin_size // e + 1, np.float32)
            kernel[:: g.bin_size // e] = weight**power
            x = sample(x, kernel, 0, g.step // e, g.places, axis)
        return x[:, 0]

    directions = [sums[:, i] for i in range(sums.shape[1])]
    mass = pooled(sum(directions, start=jnp.zeros(())), 1)
    length = jnp.sqrt(pooled(sum((d * d for d in directions), start=jnp.zeros(())), 2))
    inverse = barrier(1 / (length + _EPSILON))[..., None]
    sums = barrier(sums.transpose(0, 2, 3, 1))  # makes the numbers of a bin contiguous
    by_bin = np.outer(*weights).astype(np.float32)
    squares = jnp.zeros(())
    for y, x in np.ndindex(4, 4):
        start, end = ((0, int(at[0][i, y]), int(at[1][i, x]), 0) for i in (0, -1))
        limits = (sums.shape[0], end[1] + 1, end[2] + 1, sums.shape[3])
        found = jax.lax.slice(sums, start, limits, (1, rows.step // every[0], columns.step // every[1], 1))
        squares += jnp.minimum(_MOST, found * (inverse * by_bin[y, x])) ** 2
    again = barrier(1 / (jnp.sqrt(jnp.sum(barrier(squares), axis=-1, keepdims=True)) + _EPSILON))
    found = sums[:, at[0][:, None, :, None], at[1][None, :, None, :]]  # b r c 4 4 t
    found = found.reshape(*mass.shape, -1) * np.repeat(by_bin.ravel(), sums.shape[3])
    return jnp.minimum(_MOST, found * inverse) * again, mass


def gaussian(maps: Float[Array, "b t h w"], rows: Grid, columns: Grid, window_size: float) -> tuple[Array, Array]:
    """Returns descriptors (b r c 128) and their mass (b r c), with a Gaussian window over each descriptor."""
    found = []
    for y in range(4):
        strips = _bin(maps, rows, y, window_size, axis=2)
        found += [_bin(strips, columns, x, window_size, axis=3) for x in range(4)]
    histograms = jnp.stack(found, axis=1).transpose(0, 3, 4, 1, 2)  # b r c 16 t
    histograms = histograms.reshape(*histograms.shape[:3], -1)
    return normalise(histograms), histograms.sum(axis=-1)


def normalise(histograms: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Scales histograms to norm 1, clips them at 0.2, and scales them again; zeros stay zeros."""

    def unit(x: Array) -> Array:
        return x / (jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)) + _EPSILON)

    return unit(jnp.minimum(_MOST, unit(histograms)))


def triangle(bin_size: int) -> Float[np.ndarray, " k"]:
    """Returns the weights of pixels around the centre of a bin: 1 at the centre, 0 at the next centres."""
    return (1 - np.abs(np.arange(1 - bin_size, bin_size)) / bin_size).astype(np.float32)


def _window(bin_size: int, which: int, window_size: float) -> Float[np.ndarray, " k"]:
    """Returns the Gaussian window of a descriptor at the pixels of its bin `which`."""
    away = np.arange(1 - bin_size, bin_size) + bin_size * (which - 1.5)
    return np.exp(-0.5 * (away / (bin_size * window_size)) ** 2)


def _bin(maps: Float[Array, "b t h w"], at: Grid, which: int, window_size: float, axis: int) -> Float[Array, "b t r c"]:
    """Sums maps over bin `which` of every descriptor, along one axis."""
    kernel = (triangle(at.bin_size) * _window(at.bin_size, which, window_size)).astype(np.float32)
    return sample(maps, kernel, at.first + which * at.bin_size + 1 - at.bin_size, at.step, at.places, axis)


def _weights(bin_size: int, window_size: float) -> Float[np.ndarray, "4"]:
    return np.array([_window(bin_size, i, window_size).mean() for i in range(4)])
