"""Multinomial logistic regression: the data in blocks, the objective in one pass over them, and its minimum.

Coordinates are those of centred, scaled features, with kernel and blocks transposed: few classes times many examples
is a faster product than the other way round.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from recvis_jax.evaluation import cached

_BLOCK = 256  # examples a block: with 1,024 numbers each it stays in the cache between its two products
_ROWS = 8192  # examples read at a time
_MEMORY = 30  # steps that L-BFGS remembers
_NOTHING = 1e-10  # of the largest eigenvalue, below which one is rounding
_STALLED = 40  # steps without a better value or gradient after which float32 has no more to give

Scalar = float | Array

_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Data(NamedTuple):
    """Examples on the device; m blocks of b, of which the last is padded with zeros and class -1.

    `variances` and `axes` are the eigenvalues and eigenvectors (columns) of the features' covariance.

    Fewer examples than dimensions D span d = n of them at most. Along all others the features are 0, and at the minimum
    so is the kernel, by its penalty. `features` are then coordinates in `basis`, orthonormal columns that span the
    examples; it is None where features are as they came.
    """

    features: Float[Array, "m d b"]
    labels: Int[Array, "m b"]
    n: Int[Array, ""]
    variances: Float[Array, " d"]
    axes: Float[Array, "d d"]
    basis: Float[Array, "D d"] | None = None


class Parameters(NamedTuple):
    """Of the logits, kernel @ x + bias."""

    kernel: Float[Array, "k d"]
    bias: Float[Array, " k"]


class Minimum(NamedTuple):
    """Where minimisation ended: parameters, objective, its largest absolute derivative, steps made."""

    parameters: Parameters
    loss: Float[Array, ""]
    gradient: Float[Array, ""]
    iterations: Int[Array, ""]


def load(parts: Sequence[tuple[np.ndarray, np.ndarray]], mean: np.ndarray, scale: np.ndarray) -> Data:
    """Puts all examples of several pairs (features (n d), labels (n)) on the device, features as (x - mean) / scale.

    Args:
      parts: the pairs.
      mean, scale: of the features (d).
    """
    n, d = sum(len(labels) for _, labels in parts), len(mean)
    basis, variances = None, None
    x = np.empty((n, d), np.float32)
    filled = 0
    for features, _ in parts:
        for start in range(0, len(features), _ROWS):
            rows = cached.block(features, start, _ROWS)
            x[filled : filled + len(rows)] = (rows - mean) / scale
            filled += len(rows)
    if n < d:
        x, variances, basis = _spanned(x)
        d = n
    size = min(_BLOCK, n)
    blocks = np.zeros((-(-n // size), d, size), np.float32)
    for i, block in enumerate(blocks):
        part = x[i * size : (i + 1) * size]
        block[:, : len(part)] = part.T
    labels = np.full(len(blocks) * size, -1, np.int32)
    labels[:n] = np.concatenate([y for _, y in parts])
    on_device, count = jnp.asarray(blocks), jnp.asarray(n)
    if variances is None:
        variances, axes = _spectrum(on_device, count)
    else:
        axes = jnp.eye(d)
    return Data(on_device, jnp.asarray(labels.reshape(-1, size)), count, variances, axes, basis)


def _spanned(x: Float[np.ndarray, "n D"]) -> tuple[Float[np.ndarray, "n n"], Float[Array, " n"], Float[Array, "D n"]]:
    """Returns coordinates of n < D examples along the principal axes that they span, the variances there, and the axes.

    They follow from the eigenvectors of the (n n) matrix of the examples' products, in float64, so that the axes are
    orthonormal in float32. Axes along which nothing varies are zeros: of n centred examples that is at least one.
    """
    step = max(1, 2**24 // len(x))  # a part of the columns is float64 at a time
    products = np.zeros((len(x), len(x)))
    for start in range(0, x.shape[1], step):
        part = x[:, start : start + step].astype(np.float64)
        products += part @ part.T
    squares, vectors = np.linalg.eigh(products)
    kept = squares > _NOTHING * max(squares[-1], 0)
    lengths = np.sqrt(np.where(kept, squares, 1))
    coordinates = np.where(kept, vectors * lengths, 0).astype(np.float32)
    turned = np.where(kept, vectors / lengths, 0)
    basis = np.concatenate([x[:, i : i + step].T.astype(np.float64) @ turned for i in range(0, x.shape[1], step)])
    variances = np.where(kept, squares, 0) / len(x)
    return coordinates, jnp.asarray(variances, jnp.float32), jnp.asarray(basis, jnp.float32)


@jax.jit
def minimise(data: Data, start: Parameters, l2: Scalar, tol: Scalar, max_iter: Scalar) -> Minimum:
    """Minimises mean cross-entropy + l2 / 2 ||kernel||² by L-BFGS with a line search for the strong Wolfe conditions.

    The search runs in coordinates in which the Hessian is about the identity. At the start it is nearly the Kronecker
    product of what the classes' probabilities contribute, mean(diag(p) - p pᵀ), with the features' covariance, plus
    l2: their eigenvectors are the axes, divided by the roots of the eigenvalues. In plain coordinates the number of
    steps is several times as large.

    Args:
      data: the examples.
      start: where to start; of its kernel what the examples span.
      l2: of the penalty, >= 0.
      tol: ends when no derivative by a parameter is larger.
      max_iter: ends after so many steps.
    """
    if data.basis is not None:
        start = start._replace(kernel=_dot(start.kernel, data.basis))
    spread, mixtures = jnp.linalg.eigh(_class_hessian(data, start))
    # A direction that hardly curves at the start may do so later: no axis is stretched without bound. The sum of all
    # classes' parameters does not curve, and no gradient goes there.
    spread = jnp.maximum(spread, 1e-3 * spread[-1] + 1e-12)
    curvature = spread[:, None] * data.variances + l2
    stretch = Parameters(1 / jnp.sqrt(jnp.maximum(curvature, 1e-7 * curvature.max())), 1 / jnp.sqrt(spread))

    def across(p: Parameters, inverse: bool = False) -> Parameters:
        """Along the axes; or, inversely, along the plain ones."""
        u, v = (mixtures, data.axes.T) if inverse else (mixtures.T, data.axes)
        return Parameters(u @ p.kernel @ v, u @ p.bias)

    def plain(p: Parameters) -> Parameters:
        return across(jax.tree.map(jnp.multiply, p, stretch), inverse=True)

    def whole(p: Parameters) -> Parameters:
        """In as many dimensions as the features had when they came."""
        return p if data.basis is None else p._replace(kernel=_dot(p.kernel, data.basis.T))

    def value_and_grad(p: Parameters) -> tuple[Array, Parameters]:
        value, gradient = _objective(data, plain(p), l2)
        return value, jax.tree.map(jnp.multiply, across(gradient), stretch)

    # One pass gives both; by automatic differentiation it would be two.
    objective = jax.custom_vjp(lambda p: value_and_grad(p)[0])
    objective.defvjp(value_and_grad, lambda gradient, ct: (jax.tree.map(lambda g: ct * g, gradient),))
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one")
    optimizer = optax.lbfgs(memory_size=_MEMORY, linesearch=search)
    from_state = optax.value_and_grad_from_state(objective)

    def largest(gradient: Parameters) -> Array:
        gradient = whole(across(jax.tree.map(jnp.divide, gradient, stretch), inverse=True))
        return jnp.maximum(jnp.abs(gradient.kernel).max(), jnp.abs(gradient.bias).max())

    def go_on(carry: tuple) -> Array:
        _, _, best, _, iterations = carry
        fresh = iterations - best.iterations < _STALLED
        return (iterations < max_iter) & ~(best.gradient <= tol) & fresh

    def step(carry: tuple) -> tuple:
        p, state, best, least, iterations = carry
        value, grad = from_state(p, state=state)
        updates, state = optimizer.update(grad, state, p, value=value, grad=grad, value_fn=objective)
        p = optax.apply_updates(p, updates)
        value, gradient = optax.tree.get(state, "value"), largest(optax.tree.get(state, "grad"))
        here = Minimum(p, value, gradient, iterations + 1)
        # Close to the minimum float32 does not tell values apart any more, but still gradients.
        better = (value < (1 - 1e-6) * least) | (gradient < best.gradient)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), here, best)
        return p, state, best, jnp.minimum(value, least), iterations + 1

    p = jax.tree.map(jnp.divide, across(start), stretch)
    inf = jnp.array(jnp.inf)
    first = Minimum(p, inf, inf, jnp.array(0))
    _, _, best, _, iterations = jax.lax.while_loop(go_on, step, (p, optimizer.init(p), first, inf, jnp.array(0)))
    return best._replace(parameters=whole(plain(best.parameters)), iterations=iterations)


def _objective(data: Data, p: Parameters, l2: Scalar) -> tuple[Array, Parameters]:
    """Returns the mean cross-entropy plus penalty, and its gradient."""

    def add(sums: Parameters, block: tuple[Array, Array]) -> tuple[Parameters, Array]:
        x, label = block
        logits = p.kernel @ x + p.bias[:, None]
        true = _one_hot(label, len(p.bias))
        norm = jax.nn.logsumexp(logits, axis=0)
        error = jnp.where(label >= 0, jnp.exp(logits - norm), 0) - true
        # The difference an example, not of two sums: near the minimum the line search needs all digits of the value.
        loss = jnp.sum(jnp.where(label >= 0, norm - jnp.sum(logits * true, axis=0), 0))
        return Parameters(sums.kernel + error @ x.T, sums.bias + error.sum(axis=1)), loss

    sums, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, p), (data.features, data.labels))
    loss = losses.sum() / data.n + l2 / 2 * jnp.sum(p.kernel**2)
    return loss, Parameters(sums.kernel / data.n + l2 * p.kernel, sums.bias / data.n)


def _class_hessian(data: Data, p: Parameters) -> Float[Array, "k k"]:
    """Returns the mean of diag(q) - q qᵀ over the examples' predicted probabilities q."""

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        x, label = block
        q = jnp.where(label >= 0, jax.nn.softmax(p.kernel @ x + p.bias[:, None], axis=0), 0)
        return total + jnp.diag(q.sum(axis=1)) - q @ q.T, None

    k = len(p.bias)
    return jax.lax.scan(add, jnp.zeros((k, k)), (data.features, data.labels))[0] / data.n


@jax.jit
def _spectrum(blocks: Float[Array, "m d b"], n: Scalar) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Returns eigenvalues and eigenvectors of the covariance of centred features."""
    d = blocks.shape[1]
    covariance = jax.lax.scan(lambda c, x: (c + x @ x.T, None), jnp.zeros((d, d)), blocks)[0] / n
    variances, axes = jnp.linalg.eigh(covariance)
    return jnp.maximum(variances, 0), axes


def _one_hot(label: Int[Array, " b"], k: int) -> Float[Array, "k b"]:
    return (label == jnp.arange(k)[:, None]).astype(jnp.float32)
