"""Augmentations of single images on the device, vectorised over the batch: `f(keys (b,), images (b h w c)) -> images`.

Images are float32 in [0, 1]. Each function below is a builder: it checks its arguments and returns f. What happens to
an example depends on its own key and pixels only. Shapes are static, and pixels are moved by slices, selects and
gathers of whole rows; gathers of single pixels are slow on TPUs.

The result is identical, bit for bit, for every batch size. So numbers are added in a fixed order (no matrix products,
and sums only of whole numbers), and a product is `rounded` before anything is added to it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Key

from recvis_jax.data import specs
from recvis_jax.data.resample import resized_rows, rotated, rounded
from recvis_jax.errors import BadRequest

ImageOperation = Callable[[Any, Any], Any]


class Window(NamedTuple):
    """Which part of each image of a batch is shown, in its pixels, and the size of the result.

    Attributes:
      top, left, height, width: of the windows (b), whole numbers or not; they may reach beyond the images.
      mirrored: (b) bool, whether left and right are swapped afterwards.
      size: (rows, columns) of the result.
    """

    top: Any
    left: Any
    height: Any
    width: Any
    mirrored: Any
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)  # unlike a NamedTuple, it can itself be jitted
class Moving:
    """An operation that moves pixels: fields that lie in the images follow by the windows that it draws.

    Attributes:
      draw: (keys (b), height, width) -> windows of images of that size.
      show: (images (b h w c), windows) -> images.
    """

    draw: Callable[[Any, int, int], Window]
    show: Callable[[Any, Window], Any]

    def __call__(self, keys: Key[Array, "b"], images: Float[Array, "b h w c"]) -> Float[Array, "b p q c"]:
        """Draws windows and shows them; for images without other fields."""
        return self.show(images, self.draw(keys, *images.shape[1:3]))


TRIES = 10  # a box of random area and aspect may not fit; torchvision draws ten, too


def pad_crop(pad: int = 4, mode: str = "constant") -> Moving:
    """Pads every side by `pad` pixels and crops the input size at a random place.

    With mode 'constant' (zeros) this is a random translation by up to `pad` pixels; 'reflect' leaves out the border
    pixel, 'edge' repeats it.

    Reference: He et al. 2016, "Deep residual learning for image recognition", section 4.2.
    """
    specs.whole(pad, "pad", 0, specs.MOST_PIXELS)
    specs.option(mode, "mode", ("constant", "reflect", "edge"))

    def draw(keys: Key[Array, "b"], h: int, w: int) -> Window:
        if pad >= min(h, w):  # otherwise some crops would show no part of the image
            raise BadRequest(f"pad_crop: padding by {pad} pixels needs images larger than {h}x{w}.")
        start = _below(uniforms(keys, 2), 2 * pad + 1) - pad
        return _whole(len(keys), h, w)._replace(top=start[:, 0], left=start[:, 1])

    def show(images: Float[Array, "b h w c"], window: Window) -> Float[Array, "b h w c"]:
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode=mode)
        start = jnp.stack([window.top, window.left], 1) + pad
        # The fastest of five ways on a CPU, and a single gather of whole windows on an accelerator.
        return jax.vmap(lambda image, yx: lax.dynamic_slice(image, (yx[0], yx[1], 0), images.shape[1:]))(padded, start)

    return Moving(draw, show)


def flip(p: float = 0.5) -> Moving:
    """Mirrors left and right with probability `p`."""
    specs.number(p, "p", 0, 1)

    def draw(keys: Key[Array, "b"], h: int, w: int) -> Window:
        return _whole(len(keys), h, w)._replace(mirrored=uniforms(keys, 1)[:, 0] < p)

    def show(images: Float[Array, "b h w c"], window: Window) -> Float[Array, "b h w c"]:
        return jnp.where(window.mirrored[:, None, None, None], images[:, :, ::-1], images)

    return Moving(draw, show)


def random_resized_crop(
    size: int | tuple | None = None, scale: tuple = (0.08, 1.0), ratio: tuple = (3 / 4, 4 / 3)
) -> Moving:
    """Cuts a box of random area and aspect ratio and resizes it, bilinear with antialiasing.

    Like torchvision's (ten tries, then the largest central box of an allowed ratio), but boxes need not begin at whole
    pixels, which matters for small images.

    Args:
      size: of the result, a whole number or (height, width); None keeps the size of the input.
      scale: range of the box's area as a fraction of the image, uniform.
      ratio: range of width / height of the box, uniform in its logarithm.

    Reference: Szegedy et al. 2015, "Going deeper with convolutions", section 6.
    """
    if size is not None:
        size = specs.size(size)
    scale, ratio = (
        specs.interval(scale, "scale", 1),
        specs.interval(ratio, "ratio", specs.MOST_RATIO, 1 / specs.MOST_RATIO),
    )

    def draw(keys: Key[Array, "b"], h: int, w: int) -> Window:
        top, left, height, width = resized_crop_boxes(keys, h, w, scale, ratio)
        return Window(top, left, height, width, jnp.zeros(len(keys), bool), size or (h, w))

    def show(images: Float[Array, "b h w c"], window: Window) -> Float[Array, "b height width c"]:
        images = resized_rows(images, window.top, window.height, window.size[0]).swapaxes(1, 2)
        images = resized_rows(images, window.left, window.width, window.size[1]).swapaxes(1, 2)
        return jnp.clip(images, 0, 1)  # weights sum to one except for rounding

    return Moving(draw, show)


def rotate(degrees: float, value: float = 0.0) -> ImageOperation:
    """Rotates about the centre by an angle uniform in [-degrees, degrees], counter-clockwise if positive.

    Three shears with linear interpolation, each made of slices and selects; corners become `value`.

    Args:
      degrees: at most 90.
      value: grey level in [0, 1] outside the image.

    Reference: Paeth 1986, "A fast algorithm for general raster rotation".
    """
    most = math.radians(specs.number(degrees, "degrees", 0, 90))
    specs.number(value, "value", 0, 1)

    def operation(keys: Key[Array, "b"], images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        angle = rounded((2 * uniforms(keys, 1)[:, 0] - 1) * most)
        return rotated(images, angle, most, value)

    return operation


def color_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> ImageOperation:
    """Changes brightness, contrast, saturation and hue, in this order, by random amounts.

    The first three scale by a factor uniform in [max(0, 1 - x), 1 + x]: brightness scales the image, contrast its
    difference from its mean grey, saturation its difference from its grey image. Hue turns by up to `hue` of the circle
    in both directions, at most 0.5. One-channel images have neither saturation nor hue. The host `color_jitter` also
    shuffles the order; here it is fixed, so nothing is computed twice.
    """
    amounts = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, amount in amounts.items():
        specs.number(amount, name, 0, specs.MOST_JITTER)
    specs.number(hue, "hue", 0, 0.5)

    def operation(keys: Key[Array, "b"], images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        _check_channels(images, "color_jitter")
        u = uniforms(keys, 4)[:, :, None, None, None]
        ends = [(max(0.0, 1 - a), 1 + a) for a in amounts.values()]
        factor = [low + rounded(u[:, i] * (high - low)) for i, (low, high) in enumerate(ends)]
        if brightness:
            images = jnp.clip(images * factor[0], 0, 1)
        if contrast:
            mean = _mean_grey(images)
            images = jnp.clip(mean + rounded(factor[1] * (images - mean)), 0, 1)
        if saturation and images.shape[-1] == 3:
            grey = _grey(images)
            images = jnp.clip(grey + rounded(factor[2] * (images - grey)), 0, 1)
        if hue and images.shape[-1] == 3:
            images = _turn_hue(images, rounded((2 * u[:, 3] - 1) * hue))
        return images

    return operation


def erase(
    p: float = 0.25,
    scale: tuple = (0.02, 0.33),
    ratio: tuple = (0.3, 3.3),
    value: float | tuple | str = 0.0,
) -> ImageOperation:
    """Overwrites a random box, with probability `p`.

    Args:
      p: probability.
      scale: range of the box's area as a fraction of the image, uniform.
      ratio: range of width / height of the box, uniform in its logarithm.
      value: in [0, 1], one number or one per channel; 'random' is uniform noise, drawn for every pixel.

    Reference: Zhong et al. 2017, "Random erasing data augmentation".
    """
    specs.number(p, "p", 0, 1)
    scale, ratio = (
        specs.interval(scale, "scale", 1),
        specs.interval(ratio, "ratio", specs.MOST_RATIO, 1 / specs.MOST_RATIO),
    )
    if isinstance(value, str):
        specs.option(value, "value", ("random",))
    else:
        _check_colour(value)

    def operation(keys: Key[Array, "b"], images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        _, h, w, c = images.shape
        u = uniforms(keys, 3 + 2 * TRIES)
        # A box as large as the image is rejected, as in the paper's code.
        box_h, box_w, found = _fitting_box(u[:, 3:], h, w, scale, ratio, jnp.round, h - 1, w - 1)
        box_h, box_w = box_h.astype(jnp.int32), box_w.astype(jnp.int32)
        box_h = jnp.where(found & (u[:, 0] < p), box_h, 0)
        top, left = _below(u[:, 1], h - box_h + 1), _below(u[:, 2], w - box_w + 1)
        inside = box_mask(top, top + box_h, left, left + box_w, h, w)
        if isinstance(value, str):
            noise = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (h, w, c)))(keys)
            return jnp.where(inside, noise, images)
        return jnp.where(inside, _colour(value, c, "erase"), images)

    return operation


def cutout(size: int, value: float | tuple = 0.0) -> ImageOperation:
    """Overwrites a square of side `size` whose centre is anywhere in the image, so it may overlap the border.

    Args:
      size: side in pixels.
      value: in [0, 1], one number or one per channel. The paper uses the mean of the data set.

    Reference: DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with cutout".
    """
    specs.whole(size, "size", 1, specs.MOST_PIXELS)
    _check_colour(value)

    def operation(keys: Key[Array, "b"], images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        _, h, w, c = images.shape
        if size > max(h, w):
            raise BadRequest(f"cutout: a square of side {size} is larger than the images of {h}x{w}.")
        u = uniforms(keys, 2)
        top, left = _below(u[:, 0], h) - size // 2, _below(u[:, 1], w) - size // 2
        inside = box_mask(top, top + size, left, left + size, h, w)
        return jnp.where(inside, _colour(value, c, "cutout"), images)

    return operation


OPERATIONS: dict[str, Callable[..., ImageOperation | Moving]] = {
    "pad_crop": pad_crop,
    "flip": flip,
    "random_resized_crop": random_resized_crop,
    "rotate": rotate,
    "color_jitter": color_jitter,
    "erase": erase,
    "cutout": cutout,
}


def _whole(b: int, h: int, w: int) -> Window:
    """Returns windows that show the whole images of h x w."""
    none = jnp.zeros(b, jnp.int32)
    return Window(none, none, none + h, none + w, jnp.zeros(b, bool), (h, w))


def uniforms(keys: Key[Array, "b"], n: int) -> Float[Array, "b {n}"]:
    """Draws `n` numbers in [0, 1) for every key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (n,)))(keys)


