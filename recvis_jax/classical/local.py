"""Local descriptors: the common result of all descriptors, and the grids of dense ones."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from recvis_jax.errors import BadRequest


class Local(NamedTuple):
    """Descriptors of places in images, row by row.

    Attributes:
      descriptors: one per place; zeros if the image is flat or `mask` is false.
      positions: of their centres, x and y as fractions of the image: pixel (0, 0) of an image of width w and height h
        is centred on (0.5 / w, 0.5 / h). `pixels` gives them in pixels.
      scales: side of a spatial bin, of a cell or of a filter in pixels; distinguishes descriptors of several scales.
      mask: false on padding, for images with fewer descriptors than others in the batch.
      norms: contrast: the mass of a descriptor before normalisation, in a unit of the descriptor's own.
    """

    descriptors: Float[Array, "b n d"]
    positions: Float[Array, "b n 2"]
    scales: Float[Array, "b n"]
    mask: Bool[Array, "b n"]
    norms: Float[Array, "b n"]


class Grid(NamedTuple):
    """Positions of dense descriptors along one axis.

    Attributes:
      first: the centre of the first bin of the first descriptor, in pixels.
      step: from one descriptor to the next.
      places: number of descriptors.
      bin_size: from one bin of a descriptor to the next.
    """

    first: int
    step: int
    places: int
    bin_size: int

    @property
    def centers(self) -> Float[np.ndarray, " n"]:
        """The centres of the descriptors (of four bins) in pixels."""
        return (self.first + 1.5 * self.bin_size + self.step * np.arange(self.places)).astype(np.float32)


def grid(length: int, step: int, bin_size: int, first: int = 0) -> Grid:
    """Returns the grid of all descriptors of four bins on `length` pixels whose bins have their centres inside."""
    return Grid(first, step, (length - 1 - first - 3 * bin_size) // step + 1, bin_size)


def grids(h: int, w: int, step: int, bin_size: int, first: int = 0) -> tuple[Grid, Grid]:
    """Returns the grids of rows and columns.

    Raises:
      BadRequest: no descriptor fits into the image, or a size is below 1.

    Example:
      >>> rows, columns = grids(28, 40, step=4, bin_size=4)
      >>> rows.places, columns.places, rows.centers
      (4, 7, array([ 6., 10., 14., 18.], dtype=float32))
    """
    for name, value, least in (("step", step, 1), ("bin_size", bin_size, 1), ("first", first, 0)):
        if value < least:
            raise BadRequest(f"{name} is {value}; it takes a number of pixels of at least {least}.")
    least = first + 3 * bin_size + 1
    if min(h, w) < max(least, 2):
        raise BadRequest(
            f"images of {h} x {w} pixels are smaller than a descriptor: 4 bins of {bin_size} pixels"
            f"{f' from pixel {first}' if first else ''} need at least {least} x {least}. "
            "Use smaller bins or larger images."
        )
    return grid(h, step, bin_size, first), grid(w, step, bin_size, first)


def fractions(rows: Float[np.ndarray, " r"], columns: Float[np.ndarray, " c"], h: int, w: int) -> np.ndarray:
    """Returns the positions (r c 2), x and y from 0 to 1, of a grid of centres in pixels."""
    y, x = np.meshgrid((rows + 0.5) / h, (columns + 0.5) / w, indexing="ij")
    return np.stack([x, y], axis=-1).astype(np.float32)


def pixels(found: Local, h: int, w: int) -> Float[Array, "b n 2"]:
    """Returns the centres of descriptors, x and y in pixels, in images of `h` x `w`; (0, 0) is the first pixel."""
    return found.positions * np.array([w, h], np.float32) - 0.5


def join(parts: list[Local]) -> Local:
    """Concatenates descriptors of the same images, such as those of several scales."""
    import jax.numpy as jnp

    return Local(*(jnp.concatenate(values, axis=1) for values in zip(*parts, strict=True)))


def index(at: Grid, every: int) -> Int[np.ndarray, "n 4"]:
    """Returns for each descriptor the indices of its four bins on the grid of bins `every` pixels apart."""
    return np.arange(at.places)[:, None] * (at.step // every) + np.arange(4) * (at.bin_size // every)
