"""The weights of a run as one file beside its config: a folder that can be uploaded, and opened as the run is.

Such a folder holds `model.safetensors` instead of checkpoints, under our own names; `config.json` and `data.json` are
those of the run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recvis_jax import reading, trees
from recvis_jax.errors import BadRequest, brief, printable
from recvis_jax.pretrained import safetensors

FILE = "model.safetensors"
_MARK = "recvis_jax"  # in the file's metadata: our version, and that its names are ours


class Weights(NamedTuple):
    """The content of the file.

    Attributes:
      tensors: our path name -> array.
      step: of the checkpoint.
      name: of the checkpoint, such as "best".
    """

    tensors: dict[str, np.ndarray]
    step: int
    name: str


def there(folder: Path) -> bool:
    """Whether a folder holds the weights of a run as one file, and no checkpoints."""
    return (folder / FILE).is_file() and not (folder / "checkpoints").exists()


def ours(file: Any) -> bool:
    """Whether a `safetensors.File` was written here."""
    return _MARK in getattr(file, "metadata", {})


def write(folder: Path, variables: Mapping[str, Any], *, step: int, name: str, version: str) -> int:
    """Writes the file; returns how many bytes its arrays have."""
    flat = {n: np.asarray(x) for n, x in trees.flatten(variables).items()}
    # "flax" is the format's name for weights of JAX; other programs look at it.
    metadata = {"format": "flax", _MARK: version, "step": str(step), "checkpoint": name}
    safetensors.write(folder / FILE, flat, metadata)
    return sum(x.nbytes for x in flat.values())


def read(folder: Path) -> Weights:
    """Reads the file of a folder.

    Raises:
      BadRequest: it is damaged, or not a file of ours.
    """
    reading.regular(folder / FILE, "weights bytes")
    file = safetensors.File(folder / FILE)
    if not ours(file):
        raise BadRequest(
            f"{printable(folder)} holds no run of recvis_jax: its {FILE} is another library's. Give the file itself, "
            "and --model=LIBRARY/NAME where the program has that flag."
        )
    step = file.metadata.get("step", "")
    if not step.isdecimal() or len(step) > 15:
        raise BadRequest(f"{printable(folder / FILE)} is damaged: its step is {brief(step)!r}.")
    return Weights(dict(file), int(step), file.metadata.get("checkpoint", "published"))
