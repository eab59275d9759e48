"""Few-shot accuracy: ridge regression in closed form on a few examples per class."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import cached
from recvis_jax.evaluation.cached import Features, Labels

SHOTS = (1, 5, 10, 25)

_ROWS = 8192  # examples classified at a time


def fewshot(
    train: Features,
    train_labels: Labels,
    test: Features,
    test_labels: Labels,
    *,
    num_classes: int,
    shots: Sequence[int] = SHOTS,
    seeds: int | Sequence[int] = 3,
    l2: float | Sequence[float] = 2.0**10,
    val: tuple[Features, Labels] | None = None,
    say: cached.Progress = cached.silent,
) -> dict[int, list[float]]:
    """Returns the test accuracy of ridge regression on few examples per class, for several numbers and random draws.

    The drawn examples are scaled to mean 0 and standard deviation 1 by their own moments, because no others would be
    known. With targets of 1 for the class and -1 for the others, Σ ||y - x kernel - bias||² + l2 ||kernel||² over the
    drawn examples is minimised; the bias is not penalised. The largest output is the predicted class. Computed in
    float32: an l2 below about 1e-6 of the largest eigenvalue of the drawn examples' Gram matrix is lost in rounding.

    Args:
      train: features to draw from (n d), floats; may be a memory map.
      train_labels: their classes (n).
      test, test_labels: what to measure on (m d), (m).
      num_classes: k.
      shots: numbers of examples per class.
      seeds: of the draws; a single number n means 0, ..., n - 1. See `draw`.
      l2: above 0; if several are given, each draw uses the one with the best accuracy on `val`, in ties the strongest.
      val: features and labels to choose l2 on.
      say: called with the number of draws done, and the total.

    Returns:
      Number of shots -> accuracies in the order of the seeds.

    Raises:
      BadRequest: a class with fewer examples than shots, several l2 without `val`, and what the checks of features and
        labels refuse.

    Example:
      >>> x, labels = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0), np.repeat(np.arange(3), 5)
      >>> fewshot(x, labels, x, labels, num_classes=3, shots=(1, 5), seeds=(0, 1))
      {1: [1.0, 1.0], 5: [1.0, 1.0]}

    Reference:
      The protocol and its l2 are those of Dosovitskiy et al., 2020, "An image is worth 16x16 words", section 4.1, as in
      google-research/big_vision, whose bias is penalised a little.
    """
    train, train_labels = cached.check(train, train_labels, num_classes)
    width = train.shape[1]
    test, test_labels = cached.check(test, test_labels, num_classes, "test", width)
    l2s = sorted({float(x) for x in np.ravel(l2)}, reverse=True)
    if not l2s or not all(np.isfinite(x) and x > 0 for x in l2s):
        raise BadRequest(f"l2 is {l2}; it takes finite numbers above 0.")
    if len(l2s) > 1 and val is None:
        raise BadRequest(f"l2 has {len(l2s)} values; give `val`, features and labels, to choose among them.")
    chosen_on = None if val is None else cached.check(*val, num_classes, "validation", width)
    seeds = range(seeds) if isinstance(seeds, int) else tuple(seeds)
    if not len(seeds) or not len(shots):
        raise BadRequest(f"seeds is {seeds} and shots is {shots}; there must be at least one of each.")

    out: dict[int, list[float]] = {}
    say(0, len(shots) * len(seeds))
    for count in shots:
        out[count] = []
        for seed in seeds:
            few = draw(train_labels, count, seed, num_classes=num_classes)
            x, y = cached.block(train[few], 0, len(few)), train_labels[few]
            kernels, biases = ridge(jnp.asarray(x), jnp.asarray(y), jnp.asarray(l2s, jnp.float32), num_classes)
            best = 0
            if chosen_on is not None and len(l2s) > 1:
                best = int(np.argmax(_accuracies(kernels, biases, *chosen_on)))
            out[count] += [float(_accuracies(kernels[best : best + 1], biases[best : best + 1], test, test_labels)[0])]
            say(sum(map(len, out.values())), len(shots) * len(seeds))
    return out


def draw(labels: Labels, shots: int, seed: int, *, num_classes: int) -> Int[np.ndarray, " few"]:
    """Draws `shots` examples of every class: their indices, class by class.

    The same labels and seed give the same order of each class's examples, and the first ones are taken: a draw with
    more shots contains one with fewer.

    Raises:
      BadRequest: a class has fewer examples, or shots below 1 or seed below 0.

    Example:
      >>> draw(np.array([1, 0]), 1, seed=0, num_classes=2)
      array([1, 0])
    """
    if shots < 1 or seed < 0:
        raise BadRequest(f"shots is {shots} and seed is {seed}; they must be at least 1 and 0.")
    counts = np.bincount(labels, minlength=num_classes)
    if counts.min() < shots:
        rarest = int(np.argmin(counts))
        raise BadRequest(f"class {rarest} has {counts[rarest]} training examples; {shots} shots need as many of each.")
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.cumsum(counts)[:-1])
    # One generator per class: the order of a class does not depend on the sizes of the classes before it.
    return np.concatenate([np.random.default_rng((seed, c)).permutation(g)[:shots] for c, g in enumerate(groups)])


@partial(jax.jit, static_argnames="num_classes")
def ridge(
    x: Float[Array, "n d"], labels: Int[Array, " n"], l2s: Float[Array, " l"], num_classes: int
) -> tuple[Float[Array, "l d k"], Float[Array, "l k"]]:
    """Solves ridge regression for every l2 from one eigendecomposition: kernels and biases for unscaled features.

    Args and objective: see `fewshot`. The decomposed matrix is that of features (d d) or of examples (n n), the smaller
    one.
    """
    dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    mean, std = x.mean(axis=0), x.std(axis=0)
    # A constant feature gets a kernel of 0; otherwise rounding errors of its mean would be scaled up.
    scale = jnp.where(std > 1e-6 * jnp.abs(mean), std, jnp.inf)
    x = (x - mean) / scale
    y = 2 * jax.nn.one_hot(labels, num_classes) - 1
    middle = y.mean(axis=0)  # with centred features this is the least-squares bias
    y = y - middle
    if len(x) < x.shape[1]:  # kernel = xᵀ (x xᵀ + l2)⁻¹ y
        eigenvalues, vectors = jnp.linalg.eigh(dot(x, x.T))
        left, right = dot(x.T, vectors), dot(vectors.T, y)
    else:  # kernel = (xᵀ x + l2)⁻¹ xᵀ y
        eigenvalues, vectors = jnp.linalg.eigh(dot(x.T, x))
        left, right = vectors, dot(vectors.T, dot(x.T, y))
    inverse = 1 / (jnp.maximum(eigenvalues, 0) + l2s[:, None])
    kernels = dot(left * inverse[:, None, :], right) / scale[:, None]
    return kernels, middle - dot(mean, kernels)


def _accuracies(kernels: Array, biases: Array, features: np.ndarray, labels: np.ndarray) -> Float[np.ndarray, " l"]:
    """Returns the accuracies of several classifiers."""
    size = min(_ROWS, len(features))
    starts = range(0, len(features), size)
    right = np.zeros(len(kernels), np.int64)
    for at in starts:
        x, y = cached.block(features, at, size, pad=True), cached.block(labels, at, size, -1, pad=True)
        right += np.asarray(_count_right(kernels, biases, jnp.asarray(x), jnp.asarray(y)))
    return right / len(labels)


@jax.jit
def _count_right(
    kernels: Float[Array, "l d k"], biases: Float[Array, "l k"], x: Float[Array, "n d"], labels: Int[Array, " n"]
) -> Int[Array, " l"]:
    def one(classifier: tuple[Array, Array]) -> Array:
        outputs = jnp.matmul(x, classifier[0], precision=jax.lax.Precision.HIGHEST) + classifier[1]
        return jnp.sum(jnp.argmax(outputs, axis=1) == labels)

    return jax.lax.map(one, (kernels, biases))
