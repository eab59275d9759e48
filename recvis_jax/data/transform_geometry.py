"""Host operations that move pixels: each draws views of the image, and boxes, masks and points follow them.

The functions below are operations of `transforms`: each checks its arguments and returns a `Moving`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.Image
from jaxtyping import UInt8

from recvis_jax.data import geometry, photometric, specs
from recvis_jax.data.geometry import View
from recvis_jax.errors import BadRequest
from recvis_jax.reading import LIMITS

Image = UInt8[np.ndarray, "_ _ _"]
Draw = Callable[[Any, int, int], tuple[View, ...]]

_PILLOW = {
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}
METHODS = ("area", *_PILLOW)


class Moving(NamedTuple):
    """An operation that moves pixels.

    Attributes:
      draw: (rng, height, width) -> views of an image of that size, one after the other.
      method: how pixels are resampled, one of `METHODS`.
      fill: grey level, 0 to 255, beyond the image.
    """

    draw: Draw
    method: str = "area"
    fill: int = 0

    def show(self, image: Image, view: View) -> Image:
        """Returns an image as a view shows it."""
        x0, y0, x1, y1 = view.window
        h, w = image.shape[:2]
        if min(x0, y0) < 0 or x1 > w or y1 > h:
            edges = (max(0, -y0), max(0, y1 - h)), (max(0, -x0), max(0, x1 - w)), (0, 0)
            image = np.pad(image, edges, constant_values=self.fill)
            x0, x1, y0, y1 = (
                n + e[0] for n, e in zip((x0, x1, y0, y1), (edges[1],) * 2 + (edges[0],) * 2, strict=True)
            )
        image = resample(image[y0:y1, x0:x1], view.size, self.method)
        return photometric.keep_channels(cv2.flip, image, 1) if view.mirrored else image

    def __call__(self, rng: np.random.Generator | None, image: Image) -> Image:
        """Draws views and shows them; for images without other fields."""
        for view in self.draw(rng, *image.shape[:2]):
            image = self.show(image, view)
        return image


def resize(size: int | tuple, method: str = "area", longest: int = 0) -> Moving:
    """Resizes the shorter side to `size`, keeping the aspect ratio (the longer side is rounded down), or exactly.

    Args:
      size: pixels of the shorter side, or (height, width).
      method: 'area' averages if the image shrinks and is bicubic if it grows (OpenCV, fastest); 'bilinear', 'bicubic'
        and 'lanczos' are Pillow's, antialiased, as torchvision's and timm's published models expect.
      longest: most pixels of the longer side, which may make the shorter side smaller than `size`; 0 for no limit.
    """
    specs.size(size)
    specs.whole(longest, "longest", 0, specs.MOST_PIXELS)
    draw = functools.partial(_draw_resize, sizes=(size,), longest=longest)
    return Moving(draw, specs.option(method, "method", METHODS))


def random_resize(sizes: tuple, longest: int = 0, method: str = "area") -> Moving:
    """Resizes the shorter side to one of `sizes`, drawn uniformly: the scale augmentation of detectors.

    Args:
      sizes: pixels of the shorter side, such as (480, 512, 544).
      longest: see `resize`.
      method: see `resize`.

    Reference: Carion et al. 2020, "End-to-end object detection with transformers", section 4.
    """
    if not isinstance(sizes, tuple) or not sizes:
        raise BadRequest(f"sizes is {sizes!r}; it takes whole numbers, such as (480, 512, 544).")
    for one in sizes:
        specs.whole(one, "sizes", 1, specs.MOST_PIXELS)
    specs.whole(longest, "longest", 0, specs.MOST_PIXELS)
    draw = functools.partial(_draw_resize, sizes=sizes, longest=longest)
    return Moving(draw, specs.option(method, "method", METHODS))


def central_crop(size: int | tuple) -> Moving:
    """Cuts out the centre; `size` is the side of a square, or (height, width)."""
    return Moving(functools.partial(_draw_central_crop, size=specs.size(size)))


def resize_crop(size: int | tuple, resize: int = 256, method: str = "area") -> Moving:
    """Resizes the shorter side to `resize` and cuts out the centre of `size`: the usual evaluation transform.

    Args:
      size: of the crop, square or (height, width).
      resize: pixels of the shorter side before the crop, at least the larger side of the crop.
      method: as in `resize`.
    """
    height, width = specs.size(size)
    if specs.whole(resize, "resize", 1, specs.MOST_PIXELS) < max(height, width):
        raise BadRequest(f"resize is {resize}, smaller than the crop of {height}x{width}.")
    draw = functools.partial(_draw_resize_crop, size=(height, width), shorter=resize)
    return Moving(draw, specs.option(method, "method", METHODS))


def pad(size: int | tuple, fill: int = 0) -> Moving:
    """Pads at the bottom and on the right to `size`, so that images of different sizes can be stacked.

    Args:
      size: square or (height, width), at least that of the images.
      fill: grey level, 0 to 255, of the padding.
    """
    return Moving(functools.partial(_draw_pad, size=specs.size(size)), fill=specs.whole(fill, "fill", 0, 255))


def resize_pad(size: int | tuple, fill: int = 0, method: str = "area") -> Moving:
    """Resizes the image to the largest that fits into `size`, with its aspect ratio, and pads bottom and right.

    Every pixel stays visible, and images of all sizes can be stacked: the usual transform for detectors. Afterwards, a
    field of kind "frame" says which pixels belong to the picture.

    Args:
      size: square or (height, width).
      fill: grey level, 0 to 255, of the padding.
      method: as in `resize`.
    """
    draw = functools.partial(_draw_resize_pad, size=specs.size(size))
    return Moving(draw, specs.option(method, "method", METHODS), specs.whole(fill, "fill", 0, 255))


def random_resized_crop(
    size: int | tuple, scale: tuple = (0.08, 1.0), ratio: tuple = (3 / 4, 4 / 3), method: str = "area"
) -> Moving:
    """Cuts a box of random area and aspect ratio and resizes it to `size`.

    Ten tries, then the largest central box of an allowed ratio, like torchvision. Crops before resizing.

    Args:
      size: of the result, square or (height, width).
      scale: range of the box's area as a fraction of the image, uniform.
      ratio: range of width / height of the box, uniform in its logarithm.
      method: as in `resize`.

    Reference: Szegedy et al. 2015, "Going deeper with convolutions", section 6.
    """
    draw = functools.partial(
        _draw_random_resized_crop,
        size=specs.size(size),
        scale=specs.interval(scale, "scale", 1),
        ratio=specs.interval(ratio, "ratio", specs.MOST_RATIO, 1 / specs.MOST_RATIO),
    )
    return Moving(draw, specs.option(method, "method", METHODS))


def random_crop(size: int | tuple, pad: int = 0) -> Moving:
    """Pads every side with `pad` zeros and cuts out `size`, square or (height, width), at a random place."""
    draw = functools.partial(
        _draw_random_crop, size=specs.size(size), pad=specs.whole(pad, "pad", 0, specs.MOST_PIXELS)
    )
    return Moving(draw)


def random_size_crop(low: int, high: int) -> Moving:
    """Cuts out a window at a random place, with height and width each drawn from `low` to `high` pixels.

    A shorter side of the image is kept whole.

    Args:
      low, high: pixels, both included.

    Reference: Carion et al. 2020, "End-to-end object detection with transformers", section 4.
    """
    if specs.whole(low, "low", 1, specs.MOST_PIXELS) > specs.whole(high, "high", 1, specs.MOST_PIXELS):
        raise BadRequest(f"low is {low}, more than high, {high}.")
    return Moving(functools.partial(_draw_random_size_crop, low=low, high=high))


def random_zoom(
    sizes: tuple, longest: int = 0, before: tuple = (400, 500, 600), crop: tuple = (384, 600), p: float = 0.5
) -> Moving:
    """Resizes as `random_resize`, with probability `p` not the image but a window of it: DETR's augmentation.

    Args:
      sizes, longest: as in `random_resize`.
      before: sizes, one of which the shorter side gets before the window is cut.
      crop: range of the window's rows and columns, as in `random_size_crop`.
      p: probability of a window.

    Reference: Carion et al. 2020, "End-to-end object detection with transformers", section 4, and its code.
    """
    whole, first = random_resize(sizes, longest).draw, random_resize(before).draw
    window = random_size_crop(*specs.size(crop, "crop")).draw
    return Moving(
        functools.partial(_draw_random_zoom, first=first, window=window, last=whole, p=specs.number(p, "p", 0, 1))
    )


def flip(p: float = 0.5) -> Moving:
    """Mirrors left and right with probability `p`."""
    return Moving(functools.partial(_draw_flip, p=specs.number(p, "p", 0, 1)))


OPERATIONS: dict[str, Callable[..., Moving]] = {
    "resize": resize,
    "random_resize": random_resize,
    "central_crop": central_crop,
    "resize_crop": resize_crop,
    "pad": pad,
    "resize_pad": resize_pad,
    "random_resized_crop": random_resized_crop,
    "random_crop": random_crop,
    "random_size_crop": random_size_crop,
    "random_zoom": random_zoom,
    "flip": flip,
}
RANDOM = frozenset({"random_resize", "random_resized_crop", "random_crop", "random_size_crop", "random_zoom", "flip"})


def _draw_resize(rng: np.random.Generator | None, h: int, w: int, sizes: tuple, longest: int = 0) -> tuple[View, ...]:
    size = sizes[0] if rng is None or len(sizes) == 1 else sizes[int(rng.integers(len(sizes)))]
    if isinstance(size, int):
        if longest and size * max(h, w) > longest * min(h, w):
            size = max(1, longest * min(h, w) // max(h, w))
        size = (size, size * w // h) if h <= w else (size * h // w, size)
        if size[0] * size[1] > LIMITS["image pixels"]:
            raise BadRequest(f"resize of an image of {h}x{w} gives {size[0]}x{size[1]}, too many pixels.")
    return (geometry.resize(h, w, (size[0], size[1])),)


def _draw_central_crop(rng: np.random.Generator | None, h: int, w: int, size: tuple[int, int]) -> tuple[View, ...]:
    _check_room(h, w, size, "central_crop")
    top, left = (round((n - s) / 2) for n, s in zip((h, w), size, strict=True))
    return (geometry.crop(top, left, *size),)


def _draw_resize_crop(
    rng: np.random.Generator | None, h: int, w: int, size: tuple[int, int], shorter: int
) -> tuple[View, ...]:
    (first,) = _draw_resize(None, h, w, (shorter,))
    return first, *_draw_central_crop(None, *first.size, size)


def _draw_pad(rng: np.random.Generator | None, h: int, w: int, size: tuple[int, int]) -> tuple[View, ...]:
    if h > size[0] or w > size[1]:
        raise BadRequest(f"pad to {size[0]}x{size[1]} does not fit an image of {h}x{w}; see resize_pad.")
    return (geometry.crop(0, 0, *size),)


def _draw_resize_pad(rng: np.random.Generator | None, h: int, w: int, size: tuple[int, int]) -> tuple[View, ...]:
    scale = min(size[0] / h, size[1] / w)
    inner = tuple(min(s, max(1, round(n * scale))) for n, s in zip((h, w), size, strict=True))
    return geometry.resize(h, w, (inner[0], inner[1])), geometry.crop(0, 0, *size)


def _draw_random_resized_crop(
    rng: np.random.Generator, h: int, w: int, size: tuple[int, int], scale: tuple, ratio: tuple
) -> tuple[View, ...]:
    return (geometry.crop(*resized_crop_box(rng, h, w, scale, ratio))._replace(size=size),)


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


def _draw_random_crop(rng: np.random.Generator, h: int, w: int, size: tuple[int, int], pad: int) -> tuple[View, ...]:
    if pad >= min(h, w):
        raise BadRequest(f"random_crop: padding by {pad} pixels is as large as the image of {h}x{w} itself.")
    h, w = h + 2 * pad, w + 2 * pad
    _check_room(h, w, size, "random_crop", f" (padded by {pad})" if pad else "")
    top, left = (int(rng.integers(n - s + 1)) for n, s in zip((h, w), size, strict=True))
    return (geometry.crop(top - pad, left - pad, *size),)


def _draw_random_size_crop(rng: np.random.Generator, h: int, w: int, low: int, high: int) -> tuple[View, ...]:
    rows, columns = (int(rng.integers(min(low, n), min(high, n) + 1)) for n in (h, w))
    top, left = int(rng.integers(h - rows + 1)), int(rng.integers(w - columns + 1))
    return (geometry.crop(top, left, rows, columns),)


def _draw_random_zoom(
    rng: np.random.Generator, h: int, w: int, first: Draw, window: Draw, last: Draw, p: float
) -> tuple[View, ...]:
    if rng.random() >= p:
        return last(rng, h, w)
    views = first(rng, h, w)
    views += window(rng, *views[-1].size)
    return views + last(rng, *views[-1].size)


def _draw_flip(rng: np.random.Generator, h: int, w: int, p: float) -> tuple[View, ...]:
    return (geometry.flip(h, w),) if rng.random() < p else ()


def _check_room(h: int, w: int, size: tuple[int, int], name: str, note: str = "") -> None:
    if h < size[0] or w < size[1]:
        raise BadRequest(f"{name} of {size[0]}x{size[1]} does not fit an image of {h}x{w}{note}.")


def resample(image: Image, size: tuple[int, int], method: str) -> Image:
    """Resizes to `size` (height, width); the result is never a view that keeps a larger image in memory."""
    (h, w, channels), (height, width) = image.shape, size
    if (h, w) == size:
        return np.ascontiguousarray(image)
    if method != "area":
        if channels not in (1, 3):
            raise BadRequest(f"resizing by {method!r} takes images of 1 or 3 channels, not of shape {image.shape}.")
        source = PIL.Image.fromarray(image[:, :, 0] if channels == 1 else image)
        out = np.array(source.resize((width, height), _PILLOW[method]))
        return out[:, :, None] if channels == 1 else out
    # OpenCV averages only if both sides shrink, so sides are resized one by one if one of them grows.
    if min(height, h) < h or min(width, w) < w:
        shrunk = (min(width, w), min(height, h))
        image = photometric.keep_channels(cv2.resize, image, shrunk, interpolation=cv2.INTER_AREA)
    if image.shape[:2] != size:
        image = photometric.keep_channels(cv2.resize, image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image
