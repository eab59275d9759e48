"""Dense SIFT at several scales, for grey or colour images: VLFeat's PHOW features."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.classical import colour, local, sift
from recvis_jax.classical.local import Local
from recvis_jax.classical.sampling import smooth
from recvis_jax.errors import BadRequest

# The channels from which the contrast is computed.
_CONTRAST = {"gray": (0,), "opponent": (0,), "hsv": (2,), "rgb": (0, 1, 2)}


def phow(
    images: Float[Array, "b h w c"],
    *,
    sizes: Sequence[int] = (4, 6, 8, 10),
    step: int = 2,
    space: str = "gray",
    magnification: float = 6.0,
    window: sift.Window = "flat",
    window_size: float = 1.5,
    contrast: float = 0.005,
    root: bool = False,
) -> Local:
    """Computes dense SIFT descriptors at several scales, on images smoothed for each scale.

    Descriptors of all scales begin at the same centre if sizes are all even or all odd. Those of colour images have 128
    numbers per channel, channel after channel; the contrast is that of the intensity.

    Args:
      images: grey or RGB in [0, 1].
      sizes: sides of a spatial bin in pixels, one per scale. A size s needs images of at least 3 s + 1 pixels.
      step: pixels from one descriptor to the next, at every scale.
      space: "gray", "rgb", "opponent" or "hsv"; see `colour`.
      magnification: side of a bin in standard deviations of its scale's smoothing; Lowe's SIFT uses 3.
      window, window_size, root: see `sift.dense`.
      contrast: descriptors with less contrast become zeros.

    Returns:
      `Local` with the scales one after the other, each row by row; `scales` distinguishes them.

    Raises:
      BadRequest: images smaller than a descriptor, no sizes or sizes below 1, an unknown space or window.

    Example:
      >>> found = phow(jnp.zeros((1, 32, 32, 3)), sizes=(4, 6), step=4, space="opponent")
      >>> found.descriptors.shape, sorted(set(found.scales[0].tolist()))
      ((1, 41, 384), [4.0, 6.0])

    Reference:
      Bosch et al. 2007, "Image classification using random forests and ferns", section 2.1; VLFeat, `vl_phow`.
    """
    if not sizes:
        raise BadRequest("sizes is empty; it takes at least one side of a bin in pixels, such as (4, 6, 8, 10).")
    if not magnification > 0:
        raise BadRequest(f"magnification is {magnification}; it takes a number above 0.")
    channels = colour.convert(images, space)
    b, h, w, c = channels.shape
    local.grids(h, w, step, max(sizes))  # refuses wrong sizes before anything is computed
    channels = jnp.moveaxis(channels, -1, 1).reshape(b * c, h, w)
    found = []
    for size in sizes:
        scale = sift.dense(
            smooth(channels, size / magnification),
            step=step,
            bin_size=size,
            window=window,
            window_size=window_size,
            first=(max(sizes) - size) * 3 // 2,
            root=root,
        )
        norms = scale.norms.reshape(b, c, -1)[:, _CONTRAST[space]].mean(axis=1)
        together = jnp.moveaxis(scale.descriptors.reshape(b, c, -1, 128), 1, 2).reshape(b, -1, c * 128)
        together = jnp.where(norms[..., None] < contrast, 0, together)
        found.append(Local(together, scale.positions[::c], scale.scales[::c], scale.mask[::c], norms))
    return local.join(found)
