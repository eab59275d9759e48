"""RandAugment on the host, and its pixel operations on uint8, with Pillow's definitions.

Operations take and return images uint8 (h w c) with one or three channels. Point operations go through tables of 256
entries, so they cost little more than a copy.

Reference: Cubuk et al. 2020, "RandAugment: practical automated data augmentation with a reduced search space".
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "h w c"]
LEVELS = 30  # magnitudes go from 0 to 30, as in torchvision
RAMP = np.arange(256, dtype=np.float32)


def randaugment(
    rng: np.random.Generator, image: Image, n: int = 2, m: float = 9.0, mstd: float = 0.0, fill: int = 0
) -> Image:
    """Applies `n` of the paper's 14 operations, drawn with replacement, at magnitude `m`.

    Args:
      rng: random generator; advanced.
      image: uint8 with 1 or 3 channels.
      n: number of operations.
      m: magnitude from 0 to 30; magnitudes of operations are torchvision's. Signs are random.
      mstd: standard deviation of the magnitude, drawn for each operation and clipped to [0, 30].
      fill: grey level outside the image.

    Returns:
      The image, of the same shape.
    """
    names = tuple(OPERATIONS)
    for name in (names[i] for i in rng.integers(len(names), size=n)):
        level = min(max(m + mstd * rng.standard_normal(), 0.0), LEVELS) if mstd else m
        sign = -1.0 if rng.random() < 0.5 else 1.0
        image = OPERATIONS[name](image, level / LEVELS, sign, fill)
    return image


def brightness(image: Image, factor: float) -> Image:
    """Scales by `factor`: 0 gives black, 1 the image."""
    return _point(image, RAMP * np.float32(factor))


def contrast(image: Image, factor: float) -> Image:
    """Scales the difference from the mean grey by `factor`."""
    mean = np.float32(int(grey(image).mean() + 0.5))
    return _point(image, mean + np.float32(factor) * (RAMP - mean))


def color(image: Image, factor: float) -> Image:
    """Scales the difference from the grey image by `factor` (saturation); one channel is not changed."""
    return image if image.shape[2] == 1 else _blend(image, cv2.cvtColor(grey(image), cv2.COLOR_GRAY2RGB), factor)


def sharpness(image: Image, factor: float) -> Image:
    """Scales the difference from the smoothed image by `factor`; border rows and columns are not changed."""
    if min(image.shape[:2]) < 3:
        return image
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    smooth = image.copy()
    smooth[1:-1, 1:-1] = keep_channels(cv2.filter2D, image, -1, kernel / 13)[1:-1, 1:-1]
    return _blend(image, smooth, factor)


def hue(image: Image, turns: float) -> Image:
    """Turns the hue by `turns` of the circle; one channel is not changed."""
    if image.shape[2] == 1:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turns * 256) % 256)  # wraps
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def posterize(image: Image, bits: int) -> Image:
    """Keeps the `bits` high bits of every value."""
    return image & np.uint8(256 - (1 << (8 - bits)))


def solarize(image: Image, threshold: float) -> Image:
    """Inverts values of at least `threshold`."""
    return _point(image, np.where(RAMP < threshold, RAMP, 255 - RAMP))


def autocontrast(image: Image) -> Image:
    """Stretches each channel to the whole range."""
    tables = []
    for histogram in _histograms(image):
        used = np.flatnonzero(histogram)
        low, high = int(used[0]), int(used[-1])
        scale = 255.0 / (high - low) if high > low else 1.0
        tables.append((np.arange(256) - low) * scale if high > low else RAMP)
    return _point(image, np.stack(tables, axis=1))


def equalize(image: Image) -> Image:
    """Makes the histogram of each channel as flat as a table of values can."""
    tables = []
    for histogram in _histograms(image):
        used = np.flatnonzero(histogram)
        step = (int(histogram.sum()) - int(histogram[used[-1]])) // 255
        before = np.concatenate([[0], np.cumsum(histogram)[:-1]])
        tables.append((step // 2 + before) // step if step else np.arange(256))
    return _point(image, np.stack(tables, axis=1))


def affine(image: Image, matrix: tuple[float, float, float, float, float, float], fill: int = 0) -> Image:
    """Reads out(x, y) from in(a x + b y + c, d x + e y + f), nearest pixel; matrix is (a, b, c, d, e, f).

    Coordinates are continuous: the centre of the first pixel is (0.5, 0.5).
    """
    a, b, c, d, e, f = matrix
    # In OpenCV's coordinates the centre of the first pixel is (0, 0).
    centred = np.array([[a, b, (a + b - 1) / 2 + c], [d, e, (d + e - 1) / 2 + f]])
    size = (image.shape[1], image.shape[0])
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (fill,) * 4}
    return keep_channels(cv2.warpAffine, image, centred, size, flags=flags, **border)


def rotate(image: Image, degrees: float, fill: int = 0) -> Image:
    """Rotates counter-clockwise about the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = image.shape[1] / 2, image.shape[0] / 2
    return affine(image, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), fill)


