"""Transforms on the host, one example at a time, for streams of images of many sizes: decode, transform, batch.

A pipeline is a string such as `'random_resized_crop(224)|randaugment(2, 9)|flip'`. The functions below are its
operations: each checks its arguments and returns f(rng, image) -> image with images uint8 (h w c). Only the image is
transformed; boxes or masks of an example are not. Random numbers come from `rng` alone.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.Image
from jaxtyping import UInt8

from recvis_jax.data import randaugment as pixels
from recvis_jax.data import spec as specs
from recvis_jax.errors import BadRequest
from recvis_jax.reading import LIMITS

# Parallelism is over examples; threads of OpenCV's own would fight the workers'. Set on import, so in every worker.
cv2.setNumThreads(0)

Image = UInt8[np.ndarray, "_ _ _"]
Operation = Callable[[np.random.Generator, Any], Any]
Example = dict[str, Any]

_PILLOW = {
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}
METHODS = ("area", *_PILLOW)


class Transform(NamedTuple):
    """A host pipeline.

    Attributes:
      fn: f(rng, example) -> example with a new `image`; can be pickled. Raises BadRequest where an image does not fit.
      random: whether `fn` uses its generator.
      spec: the text it was made from.
    """

    fn: Callable[[np.random.Generator, Example], Example]
    random: bool
    spec: str


def parse(spec: str | None) -> Transform:
    """Builds a host pipeline.

    Args:
      spec: operations joined by `|`, see `OPERATIONS`; None or an empty string means no operation.

    Raises:
      BadRequest: an unknown operation or argument, or a value out of range.
    """
    steps = specs.parse(spec, OPERATIONS, "host operation", _DEVICE_ONLY)
    fn = functools.partial(_run, tuple((step.name, step.built) for step in steps))
    return Transform(fn, any(step.name in RANDOM for step in steps), (spec or "").strip())


def resize(size: int | tuple, method: str = "area") -> Operation:
    """Resizes the shorter side to `size`, keeping the aspect ratio (the longer side is rounded down), or exactly.

    Args:
      size: pixels of the shorter side, or (height, width).
      method: 'area' averages where the image shrinks and is bicubic where it grows (OpenCV, fastest); 'bilinear',
        'bicubic' and 'lanczos' are Pillow's, antialiased, as torchvision's and timm's published models expect.
    """
    specs.size(size)
    return functools.partial(_resize, size=size, method=specs.option(method, "method", METHODS))


def central_crop(size: int | tuple) -> Operation:
    """Cuts the centre, `size` square or (height, width)."""
    return functools.partial(_central_crop, size=specs.size(size))


def resize_crop(size: int | tuple, resize: int = 256, method: str = "area") -> Operation:
    """Resizes the shorter side to `resize` and cuts the centre of `size`: the usual evaluation transform.

    Args:
      size: of the crop, square or (height, width).
      resize: pixels of the shorter side before the crop, at least the larger side of the crop.
      method: as in `resize`.
    """
    height, width = specs.size(size)
    if specs.whole(resize, "resize", 1, specs.MOST_PIXELS) < max(height, width):
        raise BadRequest(f"resize is {resize}, smaller than the crop of {height}x{width}.")
    return functools.partial(
        _resize_crop, size=(height, width), shorter=resize, method=specs.option(method, "method", METHODS)
    )


def random_resized_crop(
    size: int | tuple, scale: tuple = (0.08, 1.0), ratio: tuple = (3 / 4, 4 / 3), method: str = "area"
) -> Operation:
    """Cuts a box of random area and aspect ratio and resizes it to `size`.

    Ten tries, then the largest central box of an allowed ratio, as torchvision does. Cut before resizing.

    Args:
      size: of the result, square or (height, width).
      scale: range of the box's area as a fraction of the image, uniform.
      ratio: range of width / height of the box, uniform in its logarithm.
      method: as in `resize`.

    Reference: Szegedy et al. 2015, "Going deeper with convolutions", section 6.
    """
    return functools.partial(
        _random_resized_crop,
        size=specs.size(size),
        scale=specs.interval(scale, "scale", 1),
        ratio=specs.interval(ratio, "ratio", specs.MOST_RATIO, 1 / specs.MOST_RATIO),
        method=specs.option(method, "method", METHODS),
    )


def random_crop(size: int | tuple, pad: int = 0) -> Operation:
    """Pads every side with `pad` zeros and cuts `size`, square or (height, width), at a random place."""
    return functools.partial(_random_crop, size=specs.size(size), pad=specs.whole(pad, "pad", 0, specs.MOST_PIXELS))


def flip(p: float = 0.5) -> Operation:
    """Mirrors left and right with probability `p`."""
    return functools.partial(_flip, p=specs.number(p, "p", 0, 1))


def color_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Operation:
    """Changes brightness, contrast, saturation and hue in random order by random amounts.

    The first three scale by a factor uniform in [max(0, 1 - x), 1 + x]; hue turns by up to `hue`, at most 0.5, of the
    circle either way. One-channel images have neither saturation nor hue.
    """
    return functools.partial(
        _color_jitter,
        brightness=specs.number(brightness, "brightness", 0, specs.MOST_JITTER),
        contrast=specs.number(contrast, "contrast", 0, specs.MOST_JITTER),
        saturation=specs.number(saturation, "saturation", 0, specs.MOST_JITTER),
        hue=specs.number(hue, "hue", 0, 0.5),
    )


def randaugment(n: int = 2, m: float = 9.0, mstd: float = 0.0, fill: int = 0) -> Operation:
    """Applies `n` of RandAugment's 14 operations at magnitude `m` of 30; see `data/randaugment.py`.

    Args:
      n: number of operations.
      m: magnitude from 0 to 30.
      mstd: standard deviation of the magnitude.
      fill: grey level, 0 to 255, that comes in from outside the image.
    """
    return functools.partial(
        _randaugment,
        n=specs.whole(n, "n", 0, 100),
        m=specs.number(m, "m", 0, pixels.LEVELS),
        mstd=specs.number(mstd, "mstd", 0, 100),
        fill=specs.whole(fill, "fill", 0, 255),
    )


def grayscale() -> Operation:
    """Makes three channels one, by luma (ITU-R 601)."""
    return _grayscale


def to_rgb() -> Operation:
    """Repeats one channel three times; three channels stay as they are."""
    return _to_rgb


OPERATIONS: dict[str, Callable[..., Operation]] = {
    "resize": resize,
    "central_crop": central_crop,
    "resize_crop": resize_crop,
    "random_resized_crop": random_resized_crop,
    "random_crop": random_crop,
    "flip": flip,
    "color_jitter": color_jitter,
    "randaugment": randaugment,
    "grayscale": grayscale,
    "to_rgb": to_rgb,
}
RANDOM = frozenset({"random_resized_crop", "random_crop", "flip", "color_jitter", "randaugment"})
_COLOUR = frozenset({"color_jitter", "randaugment", "grayscale", "to_rgb"})  # take 1 or 3 channels
_DEVICE_ONLY = dict.fromkeys(
    ("pad_crop", "rotate", "erase", "cutout", "mixup", "cutmix", "mixup_cutmix"),
    "it works on whole batches on the device; put it into the device pipeline (data/augment).",
)


def _run(steps: tuple[tuple[str, Operation], ...], rng: np.random.Generator, example: Example) -> Example:
    image = example["image"]
    for name, operation in steps:
        _check(image, name)
        image = operation(rng, image)
    return {**example, "image": image}


def _check(image: Any, name: str) -> None:
    shape, dtype = np.shape(image), getattr(image, "dtype", type(image).__name__)
    if not isinstance(image, np.ndarray) or dtype != np.uint8 or len(shape) != 3 or 0 in shape:
        raise BadRequest(f"{name} takes images uint8 (height, width, channels), not {dtype} of shape {shape}.")
    if name in _COLOUR and shape[2] not in (1, 3):
        raise BadRequest(f"{name} takes images of 1 or 3 channels, not of shape {shape}.")


def _resize(rng: np.random.Generator | None, image: Image, size: int | tuple[int, int], method: str) -> Image:
    h, w = image.shape[:2]
    if isinstance(size, int):
        size = (size, size * w // h) if h <= w else (size * h // w, size)
        if size[0] * size[1] > LIMITS["image pixels"]:
            raise BadRequest(f"resize of an image of shape {image.shape} gives {size[0]}x{size[1]}, too many pixels.")
    return _resample(image, size, method)


def _central_crop(rng: np.random.Generator | None, image: Image, size: tuple[int, int]) -> Image:
    _check_room(image, size, "central_crop")
    top, left = (round((n - s) / 2) for n, s in zip(image.shape, size, strict=False))
    return _cut(image, top, left, *size)


def _resize_crop(rng: np.random.Generator, image: Image, size: tuple[int, int], shorter: int, method: str) -> Image:
    return _central_crop(None, _resize(None, image, shorter, method), size)


def _random_resized_crop(
    rng: np.random.Generator,
    image: Image,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    method: str,
) -> Image:
    top, left, height, width = resized_crop_box(rng, image.shape[0], image.shape[1], scale, ratio)
    return _resample(image[top : top + height, left : left + width], size, method)


def resized_crop_box(
    rng: np.random.Generator, h: int, w: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draws the box of `random_resized_crop` in an image of h x w: (top, left, height, width) in pixels."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area, aspect = h * w * rng.uniform(*scale), math.exp(rng.uniform(low, high))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= w and 0 < height <= h:
            return int(rng.integers(h - height + 1)), int(rng.integers(w - width + 1)), height, width
    aspect = min(max(w / h, ratio[0]), ratio[1])
    height, width = max(1, min(h, round(w / aspect))), max(1, min(w, round(h * aspect)))
    return (h - height) // 2, (w - width) // 2, height, width


def _random_crop(rng: np.random.Generator, image: Image, size: tuple[int, int], pad: int) -> Image:
    if pad >= min(image.shape[:2]):
        raise BadRequest(f"random_crop: padding by {pad} pixels is as much as the image of shape {image.shape} itself.")
    if pad:
        image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    _check_room(image, size, "random_crop", f" (padded by {pad})" if pad else "")
    top, left = (int(rng.integers(n - s + 1)) for n, s in zip(image.shape, size, strict=False))
    return _cut(image, top, left, *size)


def _flip(rng: np.random.Generator, image: Image, p: float) -> Image:
    return pixels.keep_channels(cv2.flip, image, 1) if rng.random() < p else image


def _color_jitter(
    rng: np.random.Generator, image: Image, brightness: float, contrast: float, saturation: float, hue: float
) -> Image:
    changes = ((pixels.brightness, brightness), (pixels.contrast, contrast), (pixels.color, saturation))
    for i in rng.permutation(4):
        if i == 3:
            image = pixels.hue(image, rng.uniform(-hue, hue)) if hue else image
        elif changes[i][1]:
            change, amount = changes[i]
            image = change(image, rng.uniform(max(0.0, 1 - amount), 1 + amount))
    return image


def _randaugment(rng: np.random.Generator, image: Image, n: int, m: float, mstd: float, fill: int) -> Image:
    return pixels.randaugment(rng, image, n, m, mstd, fill)


def _grayscale(rng: np.random.Generator, image: Image) -> Image:
    return pixels.grey(image)


def _to_rgb(rng: np.random.Generator, image: Image) -> Image:
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def _check_room(image: Image, size: tuple[int, int], name: str, note: str = "") -> None:
    if image.shape[0] < size[0] or image.shape[1] < size[1]:
        raise BadRequest(f"{name} of {size[0]}x{size[1]} does not fit an image of shape {image.shape}{note}.")


def _cut(image: Image, top: int, left: int, height: int, width: int) -> Image:
    """Copies the box, so that a small crop in a buffer does not keep its large image alive."""
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _resample(image: Image, size: tuple[int, int], method: str) -> Image:
    """Resizes to `size` (height, width)."""
    (h, w, channels), (height, width) = image.shape, size
    if (h, w) == size:
        return np.ascontiguousarray(image)
    if method != "area":
        if channels not in (1, 3):
            raise BadRequest(f"resizing by {method!r} takes images of 1 or 3 channels, not of shape {image.shape}.")
        source = PIL.Image.fromarray(image[:, :, 0] if channels == 1 else image)
        out = np.array(source.resize((width, height), _PILLOW[method]))
        return out[:, :, None] if channels == 1 else out
    # OpenCV averages only where both sides shrink, so one side at a time where one grows.
    if min(height, h) < h or min(width, w) < w:
        shrunk = (min(width, w), min(height, h))
        image = pixels.keep_channels(cv2.resize, image, shrunk, interpolation=cv2.INTER_AREA)
    if image.shape[:2] != size:
        image = pixels.keep_channels(cv2.resize, image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image
