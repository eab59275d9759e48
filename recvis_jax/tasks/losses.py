"""Losses, one number per example: (b ...) and labels -> (b,), in float32 whatever the input's dtype.

Nothing here is masked or reduced over the batch; the step does both. Class labels outside [0, k) are refused on the
host when data are read. Compiled code cannot raise an error, so here such a label makes its example's loss NaN, which
stops the run. The gradient stays finite, so a padded row may hold any label as long as its loss is masked.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Shaped

from recvis_jax.errors import BadRequest

AnyArray = Array | np.ndarray


def softmax_cross_entropy(
    logits: Float[AnyArray, "..."], labels: Shaped[AnyArray, "..."], *, label_smoothing: float = 0.0
) -> Float32[Array, "b"]:
    """Computes -Σ_k y_k log softmax(logits)_k, in nats.

    Args:
      logits: unnormalised log probabilities, (b k).
      labels: classes (b), integers in [0, k), or target distributions (b k), whose rows should sum to 1.
      label_smoothing: a in [0, 1); the targets become (1 - a) y + a / k.

    Returns:
      Losses (b,), float32. NaN where a label lies outside [0, k) or a target is negative or NaN.

    Raises:
      BadRequest: shapes that do not fit, labels (b) that are not integers, a smoothing outside [0, 1).

    Reference:
      Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, section 7 (smoothing).
    """
    _check_smoothing(label_smoothing)
    logits, labels = _class_arrays(logits, labels, "softmax")
    if labels.ndim == 1 and not label_smoothing:
        # Without one-hot targets, a logit of -inf (an excluded class) is harmless: there is no 0 * inf.
        classes, valid = _in_range(labels, logits.shape[1])
        return _nan_unless(valid, optax.losses.softmax_cross_entropy_with_integer_labels(logits, classes))
    targets, valid = _one_hot(labels, logits.shape[1]) if labels.ndim == 1 else _distributions(labels)
    if label_smoothing:
        targets = optax.losses.smooth_labels(targets, label_smoothing)
    return _nan_unless(valid, optax.losses.safe_softmax_cross_entropy(logits, targets))


def sigmoid_cross_entropy(
    logits: Float[AnyArray, "..."],
    labels: Shaped[AnyArray, "..."],
    *,
    label_smoothing: float = 0.0,
    reduction: Literal["sum", "mean"] = "sum",
) -> Float32[Array, "b"]:
    """Computes the binary cross entropies -y log σ(x) - (1 - y) log σ(-x) of k classes and adds them up, in nats.

    Args:
      logits: log odds, (b k).
      labels: classes (b), integers in [0, k), taken as one-hot; or multi-hot or soft targets (b k) in [0, 1], where -1
        marks an entry to ignore (PASCAL VOC's "difficult"). With a single logit (b 1), labels (b) are the binary
        targets themselves.
      label_smoothing: a in [0, 1); the targets become (1 - a) y + a / max(k, 2), as in timm for k > 1.
      reduction: over the classes that are not ignored, "sum" (big_vision) or "mean" (timm, and "ResNet strikes back");
        gradients differ by the factor k, so suitable learning rates do too.

    Returns:
      Losses (b,), float32. NaN if a class is outside [0, k), or a target is outside [0, 1] and not -1; 0 if all
      entries are ignored.

    Raises:
      BadRequest: shapes that do not fit, labels (b) that are not integers, an unknown reduction, a smoothing outside
        [0, 1).

    Reference:
      Beyer et al., Are we done with ImageNet?, 2020; Wightman et al., ResNet strikes back, 2021.
    """
    _check_smoothing(label_smoothing)
    if reduction not in ("sum", "mean"):
        raise BadRequest(f"sigmoid loss: reduction is {reduction!r}; it takes 'sum' or 'mean'.")
    logits, labels = _class_arrays(logits, labels, "sigmoid")
    k = logits.shape[1]
    if labels.ndim == 2:
        targets = labels.astype(jnp.float32)
        counted = targets != -1
    else:
        targets = labels.astype(jnp.float32)[:, None] if k == 1 else _one_hot(labels, k)[0]
        counted = jnp.ones_like(targets, bool)
    valid = jnp.all(((targets >= 0) & (targets <= 1)) | ~counted, axis=1)
    if labels.ndim == 1 and k > 1:
        valid = _in_range(labels, k)[1]
    # Replace bad targets before the formula too: a NaN that is only masked afterwards still reaches the gradient.
    targets = jnp.where(counted & valid[:, None], targets, 0.0)
    targets = (1 - label_smoothing) * targets + label_smoothing / max(k, 2)
    losses = jnp.where(counted, optax.losses.sigmoid_binary_cross_entropy(logits, targets), 0.0).sum(axis=1)
    if reduction == "mean":
        losses = losses / jnp.maximum(counted.sum(axis=1), 1)
    return _nan_unless(valid, losses)


def l1(predictions: Shaped[AnyArray, "..."], targets: Shaped[AnyArray, "..."]) -> Float32[Array, "b"]:
    """Computes the mean of |prediction - target| over all axes but the first; arguments and errors as in `l2`."""
    predictions, targets, valid = _regression_arrays(predictions, targets, "l1")
    return _nan_unless(valid, _mean_over_rest(jnp.abs(predictions - targets)))


def l2(predictions: Shaped[AnyArray, "..."], targets: Shaped[AnyArray, "..."]) -> Float32[Array, "b"]:
    """Computes the mean of (prediction - target)² over all axes but the first; there is no factor 1/2.

    Args:
      predictions: (b ...).
      targets: values of the same shape; or (b) with predictions (b 1), and the other way round; or classes (b),
        integers in [0, k), with predictions (b k) and k > 1, taken as one-hot targets.

    Returns:
      Losses (b,), float32. NaN where a class lies outside [0, k).

    Raises:
      BadRequest: shapes that do not fit (nothing is broadcast).
    """
    predictions, targets, valid = _regression_arrays(predictions, targets, "l2")
    return _nan_unless(valid, _mean_over_rest(optax.losses.squared_error(predictions, targets)))


def huber(
    predictions: Shaped[AnyArray, "..."], targets: Shaped[AnyArray, "..."], *, delta: float = 1.0
) -> Float32[Array, "b"]:
    """Computes the mean Huber loss: e²/2 where |e| <= delta, delta (|e| - delta/2) beyond; half of `l2` for small e.

    Args:
      predictions: (b ...).
      targets: as in `l2`.
      delta: > 0, in the targets' units.

    Returns:
      Losses (b,), float32. NaN where a class lies outside [0, k).

    Raises:
      BadRequest: shapes that do not fit, a delta that is not positive.

    Reference:
      Huber, Robust Estimation of a Location Parameter, 1964.
    """
    if not delta > 0:
        raise BadRequest(f"huber loss: delta is {delta}; it must be positive.")
    predictions, targets, valid = _regression_arrays(predictions, targets, "huber")
    return _nan_unless(valid, _mean_over_rest(optax.losses.huber_loss(predictions, targets, delta=delta)))


LOSSES: dict[str, Callable[..., Array]] = {
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
    "l1": l1,
    "l2": l2,
    "huber": huber,
}


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise BadRequest(f"label_smoothing is {label_smoothing}; it must lie in [0, 1).")


def _class_arrays(logits: AnyArray, labels: AnyArray, name: str) -> tuple[Array, Array]:
    """Returns logits (b k) in float32 beside labels (b) or (b k), or raises `BadRequest`."""
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    if logits.ndim != 2:
        raise BadRequest(f"{name} loss: logits have shape {logits.shape}, labels {labels.shape}; logits must be (b k).")
    b, k = logits.shape
    if labels.shape not in ((b,), (b, k)):
        raise BadRequest(
            f"{name} loss: labels of shape {labels.shape} do not fit logits of shape {logits.shape}; "
            f"they must be ({b},) or ({b}, {k})."
        )
    binary = name == "sigmoid" and k == 1
    if labels.ndim == 1 and not binary and not jnp.issubdtype(labels.dtype, jnp.integer):
        raise BadRequest(
            f"{name} loss: labels of shape {labels.shape} with logits of shape {logits.shape} are classes and must "
            f"be integers, not {labels.dtype}."
        )
    return logits, labels


def _regression_arrays(predictions: AnyArray, targets: AnyArray, name: str) -> tuple[Array, Array, Bool[Array, "b"]]:
    """Returns predictions and targets of the same shape (b ...) in float32, and (b,) whether labels are in range."""
    predictions, targets = jnp.asarray(predictions, jnp.float32), jnp.asarray(targets)
    p, t = predictions.shape, targets.shape
    valid = jnp.ones(p[:1], bool)
    if p and p != t and p[:1] == t[:1] and sorted((len(p), len(t))) == [1, 2]:
        if (*p, 1)[:2] == (*t, 1)[:2]:  # (b 1) with (b)
            targets = targets.reshape(p)
        elif len(t) == 1 and p[1] > 1 and jnp.issubdtype(targets.dtype, jnp.integer):
            targets, valid = _one_hot(targets, p[1])
    if not p or targets.shape != p:
        raise BadRequest(
            f"{name} loss: targets of shape {t} and type {targets.dtype} do not fit predictions of shape {p}; they "
            "must have the same shape, or be integer classes (b) with predictions (b k)."
        )
    return predictions, targets.astype(jnp.float32), valid


def _in_range(labels: Array, k: int) -> tuple[Array, Bool[Array, "b"]]:
    """Returns the classes clipped to [0, k), so that they are always valid indices, and which were in range."""
    labels = labels.astype(jnp.int32)  # a narrow type, such as uint8, may not hold k
    return jnp.clip(labels, 0, k - 1), (labels >= 0) & (labels < k)


def _one_hot(labels: Array, k: int) -> tuple[Float32[Array, "b k"], Bool[Array, "b"]]:
    classes, valid = _in_range(labels, k)
    return jax.nn.one_hot(classes, k, dtype=jnp.float32), valid


def _distributions(labels: Array) -> tuple[Float32[Array, "b k"], Bool[Array, "b"]]:
    targets = labels.astype(jnp.float32)
    valid = jnp.all(targets >= 0, axis=1)
    return jnp.where(valid[:, None], targets, 0.0), valid


def _mean_over_rest(losses: Array) -> Array:
    return losses.mean(axis=tuple(range(1, losses.ndim)))


def _nan_unless(valid: Bool[Array, "b"], losses: Float32[Array, "b"]) -> Float32[Array, "b"]:
    return jnp.where(valid, losses, jnp.nan)
