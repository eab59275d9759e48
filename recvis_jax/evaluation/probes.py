"""Probes: protocols that measure the quality of features. `PROTOCOLS` is the table of contents.

Each is `f(train, val, test, *, num_classes, seed, say) -> [result, ...]` on `Set`s of features. Penalties, kernels and
numbers of neighbours are chosen on validation data; the test data are used only once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from recvis_jax import errors
from recvis_jax.evaluation import cached, fewshot, forest, kernel_svm, knn, linear, several, svm


class Set(NamedTuple):
    """Features (n d), possibly memory-mapped; classes (n), or several per example, (n k) of 1, 0 and -1 (ignored)."""

    values: np.ndarray
    labels: np.ndarray


class Result(NamedTuple):
    """The result of one protocol.

    Attributes:
      name: of the column: 'linear', 'knn', '5-shot', ...
      score: on the test data, in [0, 1].
      seed: of the draw of examples; None without a draw.
      details: what was chosen, and its score on validation data.
      metric: kind of the score: 'accuracy', or 'mean_average_precision' (VOC's 11 points) for several classes per
        example.
    """

    name: str
    score: float
    seed: int | None
    details: dict[str, Any]
    metric: str = "accuracy"

    def record(self) -> dict[str, Any]:
        """Returns the result as JSON types, with the score under the name of its metric.

        Example:
          >>> Result("knn", 0.5, None, {}).record()
          {'name': 'knn', 'accuracy': 0.5, 'seed': None, 'details': {}}
        """
        return {"name": self.name, self.metric: self.score, "seed": self.seed, "details": self.details}


def linear_probe(
    train: Set, val: Set, test: Set, *, num_classes: int, seed: int | None, say: cached.Progress = cached.silent
) -> list[Result]:
    """Logistic regression, refitted on both after validation data chose the penalty; one per class if several."""
    if train.labels.ndim == 2:
        found = several.fit_path(*train, *val, num_classes=num_classes, refit=seed is None, say=say)
        details = {"l2": found.l2, "val_mean_average_precision": found.val_accuracy[found.l2], "warning": found.warning}
        scores = cached.outputs(found.classifier.kernel, found.classifier.bias, test.values)
        value = several.mean_average_precision(scores, test.labels)
        return [Result("linear", value, seed, details, "mean_average_precision")]
    found = linear.fit_path(*train, *val, num_classes=num_classes, refit=seed is None, say=say)
    details = {"l2": found.l2, "val_accuracy": found.val_accuracy[found.l2], "warning": found.warning}
    return [Result("linear", linear.accuracy(found.classifier, *test), seed, details)]


def linear_machine(
    train: Set, val: Set, test: Set, *, num_classes: int, seed: int | None, say: cached.Progress = cached.silent
) -> list[Result]:
    """Linear support vector machine, refitted on both after validation data chose c."""
    metric = "accuracy" if train.labels.ndim == 1 else "mean_average_precision"
    score = cached.accuracy if metric == "accuracy" else several.mean_average_precision
    found = svm.fit_path(*train, *val, num_classes=num_classes, refit=seed is None, tol=1e-3, score=score, say=say)
    details = {"c": found.c, "scale": found.scale, f"val_{metric}": found.val_score[found.c], "warning": found.warning}
    return [Result("svm", score(svm.decide(found.classifier, test.values), test.labels), seed, details, metric)]


def kernel_machine(
    train: Set, val: Set, test: Set, *, num_classes: int, seed: int | None, say: cached.Progress = cached.silent
) -> list[Result]:
    """Kernel support vector machine, refitted on both after validation data chose kernel and c.

    With more than `kernel_svm.LARGEST` examples it is an approximation, as the name of the column says.
    """
    found = kernel_svm.fit_path(*train, *val, num_classes=num_classes, refit=seed is None, seed=seed or 0, say=say)
    details = {"kernel": found.kernel, "c": found.c, "gamma": found.machine.gamma, "landmarks": found.landmarks}
    details |= {"val_accuracy": found.val_accuracy[found.kernel, found.c]}
    name = "kernel_svm" + (f", {found.landmarks:,} landmarks" if found.landmarks else "")
    accuracy = float(np.mean(kernel_svm.predict(found.machine, test.values) == test.labels))
    return [Result(name, accuracy, seed, details)]


def random_forest(
    train: Set, val: Set, test: Set, *, num_classes: int, seed: int | None, say: cached.Progress = cached.silent
) -> list[Result]:
    """Random forest, grown again on both after validation data chose the number of features that splits consider."""
    found = forest.fit(*train, *val, num_classes=num_classes, refit=seed is None, seed=seed or 0, say=say)
    details = {"looked_at": found.looked_at, "val_accuracy": found.val_accuracy[found.looked_at]}
    return [Result("forest", float(np.mean(forest.predict(found, test.values) == test.labels)), seed, details)]


def nearest_neighbours(
    train: Set, val: Set, test: Set, *, num_classes: int, seed: int | None, say: cached.Progress = cached.silent
) -> list[Result]:
    """Votes of the nearest training examples; their number is chosen on validation data."""
    ks = [k for k in knn.KS if k <= len(train.values)]
    first = len(train.values) * len(val.values)
    total = first + len(train.values) * len(test.values)
    by_k = knn.choose(*train, *val, num_classes=num_classes, ks=ks, say=lambda done, _: say(done, total))
    best = max(by_k, key=lambda k: by_k[k])
    predicted = knn.classify(
        *train, test.values, num_classes=num_classes, ks=ks, say=lambda done, _: say(first + done, total)
    )
    accuracies = {k: float(np.mean(p == test.labels)) for k, p in predicted.items()}
    details = {"k": best, "val_accuracy": by_k[best], "test_accuracy_by_k": accuracies}
    return [Result("knn", accuracies[best], seed, details)]


def few_shot_probe(
    train: Set, val: Set, test: Set, *, num_classes: int, seed: int | None, say: cached.Progress = cached.silent
) -> list[Result]:
    """Ridge regression on 1, 5, 10 and 25 examples per class, as far as available; three draws."""
    least = np.bincount(train.labels, minlength=num_classes).min()
    shots = [n for n in fewshot.SHOTS if n <= least]
    seeds = range(3) if seed is None else (seed,)
    found = fewshot.fewshot(*train, *test, num_classes=num_classes, shots=shots, seeds=tuple(seeds), say=say)
    return [Result(f"{n}-shot", a, s, {}) for n in shots for s, a in zip(seeds, found[n], strict=True)]


PROTOCOLS: dict[str, Callable[..., list[Result]]] = {
    "linear": linear_probe,
    "knn": nearest_neighbours,
    "fewshot": few_shot_probe,
    "svm": linear_machine,
    "kernel_svm": kernel_machine,
    "forest": random_forest,
}
SEVERAL = ("linear", "svm")  # protocols that allow several classes per example


def hold_out(data: Set, num_classes: int) -> tuple[Set, Set]:
    """Splits off a tenth of every class, drawn once, as validation data for runs without any.

    Classes with fewer than ten examples are kept whole, unless nothing would be held out: then one example of every
    class with two or more. If examples have several classes each, it is a tenth of all.

    Raises:
      BadRequest: no class has two examples.

    Example:
      >>> fit, chosen_on = hold_out(Set(np.zeros((40, 2), np.float32), np.arange(40) % 2), num_classes=2)
      >>> len(fit.labels), np.bincount(chosen_on.labels)
      (36, array([2, 2]))
    """
    if data.labels.ndim == 2:
        if len(data.labels) < 2:
            raise errors.BadRequest("there is only one training example: no validation data to choose a penalty on.")
        out = np.zeros(len(data.labels), bool)
        out[np.random.default_rng(0).permutation(len(out))[: max(1, len(out) // 10)]] = True
        return Set(data.values[~out], data.labels[~out]), Set(data.values[out], data.labels[out])
    counts = np.bincount(data.labels, minlength=num_classes)
    taken = counts // 10 if (counts >= 10).any() else np.minimum(counts // 2, 1)
    if not taken.any():
        raise errors.BadRequest("no class has two training examples: no validation data to choose a penalty or k on.")
    order = np.split(np.argsort(data.labels, kind="stable"), np.cumsum(counts)[:-1])
    rows = [np.random.default_rng((0, c)).permutation(g)[:n] for c, (g, n) in enumerate(zip(order, taken, strict=True))]
    out = np.zeros(len(data.labels), bool)
    out[np.concatenate(rows)] = True
    return Set(data.values[~out], data.labels[~out]), Set(data.values[out], data.labels[out])


def check(
    protocols: Sequence[str], labels: np.ndarray, names: Sequence[str], num_classes: int, per_class: int = 0
) -> None:
    """Refuses early what would fail later: unknown protocols, and classes with too few training examples.

    Args:
      protocols: names of `PROTOCOLS`.
      labels: of the training examples (n), or (n k).
      names: of the classes, for messages; may be empty.
      num_classes: k.
      per_class: the largest requested number of examples of each class.
    """
    for name in protocols:
        errors.choose(PROTOCOLS, name, "protocol")
    if labels.ndim == 2:
        if refused := [p for p in protocols if p not in SEVERAL]:
            raise errors.BadRequest(
                f"{', '.join(refused)} needs one class per image; {', '.join(SEVERAL)} allow several."
            )
        if per_class:
            raise errors.BadRequest("examples per class can only be drawn if an image has one class, not several.")
        return
    if num_classes < 2 or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise errors.BadRequest("probes need at least two classes, with one or several per image.")
    counts = np.bincount(labels, minlength=num_classes)
    least = int(np.argmin(counts))
    rarest = f"class {errors.printable(names[least] if least < len(names) else least)[:60]!r}"
    if counts[least] < per_class:
        raise errors.BadRequest(
            f"{rarest} has {counts[least]} training examples; {per_class} of each class cannot be drawn."
        )
    if "fewshot" in protocols and not counts[least]:
        rest = ",".join(p for p in PROTOCOLS if p != "fewshot")
        raise errors.BadRequest(f"{rarest} has no training example, but fewshot needs one; {rest} do not.")


def run(
    protocols: Sequence[str],
    train: Set,
    val: Set,
    test: Set,
    *,
    num_classes: int,
    per_class: int = 0,
    seeds: int = 3,
    say: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Result]:
    """Runs protocols on one layer's features.

    Args:
      protocols: names of `PROTOCOLS`.
      train, val, test: features and classes.
      num_classes: k.
      per_class: number of training examples of each class, drawn again for every seed; 0 for all, once.
      seeds: number of draws.
      say: called with (name of the protocol, done, total).

    Raises:
      BadRequest: an unknown protocol, too few examples of a class, or labels other than one class per image.
    """
    check(protocols, train.labels, (), num_classes, per_class)
    out = []
    for seed in range(seeds) if per_class else (None,):
        part = train
        if seed is not None:
            rows = np.sort(fewshot.draw(train.labels, per_class, seed, num_classes=num_classes))
            part = Set(np.asarray(train.values[rows]), train.labels[rows])
        for name in dict.fromkeys(protocols):
            tell = partial(say, name)
            out += PROTOCOLS[name](part, val, test, num_classes=num_classes, seed=seed, say=tell)
    return out
