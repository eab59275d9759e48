"""The maximum over windows of 2x2, with a gradient that is computed in one loop."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from recvis_jax.kernels.own_gradient import own_gradient


def max_pool(plain: Callable, x: Array, window: int, stride: int | None = None, padding: int = 0) -> Array:
    """The form of `operations.max_pool`."""
    plain = partial(plain, window=window, stride=stride, padding=padding)
    if window == 2 and stride in (None, 2) and not padding and min(x.shape[1:3]) >= 2:
        return lax.platform_dependent(x, cpu=max_pool_2x2, default=plain)
    return plain(x)


@own_gradient
def max_pool_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b p q c"]:
    """Maximum over windows of 2x2, rows first; a last odd row or column is left out.

    Equal maxima share the gradient, as with `jnp.maximum`. JAX's gradient of the slices gives the same numbers, but XLA
    writes each of its steps to memory, with zeros between the elements.
    """
    p, q = x.shape[1] // 2, x.shape[2] // 2
    rows = jnp.maximum(x[:, : 2 * p : 2], x[:, 1 : 2 * p : 2])
    return jnp.maximum(rows[:, :, : 2 * q : 2], rows[:, :, 1 : 2 * q : 2])


def shares(x: Float[Array, "b h w c"]) -> Float[Array, "b p 2 q 2 c"]:
    """Returns the share of each element in the gradient to its window's maximum: 0, 1/4, 1/2 or 1."""
    b, p, q, c = len(x), x.shape[1] // 2, x.shape[2] // 2, x.shape[3]
    pairs = x[:, : 2 * p, : 2 * q].reshape(b, p, 2, q, 2, c)
    rows = jnp.maximum(pairs, jnp.flip(pairs, 2))
    return _share(rows, 4) * _share(pairs, 2)


def shared(d_y: Float[Array, "b p q c"], shares: Float[Array, "b p 2 q 2 c"]) -> Float[Array, "b i j c"]:
    """Returns the gradient to the elements of all windows, in an even number of rows and columns."""
    b, p, q, c = d_y.shape
    return (d_y[:, :, None, :, None, :] * shares).reshape(b, 2 * p, 2 * q, c)


def _backward(x: Float[Array, "b h w c"], d_y: Float[Array, "b p q c"]) -> tuple[Float[Array, "b h w c"]]:
    d_x = shared(d_y, shares(x))
    odd = ((0, 0), (0, x.shape[1] - d_x.shape[1]), (0, x.shape[2] - d_x.shape[2]), (0, 0))
    return (jnp.pad(d_x, odd),)


def _share(x: Array, axis: int) -> Array:
    """Returns the share of each of two neighbours along an axis in the gradient to their maximum."""
    other = jnp.flip(x, axis)
    # Arithmetic, not `jnp.where`: in the gradient of a loop over blocks, its constants would be read from arrays.
    return ((x > other).astype(x.dtype) + (x >= other).astype(x.dtype)) / 2


max_pool_2x2.define(lambda x: (max_pool_2x2(x), x), _backward)
