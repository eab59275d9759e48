"""Images that a user names: finds the files, reads them within limits, and prepares them like evaluation images."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from recvis_jax import errors
from recvis_jax.data import files, image_file, sources, transforms


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
