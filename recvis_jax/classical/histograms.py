"""Histograms of words: hard and soft assignment, and locality-constrained linear codes."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from recvis_jax.classical import kmeans, stream
from recvis_jax.classical.encoding import Encoder, Norm
from recvis_jax.errors import BadRequest

Pool = Literal["sum", "max"]


def hard(*, root: bool = False, norm: Norm = "l1") -> Encoder:
    """Counts how often each word is the nearest: the bag of visual words.

    Args:
      root: takes square roots of the relative counts; a linear kernel of the result is Hellinger's.
      norm: "l1" gives relative counts; with `root`, "l2" gives vectors of norm 1.

    Reference: Sivic and Zisserman, 2003, "Video Google"; Csurka et al., 2004, "Visual categorization with bags of
      keypoints".

    Example:
      >>> from recvis_jax.classical import encoding
      >>> encode = encoding.make(hard())
      >>> words = kmeans.fit(np.array([[0.0], [1.0]], np.float32), 2, start=np.array([[0.0], [1.0]]))
      >>> x, mask = jnp.array([[[0.1], [0.9], [0.8], [9.0]]]), jnp.array([[True, True, True, False]])
      >>> print(np.asarray(encode(words, x, jnp.zeros((1, 4, 2)), mask)).round(2))
      [[0.33 0.67]]
    """

    def assign(words: Any, x: Float[Array, "b n d"]) -> Float[Array, "b n k"]:
        nearest = kmeans.assign(words.centers, x.reshape(-1, x.shape[-1])).reshape(x.shape[:2])
        return jax.nn.one_hot(nearest, len(words.centers))

    return Encoder("words", assign, _pool("sum"), lambda k, d: k, root, norm)


def soft(
    *, sharpness: float = 10.0, neighbours: int = 0, pool: Pool = "sum", root: bool = False, norm: Norm = "l1"
) -> Encoder:
    """Divides each descriptor among words, in proportion to exp(-sharpness * squared distance).

    Args:
      sharpness: 1 / (2 sigma²) of the kernel, in the units of the descriptors.
      neighbours: number of nearest words that get a share; 0 for all.
      pool: "sum" or "max" over the descriptors.
      root, norm: see `hard`.

    Reference: van Gemert et al., 2008, "Kernel codebooks for scene categorization" (all words, sums); Liu, Wang and
      Liu, 2011, "In defense of soft-assignment coding" (few words, maxima).

    Example:
      >>> from recvis_jax.classical import encoding
      >>> words = kmeans.fit(np.array([[0.0], [1.0]], np.float32), 2, start=np.array([[0.0], [1.0]]))
      >>> x, mask = jnp.array([[[0.5], [0.0]]]), jnp.ones((1, 2), bool)
      >>> print(np.asarray(encoding.make(soft(sharpness=2.0))(words, x, jnp.zeros((1, 2, 2)), mask)).round(2))
      [[0.69 0.31]]
    """
    if neighbours < 0 or not sharpness > 0:
        raise BadRequest(f"sharpness is {sharpness} and neighbours is {neighbours}; they must be > 0 and >= 0.")

    def assign(words: Any, x: Float[Array, "b n d"]) -> Float[Array, "b n k"]:
        logits, k = -sharpness * stream.squared_distances(x.reshape(-1, x.shape[-1]), words.centers), len(words.centers)
        if 0 < neighbours < k:
            values, nearest = jax.lax.top_k(logits, neighbours)
            shares = _spread(jax.nn.softmax(values, axis=1), nearest, k)
        else:
            shares = jax.nn.softmax(logits, axis=1)
        return shares.reshape(*x.shape[:2], k)

    return Encoder("words", assign, _pool(pool), lambda k, d: k, root, norm)


def llc(
    *, neighbours: int = 5, penalty: float = 1e-4, pool: Pool = "max", root: bool = False, norm: Norm = "l2"
) -> Encoder:
    """Writes each descriptor as a combination of its nearest words, with coefficients that sum to 1.

    The coefficients c minimise ||x - Bᵀc||² + penalty * trace * ||c||², in closed form.

    Args:
      neighbours: number of words per descriptor.
      penalty: of the coefficients, relative to the trace of their matrix.
      pool: "max" or "sum" over the descriptors.
      root, norm: of the vector.

    Reference: Wang et al., 2010, "Locality-constrained linear coding for image classification", section 3.

    Example:
      >>> from recvis_jax.classical import encoding
      >>> words = kmeans.fit(np.array([[0.0], [1.0]], np.float32), 2, start=np.array([[0.0], [1.0]]))
      >>> x, mask = jnp.array([[[0.25]]]), jnp.ones((1, 1), bool)
      >>> encode = encoding.make(llc(neighbours=2, norm="none"))
      >>> print(np.asarray(encode(words, x, jnp.zeros((1, 1, 2)), mask)).round(2))
      [[0.75 0.25]]
    """
    if neighbours < 1 or not penalty > 0:
        raise BadRequest(f"neighbours is {neighbours} and penalty is {penalty}; they must be >= 1 and > 0.")

    def assign(words: Any, x: Float[Array, "b n d"]) -> Float[Array, "b n k"]:
        flat, centers = x.reshape(-1, x.shape[-1]), words.centers
        m = min(neighbours, len(centers))
        nearest = jax.lax.top_k(-stream.squared_distances(flat, centers), m)[1]
        shifted = centers[nearest] - flat[:, None]  # the words relative to the descriptor
        gram = jnp.einsum("nid,njd->nij", shifted, shifted, precision=jax.lax.Precision.HIGHEST)
        trace = jnp.trace(gram, axis1=1, axis2=2)[:, None, None]
        gram += (penalty * trace + 1e-12) * jnp.eye(m)
        c = jnp.linalg.solve(gram, jnp.ones((len(flat), m, 1)))[..., 0]
        c /= c.sum(1, keepdims=True)
        return _spread(c, nearest, len(centers)).reshape(*x.shape[:2], -1)

    return Encoder("words", assign, _pool(pool), lambda k, d: k, root, norm)


def _spread(values: Float[Array, "n m"], words: Int[Array, "n m"], k: int) -> Float[Array, "n k"]:
    """Spreads the values of a few words per row to rows for all words."""
    return jnp.zeros((len(values), k)).at[jnp.arange(len(values))[:, None], words].set(values)


def _pool(kind: Pool) -> Any:
    def total(words: Any, codes: Float[Array, "b n k"], x: Any, keep: Bool[Array, "b n"]) -> Float[Array, "b k"]:
        return jnp.sum(codes, axis=1, where=keep[..., None])

    def largest(words: Any, codes: Float[Array, "b n k"], x: Any, keep: Bool[Array, "b n"]) -> Float[Array, "b k"]:
        found = jnp.max(codes, axis=1, where=keep[..., None], initial=-jnp.inf)
        return jnp.where(keep.any(1, keepdims=True), found, 0)

    return {"sum": total, "max": largest}[kind]
