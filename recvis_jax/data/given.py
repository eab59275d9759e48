"""Images that a user names: finds the files, reads them within limits, and prepares them like evaluation images."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from recvis_jax import errors
from recvis_jax.data import files, image_file, sources, transforms
from recvis_jax.data.fields import Field


def find(named: Sequence[str | Path]) -> list[Path]:
    """Returns the named files, and the images below the named folders, sorted within each folder.

    Raises:
      BadRequest: a file does not exist, or a folder holds no images.
    """
    given = [Path(p) for p in named]
    if missing := [p for p in given if not os.path.lexists(p)]:
        shown = ", ".join(errors.printable(p)[:200] for p in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise errors.BadRequest(f"no such file: {shown}{more}.")
    out: list[Path] = []
    for path in given:
        if not path.is_dir():
            out.append(path)
            continue
        found = sorted(files.walk(path, []))
        if not found:
            raise errors.BadRequest(f"{errors.printable(path)} holds no images ({', '.join(sorted(files.SUFFIXES))}).")
        out += found
    return list(dict.fromkeys(out))


def preparer(eval_transform: str, shape: tuple[int, int, int]) -> Callable[[Path], UInt8[np.ndarray, "h w c"]]:
    """Returns a function from the path of an image to its pixels as a model expects them, not yet normalised.

    Args:
      eval_transform: host operations of evaluation, see `data.transforms`.
      shape: (h, w, c) of the result. An image of another size after `eval_transform` is resized to it: a data set whose
        images all have one size needs no transform.

    The function raises `BadRequest` if a file is not an image, damaged, or beyond `reading.LIMITS`.
    """
    transform, rng = transforms.parse(eval_transform).fn, np.random.default_rng(0)
    resize = transforms.parse(f"resize({shape[:2]})").fn

    def prepare(path: Path) -> UInt8[np.ndarray, "h w c"]:
        found = image_file.load(path, compress_level=0)  # decoded again immediately, like images of a data set
        if found.data is None:
            raise errors.BadRequest(f"{errors.printable(path)} cannot be read: {found.problem}.")
        example = transform(rng, {"image": sources.decode(found.data, shape[2], errors.printable(path))})
        return (example if example["image"].shape[:2] == shape[:2] else resize(rng, example))["image"]

    return prepare


class Placed(NamedTuple):
    """A picture and the image that a model is given of it.

    Attributes:
      picture: (H W c), as it was.
      image: (h w c), as the model wants it, not yet normalised.
      frame: x0 y0 x1 y1, where the picture lies in the image, in its pixels.
    """

    picture: UInt8[np.ndarray, "H W c"]
    image: UInt8[np.ndarray, "h w c"]
    frame: Float32[np.ndarray, "4"]


def placer(eval_transform: str, shape: tuple[int, int, int]) -> Callable[[Path], Placed]:
    """Returns a function from the path of a picture to the image of it, for models that say where things are.

    Args:
      eval_transform: host operations of evaluation, see `data.transforms`.
      shape: (h, w, c) of the image. A picture that has another size after `eval_transform` is resized to fit into it,
        keeping its aspect ratio, and padded.

    The function raises `BadRequest` as that of `preparer` does.
    """
    frame, rng = [Field("frame", "frame", (4,), "float32")], np.random.default_rng(0)
    transform = transforms.parse(eval_transform, frame).fn
    fit = transforms.parse(f"resize_pad({shape[:2]})", frame).fn

    def place(path: Path) -> Placed:
        found = image_file.load(path, compress_level=0)
        if found.data is None:
            raise errors.BadRequest(f"{errors.printable(path)} cannot be read: {found.problem}.")
        picture = sources.decode(found.data, shape[2], errors.printable(path))
        h, w = picture.shape[:2]
        example = transform(rng, {"image": picture, "frame": np.float32([0, 0, w, h])})
        example = example if example["image"].shape[:2] == shape[:2] else fit(rng, example)
        return Placed(picture, example["image"], np.asarray(example["frame"], np.float32))

    return place
