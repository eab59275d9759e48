"""From the descriptors of an image to one vector: assign, pool over regions of the image, normalise.

An encoder is a pair of pure functions. `assign` computes, once, how strongly each descriptor belongs to each word;
`pool` makes a vector from the descriptors in one region. The parts that encoders share (regions, masks, square roots,
norms) are here.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recvis_jax.classical import pyramid
from recvis_jax.errors import BadRequest

Norm = Literal["none", "l1", "l2"]
Weighting = Literal["region", "lazebnik"]
Encode = Callable[[Any, Array, Array, Array], Array]


class Encoder(NamedTuple):
    """The conversion of descriptors to a vector.

    Attributes:
      learns: kind of vocabulary: "words" (`kmeans.Words`) or "mixture" (`gmm.Mixture`).
      assign: (vocabulary, descriptors (b n d)) -> codes (b n k).
      pool: (vocabulary, codes, descriptors, mask of those that count (b n)) -> (b D).
      size: (k, d) -> D, of one region.
      root: whether the signed square root is taken.
      norm: of the vector of a region, after the root.
    """

    learns: Literal["words", "mixture"]
    assign: Callable[[Any, Array], Array]
    pool: Callable[[Any, Array, Array, Array], Array]
    size: Callable[[int, int], int]
    root: bool
    norm: Norm


def make(encoder: Encoder, layout: str = "1x1", weighting: Weighting = "region") -> Encode:
    """Returns `encode(vocabulary, descriptors (b n d), positions (b n 2), mask (b n)) -> (b D)`.

    Positions are x and y from 0 to 1; mask is false for missing descriptors. Without descriptors the result is zero.

    Args:
      encoder: made by a function in `recvis_jax.classical.ENCODERS`.
      layout: grids of regions, rows x columns, such as "1x1+2x2+3x1".
      weighting: "region" takes root and norm of each region separately and concatenates the results, like VLFeat.
        "lazebnik" pools over a region as part of the whole image, gives finer grids larger weights (1/4, 1/4, 1/2 for
        three), and takes root and norm of all together; such histograms are compared by intersection.

    Raises:
      BadRequest: an invalid layout; from `encode`, a vocabulary with another descriptor size.

    Reference: Lazebnik, Schmid and Ponce, 2006, "Beyond bags of features: spatial pyramid matching for recognizing
      natural scene categories".
    """
    grids = pyramid.parse(layout)

    def encode(
        vocabulary: Any, descriptors: Float[Array, "b n d"], positions: Float[Array, "b n 2"], mask: Bool[Array, "b n"]
    ) -> Float[Array, "b D"]:
        check_size(vocabulary, descriptors)
        codes = encoder.assign(vocabulary, descriptors)
        regions = [
            encoder.pool(vocabulary, codes, descriptors, mask & inside)
            for grid in grids
            for inside in pyramid.members(grid, positions)
        ]
        if weighting == "region":
            return jnp.concatenate([normalised(v, encoder.root, encoder.norm) for v in regions], axis=1)
        weights = pyramid.lazebnik(grids)
        return normalised(
            jnp.concatenate([w * v for w, v in zip(weights, regions, strict=True)], axis=1), encoder.root, encoder.norm
        )

    return encode


def size(encoder: Encoder, layout: str, k: int, d: int) -> int:
    """Returns the dimensions of an encoding with k words of d numbers.

    Example:
      >>> from recvis_jax import classical
      >>> size(classical.ENCODERS["fisher"](), "1x1+2x2+3x1", k=64, d=80)
      81920
    """
    return encoder.size(k, d) * sum(rows * columns for rows, columns in pyramid.parse(layout))


def normalised(x: Float[Array, "b d"], root: bool, norm: Norm) -> Float[Array, "b d"]:
    """Returns vectors after the signed square root, if `root`, and divided by their norm; zeros stay zeros.

    Example:
      >>> print(normalised(jnp.array([[-4.0, 9.0], [0.0, 0.0]]), root=True, norm="l1"))
      [[-0.4  0.6]
       [ 0.   0. ]]
    """
    x = jnp.sign(x) * jnp.sqrt(jnp.abs(x)) if root else x
    if norm == "none":
        return x
    length = jnp.sum(jnp.abs(x), 1) if norm == "l1" else jnp.sqrt(jnp.sum(x * x, 1))
    return x / jnp.where(length > 0, length, 1)[:, None]


def append_positions(
    descriptors: Float[Array, "b n d"], positions: Float[Array, "b n 2"], weight: float
) -> Float[Array, "b n e"]:
    """Returns descriptors with two more numbers: their positions (x, y) from -1/2 to 1/2, times `weight`.

    An alternative to the pyramid: words then depend on the place, too.

    Reference: Sanchez, Perronnin and de Campos, 2012, "Modeling the spatial layout of images beyond spatial pyramids".
    """
    return jnp.concatenate([descriptors, weight * (positions - 0.5)], axis=-1)


def check_size(vocabulary: Any, descriptors: Float[Array, "b n d"]) -> None:
    """Refuses a vocabulary with another descriptor size."""
    words = vocabulary.means if hasattr(vocabulary, "means") else vocabulary.centers
    if words.shape[1] != descriptors.shape[2]:
        raise BadRequest(f"descriptors have {descriptors.shape[2]} numbers, the vocabulary's words {words.shape[1]}.")
