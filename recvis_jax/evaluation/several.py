"""Examples with several classes each: one logistic regression per class, and mean average precision."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from recvis_jax.evaluation import cached, linear, metrics, one_vs_rest, paths
from recvis_jax.evaluation.cached import Features

_BIAS = 100.0  # makes the penalty on the bias negligible, so that rare classes get a suitable bias

Several = Num[np.ndarray, "_ _"]  # labels (n k) of 1, 0 and, for ignored entries, -1 or NaN


def mean_average_precision(scores: Float[np.ndarray, "n k"], labels: Several) -> float:
    """Returns the mean over classes of VOC 2007's average precision (11 points) of the ranked examples.

    Args:
      scores: larger for more likely classes.
      labels: 1, 0 and, for ignored entries, -1 or NaN.

    Example:
      >>> round(mean_average_precision(np.array([[0.9], [0.8], [0.1]], np.float32), np.array([[1], [0], [1]])), 4)
      0.8485
    """
    metric = metrics.mean_average_precision(scores.shape[1])
    state = {"scores": scores, "labels": np.asarray(labels, np.float32), "mask": np.ones(len(scores), bool)}
    return float(metric.compute(state)["mean_average_precision"])


def fit_path(
    features: Features,
    labels: Several,
    val_features: Features,
    val_labels: Several,
    *,
    num_classes: int,
    l2s: Sequence[float] = linear.L2S,
    refit: bool = False,
    patience: int | None = 2,
    max_iter: int = 100,
    tol: float = 1e-4,
    say: cached.Progress = cached.silent,
) -> linear.Chosen:
    """Logistic regression of every class on standardised features; the penalty is chosen by mean average precision.

    Minimises the mean over examples of log(1 + exp(-y f(x))) plus l2 / 2 ||kernel||² for every class, where the kernel
    is that of features with mean 0 and standard deviation 1 in the training data.

    Args, returns and errors: see `linear.fit_path`, with labels (n k) of 1, 0 and, for ignored entries, -1 or NaN;
    `val_accuracy` holds mean average precisions.

    Example:
      >>> x, labels = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32), np.array([[1, 0], [1, 1], [0, 1], [0, 1]])
      >>> fit_path(x, labels, x, labels, num_classes=2, l2s=(0.1, 0.01)).val_accuracy[0.1]
      1.0
    """
    features = cached.check_features(features, "training")
    targets = cached.check_targets(labels, len(features), num_classes, "training")
    val_features = cached.check_features(val_features, "validation", features.shape[1])
    val_targets = cached.check_targets(val_labels, len(val_features), num_classes, "validation")
    path = sorted(set(map(float, l2s)), reverse=True)
    linear.check_numbers(path, max_iter, tol)
    paths.check_patience(patience)
    mean, std = cached.moments([features])
    std = np.where(std > 1e-6 * np.abs(mean), std, np.inf)  # leaves out constant features

    def solve(examples: one_vs_rest.Examples, l2: float, before: linear.Classifier | None) -> linear.Classifier:
        k = num_classes
        start = jnp.zeros((examples.width, k)) if before is None else examples.weights(before.kernel, before.bias)
        c = 1 / (max(l2, 1e-12) * examples.n)
        end = one_vs_rest.minimise(examples, one_vs_rest.LOGISTIC, c, start, tol=tol, max_iter=max_iter)
        kernel, bias = examples.layer(end.weights)
        warning, loss = one_vs_rest.warning(end, tol, max_iter), float(np.sum(end.value)) / (c * examples.n)
        return linear.Classifier(kernel, bias, l2, loss, float("nan"), end.iterations, warning)

    def score(found: linear.Classifier) -> float:
        return mean_average_precision(cached.outputs(found.kernel, found.bias, val_features), val_labels)

    def load(both: bool) -> one_vs_rest.Examples:
        parts = [(features, targets), *([(val_features, val_targets)] if both else [])]
        return one_vs_rest.Examples(parts, mean, std, _BIAS)

    found = paths.choose(path, "l2", load, solve, score, refit=refit, patience=patience, say=say)
    iterations = {l2: c.iterations for l2, c in found.fits.items()}
    return linear.Chosen(found.fit, found.penalty, found.scores, iterations, found.warning)
