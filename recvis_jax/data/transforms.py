"""Transforms on the host, one example at a time, for streams of images of different sizes: decode, transform, batch.

A pipeline is a string such as `'random_resized_crop(224)|randaugment(2, 9)|flip'`. Its operations are builders, which
check their arguments: those of `transform_geometry` move pixels and everything else that lies in the image (boxes,
masks, points, maps), with one draw for all; those below change colours and return f(rng, image) -> image, uint8 (h w
c). Random numbers come from `rng` alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from recvis_jax.data import geometry, photometric, specs, transform_geometry
from recvis_jax.data.fields import Field
from recvis_jax.errors import BadRequest

# Examples are processed in parallel; OpenCV's own threads would compete with that. Set on import, so in every worker.
cv2.setNumThreads(0)

Image = UInt8[np.ndarray, "_ _ _"]
Operation = Callable[[np.random.Generator, Any], Any]
Example = dict[str, Any]


class Transform(NamedTuple):
    """A host pipeline.

    Attributes:
      fn: f(rng, example) -> example with a new `image`, and with the other fields that lie in it moved accordingly; can
        be pickled. Raises BadRequest for an image that does not fit.
      random: whether `fn` uses its generator.
      spec: the text that it was made from.
    """

    fn: Callable[[np.random.Generator, Example], Example]
    random: bool
    spec: str


def parse(spec: str | None, fields: Sequence[Field] = (), visible: float = 0.0) -> Transform:
    """Builds a host pipeline.

    Args:
      spec: operations joined by `|`, see `OPERATIONS`; None or an empty string means no operation.
      fields: of the examples; those that lie in the image move with it. All others are unchanged.
      visible: the smallest share of a box's area, from 0 to 1, that must stay inside the image for the box to be kept,
        with all that belongs to it. Boxes entirely outside are always dropped.

    Raises:
      BadRequest: an unknown operation or argument, or a value out of range.

    Example:
      >>> boxes = Field("boxes", "boxes", (None, 4), "float32", most=9)
      >>> flip = parse("flip(1)", [boxes])
      >>> example = {"image": np.zeros((8, 8, 3), np.uint8), "boxes": np.float32([[1, 2, 4, 6]])}
      >>> flip.fn(np.random.default_rng(0), example)["boxes"].tolist()
      [[4.0, 2.0, 7.0, 6.0]]
    """
    steps = specs.parse(spec, OPERATIONS, "host operation", _DEVICE_ONLY)
    specs.number(visible, "visible", 0, 1)
    built = tuple((step.name, step.built) for step in steps)
    fn = functools.partial(_run, built, tuple(fields), visible)
    return Transform(fn, any(step.name in RANDOM for step in steps), (spec or "").strip())


def color_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Operation:
    """Changes brightness, contrast, saturation and hue in random order by random amounts.

    The first three scale by a factor uniform in [max(0, 1 - x), 1 + x]; hue turns by up to `hue`, at most 0.5, of the
    circle in both directions. One-channel images have neither saturation nor hue.
    """
    return functools.partial(
        _color_jitter,
        brightness=specs.number(brightness, "brightness", 0, specs.MOST_JITTER),
        contrast=specs.number(contrast, "contrast", 0, specs.MOST_JITTER),
        saturation=specs.number(saturation, "saturation", 0, specs.MOST_JITTER),
        hue=specs.number(hue, "hue", 0, 0.5),
    )


def randaugment(n: int = 2, m: float = 9.0, mstd: float = 0.0, fill: int = 0) -> Operation:
    """Applies `n` of RandAugment's 14 operations at magnitude `m` of 30; see `data/photometric.py`.

    Args:
      n: number of operations.
      m: magnitude from 0 to 30.
      mstd: standard deviation of the magnitude.
      fill: grey level, 0 to 255, outside the image.
    """
    return functools.partial(
        _randaugment,
        n=specs.whole(n, "n", 0, 100),
        m=specs.number(m, "m", 0, photometric.LEVELS),
        mstd=specs.number(mstd, "mstd", 0, 100),
        fill=specs.whole(fill, "fill", 0, 255),
    )


def grayscale() -> Operation:
    """Converts three channels to one, by luma (ITU-R 601)."""
    return _grayscale


def to_rgb() -> Operation:
    """Repeats one channel three times; three channels are not changed."""
    return _to_rgb


OPERATIONS: dict[str, Callable[..., Any]] = {
    **transform_geometry.OPERATIONS,
    "color_jitter": color_jitter,
    "randaugment": randaugment,
    "grayscale": grayscale,
    "to_rgb": to_rgb,
}
RANDOM = transform_geometry.RANDOM | {"color_jitter", "randaugment"}
_COLOUR = frozenset({"color_jitter", "randaugment", "grayscale", "to_rgb"})  # take 1 or 3 channels
_DEVICE_ONLY = dict.fromkeys(
    ("pad_crop", "rotate", "erase", "cutout", "mixup", "cutmix", "mixup_cutmix"),
    "it works on whole batches on the device; put it into the device pipeline (data/augment).",
)


def _run(
    steps: tuple[tuple[str, Any], ...],
    fields: tuple[Field, ...],
    visible: float,
    rng: np.random.Generator,
    example: Example,
) -> Example:
    image, views = example["image"], []
    for name, operation in steps:
        _check(image, name)
        if isinstance(operation, transform_geometry.Moving):
            for view in operation.draw(rng, *image.shape[:2]):
                image = operation.show(image, view)
                views.append(view)
        else:
            image = operation(rng, image)
    return geometry.follow({**example, "image": image}, views, fields, visible)


def _check(image: Any, name: str) -> None:
    shape, dtype = np.shape(image), getattr(image, "dtype", type(image).__name__)
    if not isinstance(image, np.ndarray) or dtype != np.uint8 or len(shape) != 3 or 0 in shape:
        raise BadRequest(f"{name} takes images uint8 (height, width, channels), not {dtype} of shape {shape}.")
    if name in _COLOUR and shape[2] not in (1, 3):
        raise BadRequest(f"{name} takes images of 1 or 3 channels, not of shape {shape}.")


def _color_jitter(
    rng: np.random.Generator, image: Image, brightness: float, contrast: float, saturation: float, hue: float
) -> Image:
    changes = ((photometric.brightness, brightness), (photometric.contrast, contrast), (photometric.color, saturation))
    for i in rng.permutation(4):
        if i == 3:
            image = photometric.hue(image, rng.uniform(-hue, hue)) if hue else image
        elif changes[i][1]:
            change, amount = changes[i]
            image = change(image, rng.uniform(max(0.0, 1 - amount), 1 + amount))
    return image


def _randaugment(rng: np.random.Generator, image: Image, n: int, m: float, mstd: float, fill: int) -> Image:
    return photometric.randaugment(rng, image, n, m, mstd, fill)


def _grayscale(rng: np.random.Generator, image: Image) -> Image:
    return photometric.grey(image)


def _to_rgb(rng: np.random.Generator, image: Image) -> Image:
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)
