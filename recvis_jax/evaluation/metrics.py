"""Metrics whose result does not depend on batching: with padding, over several devices, or one example at a time.

A `Metric` defines what to keep of a batch (`update`, to be jitted), how the parts of batches are merged (`accumulate`
does it on the host), and which numbers result (`compute`). `outputs` holds 'logits' or 'prediction' (b k), `batch`
holds 'label' and 'mask' (b). A row whose mask is False contributes exactly nothing, even if it is full of NaN. In a row
that counts, a NaN score is a wrong answer, and a NaN loss or error makes the mean NaN.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax.errors import BadRequest

PyTree = Any
Arrays = Mapping[str, jax.Array | np.ndarray]
Values = dict[str, float | np.ndarray]


class Metric(NamedTuple):
    """A metric: an update on the device, the rule to merge updates, and a computation on the host.

    Attributes:
      update: (outputs, batch) -> pytree of sums over the valid examples, or of rows {'scores', 'labels', 'mask'}.
      merge: 'sum' adds the pytrees (counts are integers, so this is exact), 'concat' joins their rows.
      compute: merged pytree -> values by name, floats or numpy arrays, in float64.
    """

    update: Callable[[Mapping[str, Any], Arrays], PyTree]
    merge: Literal["sum", "concat"]
    compute: Callable[[PyTree], Values]


def accumulate(metrics: Mapping[str, Metric], states: Iterable[Mapping[str, PyTree]]) -> Values:
    """Merges the states of all batches on the host, in float64, and computes every metric.

    Args:
      metrics: by the name under which each state holds its part.
      states: one per batch, {name: update's pytree}; may be a generator, which is read one batch ahead, so the device
        computes the next batch while this one is added.

    Returns:
      The values of all metrics in one dict.

    Raises:
      BadRequest: no states at all, two metrics that report the same value, or labels that do not fit the classes.
    """
    merged: dict[str, PyTree] = {}
    rows: dict[str, list[PyTree]] = {name: [] for name, metric in metrics.items() if metric.merge == "concat"}

    def add(state: Mapping[str, PyTree]) -> None:
        for name in metrics:
            part = jax.device_get(state[name])
            if name in rows:
                rows[name].append(part)
                continue
            part = jax.tree.map(lambda x: np.asarray(x, np.float64), part)
            merged[name] = jax.tree.map(np.add, merged[name], part) if name in merged else part

    previous = None
    for state in states:
        if previous is not None:
            add(previous)
        previous = state
    if previous is None:
        raise BadRequest("there is nothing to evaluate: the data have no batches.")
    add(previous)

    values: Values = {}
    for name, metric in metrics.items():
        if name in rows:
            merged[name] = jax.tree.map(lambda *parts: np.concatenate(parts), *rows.pop(name))
        computed = metric.compute(merged[name])
        if clash := values.keys() & computed.keys():
            raise BadRequest(f"metric {name!r} and one before it both report {', '.join(sorted(clash))}.")
        values |= computed
    return values


def accuracy() -> Metric:
    """The fraction of examples whose true class scores highest: `top_k(1)`, reported as 'accuracy'."""
    return top_k(1, name="accuracy")


def top_k(k: int = 5, *, name: str | None = None) -> Metric:
    """The fraction of examples whose true class is among the k highest scores.

    Among equal scores the class of the lower index ranks first, as in `jnp.argmax`: a constant output is right only for
    class 0. A row with a NaN score is wrong. The class of soft labels (b k) is their argmax.

    Args:
      k: >= 1; if there are at most k classes, the result is 1.
      name: name in the report; by default 'top_5' for k = 5.

    Returns:
      A metric of one value in [0, 1], NaN without examples.

    Raises:
      BadRequest: a k below 1, shapes that do not fit, labels outside the classes (these on `compute`).
    """
    if k < 1:
        raise BadRequest(f"top_k: k is {k}; it must be at least 1.")

    def update(outputs: Arrays, batch: Arrays) -> PyTree:
        scores, labels, fits, mask = _classes(outputs, batch)
        true = jnp.take_along_axis(scores, labels[:, None], axis=1)
        lower_index = jnp.arange(scores.shape[1]) < labels[:, None]
        rank = jnp.sum((scores > true) | ((scores == true) & lower_index), axis=1)
        return _mean_state((rank < k) & ~jnp.isnan(scores).any(axis=1), mask) | _misfits(fits, mask)

    return Metric(update, "sum", lambda state: {name or f"top_{k}": _mean(state)})


def per_class_accuracy(num_classes: int) -> Metric:
    """The fraction of right answers (as in `accuracy`) among the examples of each class.

    Args:
      num_classes: k, the width of the output.

    Returns:
      A metric of 'per_class_accuracy' (k,), NaN for a class without examples, and 'mean_per_class_accuracy', the
      unweighted mean over the classes with examples.

    Raises:
      BadRequest: an output that is not (b k), shapes that do not fit, labels outside the classes (on `compute`).
    """

    def update(outputs: Arrays, batch: Arrays) -> PyTree:
        scores, labels, fits, mask = _classes(outputs, batch, num_classes)
        right = (_predicted(scores) == labels) & mask & fits
        zeros = jnp.zeros(num_classes, jnp.int32)
        return {"sum": zeros.at[labels].add(right), "count": zeros.at[labels].add(mask & fits), **_misfits(fits, mask)}

    def compute(state: PyTree) -> Values:
        values = _ratio(state)
        return {"per_class_accuracy": values, "mean_per_class_accuracy": _mean_of_some(values)}

    return Metric(update, "sum", compute)


def confusion_matrix(num_classes: int) -> Metric:
    """Number of examples of each true class (rows) that were predicted as each class (columns).

    Args:
      num_classes: k, the width of the output.

    Returns:
      A metric of 'confusion_matrix' (k k), integers, and 'without_prediction', the number of examples left out because
      one of their scores is NaN.

    Raises:
      BadRequest: an output that is not (b k), shapes that do not fit, labels outside the classes (on `compute`).
    """

    def update(outputs: Arrays, batch: Arrays) -> PyTree:
        scores, labels, fits, mask = _classes(outputs, batch, num_classes)
        counts = jnp.zeros((num_classes, num_classes + 1), jnp.int32)
        return {"counts": counts.at[labels, _predicted(scores)].add(mask & fits), **_misfits(fits, mask)}

    def compute(state: PyTree) -> Values:
        _refuse_misfits(state)
        counts = np.asarray(state["counts"]).astype(np.int64)
        return {"confusion_matrix": counts[:, :-1], "without_prediction": float(counts[:, -1].sum())}

    return Metric(update, "sum", compute)


def mean_average_precision(
    num_classes: int, mode: Literal["voc11", "all"] = "voc11", *, name: str = "mean_average_precision"
) -> Metric:
    """The mean over classes of the average precision when all examples are ranked by their score for the class.

    Examples with equal scores enter the ranking together, so the result does not depend on their order. A NaN score is
    wrong: a positive is never found, a negative ranks before all others.

    Args:
      num_classes: k, the width of the output.
      mode: 'voc11', the mean over recalls 0, 0.1, ..., 1 of the best precision at that recall or beyond (VOC 2007); or
        'all', Σ_n (R_n - R_{n-1}) P_n over all thresholds, not interpolated (as in scikit-learn). Neither is the area
        under the envelope, as in VOC 2010-2012.
      name: name of the mean in the report.

    Returns:
      A metric of `name` and, as '<name>_per_class', the average precisions (k,): NaN for a class without positives,
      which the mean leaves out. Labels are classes (b), or multi-hot (b k) with -1 or NaN for ignored entries (VOC's
      "difficult").

    Raises:
      BadRequest: an unknown mode, shapes that do not fit, labels other than 0, 1, -1 and NaN (on `compute`).

    Reference:
      Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, 2010, section 4.2.
    """
    if mode not in ("voc11", "all"):
        raise BadRequest(f"mean_average_precision: mode is {mode!r}; it takes 'voc11' or 'all'.")

    def update(outputs: Arrays, batch: Arrays) -> PyTree:
        scores, labels = _scores_and_labels(outputs, batch, num_classes)
        if labels.ndim == 1:
            # A class out of range would become a row of zeros, negative for every class: mark it for `compute` instead.
            fits = (labels >= 0) & (labels < num_classes)
            labels = jnp.where(fits[:, None], jax.nn.one_hot(labels, num_classes), -2)
        return {"scores": scores, "labels": labels.astype(jnp.float32), "mask": jnp.asarray(batch["mask"], bool)}

    def compute(state: PyTree) -> Values:
        mask = np.asarray(state["mask"], bool)
        scores, labels = np.asarray(state["scores"])[mask], np.asarray(state["labels"])[mask]
        if wrong := int((~(np.isin(labels, (0, 1, -1)) | np.isnan(labels))).any(axis=1).sum()):
            raise BadRequest(
                f"mean_average_precision: the labels of {wrong} of {len(labels)} examples are neither classes in "
                f"[0, {num_classes}) nor made of 0, 1 and -1 (ignored)."
            )
        values = np.array([_average_precision(s, t, mode) for s, t in zip(scores.T, labels.T, strict=True)])
        return {name: _mean_of_some(values), f"{name}_per_class": values}

    return Metric(update, "concat", compute)


def mean_absolute_error() -> Metric:
    """The mean of |output - label|: over an example's values, then over examples. Shapes equal, or (b 1) and (b)."""
    return _mean_error("mean_absolute_error", jnp.abs)


def mean_squared_error() -> Metric:
    """The mean of (output - label)²: over an example's values, then over examples. Shapes equal, or (b 1) and (b)."""
    return _mean_error("mean_squared_error", jnp.square)


def loss(fn: Callable[[jax.Array, jax.Array], jax.Array] | None, *, name: str = "loss") -> Metric:
    """The mean over examples of a per-example loss, reported as `name`.

    Args:
      fn: (output, label) -> (b,); None if the outputs hold it as 'loss' (b), such as for an objective without labels.
      name: name in the report.
    """

    def update(outputs: Arrays, batch: Arrays) -> PyTree:
        losses = jnp.asarray(outputs["loss"]) if fn is None else fn(_output(outputs), jnp.asarray(batch["label"]))
        return _mean_state(losses.astype(jnp.float32), jnp.asarray(batch["mask"], bool))

    return Metric(update, "sum", lambda state: {name: _mean(state)})


def mean_of(key: str, name: str) -> Metric:
    """The mean over examples of the output `key` (b), reported as `name`."""

    def update(outputs: Arrays, batch: Arrays) -> PyTree:
        return _mean_state(jnp.asarray(outputs[key], jnp.float32), jnp.asarray(batch["mask"], bool))

    return Metric(update, "sum", lambda state: {name: _mean(state)})


def terms(weights: Mapping[str, float], *, name: str = "loss") -> Metric:
    """The loss of an objective with several terms over a whole split: sum_t weight_t (sum of t) / (count of t).

    Args:
      weights: of the terms; 1 for a term that is not named.
      name: name of the sum in the report; a term t is reported as `t_loss`, without its weight.

    Returns:
      A metric of outputs with 'terms' {t: (b,)} and 'counts' {t: (b,)}, see `tasks.Task`.
    """

    def update(outputs: Mapping[str, Any], batch: Arrays) -> PyTree:
        mask = jnp.asarray(batch["mask"], bool)
        parts = {"sum": outputs["terms"], "count": outputs["counts"]}
        return jax.tree.map(lambda x: jnp.where(mask, jnp.asarray(x, jnp.float32), 0).sum(), parts)

    def compute(state: PyTree) -> Values:
        means = {t: float(_ratio({"sum": s, "count": state["count"][t]})) for t, s in state["sum"].items()}
        total = sum(weights.get(t, 1.0) * mean for t, mean in means.items() if state["count"][t])
        return {name: float(total), **{f"{t}_loss": mean for t, mean in means.items()}}

    return Metric(update, "sum", compute)


METRICS: dict[str, Callable[..., Metric]] = {
    "accuracy": accuracy,
    "top_k": top_k,
    "per_class_accuracy": per_class_accuracy,
    "confusion_matrix": confusion_matrix,
    "mean_average_precision": mean_average_precision,
    "mean_absolute_error": mean_absolute_error,
    "mean_squared_error": mean_squared_error,
    "loss": loss,
}


def _average_precision(scores: np.ndarray, labels: np.ndarray, mode: str) -> float:
    """Returns the average precision of one class: scores (n,), labels (n,) of 1, 0, and -1 or NaN (ignored)."""
    kept = (labels == 0) | (labels == 1)
    scores, positive = scores[kept].astype(np.float64), labels[kept] == 1
    positives = int(positive.sum())
    if not positives:
        return float("nan")
    lost = np.isnan(scores) & positive
    scores, positive = np.where(np.isnan(scores), np.inf, scores)[~lost], positive[~lost]
    if not scores.size:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(positive[order])
    last = np.append(scores[1:] != scores[:-1], True)  # a threshold lies after the last of equal scores
    found, retrieved = found[last], np.arange(1, len(scores) + 1)[last]
    precision = found / retrieved
    if mode == "all":
        return float(np.sum(np.diff(found, prepend=0) * precision) / positives)
    # Recall >= i / 10 in integers: in floats, 3 found of 10 would be less than 3 * 0.1.
    return float(np.mean([np.max(precision[10 * found >= i * positives], initial=0.0) for i in range(11)]))


def _output(outputs: Arrays) -> jax.Array:
    for key in ("logits", "prediction"):
        if key in outputs:
            return jnp.asarray(outputs[key])
    raise BadRequest(f"metrics need 'logits' or 'prediction' among the outputs; there are: {', '.join(outputs)}.")


def _scores_and_labels(outputs: Arrays, batch: Arrays, num_classes: int | None) -> tuple[jax.Array, jax.Array]:
    """Returns scores (b k) in float32 and labels, integers (b) or any type (b k), or raises `BadRequest`."""
    scores, labels = _output(outputs), jnp.asarray(batch["label"])
    if scores.ndim != 2 or num_classes not in (None, scores.shape[1]):
        raise BadRequest(f"the output has shape {scores.shape}; the metric takes (b {num_classes or 'k'}).")
    integers = jnp.issubdtype(labels.dtype, jnp.integer)
    if labels.shape != scores.shape and not (labels.shape == scores.shape[:1] and integers):
        raise BadRequest(
            f"labels of shape {labels.shape} and type {labels.dtype} do not fit an output of shape {scores.shape}; "
            f"they must be integers of shape {scores.shape[:1]}, or of the output's shape."
        )
    return scores.astype(jnp.float32), labels.astype(jnp.int32) if labels.ndim == 1 else labels


def _classes(outputs: Arrays, batch: Arrays, num_classes: int | None = None) -> tuple[jax.Array, ...]:
    """Returns scores (b k), classes (b) clipped to [0, k), whether they were inside before (b), and the mask (b)."""
    scores, labels = _scores_and_labels(outputs, batch, num_classes)
    if labels.ndim == 2:
        fits, labels = ~jnp.isnan(labels.astype(jnp.float32)).any(axis=1), labels.argmax(axis=1)
    else:
        fits = (labels >= 0) & (labels < scores.shape[1])
    return scores, jnp.clip(labels, 0, scores.shape[1] - 1), fits, jnp.asarray(batch["mask"], bool)


def _predicted(scores: jax.Array) -> jax.Array:
    """Returns the class of the highest score (b,), or k if a score is NaN."""
    return jnp.where(jnp.isnan(scores).any(axis=1), scores.shape[1], scores.argmax(axis=1))


def _mean_state(values: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Returns the sum of the valid `values` (exact if bool, else float32) and their number. Never multiply: 0 * NaN."""
    zero = jnp.zeros((), jnp.int32 if values.dtype == bool else jnp.float32)
    return {"sum": jnp.where(mask, values.astype(zero.dtype), zero).sum(), "count": mask.sum(dtype=jnp.int32)}


def _mean_error(name: str, measure: Callable[[jax.Array], jax.Array]) -> Metric:
    def update(outputs: Arrays, batch: Arrays) -> PyTree:
        output, label = _output(outputs), jnp.asarray(batch["label"])
        if output.shape != label.shape and {output.shape, label.shape} != {label.shape[:1], (*label.shape[:1], 1)}:
            raise BadRequest(f"{name}: labels of shape {label.shape} do not fit an output of shape {output.shape}.")
        b = output.shape[0]
        error = measure(output.astype(jnp.float32).reshape(b, -1) - label.astype(jnp.float32).reshape(b, -1))
        return _mean_state(error.mean(axis=1), jnp.asarray(batch["mask"], bool))

    return Metric(update, "sum", lambda state: {name: _mean(state)})


def _misfits(fits: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Returns the number of labels that do not fit; devices cannot raise errors, so `compute` does."""
    return {"misfits": jnp.sum(mask & ~fits, dtype=jnp.int32)}


def _refuse_misfits(state: PyTree) -> None:
    if misfits := int(state.get("misfits", 0)):
        raise BadRequest(f"the labels of {misfits} examples are not among the classes of the output.")


def _ratio(state: PyTree) -> np.ndarray:
    """Returns sum / count in float64, NaN if the count is 0."""
    _refuse_misfits(state)
    total, count = np.asarray(state["sum"], np.float64), np.asarray(state["count"], np.float64)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _mean(state: PyTree) -> float:
    return float(_ratio(state))


def _mean_of_some(values: np.ndarray) -> float:
    """Returns the mean of the values that are not NaN, NaN if there are none."""
    some = values[~np.isnan(values)]
    return float(some.mean()) if some.size else float("nan")
