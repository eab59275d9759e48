"""Deep dream: changes an image so that a layer's existing activations become stronger, from coarse to fine.

Reference: Mordvintsev, Olah & Tyka 2015, "Inceptionism: going deeper into neural networks".
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.vis import layers
from recvis_jax.vis.layers import Apply, Images


def deep_dream(
    apply: Apply,
    variables: Any,
    images: Images,
    layer: str,
    *,
    key: Array | None = None,
    octaves: int = 4,
    factor: float = 1.4,
    steps: int = 10,
    rate: float = 0.02,
    jitter: int = 16,
    say: Callable[[int], None] = lambda done: None,
) -> Float[Array, "b h w c"]:
    """Returns images in [0, 1] with a larger mean square of a layer.

    Args:
      apply: the network, for images in [0, 1] of any size, as convolutional networks are.
      variables: its variables.
      images: (b h w c) in [0, 1].
      layer: a name in `acts`, or the path of a module, see `layers.activations`.
      key: for the jitter; `jax.random.key(0)` by default.
      octaves: number of sizes of the image, each `factor` times the one before; the last is the image's own size.
      factor: between two octaves.
      steps: per octave.
      rate: mean change of a pixel per step.
      jitter: most pixels by which the image is rolled before a step.
      say: called with the number of octaves done.

    Raises:
      BadRequest: an unknown layer, octaves or steps below 1, a factor that is not above 1.

    Example:
      >>> deep_dream(apply, variables, jax.nn.sigmoid(images), "stage1/block1", octaves=1, steps=1).shape
      (2, 28, 28, 1)
    """
    if octaves < 1 or steps < 1 or factor <= 1:
        raise BadRequest(f"octaves={octaves} and steps={steps} must be at least 1, factor={factor} above 1.")
    key = jax.random.key(0) if key is None else key
    images = jnp.asarray(images)
    b, h, w, c = images.shape
    detail: Any = 0.0
    for octave in range(octaves):
        scale = factor ** (octave - octaves + 1)
        size = (b, max(8, round(h * scale)), max(8, round(w * scale)), c) if scale < 1 else images.shape
        base = jax.image.resize(images, size, "linear")
        detail = jax.image.resize(detail, size, "linear") if octave else jnp.zeros(size, images.dtype)
        keys = jax.random.split(jax.random.fold_in(key, octave), steps)
        detail = _dream(apply, layer, jitter, variables, base, detail, keys, jnp.float32(rate))
        say(octave + 1)
    return jnp.clip(images + detail, 0, 1)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _dream(
    apply: Apply, layer: str, jitter: int, variables: Any, base: Array, detail: Array, keys: Array, rate: Array
) -> Array:
    def step(detail: Array, key: Array) -> tuple[Array, None]:
        shift = jax.random.randint(key, (2,), -jitter, jitter + 1)

        def excited(detail: Array) -> Array:
            seen = jnp.roll(jnp.clip(base + detail, 0, 1), shift, (1, 2))
            found = layers.activations(apply, variables, seen, layer)
            return jnp.square(found.reshape(len(found), -1)).mean(1).sum()

        gradient = jax.grad(excited)(detail)
        size = jnp.abs(gradient).mean((1, 2, 3), keepdims=True)
        return detail + rate * gradient / jnp.maximum(size, 1e-12), None

    return jax.lax.scan(step, detail, keys)[0]