def grey(image: Image) -> UInt8[np.ndarray, "h w 1"]:
    """Luma (ITU-R 601) of an RGB image; one channel is not changed."""
    return image if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]


def keep_channels(fn: Callable[..., np.ndarray], image: np.ndarray, *args, **kwargs) -> np.ndarray:
    """Calls an OpenCV function, which drops the axis of a single channel, and puts the axis back."""
    out = fn(image, *args, **kwargs)
    return out[:, :, None] if out.ndim == 2 else out


# name -> f(image, level in [0, 1], sign, fill): torchvision's ranges.
OPERATIONS: dict[str, Callable[[np.ndarray, float, float, int], np.ndarray]] = {
    "identity": lambda image, level, sign, fill: image,
    "shear_x": lambda image, level, sign, fill: affine(image, (1, sign * 0.3 * level, 0, 0, 1, 0), fill),
    "shear_y": lambda image, level, sign, fill: affine(image, (1, 0, 0, sign * 0.3 * level, 1, 0), fill),
    "translate_x": lambda image, level, sign, fill: affine(
        image, (1, 0, sign * int(150 / 331 * image.shape[1] * level), 0, 1, 0), fill
    ),
    "translate_y": lambda image, level, sign, fill: affine(
        image, (1, 0, 0, 0, 1, sign * int(150 / 331 * image.shape[0] * level)), fill
    ),
    "rotate": lambda image, level, sign, fill: rotate(image, sign * 30 * level, fill),
    "brightness": lambda image, level, sign, fill: brightness(image, 1 + sign * 0.9 * level),
    "color": lambda image, level, sign, fill: color(image, 1 + sign * 0.9 * level),
    "contrast": lambda image, level, sign, fill: contrast(image, 1 + sign * 0.9 * level),
    "sharpness": lambda image, level, sign, fill: sharpness(image, 1 + sign * 0.9 * level),
    "posterize": lambda image, level, sign, fill: posterize(image, 8 - round(4 * level)),
    "solarize": lambda image, level, sign, fill: solarize(image, 255 * (1 - level)),
    "autocontrast": lambda image, level, sign, fill: autocontrast(image),
    "equalize": lambda image, level, sign, fill: equalize(image),
}


def _point(image: Image, table: np.ndarray) -> Image:
    """Looks values up in a table (256) or (256 c), which is clipped to [0, 255] and truncated as in Pillow."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    if table.ndim == 2:
        table = table[:, 0] if table.shape[1] == 1 else table[:, None]
    return keep_channels(cv2.LUT, image, table)


def _blend(image: Image, other: Image, factor: float) -> Image:
    """Returns other + factor (image - other), rounded and clipped to [0, 255]."""
    return keep_channels(cv2.addWeighted, image, factor, other, 1 - factor, 0)


def _histograms(image: Image) -> list[np.ndarray]:
    return [np.bincount(image[:, :, i].ravel(), minlength=256) for i in range(image.shape[2])]
