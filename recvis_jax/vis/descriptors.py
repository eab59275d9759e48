"""SIFT descriptors as lines over their image: a grid of bins, and in each a star of gradients by direction."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from recvis_jax.errors import BadRequest


class Glyphs(NamedTuple):
    """Line segments in pixels, each from (x, y) to (x, y).

    Attributes:
      grids: borders of the bins.
      arms: of the stars, from the centre of a bin in the direction of the gradients.
    """

    grids: Float[np.ndarray, "m 2 2"]
    arms: Float[np.ndarray, "k 2 2"]


def glyphs(
    descriptors: Float[np.ndarray, "n 128"],
    positions: Float[np.ndarray, "n 2"],
    scales: Float[np.ndarray, " n"],
    angles: Float[np.ndarray, " n"] | None = None,
) -> Glyphs:
    """Returns the 4 x 4 bins of SIFT descriptors, and arms whose lengths are the bin's eight numbers.

    The arm of a descriptor's largest number reaches from the centre of its bin to the border. Descriptors of zeros have
    a grid but no arms.

    Args:
      descriptors: of SIFT, not negative.
      positions: their centres, x and y in pixels (`classical.local.pixels`).
      scales: sides of a bin in pixels.
      angles: of the descriptors, in radians clockwise; by default they are upright.

    Raises:
      BadRequest: numbers that do not fit.

    Example:
      >>> one = np.zeros((1, 128), np.float32)
      >>> one[0, 0] = 0.5  # the first bin, to the right
      >>> found = glyphs(one, np.array([[10.0, 10.0]]), np.array([4.0]))
      >>> found.grids.shape, found.arms.round(3).tolist()
      ((10, 2, 2), [[[4.0, 4.0], [6.0, 4.0]]])
    """
    if len({len(descriptors), len(positions), len(scales)}) > 1:
        raise BadRequest(f"there are {len(descriptors)} descriptors, {len(positions)} positions, {len(scales)} scales.")
    angles = np.zeros(len(scales)) if angles is None else angles
    cosine, sine = np.cos(angles), np.sin(angles)
    turn = np.stack([cosine, -sine, sine, cosine], axis=-1).reshape(-1, 1, 1, 2, 2)

    def place(lines: np.ndarray) -> np.ndarray:
        """Maps segments (n m 2 2), in units of bins from the centre, to the image."""
        turned = np.einsum("nmpij,nmpj->nmpi", np.broadcast_to(turn, (*lines.shape[:3], 2, 2)), lines)
        return turned * scales[:, None, None, None] + positions[:, None, None, :]

    ends = np.arange(-2.0, 3.0)
    upright = np.stack([np.stack([ends, 0 * ends - 2], -1), np.stack([ends, 0 * ends + 2], -1)], axis=1)
    frame = np.concatenate([upright, upright[..., ::-1]])
    grids = place(np.broadcast_to(frame, (len(scales), *frame.shape)))

    numbers = descriptors.reshape(-1, 16, 8)
    most = numbers.max(axis=(1, 2), keepdims=True, initial=0)
    reach = 0.5 * numbers / np.where(most > 0, most, 1)
    y, x = np.divmod(np.arange(16), 4) - np.array([[1.5], [1.5]])
    centers = np.broadcast_to(np.stack([x, y], -1)[:, None], (len(numbers), 16, 8, 2))
    towards = np.arange(8) * (math.pi / 4)
    tips = centers + reach[..., None] * np.stack([np.cos(towards), np.sin(towards)], -1)
    arms = place(np.stack([centers, tips], axis=-2).reshape(len(numbers), 128, 2, 2))
    return Glyphs(grids.reshape(-1, 2, 2), arms[reach.reshape(-1, 128) > 0.02])
