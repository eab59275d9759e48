"""Resizing and rotation of images for `augment_images`, with arithmetic that does not depend on the batch size.

All functions work on a batch (b h w c), float32, and give the same bits for every batch size. Whole rows are gathered,
never single pixels.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float


def rounded(product: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns a product unchanged, but makes sure that it is rounded to float32 before anything is added to it.

    If a sum follows a product, compilers may fuse both into one operation that rounds only once; whether they do so, or
    for instance move the product out of a loop first, depends on the batch size. A minimum between the two keeps them
    apart; `lax.optimization_barrier` and `lax.reduce_precision` do not, because both are removed earlier.
    """
    return jnp.minimum(product, 3e38)


def resized_rows(
    images: Float[Array, "b h *rest"], start: Float[Array, "b"], size: Float[Array, "b"], height: int
) -> Float[Array, "b {height} *rest"]:
    """Resizes the `size` rows from `start` on, both in pixels, to `height` rows: bilinear with antialiasing.

    A new row is a sum of its neighbours, weighted by a triangle that reaches one step in both directions, at least one
    row.
    """
    b, h, *rest = images.shape
    step = rounded(size / height)[:, None]
    centre = start[:, None] + rounded(step * (jnp.arange(height) + 0.5)) - 0.5
    reach = jnp.maximum(step, 1)
    first = jnp.floor(centre - reach).astype(jnp.int32) + 1

    def weight(i: Array | int) -> Array:
        row = first + i
        return jnp.where((row >= 0) & (row < h), jnp.maximum(reach - jnp.abs(centre - row), 0), 0)

    neighbours = math.ceil(2 * max(1, h / height))
    total = functools.reduce(jnp.add, map(weight, range(neighbours)))

    def add(i: Array | int, out: Array) -> Array:
        rows = jax.vmap(lambda image, row: jnp.take(image, row, axis=0, mode="clip"))(images, first + i)
        return out + rounded(rows * (weight(i) / total).reshape(b, height, *[1] * len(rest)))

    # An unrolled sum would be faster by itself, but is computed again wherever a later operation reads a pixel.
    return lax.fori_loop(0, neighbours, add, jnp.zeros((b, height, *rest), images.dtype))


def rotated(
    images: Float[Array, "b h w c"], angle: Float[Array, "b"], most: float, value: float
) -> Float[Array, "b h w c"]:
    """Rotates each image by `angle`, in radians and counter-clockwise, at most `most` in both directions."""
    if most == 0:
        return images
    across, down = -jnp.tan(angle / 2), jnp.sin(angle)
    grow = math.ceil(math.tan(most / 2) * (images.shape[1] - 1) / 2)
    # The last shear may bring back what the first one moves out of the frame.
    images = _sheared(images, across, math.tan(most / 2), axis=2, grow=grow, value=value)
    images = _sheared(images, down, math.sin(most), axis=1, grow=0, value=value)
    return _sheared(images, across, math.tan(most / 2), axis=2, grow=-grow, value=value)


def _sheared(images: Array, slope: Array, steepest: float, axis: int, grow: int, value: float) -> Array:
    """Reads out[i, j] = images[i + slope (j - centre), j], with i along `axis` and longer by `grow` at both ends."""
    length, others = images.shape[axis], images.shape[3 - axis]
    reach = math.ceil(steepest * (others - 1) / 2)
    pad = [(0, 0)] * 4
    pad[axis] = (grow + reach, grow + reach + 1)
    padded = jnp.pad(images, pad, constant_values=value)
    # In units of 2^-17 pixel: whole numbers, because a float that is computed twice may floor to two results.
    steps = jnp.round(slope * (1 << 16)).astype(jnp.int32)[:, None] * (2 * jnp.arange(others) - (others - 1))
    steps = jnp.clip(jnp.expand_dims(steps, (axis, 3)) + (reach << 17), 0, 2 * reach << 17)
    moved = _shifted(padded, steps >> 17, axis, 2 * reach)
    fraction = (steps & ((1 << 17) - 1)).astype(jnp.float32) / (1 << 17)
    n = length + 2 * grow
    first, second = (lax.slice_in_dim(moved, i, i + n, axis=axis) for i in (0, 1))
    return first + rounded((second - first) * fraction)


def _shifted(x: Array, shift: Array, axis: int, most: int) -> Array:
    """Drops `shift` (in [0, most]) entries at the start of `axis` and the other `most - shift` at its end."""
    while most > 0:  # about log2(most) times: shifts by half of the rest, or not at all
        half = (most + 1) // 2
        n = x.shape[axis]
        far = shift >= half
        x = jnp.where(far, lax.slice_in_dim(x, half, n, axis=axis), lax.slice_in_dim(x, 0, n - half, axis=axis))
        shift = jnp.where(far, shift - half, shift)
        most -= half
    return x
