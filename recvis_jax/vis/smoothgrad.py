"""SmoothGrad: the mean gradient of noisy copies of an image."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.vis import targets
from recvis_jax.vis.layers import Apply, Images
from recvis_jax.vis.targets import Target


def smoothgrad(
    apply: Apply,
    variables: Any,
    images: Images,
    target: Target = None,
    *,
    key: Array | None = None,
    samples: int = 25,
    noise: float = 0.15,
    squared: bool = False,
) -> Float[Array, "b h w c"]:
    """The mean of the gradients at noisy copies of each image.

    All images get the same noise, scaled by their own range, so a result does not depend on the other images.

    Args:
      apply, variables, images, target: see `saliency.gradient`; the predicted class is that of the image itself.
      key: for the noise; `jax.random.key(0)` by default.
      samples: number of noisy copies.
      noise: standard deviation, as a fraction of the image's range (largest minus smallest value).
      squared: takes the mean of squared gradients, which shows more and is never negative (PAIR's default).

    Raises:
      BadRequest: fewer than one sample.

    Reference: Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise".

    Example:
      >>> smoothgrad(apply, variables, images, samples=4).shape
      (2, 28, 28, 1)
    """
    if samples < 1:
        raise BadRequest(f"samples={samples}; SmoothGrad needs at least 1.")
    key = jax.random.key(0) if key is None else key
    target = targets.fixed(apply, variables, images, target)
    return _smooth(apply, samples, squared, variables, jnp.asarray(images), target, key, noise)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _smooth(
    apply: Apply, samples: int, squared: bool, variables: Any, images: Array, target: Any, key: Array, noise: Array
) -> Array:
    axes = (1, 2, 3)
    spread = noise * (images.max(axes, keepdims=True) - images.min(axes, keepdims=True))

    def add(total: Array, i: Array) -> tuple[Array, None]:
        drawn = jax.random.normal(jax.random.fold_in(key, i), images.shape[1:], images.dtype)
        found = jax.grad(lambda x: targets.scores(apply, variables, x, target).sum())(images + spread * drawn)
        return total + (jnp.square(found) if squared else found), None

    return jax.lax.scan(add, jnp.zeros_like(images), jnp.arange(samples))[0] / samples
