"""Requests for figures of `look`, figures, and functions of a request that several kinds of figures use."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from recvis_jax import errors
from recvis_jax.network import Network
from recvis_jax.vis import layers


class Request(NamedTuple):
    """A request for figures.

    Attributes:
      network: the network.
      images: (n h w c) in [0, 1], the network's input; may be empty if no requested figure needs images.
      names: of the images, for captions.
      say: called with (what, done, total).
      split: examples of the network's data set, for the best patches; None if there are none.
      layer: name of a layer; None for the figure's default.
      target: class whose score is explained; None for the predicted one.
      units: channels of the layer for which images are made, or whose best patches are shown; empty for the first
        ones, or those with the largest activations.
      style: (1 i j c) in [0, 1], the picture with the style; None if there is none.
      steps: of the optimisation that makes an image; None for the figure's default.
    """

    network: Network
    images: Float[np.ndarray, "n h w c"]
    names: Sequence[str]
    say: Callable[[str, int, int], None]
    split: Any = None
    layer: str | None = None
    target: int | None = None
    units: Sequence[int] = ()
    style: Float[np.ndarray, "1 i j c"] | None = None
    steps: int | None = None


class Figure(NamedTuple):
    """A picture (h w c) in [0, 1] with a title and an explanation."""

    name: str
    title: str
    caption: str
    picture: Float[np.ndarray, "h w c"]


def images(r: Request) -> np.ndarray:
    """Returns the images of a request that must have some."""
    if not len(r.images):
        raise errors.BadRequest("this figure needs images: name some, or a --split of the run's data.")
    return r.images


def as_float(x: np.ndarray) -> np.ndarray:
    """Returns images in [0, 1], also for images of bytes."""
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)


def seen(x: Any) -> np.ndarray:
    """Returns images with 1 or 3 channels; any other number of channels is averaged."""
    x = np.asarray(x)
    return x if x.shape[-1] in (1, 3) else x.mean(-1, keepdims=True)


def rgb(x: np.ndarray) -> np.ndarray:
    """Returns images with three channels; grey ones are repeated."""
    return x.repeat(3, -1) if x.shape[-1] == 1 else x


def named(r: Request) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the layers that the network names, for one image."""
    image = jax.ShapeDtypeStruct((1, *r.network.image_shape), np.float32)
    return layers.names(r.network.apply, r.network.variables, image)


def placed(r: Request) -> list[str]:
    """Returns the names of the layers that are maps, or else tokens."""
    found = layers.with_places(named(r))
    if not found:
        raise errors.BadRequest("none of the network's layers has places; name one by --layer.")
    return found


def grid(r: Request) -> tuple[int, int]:
    """Returns rows and columns of the network's patches."""
    shapes = named(r)
    stem = shapes.get("stem", ())
    if len(stem) != 3:
        raise errors.BadRequest("the network does not cut its images into patches.")
    where = layers.grid(shapes, stem[1], r.network.image_shape[:2])
    return where.rows, where.columns


def class_name(r: Request, k: int) -> str:
    """Returns the name of a class, or its number."""
    classes = r.network.classes
    return errors.printable(classes[k]) if k < len(classes) else f"class {k}"
