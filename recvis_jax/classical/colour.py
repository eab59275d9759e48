"""Colour spaces in which local descriptors are computed, channel by channel."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest

Image = Float[Array, "*b h w c"]


def gray(rgb: Image) -> Float[Array, "*b h w 1"]:
    """Returns the intensity 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601); one channel is not changed.

    Example:
      >>> float(gray(jnp.array([[[0.0, 1.0, 0.0]]]))[0, 0, 0].round(3))
      0.5870000123977661
    """
    if rgb.shape[-1] == 1:
        return rgb
    return jnp.sum(rgb * jnp.array([0.299, 0.587, 0.114]), axis=-1, keepdims=True)


def rgb(rgb: Image) -> Float[Array, "*b h w 3"]:
    """Returns three channels; a grey image is repeated three times."""
    return jnp.broadcast_to(rgb, (*rgb.shape[:-1], 3))


def opponent(rgb: Image) -> Float[Array, "*b h w 3"]:
    """Returns intensity, red against green, and yellow against blue.

    As in VLFeat's `vl_phow`, the first is the intensity 0.3 R + 0.59 G + 0.11 B instead of the mean, and a hundredth of
    it is added to the others, so that their descriptors are not noise in places without colour.

    Reference:
      van de Sande et al. 2010, "Evaluating color descriptors for object and scene recognition", section 3.1.
    """
    r, g, b = (rgb[..., i] for i in range(3))
    intensity = 0.3 * r + 0.59 * g + 0.11 * b
    pairs = ((r - g) / 2**0.5, (r + g - 2 * b) / 6**0.5)
    return jnp.stack([intensity, *(pair + 0.01 * intensity for pair in pairs)], axis=-1)


def hsv(rgb: Image) -> Float[Array, "*b h w 3"]:
    """Returns hue, saturation and value, all in [0, 1]; the hue of grey is 0.

    Example:
      >>> hsv(jnp.array([[[0.0, 1.0, 0.0], [0.5, 0.5, 0.5]]]))[0].round(3).tolist()
      [[0.3330000042915344, 1.0, 1.0], [0.0, 0.0, 0.5]]
    """
    r, g, b = (rgb[..., i] for i in range(3))
    value = jnp.max(rgb, axis=-1)
    spread = value - jnp.min(rgb, axis=-1)
    by = jnp.where(spread > 0, spread, 1)
    hue = jnp.select([value == r, value == g], [(g - b) / by, (b - r) / by + 2], (r - g) / by + 4) / 6 % 1
    saturation = spread / jnp.where(value > 0, value, 1)
    return jnp.stack([jnp.where(spread > 0, hue, 0), saturation, value], axis=-1)


SPACES: dict[str, Callable[[Image], Image]] = {"gray": gray, "rgb": rgb, "opponent": opponent, "hsv": hsv}


def convert(images: Float[Array, "b h w c"], space: str) -> Float[Array, "b h w k"]:
    """Converts RGB or grey images in [0, 1] to a colour space in `SPACES`.

    Raises:
      BadRequest: an unknown space, or images with neither 1 nor 3 channels.
    """
    if space not in SPACES:
        raise BadRequest(f"unknown colour space {space!r}. There are: {', '.join(SPACES)}.")
    if images.shape[-1] not in (1, 3):
        raise BadRequest(f"images have {images.shape[-1]} channels; descriptors take grey images (1) or RGB (3).")
    return SPACES[space](images if space == "gray" else rgb(images))