def box_mask(
    top: Int[Array, "b"], bottom: Int[Array, "b"], left: Int[Array, "b"], right: Int[Array, "b"], h: int, w: int
) -> Bool[Array, "b {h} {w} 1"]:
    """Marks the pixels of rows [top, bottom) and columns [left, right); ends may lie outside the image."""
    rows, columns = jnp.arange(h), jnp.arange(w)
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[..., None]


def resized_crop_boxes(
    keys: Key[Array, "b"], h: int, w: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Float[Array, "b"], Float[Array, "b"], Float[Array, "b"], Float[Array, "b"]]:
    """Draws the boxes of `random_resized_crop`: (top, left, height, width) in pixels, not rounded."""
    u = uniforms(keys, 2 + 2 * TRIES)
    box_h, box_w, found = _fitting_box(u[:, 2:], h, w, scale, ratio, rounded, h, w)
    # If no try fits: the largest box with the allowed ratio that is nearest to the image's.
    aspect = min(max(w / h, ratio[0]), ratio[1])
    box_h = jnp.where(found, box_h, min(h, w / aspect))
    box_w = jnp.where(found, box_w, min(w, h * aspect))
    u_top, u_left = (jnp.where(found, v, 0.5) for v in (u[:, 0], u[:, 1]))
    return rounded(u_top * (h - box_h)), rounded(u_left * (w - box_w)), box_h, box_w


