"""A discretised mixture of logistic distributions: a few numbers that give many ordered values their probabilities."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

PARAMETERS = 3  # of a logistic distribution: the score of its weight, its mean, the logarithm of its scale
_LEAST = -7.0  # smallest logarithm of a scale, as published


def log_probabilities(x: Float[Array, "... p"], levels: int) -> Float[Array, "... v"]:
    """Returns the log-probability of each of `levels` values, evenly spaced from -1 to 1; probabilities sum to 1.

    Value i gets the mass of the mixture within half a step around it, the first and last value also the tails.

    Args:
      x: scores of the weights (m), means (m) and logarithms of the scales (m) of a mixture of m, one after the other.
      levels: number of values, at least 2.

    Reference: Salimans et al. 2017, "PixelCNN++", section 2.1. Their linear dependence between colour channels is not
    needed where channels are predicted one after the other.

    Example: a narrow distribution around the middle of three values
      >>> p = jnp.exp(log_probabilities(jnp.array([0.0, 0.0, -3.0]), 3))
      >>> p.round(2).tolist(), round(float(p.sum()), 5)
      ([0.0, 1.0, 0.0], 1.0)
    """
    weights, means, scales = jnp.split(x.astype(jnp.float32)[..., None, :], PARAMETERS, axis=-1)
    values = np.linspace(-1, 1, levels, dtype=np.float32)[:, None]
    half = 1 / (levels - 1)
    narrow = jnp.exp(-jnp.maximum(scales, _LEAST))
    above, below = ((values + sign * half - means) * narrow for sign in (1, -1))
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)), which does not cancel; a is infinite at the
    # last value and -b at the first.
    first, last = (np.arange(levels)[:, None] == i for i in (0, levels - 1))
    to_above = jnp.where(last, 0.0, jax.nn.log_sigmoid(above))
    from_below = jnp.where(first, 0.0, jax.nn.log_sigmoid(-below))
    inside = jnp.where(first | last, 0.0, jnp.log(-jnp.expm1(-2 * half * narrow)))
    return jax.nn.logsumexp(jax.nn.log_softmax(weights) + to_above + from_below + inside, axis=-1)


def initial(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Float[Array, " p"]:
    """Initialises the bias of a layer that gives `x`: means spread over all values, scales that let them overlap."""
    m = shape[0] // PARAMETERS
    means = (2 * jnp.arange(m) + 1) / m - 1
    return jnp.concatenate([jnp.zeros(m), means, jnp.full(m, jnp.log(1 / m))]).astype(dtype)
