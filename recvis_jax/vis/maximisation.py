"""Activation maximisation: images that excite a unit, channel, class or direction most, made from noise.

Gradients pass closed relus, so that units that are silent on noise can be activated. Three things prevent noisy images:
an image is represented by its Fourier transform, so that a step of the optimizer changes all frequencies equally; its
colours are decorrelated; and it is shifted, rotated and scaled a little before each step.

Reference: Erhan et al. 2009, "Visualizing higher-layer features of a deep network"; Olah, Mordvintsev & Schubert 2017,
"Feature visualization".
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy import ndimage
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.vis import targets
from recvis_jax.vis.layers import Apply
from recvis_jax.vis.rectifiers import with_rule
from recvis_jax.vis.targets import Target

# Square root of the covariance of colours in photographs; its columns are decorrelated.
_COLOURS = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
_COLOURS = _COLOURS / np.linalg.norm(_COLOURS, axis=0).max()
_TOGETHER = 32  # steps between two calls of `say`


def maximise(
    apply: Apply,
    variables: Any,
    target: Target,
    image_shape: tuple[int, int, int],
    *,
    key: Array | None = None,
    count: int = 1,
    steps: int = 512,
    rate: float = 0.05,
    moved: float = 1.0,
    say: Callable[[int], None] = lambda done: None,
) -> Float[Array, "b h w c"]:
    """Returns images in [0, 1] for which a target's score is high.

    Args:
      apply: the network, for images in [0, 1], such as a run's `forward`.
      variables: its variables.
      target: a class, or a part of a layer, see `vis.targets`; one for each image, or the same for all.
      image_shape: (h, w, c) of the network.
      key: for the initial noise and the moves; `jax.random.key(0)` by default.
      count: b, number of images, from different noise.
      steps: of Adam.
      rate: its learning rate.
      moved: strength of the moves before each step. 1 is that of lucid for images of 128 pixels, in proportion to the
        image: shifts of up to 12 pixels, rotations of up to 10 degrees, scales of up to a tenth. 0 means no moves.
      say: called with the number of steps done.

    Raises:
      BadRequest: no target, or one that the network does not have.

    Example:
      >>> found = maximise(apply, variables, 3, (28, 28, 1), steps=4)
      >>> found.shape, bool((found >= 0).all() and (found <= 1).all())
      ((1, 28, 28, 1), True)
    """
    if target is None:
        raise BadRequest("there is no image with a predicted class here: name a class, or a unit.")
    if steps < 1 or count < 1:
        raise BadRequest(f"steps={steps} and count={count} must be at least 1.")
    of_noise, of_moves = jax.random.split(jax.random.key(0) if key is None else key)
    h, w, c = image_shape
    grey = jnp.full((count, *image_shape), 0.5)
    target = targets.fixed(apply, variables, grey, target)
    spectrum = 0.01 * jax.random.normal(of_noise, (count, h, w // 2 + 1, c, 2))
    state = optax.adam(rate).init(spectrum)
    for done in range(0, steps, _TOGETHER):
        now = jnp.arange(done, min(done + _TOGETHER, steps))
        strengths = jnp.float32(rate), jnp.float32(moved)
        spectrum, state = _ascend(apply, w, variables, spectrum, state, target, of_moves, now, *strengths)
        say(min(done + _TOGETHER, steps))
    return picture(spectrum, w)


def picture(spectrum: Float[Array, "b h f c 2"], width: int) -> Float[Array, "b h w c"]:
    """Returns images in [0, 1] from their Fourier transforms, scaled so that all frequencies have natural strength.

    Args:
      spectrum: real and imaginary parts of frequencies of rows h and columns f.
      width: w, columns of the images.
    """
    h, c = spectrum.shape[1], spectrum.shape[3]
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(width)[None])
    scale = np.sqrt(h * width) / np.maximum(frequency, 1 / max(h, width))
    scaled = spectrum * jnp.asarray(scale[..., None, None], jnp.float32)
    x = jnp.fft.irfft2(jax.lax.complex(scaled[..., 0], scaled[..., 1]), s=(h, width), axes=(1, 2)) / 4
    return jax.nn.sigmoid(x @ jnp.asarray(_COLOURS.T, x.dtype) if c == 3 else x)


def shaken(key: Array, images: Float[Array, "b h w c"], strength: Float[Array, ""] | float) -> Float[Array, "b h w c"]:
    """Shifts, rotates and scales all images in the same random way; outside the image is grey.

    Args:
      key: for the move.
      images: (b h w c).
      strength: 1 for shifts of up to 12 of 128 pixels, rotations of up to 10 degrees and scales of 0.9 to 1.1.
    """
    h, w = images.shape[1:3]
    drawn = jax.random.uniform(key, (4,), minval=-1, maxval=1) * strength
    angle, size = drawn[0] * jnp.pi / 18, 1 + drawn[1] / 10
    shift = drawn[2:] * min(h, w) * 12 / 128
    rows, columns = jnp.meshgrid(jnp.arange(h) - (h - 1) / 2, jnp.arange(w) - (w - 1) / 2, indexing="ij")
    cos, sin = jnp.cos(angle) * size, jnp.sin(angle) * size
    at = [
        cos * rows - sin * columns + shift[0] + (h - 1) / 2,
        sin * rows + cos * columns + shift[1] + (w - 1) / 2,
    ]
    one = partial(ndimage.map_coordinates, coordinates=at, order=1, mode="constant", cval=0.5)
    return jax.vmap(jax.vmap(one, -1, -1))(images)


@partial(jax.jit, static_argnums=(0, 1))
def _ascend(
    apply: Apply,
    width: int,
    variables: Any,
    spectrum: Array,
    state: Any,
    target: Any,
    key: Array,
    steps: Array,
    rate: Array,
    moved: Array,
) -> tuple[Array, Any]:
    optimizer = optax.adam(rate)

    def step(kept: tuple[Array, Any], i: Array) -> tuple[tuple[Array, Any], None]:
        spectrum, state = kept

        def loss(spectrum: Array) -> Array:
            seen = shaken(jax.random.fold_in(key, i), picture(spectrum, width), moved)
            return -targets.scores(apply, variables, seen, target).sum()

        gradient = jax.grad(with_rule(loss, "redirected"))(spectrum)  # a unit may be silent on noise
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(spectrum, updates), state), None

    return jax.lax.scan(step, (spectrum, state), steps)[0]
