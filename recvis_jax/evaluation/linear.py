"""Linear probe: logistic regression on cached features, with a penalty chosen on validation data."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import cached, paths, softmax_regression
from recvis_jax.evaluation.cached import Features, Labels

L2S = tuple(10.0**i for i in range(1, -7, -1))  # strongest first: from almost no use of the features to almost free


class Classifier(NamedTuple):
    """A linear layer on unscaled features, and facts about its fit; logits are features @ kernel + bias.

    Attributes:
      kernel, bias: float32, with the standardisation folded in; they sum to 0 over the classes unless `init` did not.
      l2: of the penalty.
      loss: the objective at the end.
      gradient: largest absolute derivative of the objective with respect to a parameter, for standardised features.
      iterations: steps of L-BFGS.
      warning: empty if the gradient is within the tolerance, else one line.
    """

    kernel: Float[np.ndarray, "d k"]
    bias: Float[np.ndarray, " k"]
    l2: float = 0.0
    loss: float = float("nan")
    gradient: float = float("nan")
    iterations: int = 0
    warning: str = ""


class Chosen(NamedTuple):
    """What `fit_path` chose.

    Attributes:
      classifier: the one with the chosen penalty.
      l2: the penalty with the best accuracy on validation data; in ties the strongest.
      val_accuracy: by l2, in the order of fitting, for classifiers that did not see the validation data.
      iterations: by l2.
      warning: one line with all warnings of the path, or empty.
    """

    classifier: Classifier
    l2: float
    val_accuracy: dict[float, float]
    iterations: dict[float, int]
    warning: str = ""


def fit(
    features: Features,
    labels: Labels,
    *,
    num_classes: int,
    l2: float,
    standardise: bool = True,
    init: Classifier | None = None,
    max_iter: int = 1000,
    tol: float = 1e-6,
) -> Classifier:
    """Minimises mean cross-entropy + l2 / 2 ||kernel||² of the softmax of a linear layer; the bias is not penalised.

    With `standardise`, the kernel in the penalty is that of features with mean 0 and standard deviation 1 in this data:
    Σ (std_j kernel_jc)² in terms of the returned kernel, so the result does not depend on the scale of features.
    Without it, it is the returned kernel. In scikit-learn's terms, C = 1 / (l2 n).

    All features are on the device, in float32. The fit ends when all derivatives g are at most tol: then the error of
    the kernel is about ||g|| / l2 and that of the loss ||g||² / (2 l2), so a very weak l2 needs a smaller tol.
    float32 allows about 1e-7.

    Args:
      features: (n d), floats; may be a memory map.
      labels: (n), classes.
      num_classes: k; classes without examples are allowed.
      l2: strength of the penalty, >= 0. At 0 there is no minimum if a plane separates the classes: see `warning`.
      standardise: see above. A constant feature is left out; its kernel is 0.
      init: start of the fit, such as the result of a neighbouring l2; None starts at zeros.
      max_iter: maximum number of steps.
      tol: for the largest absolute derivative, with features scaled to 1: each by itself, or, without `standardise`,
        all together.

    Raises:
      BadRequest: labels outside the classes, lengths or shapes that do not fit, features that are not finite, a number
        out of range.

    Example:
      >>> x = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
      >>> classifier = fit(x, np.array([0, 0, 1, 1]), num_classes=2, l2=0.1)
      >>> predict(classifier, x)
      array([0, 0, 1, 1], dtype=int32)

    Reference:
      Liu and Nocedal, 1989, "On the limited memory BFGS method for large scale optimization".
    """
    features, labels = cached.check(features, labels, num_classes)
    check_numbers([l2], max_iter, tol)
    problem = _Problem([(features, labels)], num_classes, standardise)
    return problem.solve(l2, init, max_iter, tol)


def fit_path(
    features: Features,
    labels: Labels,
    val_features: Features,
    val_labels: Labels,
    *,
    num_classes: int,
    l2s: Sequence[float] | None = None,
    standardise: bool = True,
    refit: bool = False,
    patience: int | None = 2,
    max_iter: int = 1000,
    tol: float = 1e-5,
    say: cached.Progress = cached.silent,
) -> Chosen:
    """Fits a path of penalties, each fit starting from the one before, and picks the best on validation data.

    Args:
      features, labels: training data.
      val_features, val_labels: validation data, to choose on.
      num_classes: k.
      l2s: the penalties, fitted from the strongest on; None for `L2S`, 10 to 1e-6.
      standardise: see `fit`; uses the moments of the training features.
      refit: fits the chosen penalty again on training and validation data together.
      patience: ends the path after this number of penalties in a row that were worse than the best so far, because the
        weakest take the longest; None fits all.
      max_iter, tol: of every fit.
      say: called with the number of penalties fitted, and the total.

    Raises:
      BadRequest: see `fit`, for both data sets.

    Example:
      >>> x, labels = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32), np.array([0, 0, 1, 1])
      >>> chosen = fit_path(x, labels, x + 0.1, labels, num_classes=2, l2s=(0.1, 0.01), refit=True)
      >>> chosen.l2, chosen.val_accuracy[chosen.l2], accuracy(chosen.classifier, x, labels)
      (0.1, 1.0, 1.0)
    """
    features, labels = cached.check(features, labels, num_classes)
    val = cached.check(val_features, val_labels, num_classes, "validation", features.shape[1])
    path = sorted(set(L2S if l2s is None else map(float, l2s)), reverse=True)
    check_numbers(path, max_iter, tol)
    paths.check_patience(patience)

    def load(both: bool) -> _Problem:
        return _Problem([(features, labels), *([val] if both else [])], num_classes, standardise)

    found = paths.choose(
        path,
        "l2",
        load,
        lambda problem, l2, before: problem.solve(l2, before, max_iter, tol),
        lambda fit: _accuracy(fit, *val),
        refit=refit,
        patience=patience,
        say=say,
    )
    iterations = {l2: c.iterations for l2, c in found.fits.items()}
    return Chosen(found.fit, found.penalty, found.scores, iterations, found.warning)


def predict(classifier: Classifier, features: Features) -> Int[np.ndarray, " n"]:
    """Returns the class of the largest logit for features (n d); in ties the lowest index.

    Raises:
      BadRequest: features whose width is not the classifier's, or not finite.

    Example:
      >>> predict(Classifier(np.eye(2), np.zeros(2)), np.array([[1.0, 2.0], [0.0, 0.0]]))
      array([1, 0], dtype=int32)
    """
    features = cached.check_features(features, "given", len(classifier.kernel))
    return cached.predict(classifier.kernel, classifier.bias, features)


def accuracy(classifier: Classifier, features: Features, labels: Labels) -> float:
    """Returns the fraction of features (n d) whose predicted class is the label (n).

    Raises:
      BadRequest: see `predict`; or labels outside the classes.

    Example:
      >>> accuracy(Classifier(np.eye(2), np.zeros(2)), np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([1, 1]))
      0.5
    """
    return _accuracy(classifier, *cached.check(features, labels, len(classifier.bias), "given", len(classifier.kernel)))


class _Problem:
    """Examples on the device, with the standardisation to them and back."""

    def __init__(self, parts: Sequence[tuple[np.ndarray, np.ndarray]], num_classes: int, standardise: bool):
        self.mean, std = cached.moments([x for x, _ in parts])
        # A constant feature becomes 0 except for rounding errors of its mean, which must not be scaled up. Without
        # standardisation, one scale for all features keeps the problem the same and tolerances meaningful.
        std = np.where(std > 1e-6 * np.abs(self.mean), std, 0)
        scale = std if standardise else np.full_like(std, np.sqrt(np.mean(std**2)))
        self.scale = np.where(scale > 0, scale, 1.0)
        self.penalty = 1.0 if standardise else self.scale[0] ** -2
        self.data = softmax_regression.load(parts, self.mean, self.scale)
        self.num_classes = num_classes

    def solve(self, l2: float, init: Classifier | None, max_iter: int, tol: float) -> Classifier:
        k, d = self.num_classes, len(self.mean)
        paths.check_start(init, d, k)
        kernel, bias = (np.zeros((d, k)), np.zeros(k)) if init is None else (init.kernel, init.bias)
        kernel, bias = kernel.astype(np.float64), bias.astype(np.float64)
        start = softmax_regression.Parameters(
            jnp.asarray((kernel * self.scale[:, None]).T, jnp.float32),
            jnp.asarray(bias + self.mean @ kernel, jnp.float32),
        )
        end = jax.device_get(softmax_regression.minimise(self.data, start, l2 * self.penalty, tol, max_iter))
        kernel = end.parameters.kernel.T.astype(np.float64) / self.scale[:, None]
        bias = end.parameters.bias - self.mean @ kernel
        gradient, iterations, warning = float(end.gradient), int(end.iterations), ""
        if not gradient <= tol:
            why = "the allowed" if iterations >= max_iter else "float32 allowed no progress after"
            warning = f"{why} {iterations} steps left a gradient of {gradient:.1e}, above the tolerance of {tol:g}"
        return Classifier(
            kernel.astype(np.float32), bias.astype(np.float32), l2, float(end.loss), gradient, iterations, warning
        )


def check_numbers(l2s: Sequence[float], max_iter: int, tol: float) -> None:
    """Raises `BadRequest` for penalties, steps or tolerances out of range."""
    if not l2s or not all(np.isfinite(l2) and l2 >= 0 for l2 in l2s):
        raise BadRequest(f"l2 is {', '.join(map(str, l2s)) or 'empty'}; it takes finite numbers of at least 0.")
    paths.check_ends(max_iter, tol)


def _accuracy(classifier: Classifier, features: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(cached.predict(classifier.kernel, classifier.bias, features) == labels))
