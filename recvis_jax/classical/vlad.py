"""VLAD: sums of the differences between descriptors and their words."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recvis_jax.classical import histograms
from recvis_jax.classical.encoding import Encoder, Norm


def vlad(*, intra: bool = True, root: bool = False, norm: Norm = "l2") -> Encoder:
    """Sums the differences between descriptors and their nearest word, word by word.

    Args:
      intra: divides the sum of each word by its norm, so that no word dominates.
      root: takes the signed square root of the sums, before `intra`, like VLFeat.
      norm: of the whole vector, at the end.

    Reference: Jegou et al., 2010, "Aggregating local descriptors into a compact image representation"; Arandjelovic
      and Zisserman, 2013, "All about VLAD" (`intra`).

    Example:
      >>> from recvis_jax.classical import encoding, kmeans
      >>> words = kmeans.fit(np.array([[0.0], [4.0]], np.float32), 2, start=np.array([[0.0], [4.0]]))
      >>> x, mask = jnp.array([[[1.0], [2.0], [3.0]]]), jnp.array([[True, False, True]])
      >>> encoding.make(vlad(intra=False, norm="none"))(words, x, jnp.zeros((1, 3, 2)), mask).tolist()
      [[1.0, -1.0]]
    """

    def pool(
        words: Any, codes: Float[Array, "b n k"], x: Float[Array, "b n d"], keep: Bool[Array, "b n"]
    ) -> Float[Array, "b D"]:
        codes = jnp.where(keep[..., None], codes, 0)
        centers = words.centers
        shift = centers.mean(0)  # descriptors far from 0 would lose digits
        sums = jnp.einsum("bnk,bnd->bkd", codes, x - shift, precision=jax.lax.Precision.HIGHEST)
        sums -= codes.sum(1)[..., None] * (centers - shift)
        if intra and root:
            sums = jnp.sign(sums) * jnp.sqrt(jnp.abs(sums))
        if intra:
            length = jnp.sqrt(jnp.sum(sums**2, axis=2, keepdims=True))
            sums /= jnp.where(length > 0, length, 1)
        return sums.reshape(len(x), -1)

    return Encoder("words", histograms.hard().assign, pool, lambda k, d: k * d, root and not intra, norm)