def _fitting_box(
    u: Array,
    h: int,
    w: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    finish: Callable[[Array], Array],
    most_h: int,
    most_w: int,
) -> tuple[Array, Array, Array]:
    """Returns height and width (b,) of the first box of `TRIES` that fits, and whether one does; u is (b, 2 TRIES)."""
    area = h * w * (scale[0] + rounded(u[:, :TRIES] * (scale[1] - scale[0])))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    root = jnp.exp((low + rounded(u[:, TRIES:] * (high - low))) / 2)
    side = jnp.sqrt(area)
    heights, widths = finish(side / root), finish(side * root)
    fits = (heights <= most_h) & (widths <= most_w)
    first = jnp.argmax(fits, axis=1)[:, None]
    pick = (jnp.take_along_axis(v, first, axis=1)[:, 0] for v in (heights, widths, fits))
    return tuple(pick)  # type: ignore[return-value]


def _below(u: Array, n: Array | int) -> Array:
    """Maps u in [0, 1) to whole numbers in [0, n) with equal probability; rounding must not give n itself."""
    return jnp.minimum((u * n).astype(jnp.int32), n - 1)


def _check_colour(value: float | tuple) -> None:
    if value == ():
        raise BadRequest("value is (); it takes one number, or one per channel.")
    for v in value if isinstance(value, tuple) else (value,):
        specs.number(v, "value", 0, 1)


