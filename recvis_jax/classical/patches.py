"""Raw patches as descriptors: the pixels around a place, unchanged or without mean and contrast."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.classical import local
from recvis_jax.classical.local import Local
from recvis_jax.errors import BadRequest


def patches(
    images: Float[Array, "b h w c"], *, size: int = 6, step: int = 1, normalise: bool = True, floor: float = 0.04
) -> Local:
    """Returns all square patches inside an image, on a grid.

    Whitening belongs to the vocabulary, because it is learnt from many images.

    Args:
      images: with any number of channels, in [0, 1].
      size: side of a patch in pixels.
      step: pixels from one patch to the next.
      normalise: whether the mean of a patch is subtracted, and the result divided by its standard deviation.
      floor: added to the standard deviation, so that noise in flat patches stays small.

    Returns:
      `Local` with the pixels of each patch row by row, the channels of a pixel together; `norms` are the standard
      deviations.

    Raises:
      BadRequest: images smaller than a patch, sizes below 1.

    Example:
      >>> found = patches(jnp.arange(16.0).reshape(1, 4, 4, 1), size=2, step=2, normalise=False)
      >>> found.descriptors[0].tolist()
      [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0], [8.0, 9.0, 12.0, 13.0], [10.0, 11.0, 14.0, 15.0]]

    Reference:
      Coates, Lee and Ng 2011, "An analysis of single-layer networks in unsupervised feature learning", section 3.1.
    """
    h, w = images.shape[1:3]
    for name, value in (("size", size), ("step", step)):
        if value < 1:
            raise BadRequest(f"{name} is {value}; it takes a number of pixels of at least 1.")
    if min(h, w) < size:
        raise BadRequest(f"images of {h} x {w} pixels are smaller than a patch of {size} x {size}.")
    return _patches(images, size, step, normalise, floor)


@partial(jax.jit, static_argnames=("size", "step", "normalise"))
def _patches(images: Float[Array, "b h w c"], size: int, step: int, normalise: bool, floor: float | Array) -> Local:
    b, h, w, c = images.shape
    y, x = (np.arange(0, length - size + 1, step) for length in (h, w))
    inside = np.arange(size)
    found = images[:, (y[:, None] + inside)[:, None, :, None], (x[:, None] + inside)[None, :, None, :]]
    found = found.reshape(b, len(y) * len(x), size * size * c)
    away = found - found.mean(axis=-1, keepdims=True)
    norms = jnp.sqrt(jnp.mean(away**2, axis=-1))
    places = local.fractions(y + (size - 1) / 2, x + (size - 1) / 2, h, w).reshape(-1, 2)
    n = len(places)
    return Local(
        away / (norms + floor)[..., None] if normalise else found,
        jnp.broadcast_to(places, (b, n, 2)),
        jnp.full((b, n), size, jnp.float32),
        jnp.ones((b, n), bool),
        norms,
    )
