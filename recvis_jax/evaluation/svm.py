"""Linear support vector machines: squared hinge, each class against all others, c chosen on validation data."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import cached, one_vs_rest, paths
from recvis_jax.evaluation.cached import Features, Targets

# Half decades, strongest penalty first, for features of norm about 1. The number of passes grows with c: small steps
# end the path before the largest.
CS = tuple(10 ** (i / 2) for i in range(-4, 7))


class Classifier(NamedTuple):
    """A linear layer on unscaled features, and facts about its fit; decision values are features @ kernel + bias.

    Attributes:
      kernel, bias: float32.
      c: weight of the losses relative to the penalty.
      objective: of every class at the end (k).
      gap: largest distance of an objective above its minimum, relative to it, estimated from the last gradient.
      iterations: steps of Newton's method.
      passes: number of passes over the examples.
      warning: empty if the gap is within the tolerance, else one line.
    """

    kernel: Float[np.ndarray, "d k"]
    bias: Float[np.ndarray, " k"]
    c: float = 0.0
    objective: Float[np.ndarray, " k"] | tuple[()] = ()
    gap: float = float("nan")
    iterations: int = 0
    passes: int = 0
    warning: str = ""


class Chosen(NamedTuple):
    """What `fit_path` chose.

    Attributes:
      classifier: the one with the chosen c.
      c: the one with the best score on validation data; in ties the smallest. For features divided by `scale`.
      scale: divisor of the features: the root of their mean squared norm.
      val_score: by c, in the order of fitting, for classifiers that did not see the validation data.
      passes: number of passes over the examples, by c.
      warning: one line with all warnings of the path, or empty.
    """

    classifier: Classifier
    c: float
    scale: float
    val_score: dict[float, float]
    passes: dict[float, int]
    warning: str = ""


def fit(
    features: Features,
    labels: Targets,
    *,
    num_classes: int,
    c: float = 1.0,
    bias_scale: float = 1.0,
    init: Classifier | None = None,
    max_iter: int = 100,
    tol: float = 1e-8,
) -> Classifier:
    """Minimises ½ (||w||² + (b / bias_scale)²) + c Σ max(0, 1 - y (w·x + b))² for every class against all others.

    This is scikit-learn's `LinearSVC(C=c, intercept_scaling=bias_scale)`, and LIBLINEAR's `-s 2 -c C -B bias_scale`:
    the bias is penalised like the weight of an additional feature, the constant `bias_scale`.

    Features stay on the device in float32 up to 8 GiB; larger ones are read again, part by part, in every pass.

    Args:
      features: (n d), floats; may be a memory map.
      labels: classes (n), or several per example: (n k) of 1, 0 and, for ignored entries, -1 (or NaN).
      num_classes: k; classes without examples are allowed.
      c: weight of the losses, above 0.
      bias_scale: above 0.
      init: start of the fit, such as the result of a smaller c; None starts at zeros.
      max_iter: maximum number of steps.
      tol: ends when no objective is further above its minimum, relative to it. The error of the weights is then about
        sqrt(2 tol objective).

    Raises:
      BadRequest: labels outside the classes, lengths or shapes that do not fit, features that are not finite, a number
        out of range.

    Example:
      >>> x = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
      >>> classifier = fit(x, np.array([0, 0, 1, 1]), num_classes=2, c=10.0)
      >>> predict(classifier, x)
      array([0, 0, 1, 1], dtype=int32)

    Reference:
      Fan et al., 2008, "LIBLINEAR: a library for large linear classification".
    """
    features = cached.check_features(features, "training")
    targets = cached.check_targets(labels, len(features), num_classes, "training")
    _check_numbers([c], max_iter, tol, bias_scale)
    examples = one_vs_rest.Examples([(features, targets)], 0.0, 1.0, bias_scale)
    return _solve(examples, c, init, max_iter, tol)


def fit_path(
    features: Features,
    labels: Targets,
    val_features: Features,
    val_labels: Targets,
    *,
    num_classes: int,
    cs: Sequence[float] | None = None,
    refit: bool = False,
    patience: int | None = 2,
    max_iter: int = 100,
    tol: float = 1e-4,
    score: Callable[[Float[np.ndarray, "n k"], np.ndarray], float] | None = None,
    say: cached.Progress = cached.silent,
) -> Chosen:
    """Fits a path of c, each fit starting from the one before, and picks the best on validation data.

    Features are divided by one number, the root of their mean squared norm, so the same values of c suit all features;
    their directions, and the effect of a representation's own normalisation, are not changed.

    Args:
      features, labels: training data, see `fit`.
      val_features, val_labels: validation data, to choose on.
      num_classes: k.
      cs: values of c, fitted from the smallest on; None for `CS`, 0.01 to 1000.
      refit: fits the chosen c again on training and validation data together.
      patience: ends the path after this number of c in a row that were worse than the best so far, because the largest
        take the longest; None fits all.
      max_iter, tol: of every fit.
      score: (decision values, labels) -> a score to maximise; None for the accuracy.
      say: called with the number of c fitted, and the total.

    Raises:
      BadRequest: see `fit`, for both data sets.

    Example:
      >>> x, labels = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32), np.array([0, 0, 1, 1])
      >>> chosen = fit_path(x, labels, x + 0.1, labels, num_classes=2, cs=(1.0, 100.0))
      >>> chosen.c, chosen.val_score[chosen.c], accuracy(chosen.classifier, x, labels)
      (1.0, 1.0, 1.0)
    """
    features = cached.check_features(features, "training")
    targets = cached.check_targets(labels, len(features), num_classes, "training")
    val_features = cached.check_features(val_features, "validation", features.shape[1])
    val_targets = cached.check_targets(val_labels, len(val_features), num_classes, "validation")
    path = sorted(set(CS if cs is None else map(float, cs)))
    _check_numbers(path, max_iter, tol)
    paths.check_patience(patience)
    scale, parts = cached.length([features]) or 1.0, [(features, targets), (val_features, val_targets)]
    measure = score or cached.accuracy
    found = paths.choose(
        path,
        "c",
        lambda both: one_vs_rest.Examples(parts if both else parts[:1], 0.0, scale, 1.0),
        lambda examples, c, before: _solve(examples, c, before, max_iter, tol),
        lambda fit: measure(decide(fit, val_features), np.asarray(val_labels)),
        refit=refit,
        patience=patience,
        say=say,
    )
    passes = {c: f.passes for c, f in found.fits.items()}
    return Chosen(found.fit, found.penalty, scale, found.scores, passes, found.warning)


def decide(classifier: Classifier, features: Features) -> Float[np.ndarray, "n k"]:
    """Returns the decision values of features (n d): positive for the class, negative for all others.

    Example:
      >>> decide(Classifier(np.eye(2), np.zeros(2)), np.array([[1.0, -2.0]]))
      array([[ 1., -2.]], dtype=float32)
    """
    features = cached.check_features(features, "given", len(classifier.kernel))
    return cached.outputs(classifier.kernel, classifier.bias, features)


def predict(classifier: Classifier, features: Features) -> Int[np.ndarray, " n"]:
    """Returns the class of the largest decision value of features (n d); in ties the lowest index.

    Example:
      >>> predict(Classifier(np.eye(2), np.zeros(2)), np.array([[1.0, 2.0], [0.0, 0.0]]))
      array([1, 0], dtype=int32)
    """
    features = cached.check_features(features, "given", len(classifier.kernel))
    return cached.predict(classifier.kernel, classifier.bias, features)


def accuracy(classifier: Classifier, features: Features, labels: Targets) -> float:
    """Returns the fraction of features (n d) whose predicted class is the label (n).

    Example:
      >>> accuracy(Classifier(np.eye(2), np.zeros(2)), np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([1, 1]))
      0.5
    """
    labels = cached.check_labels(labels, len(features), len(classifier.bias), "given")
    return float(np.mean(predict(classifier, features) == labels))


def _solve(examples: one_vs_rest.Examples, c: float, init: Classifier | None, max_iter: int, tol: float) -> Classifier:
    k = examples.targets.shape[1]
    paths.check_start(init, examples.width - 1, k)
    start = jnp.zeros((examples.width, k)) if init is None else examples.weights(init.kernel, init.bias)
    end = one_vs_rest.minimise(examples, one_vs_rest.SQUARED_HINGE, c, start, tol=tol, max_iter=max_iter)
    kernel, bias = examples.layer(end.weights)
    warning = one_vs_rest.warning(end, tol, max_iter)
    return Classifier(kernel, bias, c, np.asarray(end.value), end.gap, end.iterations, end.passes, warning)


def _check_numbers(cs: Sequence[float], max_iter: int, tol: float, bias_scale: float = 1.0) -> None:
    if not cs or not all(np.isfinite(c) and c > 0 for c in cs):
        raise BadRequest(f"c is {', '.join(map(str, cs)) or 'empty'}; it takes finite numbers above 0.")
    paths.check_ends(max_iter, tol)
    if not (np.isfinite(bias_scale) and bias_scale > 0):
        raise BadRequest(f"bias_scale is {bias_scale}; it takes a finite number above 0.")
