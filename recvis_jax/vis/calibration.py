"""Calibration of probabilities: of the predictions made with 80 %, 80 % should be right."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from recvis_jax.errors import BadRequest


class Reliability(NamedTuple):
    """A reliability diagram.

    Attributes:
      confidence: mean probability of the predicted class in each bin; NaN in an empty one.
      accuracy: fraction of the bin's predictions that are right; NaN in an empty one.
      counts: predictions in each bin.
      error: expected calibration error, the mean over predictions of |accuracy - confidence| of their bin.
    """

    confidence: Float[np.ndarray, " m"]
    accuracy: Float[np.ndarray, " m"]
    counts: Int[np.ndarray, " m"]
    error: float


def reliability(probabilities: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], bins: int = 15) -> Reliability:
    """Compares the probability of predicted classes with their frequency of being right, in bins of equal width.

    Args:
      probabilities: of the classes.
      labels: true classes.
      bins: m, of probabilities in (i / m, (i + 1) / m].

    Raises:
      BadRequest: no examples, another number of labels, or no bin.

    Reference: Guo et al. 2017, "On calibration of modern neural networks", section 2.

    Example:
      >>> found = reliability(np.array([[0.9, 0.1], [0.7, 0.3]]), np.array([0, 1]), 2)
      >>> found.accuracy.tolist(), round(found.error, 3)
      ([nan, 0.5], 0.3)
    """
    p = np.asarray(probabilities, np.float64)
    if not len(p) or len(p) != len(labels) or bins < 1:
        raise BadRequest(f"{len(p)} predictions with {len(labels)} labels in {bins} bins show no calibration.")
    best = p.max(1)
    right = (p.argmax(1) == np.asarray(labels)).astype(np.float64)
    which = np.clip(np.ceil(best * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(which, best, bins) / count
        accuracy = np.bincount(which, right, bins) / count
    error = float(np.nansum(np.abs(accuracy - confidence) * count) / len(p))
    return Reliability(confidence, accuracy, count, error)
