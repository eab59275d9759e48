"""A classifier's outcome for each example: the probabilities of the true class and of the predicted class."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped


class Outcomes(NamedTuple):
    """Outcomes of n examples, in the order of their split.

    Attributes:
      label: true classes (n).
      predicted: classes of the highest score (n), in ties the first, like `metrics.accuracy`.
      p_true, p_predicted: probabilities of these classes (n), by softmax.
    """

    label: Int[np.ndarray, " _"]
    predicted: Int[np.ndarray, " _"]
    p_true: Float[np.ndarray, " _"]
    p_predicted: Float[np.ndarray, " _"]

    @property
    def right(self) -> np.ndarray:
        """Which examples are predicted correctly (n), bool."""
        return self.label == self.predicted

    @property
    def accuracy(self) -> float:
        """The fraction of examples predicted correctly."""
        return float(self.right.mean())


def of_scores(scores: Float[Array, "b k"], label: Shaped[Array, "b"]) -> dict[str, Array]:
    """Returns the outcomes of a batch, to be jitted; a row with a NaN score is a wrong answer with probability 0.

    Args:
      scores: logits; the outputs of a model trained with squared errors are treated as logits, too.
      label: classes.

    Example:
      >>> found = of_scores(jnp.log(jnp.array([[0.2, 0.8]])), jnp.array([0]))
      >>> found["predicted"].tolist(), found["p_true"].round(3).tolist()
      ([1], [0.20000000298023224])
    """
    p = jax.nn.softmax(scores.astype(jnp.float32))
    bad = jnp.isnan(scores).any(-1)
    predicted = jnp.where(bad, (label + 1) % scores.shape[-1], scores.argmax(-1))
    rows = jnp.arange(len(p))
    return {
        "label": label,
        "predicted": predicted,
        "p_true": jnp.where(bad, 0, p[rows, label]),
        "p_predicted": jnp.where(bad, 0, p[rows, predicted]),
    }


def collect(parts: Iterable[tuple[Any, Any]]) -> Outcomes:
    """Joins the outcomes of batches.

    Args:
      parts: for each batch (outcomes of `of_scores`, mask (b), true on real examples).
    """
    rows = [{k: np.asarray(v)[np.asarray(mask, bool)] for k, v in found.items()} for found, mask in parts]
    joined = {name: np.concatenate([r[name] for r in rows]) for name in Outcomes._fields}
    return Outcomes(**joined)


def confusion(found: Outcomes, num_classes: int) -> Int[np.ndarray, "k k"]:
    """Counts the examples of each true class (row) that were predicted as each class (column).

    Example:
      >>> one = np.zeros(2)
      >>> confusion(Outcomes(np.array([0, 1]), np.array([1, 1]), one, one), 2).tolist()
      [[0, 1], [0, 1]]
    """
    cells = np.bincount(found.label * num_classes + found.predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def worst(found: Outcomes, count: int) -> list[int]:
    """Returns the examples with the lowest probability of the true class: the highest loss, right or wrong."""
    return np.argsort(found.p_true, kind="stable")[:count].tolist()


def confident(found: Outcomes, count: int) -> list[int]:
    """Returns the wrongly predicted examples with the highest probability of the predicted class."""
    order = np.argsort(-found.p_predicted, kind="stable")
    return order[~found.right[order]][:count].tolist()


def drawn(found: Outcomes, count: int, seed: int = 0) -> list[int]:
    """Returns randomly drawn examples."""
    return sorted(np.random.default_rng(seed).permutation(len(found.label))[:count].tolist())
