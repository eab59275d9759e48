"""Multinomial logistic regression: data in blocks, an objective computed in one pass over them, and its minimum.

Coordinates are those of centred, scaled features. Kernel and blocks are transposed, because a product of few classes
with many examples is faster that way.
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

_BLOCK = 256  # examples per block: with 1,024 numbers each, a block stays in the cache between its two products
_ROWS = 8192  # examples read at a time
_MEMORY = 30  # steps that L-BFGS remembers
_NOTHING = 1e-10  # relative to the largest eigenvalue; smaller ones are rounding errors
_STALLED = 40  # steps without a better value or gradient after which float32 allows no progress

Scalar = float | Array

_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Data(NamedTuple):
    """Examples on the device; m blocks of b, the last one padded with zeros and class -1.

    `variances` and `axes` are the eigenvalues and eigenvectors (columns) of the features' covariance.

    If there are fewer examples than dimensions D, they span at most d = n dimensions. Along all others the features are
    0, and at the minimum so is the kernel, because of its penalty. `features` are then coordinates in `basis`,
    orthonormal columns that span the examples; otherwise `basis` is None.
    """

    features: Float[Array, "m d b"]
    labels: Int[Array, "m b"]
    n: Int[Array, ""]
    variances: Float[Array, " d"]
    axes: Float[Array, "d d"]
    basis: Float[Array, "D d"] | None = None


class Parameters(NamedTuple):
    """Parameters of the logits, kernel @ x + bias."""

    kernel: Float[Array, "k d"]
    bias: Float[Array, " k"]


class Minimum(NamedTuple):
    """Result of minimisation: parameters, objective, its largest absolute derivative, steps made."""

    parameters: Parameters
    loss: Float[Array, ""]
    gradient: Float[Array, ""]
    iterations: Int[Array, ""]


def load(parts: Sequence[tuple[np.ndarray, np.ndarray]], mean: np.ndarray, scale: np.ndarray) -> Data:
    """Copies all examples of several pairs (features (n d), labels (n)) to the device, features as (x - mean) / scale.

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
    """Returns coordinates of n < D examples along the principal axes that they span, their variances, and the axes.

    They are computed from the eigenvectors of the (n n) matrix of the examples' products, in float64, so the axes are
    orthonormal in float32. Axes without variance are zeros; n centred examples have at least one.
    """
    step = max(1, 2**24 // len(x))  # only some columns are float64 at a time
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

    The search uses coordinates in which the Hessian is approximately the identity. At the start it is nearly the
    Kronecker product of mean(diag(p) - p pᵀ), with the classes' probabilities p, and the features' covariance, plus l2:
    the eigenvectors of both give the axes, divided by the square roots of the eigenvalues. In the original coordinates
    several times as many steps are needed.

    Args:
      data: the examples.
      start: initial parameters; of the kernel, the part that the examples span.
      l2: of the penalty, >= 0.
      tol: ends when no derivative with respect to a parameter is larger.
      max_iter: maximum number of steps.
    """
    if data.basis is not None:
        start = start._replace(kernel=_dot(start.kernel, data.basis))
    spread, mixtures = jnp.linalg.eigh(_class_hessian(data, start))
    # A direction with little curvature at the start may have more later, so the stretch of axes is bounded. The
    # objective has neither curvature nor gradient along the sum of all classes' parameters.
    spread = jnp.maximum(spread, 1e-3 * spread[-1] + 1e-12)
    curvature = spread[:, None] * data.variances + l2
    stretch = Parameters(1 / jnp.sqrt(jnp.maximum(curvature, 1e-7 * curvature.max())), 1 / jnp.sqrt(spread))

    def across(p: Parameters, inverse: bool = False) -> Parameters:
        """To coordinates along the axes, or back."""
        u, v = (mixtures, data.axes.T) if inverse else (mixtures.T, data.axes)
        return Parameters(u @ p.kernel @ v, u @ p.bias)

    def plain(p: Parameters) -> Parameters:
        return across(jax.tree.map(jnp.multiply, p, stretch), inverse=True)

    def whole(p: Parameters) -> Parameters:
        """To the original dimensions of the features."""
        return p if data.basis is None else p._replace(kernel=_dot(p.kernel, data.basis.T))

    def value_and_grad(p: Parameters) -> tuple[Array, Parameters]:
        value, gradient = _objective(data, plain(p), l2)
        return value, jax.tree.map(jnp.multiply, across(gradient), stretch)

    # One pass gives both; automatic differentiation would need two.
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
        # Close to the minimum, float32 can no longer distinguish values, but it can distinguish gradients.
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
        # A difference per example, not of two sums: near the minimum the line search needs all digits of the value.
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