def _colour(value: float | tuple, channels: int, name: str) -> Array:
    if isinstance(value, tuple) and len(value) not in (1, channels):
        raise BadRequest(f"{name}: value {value!r} has {len(value)} channels, the images have {channels}.")
    return jnp.asarray(value, jnp.float32)


def _check_channels(images: Array, name: str) -> None:
    if images.shape[-1] not in (1, 3):
        raise BadRequest(f"{name} takes images of 1 or 3 channels, not of shape {images.shape[1:]}.")


def _grey_steps(images: Array, steps: int) -> Array:
    """Luma (ITU-R 601, as Pillow's mode L) in whole `steps`-ths: (b h w c) -> (b h w 1) int32.

    Whole numbers, because how a compiler fuses and orders a sum of floats may depend on the batch size.
    """
    levels = jnp.round(images * steps).astype(jnp.int32)
    if images.shape[-1] == 1:
        return levels
    r, g, b = (levels[..., i : i + 1] for i in range(3))
    return (19595 * r + 38470 * g + 7471 * b + (1 << 15)) >> 16


def _grey(images: Array) -> Array:
    return _grey_steps(images, 1 << 13).astype(jnp.float32) / (1 << 13)


def _mean_grey(images: Array) -> Array:
    area = images.shape[1] * images.shape[2]
    steps = 1 << min(13, 30 - area.bit_length())  # the sum stays below 2^31
    total = _grey_steps(images, steps).sum(axis=(1, 2, 3), keepdims=True)
    return rounded(total.astype(jnp.float32) / (steps * area))


def _turn_hue(images: Array, turns: Array) -> Array:
    """Adds `turns` (b 1 1 1) of the circle to the hue of RGB images, through HSV."""
    r, g, b = (images[..., i : i + 1] for i in range(3))
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    # Not `value == r`: a compiler may compute r twice, with different last bits.
    red, green = (r >= g) & (r >= b), g >= b
    sector = jnp.where(red, (g - b) / safe, jnp.where(green, 2 + (b - r) / safe, 4 + (r - g) / safe))
    k = (sector + rounded(6 * turns) + jnp.asarray([5.0, 3.0, 1.0])) % 6
    return value - rounded(chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1))
