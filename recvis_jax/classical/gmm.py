"""Gaussian mixtures with diagonal covariances, by expectation maximisation in float32."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from recvis_jax.classical import kmeans, stream
from recvis_jax.classical.stream import Descriptors, Total
from recvis_jax.errors import BadRequest

_LIGHTEST = 1e-10  # of a component's weight


class Mixture(NamedTuple):
    """A mixture and the state of its learning; `fit` can continue from it.

    Attributes:
      weights: of the components; they sum to 1.
      means, variances: of the components, by dimension.
      log_likelihood: mean per descriptor for the mixture before the last pass; in nats.
      passes: number of passes over the descriptors so far.
      done: whether more passes would change little.
    """

    weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    variances: Float[Array, "k d"]
    log_likelihood: Float[Array, ""]
    passes: Int[Array, ""]
    done: Bool[Array, ""]


class _Sums(NamedTuple):
    weights: Total
    first: Total
    second: Total
    likelihood: Total


def fit(
    descriptors: Descriptors,
    k: int,
    *,
    seed: int = 0,
    passes: int = 50,
    tol: float = 1e-3,
    floor: float = 1e-4,
    start: Mixture | kmeans.Words | None = None,
    rows: int = stream.ROWS,
    keep: Callable[[Mixture], None] = lambda mixture: None,
) -> Mixture:
    """Learns a mixture of k Gaussians by maximum likelihood.

    Args:
      descriptors: an array (n d), or a function that returns an iterator over batches (n d); it is called for every
        pass.
      k: number of components.
      seed: for the initial words, unless `start` is given.
      passes: maximum number of passes of expectation maximisation.
      tol: ends when a pass raises the mean log-likelihood by less, in nats.
      floor: lower bound of a variance, relative to the variance of all descriptors in that dimension.
      start: words whose descriptors make the first components, or an earlier mixture to continue from, with the same
        result as without an interruption. By default ten passes of k-means.
      rows: descriptors per block.
      keep: called with the state after every pass, to save it.

    Raises:
      BadRequest: fewer descriptors than components, a width that differs from that of `start`, or numbers that are not
        finite.

    Reference: Dempster, Laird and Rubin, 1977, "Maximum likelihood from incomplete data via the EM algorithm".

    Example:
      >>> x = np.array([[0.0], [0.2], [5.0], [5.2]], np.float32)
      >>> mixture = fit(x, 2)
      >>> np.asarray(mixture.weights).round(2).tolist()
      [0.5, 0.5]
    """
    if k < 1 or passes < 0 or not floor > 0:
        raise BadRequest(f"k is {k}, passes is {passes}, floor is {floor}; they must be >= 1, >= 0 and > 0.")
    if start is None:
        start = kmeans.fit(descriptors, k, seed=seed, passes=10, rows=rows)
    known = start.centers if isinstance(start, kmeans.Words) else start.means
    if len(known) != k:
        raise BadRequest(f"start has {len(known)} components, but k is {k}.")
    mixture = _of_words(start, descriptors, floor, rows) if isinstance(start, kmeans.Words) else start
    mixture = jax.tree.map(jnp.asarray, mixture)
    return stream.repeat(mixture, lambda mixture: _pass(mixture, descriptors, tol, floor, rows), passes, keep)


@jax.jit
def log_densities(mixture: Mixture, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """Returns the logarithm of weight times density of each component at each descriptor.

    Descriptors are expressed relative to the mixture's mean, in its standard deviations, so float32 is precise enough.

    Example:
      >>> one = Mixture(jnp.ones(1), jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.array(0.0), jnp.array(0), jnp.array(True))
      >>> print(np.asarray(log_densities(one, jnp.zeros((1, 1)))).round(3))
      [[-0.919]]
    """
    shift, scale = _moments(mixture)
    x, means, variances = (x - shift) / scale, (mixture.means - shift) / scale, mixture.variances / scale**2
    inverse = 1 / variances
    # One product of both powers of x: (x - m)² / v = x² / v - 2 x m / v + m² / v
    rows = jnp.concatenate([x * x, x], axis=1)
    columns = jnp.concatenate([inverse, -2 * means * inverse], axis=1)
    squares = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
    constant = jnp.sum(means**2 * inverse + jnp.log(mixture.variances), axis=1) + x.shape[1] * np.log(2 * np.pi)
    return jnp.log(jnp.maximum(mixture.weights, _LIGHTEST)) - 0.5 * (squares + constant)


@jax.jit
def posteriors(mixture: Mixture, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """Returns the probability of each component given each descriptor; rows sum to 1."""
    return jax.nn.softmax(log_densities(mixture, x), axis=1)


def _moments(mixture: Mixture) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Returns mean and standard deviation of the whole mixture; after a pass, they equal those of the descriptors."""
    weights = mixture.weights[:, None]
    mean = jnp.sum(weights * mixture.means, axis=0)
    variance = jnp.sum(weights * (mixture.variances + (mixture.means - mean) ** 2), axis=0)
    return mean, jnp.where(variance > 0, jnp.sqrt(variance), 1)


