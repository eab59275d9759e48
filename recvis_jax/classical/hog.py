"""Histograms of oriented gradients: cells of gradients, each normalised by the four blocks that contain it."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.classical import local
from recvis_jax.classical.local import Local
from recvis_jax.classical.sampling import sample
from recvis_jax.errors import BadRequest

Variant = Literal["dalal_triggs", "uoctti"]

_MOST = 0.2  # of a normalised histogram


def hog(
    images: Float[Array, "b h w c"],
    *,
    cell: int = 8,
    directions: int = 9,
    variant: Variant = "dalal_triggs",
    interpolate: bool = False,
) -> Local:
    """Computes HOG descriptors, one per cell; `grid` returns the number of rows and columns of cells.

    Gradients are central differences in the channel with the strongest gradient, and count for the four cells around
    them by linear interpolation. The histogram of a cell is divided by the norm of each of the four blocks of 2 x 2
    cells around it, and clipped at 0.2. Equal to `vl_hog` of VLFeat within rounding. For one vector per image,
    concatenate the cells: `hog(images).descriptors.reshape(len(images), -1)`.

    Args:
      images: grey or colour, in [0, 1].
      cell: side of a cell in pixels. Cells begin at the top left; the last ones may be up to half outside.
      directions: number of bins for 180 degrees.
      variant: "dalal_triggs" keeps the four normalised histograms of undirected gradients, 4 x 9 numbers; "uoctti" the
        sums over the four for directed and undirected gradients, and the sum of each of the four: 27 + 4 numbers.
      interpolate: whether a gradient counts for the two nearest directions, or only for the nearest.

    Returns:
      `Local` of cells row by row; `norms` are the norms of their histograms before normalisation.

    Raises:
      BadRequest: images smaller than a cell or 3 pixels, sizes below 1, an unknown variant.

    Example:
      >>> found = hog(jnp.zeros((1, 32, 20, 3)), cell=8)
      >>> found.descriptors.shape, grid(32, 20, cell=8)
      ((1, 12, 36), (4, 3))

    Reference:
      Dalal and Triggs 2005, "Histograms of oriented gradients for human detection". Felzenszwalb et al. 2010, "Object
      detection with discriminatively trained part-based models", section 6.
    """
    if variant not in ("dalal_triggs", "uoctti"):
        raise BadRequest(f"unknown variant {variant!r} of HOG. There are: dalal_triggs, uoctti.")
    if directions < 1:
        raise BadRequest(f"directions is {directions}; it takes a number of bins of at least 1.")
    grid(*images.shape[1:3], cell=cell)
    return _hog(images, cell, directions, variant, interpolate)


def grid(h: int, w: int, *, cell: int = 8) -> tuple[int, int]:
    """Returns the number of rows and columns of cells of an image of `h` x `w` pixels.

    Raises:
      BadRequest: no cell fits, or images are smaller than 3 pixels and have no gradients.
    """
    if cell < 1:
        raise BadRequest(f"cell is {cell}; it takes a number of pixels of at least 1.")
    if min(h, w) < max(3, cell):
        raise BadRequest(
            f"images of {h} x {w} pixels are smaller than a cell of HOG; at least {max(3, cell)} are needed."
        )
    return (h + cell // 2) // cell, (w + cell // 2) // cell


@partial(jax.jit, static_argnames=("cell", "directions", "variant", "interpolate"))
def _hog(images: Float[Array, "b h w c"], cell: int, directions: int, variant: Variant, interpolate: bool) -> Local:
    (b, h, w), n = images.shape[:3], directions
    rows, columns = grid(h, w, cell=cell)
    maps = _directed(images, n, interpolate)
    start = -((cell + 1) // 2)
    away = (np.arange(start, start + 2 * cell + 2) + 0.5) / cell - 0.5
    kernel = np.maximum(0, 1 - np.abs(away)).astype(np.float32)
    cells = sample(sample(maps, kernel, start, cell, rows, axis=2), kernel, start, cell, columns, axis=3)
    cells = cells.transpose(0, 2, 3, 1)  # b r c 2n
    undirected = cells[..., :n] + cells[..., n:]
    energy = jnp.sum(undirected**2, axis=-1)
    around = jnp.pad(energy, ((0, 0), (1, 1), (1, 1)), mode="edge")
    pairs = around[:, 1:] + around[:, :-1]
    blocks = pairs[:, :, 1:] + pairs[:, :, :-1]  # at the corners of cells
    corners = [blocks[:, y : y + rows, x : x + columns] for y in (0, 1) for x in (0, 1)]
    factors = 1 / jnp.sqrt(jnp.stack(corners, axis=-1) + 1e-4)  # b r c 4
    plain = jnp.minimum(_MOST, undirected[..., None, :] * factors[..., None])  # b r c 4 n
    if variant == "dalal_triggs":
        descriptors = plain
    else:
        directed = jnp.minimum(_MOST, cells[..., None, :] * factors[..., None])
        texture = plain.sum(axis=-1) / math.sqrt(18)
        descriptors = jnp.concatenate([directed.sum(axis=3) / 2, plain.sum(axis=3) / 2, texture], axis=-1)
    y, x = ((np.arange(k) + 0.5) * cell - 0.5 for k in (rows, columns))
    places = local.fractions(y, x, h, w).reshape(-1, 2)
    return Local(
        descriptors.reshape(b, rows * columns, -1),
        jnp.broadcast_to(places, (b, *places.shape)),
        jnp.full((b, rows * columns), cell, jnp.float32),
        jnp.ones((b, rows * columns), bool),
        jnp.sqrt(energy).reshape(b, -1),
    )


def _directed(images: Float[Array, "b h w c"], n: int, interpolate: bool) -> Float[Array, "b t h w"]:
    """Divides gradients among 2n directions; directions k and k + n are opposite. Borders have no gradients."""
    gx = images[:, 1:-1, 2:] - images[:, 1:-1, :-2]
    gy = images[:, 2:, 1:-1] - images[:, :-2, 1:-1]
    strongest = jnp.argmax(gx**2 + gy**2, axis=-1)[..., None]
    gx, gy = (jnp.take_along_axis(g, strongest, axis=-1)[:, None, ..., 0] for g in (gx, gy))
    strength = jnp.sqrt(gx**2 + gy**2)
    every = np.arange(2 * n, dtype=np.float32)[:, None, None]
    if interpolate:
        away = jnp.abs(jnp.arctan2(gy, gx) * (n / math.pi) % (2 * n) - every)
        share = jnp.maximum(0, 1 - jnp.minimum(away, 2 * n - away))
    else:
        angles = np.arange(n)[:, None, None] * (math.pi / n)
        along = gx * np.cos(angles).astype(np.float32) + gy * np.sin(angles).astype(np.float32)  # b n h w
        nearest = jnp.argmax(jnp.abs(along), axis=1, keepdims=True)
        nearest += n * (jnp.take_along_axis(along, nearest, axis=1) < 0)
        share = nearest == every
    return jnp.pad(share * strength, ((0, 0), (0, 0), (1, 1), (1, 1)))
