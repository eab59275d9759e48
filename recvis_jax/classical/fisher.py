"""Fisher vectors: the gradient of the descriptors' log-likelihood with respect to a Gaussian mixture's parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recvis_jax.classical import gmm
from recvis_jax.classical.encoding import Encoder, Norm


def fisher(*, root: bool = True, norm: Norm = "l2") -> Encoder:
    """Encodes the differences between descriptors and a mixture in mean and variance, component by component.

    For component k with weight w, mean m and deviation s, and posteriors g of n descriptors, these are Σ g (x - m) / s
    / (n √w) and Σ g ((x - m)² / s² - 1) / (n √(2 w)); first all means, then all variances.

    Args:
      root: takes the signed square root. Root and norm give the improved Fisher vector; neither gives the plain one.
      norm: after the root.

    Reference: Perronnin and Dance, 2007, "Fisher kernels on visual vocabularies for image categorization"; Perronnin,
      Sanchez and Mensink, 2010, "Improving the Fisher kernel for large-scale image classification".

    Example:
      >>> from recvis_jax.classical import encoding
      >>> one = jnp.ones((1, 1))
      >>> mixture = gmm.Mixture(jnp.ones(1), 0 * one, one, jnp.array(0.0), jnp.array(0), jnp.array(True))
      >>> x, mask = jnp.array([[[1.0], [3.0], [9.0]]]), jnp.array([[True, True, False]])
      >>> encode = encoding.make(fisher(root=False, norm="none"))
      >>> print(np.asarray(encode(mixture, x, jnp.zeros((1, 3, 2)), mask)).round(2))
      [[2.   2.83]]
    """

    def assign(mixture: Any, x: Float[Array, "b n d"]) -> Float[Array, "b n k"]:
        return gmm.posteriors(mixture, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1)

    def pool(
        mixture: Any, codes: Float[Array, "b n k"], x: Float[Array, "b n d"], keep: Bool[Array, "b n"]
    ) -> Float[Array, "b D"]:
        codes = jnp.where(keep[..., None], codes, 0)
        shift = mixture.means.mean(0)  # descriptors far from 0 would lose digits
        x, means, deviations = x - shift, mixture.means - shift, jnp.sqrt(mixture.variances)
        both = jnp.einsum(
            "bnk,bnd->bkd", codes, jnp.concatenate([x, x * x], axis=-1), precision=jax.lax.Precision.HIGHEST
        )
        first, second = jnp.split(both, 2, axis=-1)
        mass = codes.sum(1)[..., None]
        by_mean = (first - mass * means) / deviations
        by_variance = (second - 2 * means * first + mass * means**2) / mixture.variances - mass
        n = jnp.maximum(keep.sum(1), 1)[:, None, None]
        weights = jnp.sqrt(jnp.maximum(mixture.weights, 1e-10))[:, None]
        out = jnp.stack([by_mean, by_variance / jnp.sqrt(2.0)], axis=1) / (n * weights)[:, None]
        return out.reshape(len(x), -1)

    return Encoder("mixture", assign, pool, lambda k, d: 2 * k * d, root, norm)
