"""Kernel support vector machines: JAX computes the kernels, scikit-learn fits the machine (LIBSVM, one against one).

The kernel matrix of n examples has n² numbers. Beyond `LARGEST` examples it is approximated (Nyström): an example is
described by its kernel values with some examples, the landmarks, and a linear machine is fitted to these.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recvis_jax import errors
from recvis_jax.evaluation import cached, svm
from recvis_jax.evaluation.cached import Features, Labels

LARGEST = 8000  # examples of a full kernel matrix: 512 MB in float64
LANDMARKS = 2000
CS = (0.1, 1.0, 10.0, 100.0)

_TILE = 256  # rows and columns of a kernel matrix computed at a time
_SAMPLE = 1000  # examples whose distances determine the width


class Machine(NamedTuple):
    """A classifier: a kernel with given examples and a machine on it, scikit-learn's or a map and a linear layer.

    Attributes:
      kernel: name in `KERNELS`.
      gamma: 1 / the mean distance of training examples; for intersection, 1 / their mean similarity with themselves.
      examples: (m d) that features are compared with.
      svc: scikit-learn's machine on a full kernel; None for an approximation.
      turn: (m m), maps kernel values with the landmarks to features; only for an approximation.
      linear: the machine on these features.
    """

    kernel: str
    gamma: float
    examples: np.ndarray
    svc: Any = None
    turn: Float[np.ndarray, "m m"] | None = None
    linear: svm.Classifier | None = None


class Chosen(NamedTuple):
    """What `fit_path` chose.

    Attributes:
      machine: that of the kernel and c with the best accuracy on validation data.
      kernel, c: the chosen ones.
      val_accuracy: by (kernel, c), for machines that did not see the validation data.
      landmarks: number of examples that represent all in an approximation; 0 for a full kernel.
    """

    machine: Machine
    kernel: str
    c: float
    val_accuracy: dict[tuple[str, float], float]
    landmarks: int


def distances(x: Features, y: Features, kernel: str) -> Float[np.ndarray, "n m"]:
    """Returns for all pairs Σ (x-y)² ('rbf'), Σ (x-y)² / (x+y) ('chi2') or the similarity Σ min(x, y) ('intersection').

    Args:
      x, y: features (n d), (m d); >= 0 except for 'rbf'.
      kernel: name in `KERNELS`.

    Example:
      >>> distances(np.array([[1.0, 3.0]]), np.array([[1.0, 1.0], [0.0, 0.0]]), "chi2").tolist()
      [[1.0, 4.0]]
    """
    pair = errors.choose(KERNELS, kernel, "kernel")
    out = np.empty((len(x), len(y)), np.float32)
    there = [(at, jnp.asarray(cached.block(y, at, _TILE, pad=True))) for at in range(0, len(y), _TILE)]
    for start in range(0, len(x), _TILE):
        here = jnp.asarray(cached.block(x, start, _TILE, pad=True))
        for at, other in there:
            part = np.asarray(_tile(pair, here, other))
            out[start : start + _TILE, at : at + _TILE] = part[: len(x) - start, : len(y) - at]
    return out


def gram(x: Features, y: Features, kernel: str, gamma: float) -> Float[np.ndarray, "n m"]:
    """Returns the kernel of all pairs: exp(-gamma distance), or gamma Σ min(x, y) for 'intersection'.

    Example:
      >>> gram(np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]]), "intersection", 0.5).tolist()
      [[1.0]]
    """
    out = distances(x, y, kernel)
    out *= gamma if kernel == "intersection" else -gamma
    return out if kernel == "intersection" else np.exp(out, out=out)


def fit_path(
    features: Features,
    labels: Labels,
    val_features: Features,
    val_labels: Labels,
    *,
    num_classes: int,
    kernels: Sequence[str] | None = None,
    cs: Sequence[float] | None = None,
    refit: bool = False,
    landmarks: int = LANDMARKS,
    seed: int = 0,
    say: cached.Progress = cached.silent,
) -> Chosen:
    """Fits machines of several kernels and c, and picks the best on validation data.

    Args:
      features, labels: training data (n d), (n).
      val_features, val_labels: validation data, to choose on.
      num_classes: k.
      kernels: names in `KERNELS`; None for all that the features allow: chi2 and intersection need numbers >= 0.
      cs: weights of the losses; None for `CS`, or `svm.CS` for an approximation.
      refit: fits the chosen machine again on training and validation data together.
      landmarks: number of examples, drawn with `seed`, that represent all if there are more than `LARGEST`.
      seed: for that draw.
      say: called with the number of machines fitted, and the total.

    Raises:
      BadRequest: scikit-learn is missing, an unknown kernel or one that the features do not allow, fewer than two
        classes among the labels, numbers out of range, and what the checks of features and labels refuse.

    Reference:
      Zhang et al., 2007, "Local features and kernels for classification of texture and object categories", for the
      width. Williams and Seeger, 2000, "Using the Nyström method to speed up kernel machines".
    """
    features, labels = cached.check(features, labels, num_classes)
    val = cached.check(val_features, val_labels, num_classes, "validation", features.shape[1])
    if len(np.unique(labels)) < 2:
        raise errors.BadRequest("all training examples have the same class; kernel_svm needs two.")
    allowed = [k for k in KERNELS if k == "rbf" or min(_least(features), _least(val[0])) >= 0]
    for name in kernels or ():
        errors.choose(KERNELS, name, "kernel")
        if name not in allowed:
            raise errors.BadRequest(f"the kernel {name} needs features >= 0, but some are negative. rbf takes any.")
    names = list(kernels or allowed)
    whole = len(features) + (len(val[0]) if refit else 0) <= LARGEST
    grid = sorted(set(map(float, cs or (CS if whole else svm.CS))))
    if not all(np.isfinite(c) and c > 0 for c in grid) or landmarks < 1:
        raise errors.BadRequest(f"c is {grid} and landmarks is {landmarks}; they take finite numbers above 0.")
    fit_all = _whole if whole else partial(_approximated, landmarks=landmarks, seed=seed)
    total = len(names) * len(grid)
    say(0, total)
    best: tuple[float, str, float, Machine] | None = None
    scores: dict[tuple[str, float], float] = {}
    for i, name in enumerate(names):

        def tell(done: int, _: int, i: int = i) -> None:
            say(min(i * len(grid) + done, total - 1), total)

        by_c, c, machine = fit_all(name, grid, [(features, labels)], val, num_classes, tell)
        scores |= {(name, other): score for other, score in by_c.items()}
        if best is None or by_c[c] > best[0]:
            best = by_c[c], name, c, machine
    assert best is not None
    _, name, c, machine = best
    if refit:
        machine = fit_all(name, [c], [(features, labels), val], val, num_classes, cached.silent)[2]
    say(total, total)
    return Chosen(machine, name, c, scores, 0 if whole else len(machine.examples))


def predict(machine: Machine, features: Features) -> Int[np.ndarray, " n"]:
    """Returns the classes of features (n d)."""
    features = cached.check_features(features, "given", machine.examples.shape[1])
    out = []
    for start in range(0, len(features), LARGEST):
        rows = cached.block(features, start, LARGEST)
        found = gram(rows, machine.examples, machine.kernel, machine.gamma)
        if machine.linear is None:
            out.append(machine.svc.predict(found.astype(np.float64)))
        else:
            out.append(svm.predict(machine.linear, found @ machine.turn))
    return np.concatenate(out).astype(np.int32)


Part = tuple[np.ndarray, np.ndarray]


def _whole(
    name: str, cs: Sequence[float], train: Sequence[Part], val: Part, num_classes: int, say: cached.Progress
) -> tuple[dict[float, float], float, Machine]:
    """Fits scikit-learn's machine to one kernel for every c; returns accuracies on validation data, and the best."""
    try:
        from sklearn.svm import SVC
    except ImportError as e:
        raise errors.BadRequest("kernel_svm needs scikit-learn: pip install 'recvis_jax[classifiers]'.") from e
    x, y = np.concatenate([cached.block(x, 0, len(x)) for x, _ in train]), np.concatenate([y for _, y in train])
    gamma = _gamma(x, name)
    seen = gram(x, x, name, gamma).astype(np.float64)
    unseen = gram(val[0], x, name, gamma).astype(np.float64)
    scores, machines = {}, {}
    for i, c in enumerate(cs):
        svc = SVC(C=c, kernel="precomputed", cache_size=500).fit(seen, y)
        machines[c] = Machine(name, gamma, x, svc)
        scores[c] = float(np.mean(svc.predict(unseen) == val[1]))
        say(i + 1, len(cs))
    best = max(scores, key=lambda c: scores[c])  # in ties the smallest
    return scores, best, machines[best]


