"""Chooses the patches that an autoencoder masks: every patch gets noise, and the patches with the most are masked.

Each sampler is `f(key, rows, columns) -> noise (rows columns,)` for one image. The number of masked patches is set by
the model's mask ratio, not by the sampler, so shapes never depend on random numbers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Sampler = Callable[[Array, int, int], Array]

# Number of rectangles that `block` draws: together they almost surely cover three quarters of a grid.
_RECTANGLES = 32


def uniform(key: Key[Array, ""], rows: int, columns: int) -> Float[Array, "n"]:
    """Random sampling, all sets of patches equally likely (He et al. 2022, section 3)."""
    return jax.random.uniform(key, (rows * columns,))


def block(key: Key[Array, ""], rows: int, columns: int) -> Float[Array, "n"]:
    """Masks one rectangle after another until enough patches are masked, as in BEiT; the last one only in part.

    A rectangle's area is uniform between 16 patches (or an eighth of a smaller grid) and two fifths of the grid; its
    aspect ratio is log-uniform in [0.3, 1 / 0.3].

    Reference: Bao et al. 2021, "BEiT", algorithm 1; He et al. 2022, table 1f, "block".
    """
    n = rows * columns
    u = jax.random.uniform(key, (_RECTANGLES, 4))
    smallest = min(16.0, n / 8)
    area = smallest + u[:, 0] * (max(0.4 * n, smallest) - smallest)
    aspect = jnp.exp((2 * u[:, 1] - 1) * jnp.log(1 / 0.3))
    height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, rows)
    width = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, columns)
    top = jnp.floor(u[:, 2] * (rows - height + 1))
    left = jnp.floor(u[:, 3] * (columns - width + 1))
    y, x = (a.reshape(-1, 1) for a in jnp.mgrid[:rows, :columns])
    inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    first = jnp.where(inside.any(1), inside.argmax(1), _RECTANGLES)
    return (_RECTANGLES - first) + jax.random.uniform(jax.random.fold_in(key, 1), (n,))


def grid(key: Key[Array, ""], rows: int, columns: int) -> Float[Array, "n"]:
    """Keeps the first patch of every 2 x 2; if the mask ratio keeps fewer or more, those are chosen at random.

    Reference: He et al. 2022, table 1f, "grid".
    """
    y, x = jnp.mgrid[:rows, :columns]
    other = ((y % 2) | (x % 2)).reshape(-1)
    return other + jax.random.uniform(key, (rows * columns,))


SAMPLERS: dict[str, Sampler] = {"random": uniform, "block": block, "grid": grid}


def noise_of(sampler: Sampler, keys: Key[Array, "b"], size: tuple[int, int]) -> Float[Array, "b n"]:
    """Returns the noise for images, with one key each, on grids of `size` (rows, columns)."""
    return jax.vmap(lambda key: sampler(key, *size))(keys)


def keys_of(images: Float[Array, "b h w c"]) -> Key[Array, "b"]:
    """Returns a key for every image that depends only on its pixels: the same in any batch, on any device."""
    bits = jax.lax.bitcast_convert_type(images.astype(jnp.float32), jnp.uint32).reshape(len(images), -1)
    places = jnp.arange(bits.shape[1], dtype=jnp.uint32)
    # Integer sums are exact in any order; multiplication by odd numbers is invertible, so every bit of a pixel counts.
    hashed = jnp.sum((bits ^ (bits >> 15)) * ((2 * places + 1) * jnp.uint32(2654435761)), axis=1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), hashed)
