"""Arrays as pictures: these functions map numbers to images in [0, 1]; `plot` writes them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Anchors of a colour scale of steadily increasing brightness: black, blue, violet, orange, yellow, white.
_SCALE = np.array([[0, 0, 0], [0.1, 0.1, 0.55], [0.55, 0.1, 0.6], [0.95, 0.4, 0.2], [1, 0.85, 0.25], [1, 1, 1]])


def magnitudes(maps: np.ndarray, most: float = 99.0) -> Float[np.ndarray, "b h w"]:
    """Returns the magnitude of each map in [0, 1], the largest over channels; 1 is a percentile of the map itself.

    Args:
      maps: (b h w) or (b h w c), of any sign.
      most: percentile that becomes 1; larger values are clipped. A map of zeros stays black.

    Example:
      >>> magnitudes(np.array([[[0.0, -2.0]]]), 100)
      array([[[0., 1.]]])
    """
    x = np.abs(np.asarray(maps, np.float64))
    x = x.max(-1) if x.ndim == 4 else x
    top = np.percentile(x.reshape(len(x), -1), most, axis=1).reshape(-1, 1, 1)
    top = np.where(top > 0, top, x.max((1, 2), keepdims=True))
    return np.clip(np.divide(x, top, out=np.zeros_like(x), where=top > 0), 0, 1)


def around_grey(maps: np.ndarray, most: float = 99.5) -> Float[np.ndarray, "b h w c"]:
    """Returns images in which zero is grey, and the largest magnitude of each (a percentile) white or black.

    Example:
      >>> around_grey(np.array([[[[0.0], [-2.0], [2.0]]]]), 100)[0, 0, :, 0]
      array([0.5, 0. , 1. ])
    """
    x = np.asarray(maps, np.float64)
    top = np.percentile(np.abs(x).reshape(len(x), -1), most, axis=1).reshape(-1, 1, 1, 1)
    return np.clip(0.5 + 0.5 * np.divide(x, top, out=np.zeros_like(x), where=top > 0), 0, 1)


def coloured(x: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b 3"]:
    """Returns numbers in [0, 1] as colours; larger numbers have brighter colours.

    Example:
      >>> coloured(np.array([0.0, 1.0]))
      array([[0., 0., 0.],
             [1., 1., 1.]])
    """
    at = np.linspace(0, 1, len(_SCALE))
    return np.stack([np.interp(x, at, channel) for channel in _SCALE.T], axis=-1)


def over(images: np.ndarray, maps: np.ndarray, strength: float = 0.6) -> Float[np.ndarray, "b h w 3"]:
    """Returns the images in grey with maps in colour over them.

    Args:
      images: (b h w c) in [0, 1], of 1 or 3 channels.
      maps: (b h w), only positive values count; each map's largest value is brightest.
      strength: share of the colour; the rest is the image.
    """
    grey = np.asarray(images, np.float64).mean(-1, keepdims=True).repeat(3, -1)
    top = np.asarray(maps).max((1, 2), keepdims=True)
    share = np.divide(np.maximum(maps, 0), top, out=np.zeros(np.shape(maps)), where=top > 0)
    return np.clip((1 - strength) * grey + strength * coloured(share), 0, 1)


def stretched(tiles: np.ndarray) -> Float[np.ndarray, "n h w c"]:
    """Returns tiles (n h w) or (n h w c), each stretched to [0, 1]; a tile without contrast becomes grey."""
    x = np.asarray(tiles, np.float64)
    x = x[..., None] if x.ndim == 3 else x
    low, high = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
    return np.divide(x - low, high - low, out=np.full_like(x, 0.5), where=high > low)


def mosaic(tiles: np.ndarray, columns: int | None = None, gap: int = 1, zoom: int = 1) -> Float[np.ndarray, "h w c"]:
    """Returns tiles side by side on white, row by row.

    Args:
      tiles: (n h w c) in [0, 1].
      columns: number of tiles per row; by default the result is approximately a square.
      gap: white pixels between two tiles.
      zoom: enlargement of the tiles, a whole number.

    Example:
      >>> mosaic(np.zeros((3, 2, 2, 1)), columns=2, zoom=2).shape
      (9, 9, 1)
    """
    x = np.asarray(tiles, np.float64).repeat(zoom, 1).repeat(zoom, 2)
    n, h, w, c = x.shape
    columns = columns or int(np.ceil(np.sqrt(n * h / w)))
    rows = -(-n // columns)
    out = np.ones((rows * (h + gap) - gap, columns * (w + gap) - gap, c))
    for i, tile in enumerate(x):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        out[top : top + h, left : left + w] = tile
    return out


def zoom_for(side: int, wanted: int = 64) -> int:
    """Returns the factor, at least 1, that enlarges a tile of `side` pixels to about `wanted`."""
    return max(1, round(wanted / side))


def groups(crops: np.ndarray, units: Sequence[int], zoom: int = 1) -> Float[np.ndarray, "h w c"]:
    """Returns the best patches of units on white, a square of patches for each unit.

    Args:
      crops: (d k h w c) in [0, 1].
      units: which of the d.
      zoom: see `mosaic`.
    """
    squares = [mosaic(crops[u], columns=int(np.ceil(np.sqrt(crops.shape[1]))), zoom=zoom) for u in units]
    return mosaic(np.stack(squares), gap=4 * max(1, zoom // 2))
