"""k-means: starts with k-means++, then Lloyd's passes over all descriptors, or mini-batches."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from recvis_jax.classical import stream
from recvis_jax.classical.stream import Descriptors, Total
from recvis_jax.errors import BadRequest


class Words(NamedTuple):
    """A vocabulary and the state of its learning; `fit` can continue from it.

    Attributes:
      centers: the words.
      counts: descriptors of each word in the last pass; for mini-batches, in all passes.
      inertia: mean squared distance of a descriptor to its word, for the words before the last pass.
      passes: number of passes over the descriptors so far.
      done: whether more passes would change little.
    """

    centers: Float[Array, "k d"]
    counts: Float[Array, " k"]
    inertia: Float[Array, ""]
    passes: Int[Array, ""]
    done: Bool[Array, ""]


class _Sums(NamedTuple):
    centers: Total
    counts: Total
    inertia: Total


def fit(
    descriptors: Descriptors,
    k: int,
    *,
    seed: int = 0,
    passes: int = 50,
    tol: float = 1e-4,
    mini_batch: bool = False,
    start: Words | Float[Array, "k d"] | Float[np.ndarray, "k d"] | None = None,
    start_from: int = 65_536,
    rows: int = stream.ROWS,
    keep: Callable[[Words], None] = lambda words: None,
) -> Words:
    """Learns k words that minimise the mean squared distance of a descriptor to the nearest word.

    A word without descriptors is moved to the descriptor that is farthest from its own word.

    Args:
      descriptors: an array (n d), or a function that returns an iterator over batches (n d); it is called for every
        pass. All are used, in every pass.
      k: number of words.
      seed: for the initial words.
      passes: maximum number of passes in total, including those of `start`.
      tol: ends when a pass lowers the mean squared distance by less than this fraction of it.
      mini_batch: moves words after every block, to the mean of all descriptors that they have seen: one or two passes
        are enough, while Lloyd's method needs tens.
      start: initial words, or an earlier state to continue from, with the same result as without an interruption.
      start_from: size of the uniform sample of descriptors that k-means++ uses.
      rows: descriptors per block, or per mini-batch.
      keep: called with the state after every pass, to save it.

    Raises:
      BadRequest: fewer descriptors than words, a width that differs from that of `start`, or numbers that are not
        finite.

    Reference: Lloyd, 1982, "Least squares quantization in PCM"; Arthur and Vassilvitskii, 2007, "k-means++: the
      advantages of careful seeding"; Sculley, 2010, "Web-scale k-means clustering".

    Example:
      >>> x = np.array([[0.0], [0.2], [5.0], [5.2]], np.float32)
      >>> words = fit(x, 2)
      >>> print(np.sort(words.centers, axis=0).round(2))
      [[0.1]
       [5.1]]
    """
    if k < 1 or passes < 1:
        raise BadRequest(f"k is {k} and passes is {passes}; they must be at least 1.")
    if start is None:
        drawn, found = stream.sample(descriptors, max(start_from, k), seed)
        stream.check_enough(found, k, "words")
        start = plus_plus(jax.random.key(seed), drawn, k)
    if not isinstance(start, Words):
        centers = jnp.asarray(start, jnp.float32)
        start = Words(centers, jnp.zeros(len(centers)), jnp.inf, jnp.asarray(0), jnp.asarray(False))
    words: Words = jax.tree.map(jnp.asarray, start)
    if words.centers.ndim != 2 or len(words.centers) != k:
        raise BadRequest(f"start has words of shape {words.centers.shape}, but k is {k}.")
    one = _mini_batches if mini_batch else _lloyd
    return stream.repeat(words, lambda words: one(words, descriptors, tol, rows), passes, keep)


def assign(centers: Float[Array, "k d"], x: Float[Array, "n d"]) -> Int[Array, " n"]:
    """Returns the index of the nearest word of each descriptor; in ties the lowest.

    Example:
      >>> assign(jnp.array([[0.0], [1.0]]), jnp.array([[0.9], [0.2], [0.5]])).tolist()
      [1, 0, 0]
    """
    return jnp.argmin(stream.squared_distances(x, centers), axis=1)


@partial(jax.jit, static_argnames="k")
def plus_plus(key: Array, x: Float[Array, "n d"], k: int) -> Float[Array, "k d"]:
    """Chooses k descriptors far from each other, each with a probability proportional to its squared distance.

    The best of a few draws is used, the one that lowers the sum of squared distances most, like scikit-learn.

    Args:
      key: for the draws.
      x: descriptors; there may be fewer different ones than k.
      k: number of descriptors to choose.

    Reference: Arthur and Vassilvitskii, 2007, "k-means++: the advantages of careful seeding", section 5 on several
      draws.
    """
    draws = 2 + int(np.log(k))

    def choose(i: Array, carry: tuple) -> tuple:
        centers, least = carry
        mass = jnp.cumsum(least)
        at = jax.random.uniform(jax.random.fold_in(key, i), (draws,)) * mass[-1]
        drawn = x[jnp.clip(jnp.searchsorted(mass, at, side="right"), 0, len(x) - 1)]
        lowered = jnp.minimum(least[:, None], jnp.maximum(stream.squared_distances(x, drawn), 0))
        best = jnp.argmin(lowered.sum(0))
        return centers.at[i].set(drawn[best]), lowered[:, best]

    first = x[jax.random.randint(key, (), 0, len(x))]
    centers = jnp.zeros((k, x.shape[1])).at[0].set(first)
    return jax.lax.fori_loop(1, k, choose, (centers, jnp.sum((x - first) ** 2, axis=1)))[0]


def _lloyd(words: Words, descriptors: Descriptors, tol: float, rows: int) -> Words:
    """Moves every word to the mean of its descriptors."""
    k, d = words.centers.shape
    sums = _Sums(stream.zero(k, d), stream.zero(k), stream.zero())
    found = 0
    for x, real in stream.blocks(descriptors, rows, d, "words"):
        sums = _add(sums, words.centers, x, real)
        found += int(real.sum())
    stream.check_enough(found, k, "words")
    centers, counts, inertia = _means(sums, words.centers)
    centers, moved = _fill(centers, np.asarray(counts) == 0, descriptors, rows)
    return _after(words, centers, counts, inertia, bool(moved.any()), tol)


@jax.jit
def _means(sums: _Sums, centers: Float[Array, "k d"]) -> tuple[Array, Array, Array]:
    counts = sums.counts.value
    means = sums.centers.value / jnp.maximum(counts, 1)[:, None]
    return jnp.where(counts[:, None] > 0, means, centers), counts, sums.inertia.value / counts.sum()


def _after(words: Words, centers: Array, counts: Array, inertia: Array, moved: bool, tol: float) -> Words:
    fell = float(words.inertia) - float(inertia)
    done = not moved and fell <= tol * float(inertia)
    return Words(centers, counts, inertia, np.add(words.passes, 1), np.bool_(done))


def _fill(
    centers: Float[Array, "k d"], empty: Bool[np.ndarray, " k"], descriptors: Descriptors, rows: int
) -> tuple[Float[Array, "k d"], Bool[np.ndarray, " k"]]:
    """Moves empty words to the descriptors farthest from their own words; also returns which words were moved."""
    moved = np.zeros(len(empty), bool)
    if empty.any():
        far, distances = _farthest(centers, descriptors, int(empty.sum()), rows)
        moved[np.flatnonzero(empty)[distances > 0]] = True  # a descriptor at distance 0 is already a word
        changed = np.array(centers)
        changed[moved] = np.asarray(far)[distances > 0]
        centers = jnp.asarray(changed)
    return centers, moved


@jax.jit
def _add(sums: _Sums, centers: Float[Array, "k d"], x: Float[Array, "r d"], real: Bool[Array, " r"]) -> _Sums:
    nearest = assign(centers, x)
    # A product with zeros and ones, because accelerators do scattered additions in no fixed order.
    ones = jnp.where(real[:, None], jax.nn.one_hot(nearest, len(centers)), 0)
    totals = jnp.matmul(ones.T, x, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.where(real, jnp.sum((x - centers[nearest]) ** 2, axis=1), 0)
    return _Sums(
        stream.add(sums.centers, totals), stream.add(sums.counts, ones.sum(0)), stream.add(sums.inertia, squares.sum())
    )


def _farthest(
    centers: Float[Array, "k d"], descriptors: Descriptors, most: int, rows: int
) -> tuple[Float[Array, "m d"], Float[np.ndarray, " m"]]:
    """Returns the descriptors farthest from their words, the farthest first, and their squared distances."""
    kept: Array = jnp.zeros((most, centers.shape[1]))
    distances: Array = jnp.full(most, -1.0)
    for x, real in stream.blocks(descriptors, rows):
        kept, distances = _merge(kept, distances, centers, x, real)
    return kept, np.asarray(distances)


@jax.jit
def _merge(kept: Array, distances: Array, centers: Array, x: Array, real: Array) -> tuple[Array, Array]:
    squares = jnp.sum((x - centers[assign(centers, x)]) ** 2, axis=1)
    everything = jnp.concatenate([distances, jnp.where(real, squares, -1)])
    best, rows = jax.lax.top_k(everything, len(distances))
    return jnp.concatenate([kept, x])[rows], best


def _mini_batches(words: Words, descriptors: Descriptors, tol: float, rows: int) -> Words:
    """Moves words after every block; each stays the mean of all its descriptors so far."""
    k, d = words.centers.shape
    centers, counts, inertia = words.centers, words.counts, stream.zero()
    seen, found = jnp.zeros(k), 0
    for x, real in stream.blocks(descriptors, rows, d, "words"):
        sums = _add(_Sums(stream.zero(k, d), stream.zero(k), stream.zero()), centers, x, real)
        centers, counts, seen, inertia = _move(sums, centers, counts, seen, inertia)
        found += int(real.sum())
    stream.check_enough(found, k, "words")
    centers, moved = _fill(centers, np.asarray(seen) == 0, descriptors, rows)
    counts = jnp.asarray(np.where(moved, np.float32(0), counts))
    return _after(words, centers, counts, inertia.value / found, bool(moved.any()), tol)


@jax.jit
def _move(sums: _Sums, centers: Array, counts: Array, seen: Array, inertia: Total) -> tuple:
    here = sums.counts.value
    counts = counts + here
    pull = sums.centers.value - here[:, None] * centers
    centers = centers + pull / jnp.maximum(counts, 1)[:, None]
    return centers, counts, seen + here, stream.add(inertia, sums.inertia.value)
