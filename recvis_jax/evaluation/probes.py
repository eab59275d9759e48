"""Probes: protocols that say how good features are. `PROTOCOLS` is the table of contents.

Each is `f(train, val, test, *, num_classes, seed) -> [result, ...]` on `Set`s of features. What there is to choose, a
penalty or a number of neighbours, is chosen on validation data; the test data are looked at once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from recvis_jax import errors
from recvis_jax.evaluation import fewshot as few
from recvis_jax.evaluation import knn as neighbours
from recvis_jax.evaluation import linear as regression


class Set(NamedTuple):
    """Features (n d), perhaps memory-mapped, and classes (n)."""

    values: np.ndarray
    labels: np.ndarray


class Result(NamedTuple):
    """What one protocol found.

    Attributes:
      name: of the column: 'linear', 'knn', '5-shot', ...
      accuracy: on the test data, in [0, 1].
      seed: of the draw of examples; None where nothing was drawn.
      details: what was chosen, and how well it did on validation data.
    """

    name: str
    accuracy: float
    seed: int | None
    details: dict[str, Any]


def linear(train: Set, val: Set, test: Set, *, num_classes: int, seed: int | None) -> list[Result]:
    """Logistic regression, its penalty chosen on validation data, refitted on both."""
    found = regression.fit_path(*train, *val, num_classes=num_classes, refit=seed is None)
    details = {"l2": found.l2, "val_accuracy": found.val_accuracy[found.l2], "warning": found.warning}
    return [Result("linear", regression.accuracy(found.classifier, *test), seed, details)]


def knn(train: Set, val: Set, test: Set, *, num_classes: int, seed: int | None) -> list[Result]:
    """Votes of the nearest training examples, their number chosen on validation data."""
    ks = [k for k in neighbours.KS if k <= len(train.values)]
    by_k = neighbours.choose(*train, *val, num_classes=num_classes, ks=ks)
    best = max(by_k, key=lambda k: by_k[k])
    predicted = neighbours.classify(*train, test.values, num_classes=num_classes, ks=ks)
    accuracies = {k: float(np.mean(p == test.labels)) for k, p in predicted.items()}
    details = {"k": best, "val_accuracy": by_k[best], "test_accuracy_by_k": accuracies}
    return [Result("knn", accuracies[best], seed, details)]


def fewshot(train: Set, val: Set, test: Set, *, num_classes: int, seed: int | None) -> list[Result]:
    """Ridge regression on 1, 5, 10 and 25 examples a class, as many as there are; three draws."""
    least = np.bincount(train.labels, minlength=num_classes).min()
    shots = [n for n in few.SHOTS if n <= least]
    seeds = range(3) if seed is None else (seed,)
    found = few.fewshot(*train, *test, num_classes=num_classes, shots=shots, seeds=tuple(seeds))
    return [Result(f"{n}-shot", a, s, {}) for n in shots for s, a in zip(seeds, found[n], strict=True)]


PROTOCOLS: dict[str, Callable[..., list[Result]]] = {"linear": linear, "knn": knn, "fewshot": fewshot}


def run(
    protocols: Sequence[str],
    train: Set,
    val: Set,
    test: Set,
    *,
    num_classes: int,
    per_class: int = 0,
    seeds: int = 3,
) -> list[Result]:
    """Runs protocols on one layer's features.

    Args:
      protocols: names of `PROTOCOLS`.
      train, val, test: features and classes.
      num_classes: k.
      per_class: how many training examples of each class are used, drawn anew for every seed; 0 for all, once.
      seeds: number of draws.

    Raises:
      BadRequest: an unknown protocol, too few examples of a class, or labels that are not one class an image.
    """
    chosen = [errors.choose(PROTOCOLS, name, "protocol") for name in protocols]
    if not num_classes or train.labels.ndim != 1:
        raise errors.BadRequest("probes need one class an image.")
    out = []
    for seed in range(seeds) if per_class else (None,):
        part = train
        if seed is not None:
            rows = np.sort(few.draw(train.labels, per_class, seed, num_classes=num_classes))
            part = Set(np.asarray(train.values[rows]), train.labels[rows])
        for protocol in chosen:
            out += protocol(part, val, test, num_classes=num_classes, seed=seed)
    return out
