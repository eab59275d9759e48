"""Feature inversion: what a layer keeps of an image, shown by another image with the same features.

Reference: Mahendran & Vedaldi 2014, "Understanding deep image representations by inverting them".
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.vis import layers
from recvis_jax.vis.layers import Apply, Images

_TOGETHER = 50  # steps between two calls of `say`


def invert(
    apply: Apply,
    variables: Any,
    images: Images,
    layer: str,
    *,
    key: Array | None = None,
    steps: int = 400,
    rate: float = 0.02,
    smooth: float = 1e-2,
    say: Callable[[int], None] = lambda done: None,
) -> Float[Array, "b h w c"]:
    """Returns images in [0, 1], made from noise, with the same values of a layer as the given images.

    It minimises |f(x) - f(x0)|^2 / |f(x0)|^2 plus `smooth` times the mean absolute difference of neighbouring pixels.

    Args:
      apply: the network, for images in [0, 1].
      variables: its variables.
      images: (b h w c) in [0, 1].
      layer: a name in `acts`, or the path of a module, see `layers.activations`.
      key: for the noise; `jax.random.key(0)` by default.
      steps: of Adam.
      rate: its learning rate, of the pixels before the sigmoid that keeps them in [0, 1].
      smooth: weight of the total variation.
      say: called with the number of steps done.

    Raises:
      BadRequest: an unknown layer, or steps below 1.

    Example:
      >>> invert(apply, variables, jax.nn.sigmoid(images), "stage1/block1", steps=2).shape
      (2, 28, 28, 1)
    """
    if steps < 1:
        raise BadRequest(f"steps={steps} must be at least 1.")
    key = jax.random.key(0) if key is None else key
    images = jnp.asarray(images)
    wanted = layers.activations(apply, variables, images, layer)
    noise = jax.random.normal(key, images.shape[1:], images.dtype)  # the same for all images
    pixels = jnp.broadcast_to(0.1 * noise, images.shape)
    state = optax.adam(rate).init(pixels)
    for done in range(0, steps, _TOGETHER):
        count = min(_TOGETHER, steps - done)
        given = variables, pixels, state, wanted, jnp.float32(rate), jnp.float32(smooth)
        pixels, state = _descend(apply, layer, count, *given)
        say(done + count)
    return jax.nn.sigmoid(pixels)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _descend(
    apply: Apply,
    layer: str,
    steps: int,
    variables: Any,
    pixels: Array,
    state: Any,
    wanted: Array,
    rate: Array,
    smooth: Array,
) -> tuple[Array, Any]:
    optimizer = optax.adam(rate)

    def loss(pixels: Array) -> Array:
        x = jax.nn.sigmoid(pixels)
        axes = tuple(range(1, wanted.ndim))
        missed = jnp.square(layers.activations(apply, variables, x, layer) - wanted).sum(axes)
        rough = sum(jnp.abs(jnp.diff(x, axis=axis)).mean((1, 2, 3)) for axis in (1, 2))
        return (missed / jnp.maximum(jnp.square(wanted).sum(axes), 1e-12) + smooth * rough).sum()

    def step(kept: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        pixels, state = kept
        updates, state = optimizer.update(jax.grad(loss)(pixels), state)
        return (optax.apply_updates(pixels, updates), state), None

    return jax.lax.scan(step, (pixels, state), None, length=steps)[0]
