"""Grids of patches, in rows and columns: of a model for a given image size, and of a checkpoint's positions.

Sixteen positions may be a grid of 4x4 or of 2x8. The number alone does not tell, so grids are compared.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from jaxtyping import Float

from recvis_jax.errors import BadRequest, shown
from recvis_jax.models import tokens
from recvis_jax.models.ff_only import FFOnly
from recvis_jax.models.gmlp import GMLP
from recvis_jax.models.hybrid import HybridViT
from recvis_jax.models.mae import MAE
from recvis_jax.models.mixer import Mixer
from recvis_jax.models.resmlp import ResMLP
from recvis_jax.models.vit import ViT

Grid = tuple[int, int]

# Models with weights for every position of the grid, which cannot be interpolated.
MIXING = (Mixer, ResMLP, GMLP, FFOnly)


class Resample(NamedTuple):
    """A caller's request about positions.

    Attributes:
      wanted: whether positions of another grid are interpolated.
      old: rows and columns of the checkpoint's grid; None if not given.
      new: those of the model's grid.
    """

    wanted: bool = False
    old: Grid | None = None
    new: Grid | None = None


def parse(resample: Any) -> Resample:
    """Reads the argument `resample` of `pretrained.load`.

    Raises:
      BadRequest: it is not True, False, a grid or a dict of grids.
    """
    if resample is None or isinstance(resample, bool):
        return Resample(bool(resample))
    if isinstance(resample, Mapping):
        if wrong := [k for k in resample if k not in ("old", "new")]:
            raise BadRequest(f"resample takes the keys old and new, each (rows, columns), not {shown(wrong[0], 40)}.")
        given = {k: _grid(v, f"resample.{k}") for k, v in resample.items() if v is not None}
        return Resample(bool(given), given.get("old"), given.get("new"))
    return Resample(True, None, _grid(resample, "resample"))


def _grid(value: Any, name: str) -> Grid:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
        raise BadRequest(f"{name} is {shown(value, 40)}; it takes (rows, columns) of a grid of patches.")
    return value[0], value[1]


def of_model(model: nn.Module, image_size: Grid | None) -> Grid | None:
    """Returns rows and columns of a model's patches for a given image size.

    Args:
      model: any; a model without patches has no grid.
      image_size: rows and columns of the images; None if unknown.

    Raises:
      BadRequest: the images are not made of whole patches.
    """
    if image_size is None or not isinstance(model, (ViT, MAE, *MIXING)):
        return None
    h, w = image_size
    if isinstance(model, HybridViT):  # halved by the stem, its pooling, and every stage after the first
        for _ in range(2 + max(0, len(model.stages) - 1)):
            h, w = -(-h // 2), -(-w // 2)
    return tokens.patch_grid((h, w), model.patch_size)


def of_fixed(positions: Float[np.ndarray, "1 n d"], prefix: int) -> Grid | None:
    """Returns the grid whose fixed sines and cosines (a masked autoencoder's) equal these positions; None if none.

    Args:
      positions: first those of `prefix` tokens outside the grid.
      prefix: number of these tokens.
    """
    n, d = positions.shape[1] - prefix, positions.shape[2]
    if d % 4 or n < 1 or n > 2**16 or np.any(positions[:, :prefix]):
        return None
    found = np.asarray(positions[0, prefix:], np.float32)
    for rows in range(1, n + 1):
        # The last patch is in the last row, whose angle of frequency 1 is in the second half.
        if n % rows == 0 and abs(found[-1, d // 2] - np.sin(rows - 1)) < 0.02:
            if np.allclose(found, tokens.sincos2d(rows, n // rows, d), atol=0.02):
                return rows, n // rows
    return None


def fixed(grid: Grid, width: int, prefix: int = 1) -> Float[np.ndarray, "1 n d"]:
    """Returns a masked autoencoder's fixed positions: zeros for tokens outside the grid, then those of the grid."""
    return np.pad(tokens.sincos2d(*grid, width), ((prefix, 0), (0, 0)))[None]


def square(n: int) -> Grid | None:
    """Returns the square grid of n positions, if there is one."""
    side = round(n**0.5)
    return (side, side) if side * side == n else None


def text(grid: Grid) -> str:
    """Returns a grid as text for messages: 2x8."""
    return f"{grid[0]}x{grid[1]}"
