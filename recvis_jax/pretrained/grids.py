"""Rows and columns of patches: of a model for images of a size, and of the positions that a checkpoint holds.

Sixteen positions may be a grid of 4x4 or of 2x8: their number never says which, so that grids are compared.
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

# Models that have weights for every place of the grid, which cannot be interpolated.
MIXING = (Mixer, ResMLP, GMLP, FFOnly)


class Resample(NamedTuple):
    """What a caller says about positions.

    Attributes:
      wanted: whether those of another grid are interpolated.
      old: rows and columns of the checkpoint's; None where it is left to be found out.
      new: those of the model's.
    """

    wanted: bool = False
    old: Grid | None = None
    new: Grid | None = None


def parse(resample: Any) -> Resample:
    """Reads the argument `resample` of `pretrained.load`.

    Raises:
      BadRequest: it is neither True nor False, nor a grid, nor a dict of grids.
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
    """Returns rows and columns of the patches that a model makes of images.

    Args:
      model: any; without patches it has no grid.
      image_size: rows and columns of the images; None where they are not known.

    Raises:
      BadRequest: the images are not made of whole patches.
    """
    if image_size is None or not isinstance(model, (ViT, MAE, *MIXING)):
        return None
    h, w = image_size
    if isinstance(model, HybridViT):  # the stem and its pooling, and every stage after the first
        for _ in range(2 + max(0, len(model.stages) - 1)):
            h, w = -(-h // 2), -(-w // 2)
    return tokens.patch_grid((h, w), model.patch_size)


def of_fixed(positions: Float[np.ndarray, "1 n d"], prefix: int) -> Grid | None:
    """Returns the grid whose fixed sines and cosines these positions are, as a masked autoencoder's; None if of none.

    Args:
      positions: first those of `prefix` tokens without a place.
      prefix: number of those.
    """
    n, d = positions.shape[1] - prefix, positions.shape[2]
    if d % 4 or n < 1 or n > 2**16 or np.any(positions[:, :prefix]):
        return None
    found = np.asarray(positions[0, prefix:], np.float32)
    for rows in range(1, n + 1):
        # The last patch lies in the last row, whose angle of frequency 1 is in the second half.
        if n % rows == 0 and abs(found[-1, d // 2] - np.sin(rows - 1)) < 0.02:
            if np.allclose(found, tokens.sincos2d(rows, n // rows, d), atol=0.02):
                return rows, n // rows
    return None


def fixed(grid: Grid, width: int, prefix: int = 1) -> Float[np.ndarray, "1 n d"]:
    """Returns a masked autoencoder's fixed positions: zeros of tokens without a place, and those of the grid."""
    return np.pad(tokens.sincos2d(*grid, width), ((prefix, 0), (0, 0)))[None]


def square(n: int) -> Grid | None:
    """Returns the square grid of n positions, if there is one."""
    side = round(n**0.5)
    return (side, side) if side * side == n else None


def text(grid: Grid) -> str:
    """Returns a grid as messages have it: 2x8."""
    return f"{grid[0]}x{grid[1]}"