def _of_words(words: kmeans.Words, descriptors: Descriptors, floor: float, rows: int) -> Mixture:
    """Makes a component from each word: share, mean and variances of the descriptors nearest to it."""
    k, d = words.centers.shape
    sums = _empty(k, d)
    for x, real in stream.blocks(descriptors, rows, d, "components"):
        sums = _add_nearest(sums, words.centers, x, real)
    stream.check_enough(int(sums.weights.value.sum()), k, "components")
    return _first(sums, jnp.asarray(words.centers), floor)


def _pass(mixture: Mixture, descriptors: Descriptors, tol: float, floor: float, rows: int) -> Mixture:
    k, d = mixture.means.shape
    sums = _empty(k, d)
    for x, real in stream.blocks(descriptors, rows, d, "components"):
        sums = _add(sums, mixture, x, real)
    return _next(mixture, sums, tol, floor)


def _maximise(
    sums: _Sums, means: Float[Array, "k d"], variances: Float[Array, "k d"], least: Float[Array, " d"]
) -> tuple[Float[Array, " k"], Float[Array, "k d"], Float[Array, "k d"]]:
    """Returns weights, means and variances from the components' shares; components without a share are not changed.

    Args:
      sums: of the shares and of their moments.
      means, variances: of the components so far.
      least: the floor of the variances.
    """
    shares, first, second = (total.value for total in sums[:3])
    n = shares.sum()
    kept = (shares > _LIGHTEST * n)[:, None]
    share = jnp.where(kept, shares[:, None], 1)
    means = jnp.where(kept, first / share, means)
    variances = jnp.where(kept, second / share - means**2, variances)
    return shares / n, means, jnp.maximum(variances, least)


@jax.jit
def _first(sums: _Sums, centers: Float[Array, "k d"], floor: Any) -> Mixture:
    shift = centers.mean(0)
    # A dimension without variance must not get a variance from rounding.
    first, second = (total.value.sum(0) / sums.weights.value.sum() for total in (sums.first, sums.second))
    whole = second - first**2
    whole = jnp.where(whole > 1e-8 * whole.max() + 1e-12 * shift**2, whole, 1)
    weights, means, variances = _maximise(sums, centers - shift, jnp.broadcast_to(whole, centers.shape), floor * whole)
    return Mixture(weights, means + shift, variances, jnp.array(-jnp.inf), jnp.array(0), jnp.array(False))


@jax.jit
def _next(mixture: Mixture, sums: _Sums, tol: Any, floor: Any) -> Mixture:
    shift, scale = _moments(mixture)
    old = (mixture.means - shift) / scale, mixture.variances / scale**2
    n = sums.weights.value.sum()
    whole = sums.second.value.sum(0) / n - (sums.first.value.sum(0) / n) ** 2  # 1, but 0 without variance
    least = jnp.where(whole > 1e-6, floor * whole, old[1].min(0))
    weights, means, variances = _maximise(sums, *old, least)
    likelihood = sums.likelihood.value / n
    done = likelihood - mixture.log_likelihood < tol
    return Mixture(weights, means * scale + shift, variances * scale**2, likelihood, mixture.passes + 1, done)


def _empty(k: int, d: int) -> _Sums:
    return _Sums(stream.zero(k), stream.zero(k, d), stream.zero(k, d), stream.zero())


@jax.jit
def _add(sums: _Sums, mixture: Mixture, x: Float[Array, "r d"], real: Bool[Array, " r"]) -> _Sums:
    """Adds a block to the moments of the components, in coordinates relative to the mixture's mean."""
    logs = log_densities(mixture, x)
    shares = jnp.where(real[:, None], jax.nn.softmax(logs, axis=1), 0)
    likelihood = jnp.where(real, jax.nn.logsumexp(logs, axis=1), 0).sum()
    shift, scale = _moments(mixture)
    return _moments_of(sums, shares, (x - shift) / scale, likelihood)


@jax.jit
def _add_nearest(sums: _Sums, centers: Float[Array, "k d"], x: Float[Array, "r d"], real: Bool[Array, " r"]) -> _Sums:
    nearest = jax.nn.one_hot(kmeans.assign(centers, x), len(centers))
    return _moments_of(sums, jnp.where(real[:, None], nearest, 0), x - centers.mean(0), jnp.zeros(()))


def _moments_of(sums: _Sums, shares: Array, x: Array, likelihood: Array) -> _Sums:
    both = jnp.matmul(shares.T, jnp.concatenate([x, x * x], axis=1), precision=jax.lax.Precision.HIGHEST)
    first, second = jnp.split(both, 2, axis=1)
    terms = _Sums(shares.sum(0), first, second, likelihood)
    return _Sums(*(stream.add(total, term) for total, term in zip(sums, terms, strict=True)))
