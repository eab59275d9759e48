"""A run as a folder in the layout of the Hugging Face hub: weights, config, preprocessing and a model card.

The programs and `rv.open` take the folder like that of the run itself, of which it lacks what training alone needs.
What tells of the machine (folders, caches, devices) is left out of its config.
"""

from pathlib import Path
from typing import Any

import recvis_jax
from recvis_jax import card, errors, trained
from recvis_jax.data import augment, data_info, specs
from recvis_jax.pretrained import published
from recvis_jax.training import log

PREPROCESSING = "preprocessor_config.json"
CARD = "README.md"


def write(model: trained.Trained, folder: Path, out: Path) -> dict[str, int]:
    """Writes the folder.

    Args:
      model: a checkpoint of a run.
      folder: of the run, for the card.
      out: the folder to write; files of the same names are replaced.

    Returns:
      Name of each file -> its bytes.

    Raises:
      BadRequest: the run has no record of its data, so that the folder could not be opened.
      Failure: a file cannot be written.
    """
    if data_info.read(folder) is None:
        raise errors.BadRequest(f"{errors.printable(folder)} has no {data_info.FILE}: it is of an earlier version.")
    config, text = card.portable(trained.read_config(folder)), card.of_run(model, folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise errors.BadRequest(
            f"--out: the folder {errors.printable(out)} cannot be made: {e.strerror or e}."
        ) from None
    published.write(out, model.variables, step=model.step, name=model.name, version=recvis_jax.__version__)
    log.write_json(out / data_info.FILE, data_info.as_json(model.run.data.info))
    if model.run.data.info.image_shape[2]:
        log.write_json(out / PREPROCESSING, preprocessing(model.run.data.info))
    log.write_atomically(out / CARD, text)
    log.write_json(out / "config.json", config)  # last, because a folder with this file is a run
    names = (published.FILE, "config.json", data_info.FILE, PREPROCESSING, CARD)
    return {name: (out / name).stat().st_size for name in names if (out / name).exists()}


# Pillow's numbers of the methods; OpenCV's 'area' is its box filter where an image shrinks.
_FILTERS = {"bilinear": 2, "bicubic": 3, "lanczos": 1, "area": 4}


def preprocessing(known: data_info.DataInfo) -> dict[str, Any]:
    """Returns the preparation of images in the words of transformers' image processors.

    Of an evaluation transform that has no such words only the numbers of the pixels are said; `recvis_jax` always holds
    the transform as it is.

    Args:
      known: what a run knows of its data.
    """
    mean, std = (list(x) * (known.image_shape[2] // len(x)) for x in augment.statistics(known.statistics))
    out = {
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": mean, "image_std": std,
        "do_convert_rgb": known.image_shape[2] == 3, "recvis_jax": {"eval_transform": known.eval_transform},
    }  # fmt: skip
    try:
        steps = specs.parse(known.eval_transform or f"resize({known.image_shape[:2]})", _WORDS, "host operation")
    except errors.BadRequest:
        return out
    return out | steps[0].built if len(steps) == 1 else out


def _resize(size: int | tuple, method: str = "area") -> dict[str, Any]:
    sides = {"shortest_edge": size} if isinstance(size, int) else _sides(size)
    return {"do_resize": True, "size": sides, "resample": _FILTERS[method]}


def _resize_crop(size: int | tuple, resize: int = 256, method: str = "area") -> dict[str, Any]:
    return {**_resize(resize, method), "do_center_crop": True, "crop_size": _sides(size)}


def _sides(size: int | tuple) -> dict[str, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return {"height": height, "width": width}


_WORDS = {"resize": _resize, "resize_crop": _resize_crop}
