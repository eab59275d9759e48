"""Spatial pyramids: grids of regions over an image."""

import re
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recvis_jax.errors import BadRequest, shown

_MOST = 256  # regions

Grid = tuple[int, int]


def parse(layout: str) -> tuple[Grid, ...]:
    """Reads a layout, grids of rows x columns.

    Raises:
      BadRequest: an invalid layout, or one with more than 256 regions.

    Example:
      >>> parse("1x1+2x2+3x1")
      ((1, 1), (2, 2), (3, 1))
    """
    parts = layout.split("+")
    if not all(re.fullmatch(r"[1-9]\d?x[1-9]\d?", part, re.ASCII) for part in parts):
        raise BadRequest(f"the pyramid {shown(layout)} is invalid; give grids of rows x columns, as '1x1+2x2+3x1'.")
    grids = tuple((int(rows), int(columns)) for rows, columns in (part.split("x") for part in parts))
    if (count := sum(rows * columns for rows, columns in grids)) > _MOST:
        raise BadRequest(f"the pyramid {shown(layout)} has {count:,} regions; at most {_MOST} are allowed.")
    return grids


def members(grid: Grid, positions: Float[Array, "b n 2"]) -> list[Bool[Array, "b n"]]:
    """Returns for each region of a grid, row by row, which positions (x, y from 0 to 1) lie in it.

    Every position lies in one region; a position on a border belongs to the region to its right or below.

    Example:
      >>> [m.tolist() for m in members((2, 1), jnp.array([[[0.5, 0.2], [0.5, 0.5]]]))]
      [[[True, False]], [[False, True]]]
    """
    rows, columns = grid
    column = jnp.clip(jnp.floor(positions[..., 0] * columns), 0, columns - 1)
    row = jnp.clip(jnp.floor(positions[..., 1] * rows), 0, rows - 1)
    return [(row == i) & (column == j) for i in range(rows) for j in range(columns)]


def lazebnik(grids: Sequence[Grid]) -> list[float]:
    """Returns the weight of each region: 2^-L for the first of L + 1 grids, 2^(l - L - 1) for grid l after it.

    Reference: Lazebnik, Schmid and Ponce, 2006, equation 3.

    Example:
      >>> lazebnik(((1, 1), (2, 1), (1, 3)))
      [0.25, 0.25, 0.25, 0.5, 0.5, 0.5]
    """
    last = len(grids) - 1
    weights = [2.0 ** (max(level, 1) - last - 1) for level in range(len(grids))]
    return [w for w, (rows, columns) in zip(weights, grids, strict=True) for _ in range(rows * columns)]
