"""Integrated gradients: what each pixel adds to a score on the straight line from a baseline to the image."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.vis import targets
from recvis_jax.vis.layers import Apply, Images
from recvis_jax.vis.targets import Target


def integrated_gradients(
    apply: Apply,
    variables: Any,
    images: Images,
    target: Target = None,
    *,
    baseline: float | Float[Array, "..."] | Float[np.ndarray, "..."] = 0.0,
    points: int = 50,
) -> Float[Array, "b h w c"]:
    """(x - x0) times the mean of the gradient on the line from x0 to x, by Gauss-Legendre quadrature.

    The attributions sum to the score of the image minus that of the baseline; `completeness` measures the error.

    Args:
      apply, variables, images, target: see `saliency.gradient`; the predicted class is that of the image itself.
      baseline: x0, a number, an image (h w c) or one for each (b h w c), in the form of the network's input: 0 is the
        mean image if images are normalised.
      points: number of points on the line.

    Raises:
      BadRequest: fewer than one point.

    Reference: Sundararajan, Taly & Yan 2017, "Axiomatic attribution for deep networks".

    Example:
      >>> found = integrated_gradients(apply, variables, images, 3)
      >>> found.shape, float(completeness(apply, variables, images, found, 3).max()) < 0.1
      ((2, 28, 28, 1), True)
    """
    if points < 1:
        raise BadRequest(f"points={points}; integrated gradients need at least 1.")
    target = targets.fixed(apply, variables, images, target)
    images = jnp.asarray(images)
    return _integrated(apply, points, variables, images, target, jnp.asarray(baseline, images.dtype))


def completeness(
    apply: Apply,
    variables: Any,
    images: Images,
    attributions: Float[Array, "b h w c"],
    target: Target = None,
    *,
    baseline: float | Float[Array, "..."] | Float[np.ndarray, "..."] = 0.0,
) -> Float[Array, "b"]:
    """The error of the attributions' sum compared with the difference of the scores, relative to this difference.

    Args:
      apply, variables, images, target, baseline: as given to `integrated_gradients`.
      attributions: its result.

    Returns:
      |sum - (F(x) - F(x0))| / |F(x) - F(x0)| of each image.
    """
    images = jnp.asarray(images)
    target = targets.fixed(apply, variables, images, target)
    other = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)
    difference = targets.scores(apply, variables, images, target) - targets.scores(apply, variables, other, target)
    return jnp.abs(attributions.sum((1, 2, 3)) - difference) / jnp.abs(difference)


@partial(jax.jit, static_argnums=(0, 1))
def _integrated(apply: Apply, points: int, variables: Any, images: Array, target: Any, baseline: Array) -> Array:
    nodes, weights = np.polynomial.legendre.leggauss(points)  # on [-1, 1]
    way = images - baseline

    def add(total: Array, point: tuple[Array, Array]) -> tuple[Array, None]:
        at, weight = point
        found = jax.grad(lambda x: targets.scores(apply, variables, x, target).sum())(baseline + at * way)
        return total + weight * found, None

    on_line = jnp.asarray((nodes + 1) / 2, images.dtype), jnp.asarray(weights / 2, images.dtype)
    return way * jax.lax.scan(add, jnp.zeros_like(images), on_line)[0]
