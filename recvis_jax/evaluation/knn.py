"""Nearest neighbours: how well features separate the classes without any training."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import cached
from recvis_jax.evaluation.cached import Features, Labels

KS = (1, 5, 10, 20, 100, 200)
Metric = Literal["cosine", "l2"]

_BLOCK = 8192  # training examples compared with a chunk of test examples at a time


def classify(
    train: Features,
    train_labels: Labels,
    test: Features,
    *,
    num_classes: int,
    ks: Sequence[int] = KS,
    temperature: float | None = 0.07,
    metric: Metric = "cosine",
    chunk: int = 1024,
    say: cached.Progress = cached.silent,
) -> dict[int, np.ndarray]:
    """Predicts the class by votes of the k nearest training examples, for every k in `ks`.

    A neighbour with cosine similarity s votes with weight exp(s / temperature). Among equally near neighbours the first
    in `train` wins, among classes with equal votes the lowest index. An example of zeros has similarity 0 with all.
    Everything is float32: neighbours whose similarities differ by less than about 1e-7 may be swapped. Memory is needed
    for chunk x 8192 similarities and max(ks) neighbours per test example, for any number of training examples.

    Args:
      train: features in which neighbours are searched (n d), of any norm; arrays may be memory maps.
      train_labels: their classes (n).
      test: features to classify (m d).
      num_classes: number of classes.
      ks: numbers of neighbours; one search for the largest serves all.
      temperature: above 0; None gives all neighbours equal votes.
      metric: 'cosine', or 'l2', with which a neighbour at distance r votes with exp(-r² / temperature), so the
        temperature depends on the scale of the features. For features of norm 1, 'l2' at 2 T equals 'cosine' at T.
      chunk: test examples at a time.
      say: called with the number of pairs compared, and the total.

    Returns:
      k -> predicted classes (m).

    Raises:
      BadRequest: labels outside the classes, lengths or widths that do not fit, features that are not finite, a k
        below 1 or above n, a temperature that is not positive.

    Example:
      >>> train, labels = np.eye(3, dtype=np.float32), np.arange(3)
      >>> classify(train, labels, 2 * train[::-1], num_classes=3, ks=(1,))
      {1: array([2, 1, 0], dtype=int32)}

    Reference:
      Wu et al., 2018, "Unsupervised feature learning via non-parametric instance discrimination", section 3.4.
    """
    train, train_labels = cached.check(train, train_labels, num_classes)
    test = cached.check_features(test, "test", train.shape[1])
    ks = tuple(sorted(set(ks)))
    if not ks or ks[0] < 1 or ks[-1] > len(train):
        raise BadRequest(f"ks is {ks}; it takes numbers of neighbours from 1 to the {len(train)} training examples.")
    if temperature is not None and not temperature > 0:
        raise BadRequest(f"temperature is {temperature}; it takes a positive number, or None for equal votes.")
    if metric not in ("cosine", "l2"):
        raise BadRequest(f"unknown metric {metric!r}. There are: cosine, l2.")
    if chunk < 1:
        raise BadRequest(f"chunk is {chunk}; it takes a number of test examples of at least 1.")

    chunk, size, most = min(chunk, len(test)), min(_BLOCK, len(train)), ks[-1]
    # Distances do not depend on the origin; at the data's mean, their squares have the smallest rounding errors.
    origin = cached.block(train, 0, size).mean(axis=0) if metric == "l2" else np.zeros(train.shape[1], np.float32)
    starts = range(0, len(test), chunk)
    nobody = (jnp.full((chunk, most), -jnp.inf), jnp.zeros((chunk, most), jnp.int32))
    nearest = dict.fromkeys(starts, nobody)
    say(0, len(train) * len(test))
    for at in range(0, len(train), size):
        there = jnp.asarray(cached.block(train, at, size, pad=True))
        classes = jnp.asarray(cached.block(train_labels, at, size, -1, pad=True))
        for start in starts:
            here = jnp.asarray(cached.block(test, start, chunk, pad=True))
            nearest[start] = _nearer(nearest[start], here, there, classes, jnp.asarray(origin), metric)
        jax.block_until_ready(nearest)
        say(min(at + size, len(train)) * len(test), len(train) * len(test))
    votes = [jax.device_get(_vote(*nearest[start], temperature, num_classes, ks)) for start in starts]
    return {k: np.concatenate([v[k] for v in votes])[: len(test)] for k in ks}


def choose(
    train: Features,
    train_labels: Labels,
    val: Features,
    val_labels: Labels,
    *,
    num_classes: int,
    ks: Sequence[int] = KS,
    temperature: float | None = 0.07,
    metric: Metric = "cosine",
    chunk: int = 1024,
    say: cached.Progress = cached.silent,
) -> dict[int, float]:
    """Returns the accuracy of every k on validation data, to choose k without the test data.

    Args and errors: see `classify`; also takes the classes (m) of the validation examples.

    Example:
      >>> train, labels = np.eye(3, dtype=np.float32), np.arange(3)
      >>> accuracies = choose(train, labels, train, labels, num_classes=3, ks=(1, 3), temperature=None)
      >>> k = max(accuracies, key=accuracies.get)  # the smallest of the best
      >>> k, accuracies[k]
      (1, 1.0)
    """
    val_labels = cached.check_labels(val_labels, len(val), num_classes, "validation")
    kw = dict(num_classes=num_classes, ks=ks, temperature=temperature, metric=metric, chunk=chunk, say=say)
    predicted = classify(train, train_labels, val, **kw)
    return {k: float(np.mean(classes == val_labels)) for k, classes in predicted.items()}


Neighbours = tuple[Float[Array, "b k"], Int[Array, "b k"]]  # scores, nearest first, and classes


@partial(jax.jit, static_argnames="metric")
def _nearer(
    found: Neighbours,
    here: Float[Array, "b d"],
    there: Float[Array, "n d"],
    classes: Int[Array, " n"],
    origin: Float[Array, " d"],
    metric: str,
) -> Neighbours:
    """Searches neighbours nearer than those found so far; an example with class -1 is padding."""
    dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    if metric == "cosine":
        scores = dot(_unit(here), _unit(there).T)
    else:
        here, there = here - origin, there - origin
        scores = 2 * dot(here, there.T) - jnp.sum(here**2, axis=1)[:, None] - jnp.sum(there**2, axis=1)
    scores = jnp.where(classes >= 0, scores, -jnp.inf)
    most = found[0].shape[1]
    best, where = jax.lax.top_k(scores, min(most, len(there)))
    # top_k keeps the order of equal scores, so earlier training examples stay before later ones.
    best, which = jax.lax.top_k(jnp.concatenate([found[0], best], axis=1), most)
    return best, jnp.take_along_axis(jnp.concatenate([found[1], classes[where]], axis=1), which, axis=1)


@partial(jax.jit, static_argnames=("num_classes", "ks"))
def _vote(
    scores: Float[Array, "b k"],
    classes: Int[Array, "b k"],
    temperature: float | Array | None,
    num_classes: int,
    ks: tuple[int, ...],
) -> dict[int, Int[Array, " b"]]:
    """Returns the class with the most votes among the first k neighbours, for every k."""
    # Relative to the nearest: the winner is the same, and no exponential overflows.
    weights = jnp.ones_like(scores) if temperature is None else jnp.exp((scores - scores[:, :1]) / temperature)
    rows = jnp.arange(len(scores))[:, None]
    votes, winners, counted = jnp.zeros((len(scores), num_classes)), {}, 0
    for k in ks:
        votes = votes.at[rows, classes[:, counted:k]].add(weights[:, counted:k])
        winners[k], counted = jnp.argmax(votes, axis=1).astype(jnp.int32), k
    return winners


def _unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Scales rows to norm 1; rows of zeros stay zero."""
    length = jnp.linalg.norm(x, axis=1, keepdims=True)
    return x / jnp.where(length > 0, length, 1)
