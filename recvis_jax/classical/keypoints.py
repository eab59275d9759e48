"""SIFT at interest points: OpenCV finds the points; the descriptors are ours, rotated and scaled with each point."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from recvis_jax.classical import sift
from recvis_jax.classical.local import Local
from recvis_jax.classical.sampling import smooth
from recvis_jax.errors import BadRequest

_FIRST = 1.6  # smoothing of the first level of an octave, in its pixels
_LEVELS = 3  # per octave
_CAMERA = 0.5  # smoothing that is already in an image
_BIN = 3.0  # side of a spatial bin, in units of the level's smoothing


class Points(NamedTuple):
    """Interest points of images, padded to the same number.

    Attributes:
      positions: x and y in pixels; (0, 0) is the centre of the first pixel.
      scales: standard deviation of the smoothing at which the point was found, in pixels.
      angles: direction in radians, clockwise on the screen, 0 to the right.
      mask: false on padding.
    """

    positions: Float[np.ndarray, "b n 2"]
    scales: Float[np.ndarray, "b n"]
    angles: Float[np.ndarray, "b n"]
    mask: Bool[np.ndarray, "b n"]


def detect(images: UInt8[np.ndarray, "b h w"], *, most: int = 500, contrast: float = 0.04) -> Points:
    """Finds the extrema of differences of Gaussians in grey images, by OpenCV on the host.

    Args:
      images: grey, from 0 to 255.
      most: maximum number of points per image; those with the highest contrast are kept.
      contrast: smaller differences (for images in [0, 1], over the three levels of an octave) are not points.

    Returns:
      Points padded to `most`, the strongest first; an image may have none.

    Raises:
      BadRequest: `most` below 1.

    Reference:
      Lowe 2004, "Distinctive image features from scale-invariant keypoints", sections 3-5.
    """
    import cv2

    if most < 1:
        raise BadRequest(f"most is {most}; it takes a number of points of at least 1.")
    detector = cv2.SIFT.create(nfeatures=most, contrastThreshold=contrast, enable_precise_upscale=True)
    b = len(images)
    scales, angles = np.zeros((2, b, most), np.float32)
    found = Points(np.zeros((b, most, 2), np.float32), scales, angles, np.zeros((b, most), bool))
    for i, image in enumerate(images):
        points = sorted(detector.detect(np.ascontiguousarray(image)), key=lambda p: -p.response)[:most]
        for j, point in enumerate(points):
            found.positions[i, j] = point.pt
            found.scales[i, j] = point.size / 2
            found.angles[i, j] = math.radians(point.angle)
            found.mask[i, j] = True
    return found


def describe(images: Float[Array, "b h w"], points: Points, *, root: bool = False) -> Local:
    """Computes a SIFT descriptor at each point, on the image smoothed for its scale, relative to the point's direction.

    The first of the four by four bins is at the top left if the image is rotated so that the point's direction is to
    the right; a bin is 3 `scales` wide. Memory is about 25 times the images, plus 25 MB for 32 points at a time.

    Args:
      images: grey, in [0, 1].
      points: of these images, from `detect`, or any others with `scales` of at least about 0.8 pixels.
      root: whether descriptors are RootSIFT.

    Returns:
      `Local` with one descriptor per point; `scales` are the sides of a bin in pixels, `norms` the histogram's mass.

    Raises:
      BadRequest: images smaller than 8 pixels, or a different number of images and points.

    Example:
      >>> at = Points(np.full((1, 2, 2), 20, np.float32), *np.ones((2, 1, 2), np.float32), np.array([[True, False]]))
      >>> found = describe(jnp.linspace(0, 1, 1600).reshape(1, 40, 40), at)
      >>> found.descriptors.shape, found.descriptors.any(axis=-1).tolist()
      ((1, 2, 128), [[True, False]])

    Reference:
      Lowe 2004, "Distinctive image features from scale-invariant keypoints", section 6.
    """
    if min(images.shape[1:]) < 8:
        raise BadRequest(f"images of {images.shape[1]} x {images.shape[2]} pixels are too small for interest points.")
    if len(points.mask) != len(images):
        raise BadRequest(f"there are {len(images)} images, but points of {len(points.mask)}.")
    return _describe(images, Points(*map(jnp.asarray, points)), root)


@partial(jax.jit, static_argnames="root")
def _describe(images: Float[Array, "b h w"], points: Points, root: bool) -> Local:
    h, w = images.shape[1:]
    levels = pyramid(images)
    each = partial(_describe_image, shapes=tuple((level.shape[1], level.shape[2]) for level in levels))
    flat = jnp.concatenate([level.reshape(len(images), -1) for level in levels], axis=1)
    histograms = jax.lax.map(lambda args: each(*args), (flat, points.positions, points.scales, points.angles))
    histograms *= points.mask[..., None]
    descriptors = sift.normalise(histograms)
    return Local(
        sift.rootsift(descriptors) if root else descriptors,
        (points.positions + 0.5) / np.array([w, h], np.float32) * points.mask[..., None],
        _BIN * points.scales,
        points.mask,
        histograms.sum(axis=-1),
    )


def pyramid(images: Float[Array, "b h w"]) -> list[Float[Array, "b y x"]]:
    """Returns images with smoothings of 1.01, 1.27, 1.6, 2.02 ... pixels: three per octave, from twice the size on.

    Level i has smoothing 0.8 * 2 ** ((i + 1) / 3). Pixel p of octave o lies on pixel p * 2 ** (o - 1) of the image.
    """
    h, w = images.shape[1:]
    double = images
    for axis in (1, 2):
        ahead = jnp.concatenate([double, jax.lax.slice_in_dim(double, -1, None, axis=axis)], axis=axis)
        ahead = jax.lax.slice_in_dim(ahead, 1, None, axis=axis)
        shape = list(double.shape)
        shape[axis] *= 2
        double = jnp.stack([double, (double + ahead) / 2], axis=axis + 1).reshape(shape)
    base = smooth(double, math.sqrt(_FIRST**2 - (2 * _CAMERA) ** 2))
    found: list[Array] = []
    for _ in range(max(1, round(math.log2(2 * min(h, w))) - 2)):
        level, sigma = base, _FIRST
        for i in range(1, _LEVELS + 1):
            wanted = _FIRST * 2 ** (i / _LEVELS)
            level = smooth(level, math.sqrt(wanted**2 - sigma**2))
            sigma = wanted
            found.append(level)
        base = level[:, ::2, ::2]
    return found


def _describe_image(
    flat: Float[Array, " p"],
    positions: Float[Array, "n 2"],
    scales: Float[Array, " n"],
    angles: Float[Array, " n"],
    shapes: tuple[tuple[int, int], ...],
) -> Float[Array, "n 128"]:
    """Sums gradients around each point to histograms; `flat` holds all levels of the pyramid one after the other."""
    starts = np.cumsum([0, *(y * x for y, x in shapes[:-1])]).astype(np.int32)
    heights, widths = (np.array(side, np.int32) for side in zip(*shapes, strict=True))
    widest = _BIN * _FIRST * 2 ** (1 + 0.5 / _LEVELS)  # of a bin, in pixels of its octave
    reach = math.ceil(widest * math.sqrt(2) * 2.5)
    down, right = (grid.ravel() for grid in np.mgrid[-reach : reach + 1, -reach : reach + 1])

    def one(point: tuple[Array, Array, Array]) -> Array:
        position, scale, angle = point
        level = jnp.round(_LEVELS * jnp.log2(jnp.maximum(scale, 1e-3) / (_FIRST / 2))).astype(jnp.int32) - 1
        level = jnp.clip(level, 0, len(shapes) - 1)
        zoom = 2.0 ** (level // _LEVELS - 1)
        x, y = position / zoom
        side = _BIN * scale / zoom
        column, row = jnp.round(x).astype(jnp.int32) + right, jnp.round(y).astype(jnp.int32) + down
        height, width = jnp.asarray(heights)[level], jnp.asarray(widths)[level]
        inside = (column > 0) & (column < width - 1) & (row > 0) & (row < height - 1)
        at = jnp.asarray(starts)[level] + jnp.clip(row, 1, height - 2) * width + jnp.clip(column, 1, width - 2)
        gx, gy = flat[at + 1] - flat[at - 1], flat[at + width] - flat[at - width]
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        u = ((column - x) * cosine + (row - y) * sine) / side  # along the point's direction, in bins
        v = ((row - y) * cosine - (column - x) * sine) / side
        strength = jnp.sqrt(gx**2 + gy**2) / 2 * jnp.exp(-(u**2 + v**2) / 8) * inside
        turn = (jnp.arctan2(gy, gx) - angle) * (4 / math.pi) % 8
        bins = np.arange(4)[:, None] - 1.5
        by_row = jnp.maximum(0, 1 - jnp.abs(v - bins)) * strength
        by_column = jnp.maximum(0, 1 - jnp.abs(u - bins))
        away = jnp.abs(turn - np.arange(8)[:, None])
        by_turn = jnp.maximum(0, 1 - jnp.minimum(away, 8 - away))
        cells = (by_row[:, None] * by_column[None]).reshape(16, -1)
        return jnp.matmul(cells, by_turn.T, precision=jax.lax.Precision.HIGHEST).ravel()

    return jax.lax.map(one, (positions, scales, angles), batch_size=min(32, len(positions)))
