"""Cached features for the protocols: checked once, then read in blocks of float32."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from recvis_jax.errors import BadRequest

# (n d) and (n). No letters for the lengths: `check` compares them, so that users see its message.
Features = Float[jax.Array | np.ndarray, "_ _"]
Labels = Int[jax.Array | np.ndarray, " _"]
Targets = Int[jax.Array | np.ndarray, " _"] | Num[jax.Array | np.ndarray, "_ _"]  # one class per example, or several

Progress = Callable[[int, int], None]  # called with what is done and the total

_ROWS = 8192  # rows read at a time on the host


def silent(done: int, total: int) -> None:
    """A `Progress` that says nothing."""


def check(
    features: Any, labels: Any, num_classes: int, what: str = "training", width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns features (n d) and labels (n), see `check_features` and `check_labels`."""
    features = check_features(features, what, width)
    return features, check_labels(labels, len(features), num_classes, what)


def check_features(features: Any, what: str, width: int | None = None) -> np.ndarray:
    """Returns features as a numpy array (a memmap stays one), after checking that a protocol can use them.

    Args:
      features: (n d), floats.
      what: where they come from, for the message.
      width: d, if already known.

    Raises:
      BadRequest: wrong shape or type, no features at all, or numbers that are not finite in float32.
    """
    features = np.asanyarray(features)
    if features.ndim != 2 or not jnp.issubdtype(features.dtype, jnp.floating):
        raise BadRequest(
            f"{what} features are {features.dtype} of shape {features.shape}; they must be floats of shape (n, d)."
        )
    if not features.size:
        raise BadRequest(f"there are no {what} features: their shape is {features.shape}.")
    if width is not None and features.shape[1] != width:
        raise BadRequest(f"{what} features have {features.shape[1]} numbers each, the training features {width}.")
    for start in range(0, len(features), _ROWS):
        finite = np.isfinite(block(features, start, _ROWS)).all(axis=1)
        if not finite.all():
            raise BadRequest(
                f"{what} features of example {start + int(np.argmin(finite))} are not all finite in float32."
            )
    return features


def check_labels(labels: Any, n: int, num_classes: int, what: str) -> np.ndarray:
    """Returns labels as int32 if they are n integers in [0, num_classes); otherwise raises `BadRequest`."""
    labels = np.asarray(labels)
    if num_classes < 1:
        raise BadRequest(f"num_classes is {num_classes}; there must be at least one.")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise BadRequest(f"{what} labels are {labels.dtype} of shape {labels.shape}; they must be integers, (n,).")
    if len(labels) != n:
        raise BadRequest(f"there are {n} {what} features, but {len(labels)} {what} labels.")
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= num_classes))):
        raise BadRequest(
            f"{what} label {labels[wrong[0]]} of example {wrong[0]} is not one of the {num_classes} classes from 0 to "
            f"{num_classes - 1}; {len(wrong)} labels are wrong."
        )
    return labels.astype(np.int32)


def check_targets(labels: Any, n: int, num_classes: int, what: str) -> Int[np.ndarray, "n k"]:
    """Returns for every class 1 for its examples, -1 for others and 0 for ignored ones, as int8.

    Args:
      labels: classes (n), or (n k) of 1, 0 and, for ignored entries, -1 or NaN.
      n: the number of examples.
      num_classes: k.
      what: where they come from, for the message.

    Raises:
      BadRequest: labels of another shape, or with other values.

    Example:
      >>> check_targets(np.array([1, 0]), 2, 2, "training")
      array([[-1,  1],
             [ 1, -1]], dtype=int8)
      >>> check_targets(np.array([[1, -1, 0]]), 1, 3, "training")
      array([[ 1,  0, -1]], dtype=int8)
    """
    labels = np.asarray(labels)
    if labels.ndim != 2:
        classes = check_labels(labels, n, num_classes, what)
        return np.where(classes[:, None] == np.arange(num_classes), 1, -1).astype(np.int8)
    if labels.shape != (n, num_classes):
        raise BadRequest(f"{what} labels have shape {labels.shape}; for several classes it must be {(n, num_classes)}.")
    wrong = ~(np.isin(labels, (-1, 0, 1)) | np.isnan(labels)).all(axis=1)
    if wrong.any():
        raise BadRequest(f"{what} labels of example {int(np.argmax(wrong))} are not made of 1, 0 and -1 (ignored).")
    return np.where(labels == 1, 1, np.where(labels == 0, -1, 0)).astype(np.int8)


def block(x: np.ndarray, start: int, size: int, fill: float = 0, *, pad: bool = False) -> np.ndarray:
    """Reads at most `size` rows from `start` on; features as float32. `pad` fills up to `size` rows with `fill`."""
    part = x[start : start + size]
    with np.errstate(over="ignore"):  # becomes inf, which `check` reports
        part = np.asarray(part, np.int32 if np.issubdtype(x.dtype, np.integer) else np.float32)
    if pad and len(part) < size:
        part = np.pad(part, ((0, size - len(part)),) + ((0, 0),) * (part.ndim - 1), constant_values=fill)
    return part


def moments(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation (division by n) of every column (d) of all parts, float64, in two passes."""
    n = sum(len(x) for x in parts)

    def blocks() -> Iterator[np.ndarray]:
        return (block(x, start, _ROWS) for x in parts for start in range(0, len(x), _ROWS))

    mean = sum(x.sum(axis=0, dtype=np.float64) for x in blocks()) / n
    return mean, np.sqrt(sum(((x - mean) ** 2).sum(axis=0) for x in blocks()) / n)


def length(parts: Sequence[np.ndarray]) -> float:
    """Returns the root of the mean squared length of all rows.

    Example:
      >>> length([np.array([[3.0, 4.0], [0.0, 5.0]])])
      5.0
    """
    total = sum(
        float(np.einsum("nd,nd->", rows, rows, dtype=np.float64))
        for x in parts
        for rows in (block(x, start, _ROWS) for start in range(0, len(x), _ROWS))
    )
    return float(np.sqrt(total / sum(map(len, parts))))


def outputs(
    kernel: Float[np.ndarray, "d k"], bias: Float[np.ndarray, " k"], features: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n k"]:
    """Returns features @ kernel + bias in float32, computed in parts."""
    size = min(_ROWS, len(features))
    weights, offset = jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)
    parts = (block(features, at, size, pad=True) for at in range(0, len(features), size))
    return np.concatenate([np.asarray(_affine(x, weights, offset)) for x in parts])[: len(features)]


def predict(kernel: np.ndarray, bias: np.ndarray, features: np.ndarray) -> Int[np.ndarray, " n"]:
    """Returns the class of the largest output of a linear layer; in ties the lowest index."""
    return np.argmax(outputs(kernel, bias, features), axis=1).astype(np.int32)


def accuracy(scores: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> float:
    """Returns the fraction of examples with the largest score for their class; in ties the lowest class counts."""
    return float(np.mean(np.argmax(scores, axis=1) == labels))


@jax.jit
def _affine(x: Float[Array, "n d"], kernel: Float[Array, "d k"], bias: Float[Array, " k"]) -> Float[Array, "n k"]:
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST) + bias