def _approximated(
    name: str,
    cs: Sequence[float],
    train: Sequence[Part],
    val: Part,
    num_classes: int,
    say: cached.Progress,
    *,
    landmarks: int,
    seed: int,
) -> tuple[dict[float, float], float, Machine]:
    """The same with linear machines on kernel values with landmarks, taken from the first part."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(train[0][0]))[:landmarks])
    marks = np.asarray(train[0][0][rows], np.float32)
    gamma = _gamma(marks, name)
    values, vectors = np.linalg.eigh(gram(marks, marks, name, gamma).astype(np.float64))
    # After this map, inner products of landmarks equal their kernel; directions of rounding errors are left out.
    kept = values > 1e-7 * values[-1]
    turn = (vectors[:, kept] / np.sqrt(values[kept]) @ vectors[:, kept].T).astype(np.float32)
    seen = np.concatenate([gram(x, marks, name, gamma) @ turn for x, _ in train])
    labels = np.concatenate([y for _, y in train])
    unseen = gram(val[0], marks, name, gamma) @ turn
    found = svm.fit_path(seen, labels, unseen, val[1], num_classes=num_classes, cs=cs, say=say)
    return found.val_score, found.c, Machine(name, gamma, marks, None, turn, found.classifier)


def _gamma(x: np.ndarray, kernel: str) -> float:
    """Returns the scale of a kernel; 1 if all examples are equal, or zero."""
    few = x[np.sort(np.random.default_rng(0).permutation(len(x))[:_SAMPLE])]
    mean = float(np.mean(few.sum(axis=1))) if kernel == "intersection" else float(distances(few, few, kernel).mean())
    return 1 / mean if mean > 0 else 1.0


def _least(x: np.ndarray) -> float:
    return min(float(cached.block(x, at, LARGEST).min()) for at in range(0, len(x), LARGEST))


@partial(jax.jit, static_argnames="pair")
def _tile(pair: Callable[[Array, Array], Array], x: Float[Array, "a d"], y: Float[Array, "b d"]) -> Float[Array, "a b"]:
    """Sums over dimensions one by one, so that all pairs of a tile stay in the cache."""

    def add(total: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
        return total + pair(column[0][:, None], column[1][None]), None

    return jax.lax.scan(add, jnp.zeros((len(x), len(y))), (x.T, y.T))[0]


def _chi2(x: Array, y: Array) -> Array:
    both = x + y
    return (x - y) ** 2 / jnp.where(both > 0, both, 1)


def _square(x: Array, y: Array) -> Array:
    return (x - y) ** 2


KERNELS: dict[str, Callable[[Array, Array], Array]] = {"chi2": _chi2, "intersection": jnp.minimum, "rbf": _square}
