"""Cached features as the protocols on them take them: checked once, then read in blocks of float32."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from recvis_jax.errors import BadRequest

# (n d) and (n). Lengths are compared by `check`, whose sentence is what a user is to see: hence no letters for them.
Features = Float[jax.Array | np.ndarray, "_ _"]
Labels = Int[jax.Array | np.ndarray, " _"]

Progress = Callable[[int, int], None]  # is told how much is done, and how much there is in all

_ROWS = 8192  # read at a time on the host


def silent(done: int, total: int) -> None:
    """A `Progress` that says nothing."""


def check(
    features: Any, labels: Any, num_classes: int, what: str = "training", width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns features (n d) and labels (n) as `check_features` and `check_labels` do."""
    features = check_features(features, what, width)
    return features, check_labels(labels, len(features), num_classes, what)


def check_features(features: Any, what: str, width: int | None = None) -> np.ndarray:
    """Returns features as a numpy array (a memmap stays one), if they are what a protocol can work with.

    Args:
      features: (n d), floats.
      what: whose they are, for the message.
      width: d, where it is known already.

    Raises:
      BadRequest: another shape or type, no numbers at all, or some that are not finite in float32.
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
                f"{what} features of example {start + int(np.argmin(finite))} are not all finite numbers of float32."
            )
    return features


def check_labels(labels: Any, n: int, num_classes: int, what: str) -> np.ndarray:
    """Returns labels as int32, if they are n integers in [0, num_classes); raises `BadRequest` otherwise."""
    labels = np.asarray(labels)
    if num_classes < 1:
        raise BadRequest(f"num_classes is {num_classes}; there must be at least one.")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise BadRequest(f"{what} labels are {labels.dtype} of shape {labels.shape}; they must be integers, (n,).")
    if len(labels) != n:
        raise BadRequest(f"there are {n} {what} features, but {len(labels)} {what} labels.")
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= num_classes))):
        raise BadRequest(
            f"{what} label {labels[wrong[0]]} of example {wrong[0]} is none of the {num_classes} classes from 0 to "
            f"{num_classes - 1}; there are {len(wrong)} such."
        )
    return labels.astype(np.int32)


def block(x: np.ndarray, start: int, size: int, fill: float = 0, *, pad: bool = False) -> np.ndarray:
    """Reads rows from `start` on, at most `size`; features as float32. With `pad`, as many, the missing ones `fill`."""
    part = x[start : start + size]
    with np.errstate(over="ignore"):  # becomes inf, which `check` reports
        part = np.asarray(part, np.int32 if np.issubdtype(x.dtype, np.integer) else np.float32)
    if pad and len(part) < size:
        part = np.pad(part, ((0, size - len(part)),) + ((0, 0),) * (part.ndim - 1), constant_values=fill)
    return part


def moments(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation (divided by n) of every column (d) of all parts, float64, in two passes."""
    n = sum(len(x) for x in parts)

    def blocks() -> Iterator[np.ndarray]:
        return (block(x, start, _ROWS) for x in parts for start in range(0, len(x), _ROWS))

    mean = sum(x.sum(axis=0, dtype=np.float64) for x in blocks()) / n
    return mean, np.sqrt(sum(((x - mean) ** 2).sum(axis=0) for x in blocks()) / n)
