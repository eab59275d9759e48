"""Correlation with small kernels at places on a grid, and Gaussian smoothing with it."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest

barrier = jax.lax.optimization_barrier


def sample(
    maps: Float[Array, "b t h w"], kernel: Float[np.ndarray, " k"], start: int, every: int, places: int, axis: int
) -> Float[Array, "b t r c"]:
    """Correlates maps with a kernel at places along rows (axis 2) or columns (3).

    For the first place the kernel begins at pixel `start`, which may be outside, and for each next place `every` pixels
    further. Border pixels are repeated beyond the borders. The result is a sum of shifted maps, one for each nonzero
    number of the kernel; for kernels of about ten numbers this is faster on CPUs than convolutions.

    Example:
      >>> ramp = jnp.arange(6.0).reshape(1, 1, 1, 6)
      >>> sample(ramp, np.array([1, 1], np.float32), -1, 3, 3, axis=3).tolist()  # 0 and 0, 2 and 3, 5 and 5
      [[[[0.0, 5.0, 10.0]]]]
    """
    reach = (places - 1) * every + 1
    before, after = max(0, -start), max(0, start + reach + len(kernel) - 1 - maps.shape[axis])
    edges = [(before, after) if a == axis else (0, 0) for a in range(4)]
    # Without barriers the maps would be computed again for each shift. Programs make XLA keep barriers; see `tried`.
    padded = barrier(jnp.pad(barrier(maps), edges, mode="edge"))
    total = jnp.zeros(())
    for i in np.flatnonzero(kernel).tolist():
        at = start + before + i
        total += float(kernel[i]) * jax.lax.slice_in_dim(padded, at, at + reach, every, axis)
    return barrier(total)


@partial(jax.jit, static_argnames="sigma")
def smooth(images: Float[Array, "b h w"], sigma: float) -> Float[Array, "b h w"]:
    """Smooths images with a Gaussian of standard deviation `sigma` pixels, cut off at 4 sigma; borders are repeated.

    Raises:
      BadRequest: a sigma below 0.

    Example:
      >>> round(float(smooth(jnp.zeros((1, 9, 9)).at[0, 4, 4].set(1.0), 1.0)[0, 4, 4]), 4)
      0.1592
    """
    if not 0 <= sigma < math.inf:
        raise BadRequest(f"sigma is {sigma}; it takes a number of pixels of at least 0.")
    if sigma < 0.01:
        return images
    reach = math.ceil(4 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    h, w = images.shape[1:]
    return sample(sample(images[:, None], kernel, -reach, 1, h, axis=2), kernel, -reach, 1, w, axis=3)[:, 0]
