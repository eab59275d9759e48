"""Principal components of descriptors, with or without whitening, in one pass."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from recvis_jax.classical import stream
from recvis_jax.classical.stream import Descriptors, Total
from recvis_jax.errors import BadRequest


class Projection(NamedTuple):
    """Principal components: `project` computes (x - mean) @ axes.

    Attributes:
      mean: of the descriptors.
      axes: the components, largest variance first; with whitening, each is divided by the standard deviation along it.
      variances: of the descriptors along the components, before whitening.
    """

    mean: Float[Array, " d"]
    axes: Float[Array, "d p"]
    variances: Float[Array, " p"]


def fit(
    descriptors: Descriptors, dims: int, *, whiten: bool = False, floor: float = 1e-6, rows: int = stream.ROWS
) -> Projection:
    """Computes the components of largest variance.

    Args:
      descriptors: an array (n d), or a function that returns an iterator over batches (n d).
      dims: number of components p, at most d.
      whiten: whether projections have variance 1.
      floor: whitening replaces variances below this fraction of the largest by that, so that constant directions are
        not scaled up.
      rows: descriptors per block.

    Raises:
      BadRequest: more components than a descriptor has numbers, or no descriptors.

    Example:
      >>> x = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], np.float32)
      >>> print(np.asarray(fit(x, 1).axes).round(3))
      [[0.707]
       [0.707]]
    """
    sums: tuple[Total, Total] | None = None
    shift, n = None, 0
    for x, real in stream.blocks(descriptors, rows):
        if sums is None:
            d = x.shape[1]
            if not 0 < dims <= d:
                raise BadRequest(f"{dims} components of descriptors of {d} numbers are impossible; ask for 1 to {d}.")
            sums = stream.zero(d), stream.zero(d, d)
            shift = x[real].mean(0)  # near the overall mean, so products keep their digits
        sums = _add(sums, shift, x, real)
        n += int(real.sum())
    if sums is None:
        raise BadRequest("there are no descriptors to learn from: all images are constant or too small.")
    first, second = (np.asarray(total.value, np.float64) / n for total in sums)
    variances, axes = np.linalg.eigh(second - np.outer(first, first))
    variances, axes = np.maximum(variances[::-1][:dims], 0), axes[:, ::-1][:, :dims]
    # The sign of an axis is arbitrary: the largest entry is made positive, so that equal data give equal axes.
    axes = axes * np.sign(axes[np.argmax(np.abs(axes), axis=0), np.arange(dims)])
    if whiten:
        axes = axes / np.sqrt(np.maximum(variances, floor * max(variances[0], np.finfo(np.float32).tiny)))
    mean = np.asarray(shift, np.float64) + first
    return Projection(*(jnp.asarray(a, jnp.float32) for a in (mean, axes, variances)))


@jax.jit
def project(projection: Projection, x: Float[Array, "*b d"]) -> Float[Array, "*b p"]:
    """Returns the coordinates of descriptors along the components.

    Raises:
      BadRequest: descriptors of the wrong size.
    """
    if x.shape[-1] != len(projection.mean):
        raise BadRequest(f"descriptors have {x.shape[-1]} numbers, the components {len(projection.mean)}.")
    return jnp.matmul(x - projection.mean, projection.axes, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _add(
    sums: tuple[Total, Total], shift: Float[Array, " d"], x: Float[Array, "r d"], real: Bool[Array, " r"]
) -> tuple[Total, Total]:
    x = jnp.where(real[:, None], x - shift, 0)
    products = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
    return stream.add(sums[0], x.sum(0)), stream.add(sums[1], products)
