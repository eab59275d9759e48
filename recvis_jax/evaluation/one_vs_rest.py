"""Linear classifiers of each class against all others: the minimum of ½ ||w||² + c Σ loss(y (w·x + b)) for every class.

The problems of the classes are independent, and are solved together: one pass over the examples multiplies them with
the vectors of all classes. Newton's method takes few passes, because an exact line search needs none (Keerthi and
DeCoste), and conjugate gradients on its systems converge in a number of passes that hardly depends on c or on the
dimensions if they are preconditioned by the leading eigenvectors of a sample of the examples (Frangella et al.).

References:
  Keerthi and DeCoste, 2005, "A modified finite Newton method for fast solution of large scale linear SVMs".
  Frangella, Tropp and Udell, 2021, "Randomized Nyström preconditioning".
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.evaluation import cached

_CHUNK = 2**26  # numbers multiplied at a time
_ROWS = 8192  # examples at a time, at most
_KEPT = 2**33  # bytes of features that stay on the device; larger data are read again in every pass
_EXACT = 1024  # dimensions up to which all eigenvectors are computed; beyond, those that so many examples span
_SAMPLE = 8192  # examples whose second moments represent all, up to that many dimensions
_STALLED = 3  # steps without a smaller gradient after which float32 allows no progress

_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Loss(NamedTuple):
    """A convex loss of the margin y f(x), with its first two derivatives."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    curvature: Callable[[Array], Array]


SQUARED_HINGE = Loss(
    lambda m: jnp.maximum(1 - m, 0) ** 2,
    lambda m: -2 * jnp.maximum(1 - m, 0),
    lambda m: 2.0 * (m < 1),
)
LOGISTIC = Loss(
    lambda m: jax.nn.softplus(-m),
    lambda m: -jax.nn.sigmoid(-m),
    lambda m: jax.nn.sigmoid(m) * jax.nn.sigmoid(-m),
)


class Minimum(NamedTuple):
    """The result of minimisation.

    Attributes:
      weights: of features with a constant appended (D k).
      value: of the objectives (k).
      gap: estimated distance of the objectives above their minima, relative to these; the largest over the classes.
      iterations: Newton steps.
      passes: total number of passes over the examples.
    """

    weights: Float[Array, "D k"]
    value: Float[Array, " k"]
    gap: float
    iterations: int
    passes: int


class Examples:
    """Features with a constant appended, in chunks on the device, with a target for every class.

    Args:
      parts: pairs of features (n d), possibly memory-mapped, and targets (n k): 1 for examples of the class, -1 for
        others, 0 for those that the class ignores.
      mean, scale: features are used as (x - mean) / scale; (d) or one number each. A scale of inf leaves a feature out.
      bias_scale: the constant. The bias is this constant times its weight, so a larger constant means a weaker penalty
        on the bias.
    """

    def __init__(
        self,
        parts: Sequence[tuple[np.ndarray, np.ndarray]],
        mean: np.ndarray | float,
        scale: np.ndarray | float,
        bias_scale: float,
    ):
        self.parts, self.mean, self.scale, self.bias_scale = parts, mean, scale, bias_scale
        self.n, self.width = sum(len(y) for _, y in parts), parts[0][0].shape[1] + 1
        self.rows = min(self.n, _ROWS, max(256, _CHUNK // self.width))
        self.starts = range(0, self.n, self.rows)
        targets = np.zeros((len(self.starts) * self.rows, parts[0][1].shape[1]), np.float32)
        targets[: self.n] = np.concatenate([y for _, y in parts])
        self.targets = jnp.asarray(targets)
        self._kept: list[Array] | None = [] if 4 * self.n * self.width <= _KEPT else None
        self._spectrum: tuple[Array, Array] | None = None

    def chunks(self) -> Iterator[tuple[slice, Array]]:
        """Yields (slice, features (D b)) of all examples; the last chunk is padded with zeros.

        An example is a column: XLA's products with few vectors are twice as fast that way on CPUs.
        """
        for i, at in enumerate(self.starts):
            if self._kept is not None and i < len(self._kept):
                x = self._kept[i]
            else:
                x = jnp.asarray(self._read(np.arange(at, min(at + self.rows, self.n)), self.rows)).T
                if self._kept is not None:
                    self._kept.append(x)
            yield slice(at, at + self.rows), x

    def _read(self, rows: np.ndarray, size: int) -> np.ndarray:
        """Returns the features of some examples, in the order of the parts, with the constant; padded with zeros."""
        out = np.zeros((size, self.width), np.float32)
        first = filled = 0
        for features, _ in self.parts:
            mine = rows[(rows >= first) & (rows < first + len(features))] - first
            if len(mine):
                whole = len(mine) == mine[-1] - mine[0] + 1
                x = (
                    cached.block(features, int(mine[0]), len(mine))
                    if whole
                    else cached.block(features[mine], 0, len(mine))
                )
                out[filled : filled + len(mine), :-1] = (x - self.mean) / self.scale
                filled += len(mine)
            first += len(features)
        out[:filled, -1] = self.bias_scale
        return out

    def weights(self, kernel: Float[np.ndarray, "d k"], bias: Float[np.ndarray, " k"]) -> Float[Array, "D k"]:
        """Returns the weights of a linear layer on unscaled features; the inverse of `layer`."""
        kernel = np.asarray(kernel, np.float64)
        shift = np.broadcast_to(self.mean, len(kernel)) @ kernel
        scale = np.where(np.isfinite(self.scale), self.scale, 0)
        scaled = kernel * np.broadcast_to(scale, len(kernel))[:, None]
        return jnp.asarray(np.vstack([scaled, (bias + shift) / self.bias_scale]), jnp.float32)

    def layer(self, weights: Float[Array, "D k"]) -> tuple[Float[np.ndarray, "d k"], Float[np.ndarray, " k"]]:
        """Returns kernel and bias for unscaled features."""
        found = np.asarray(weights, np.float64)
        kernel = found[:-1] / np.broadcast_to(self.scale, len(found) - 1)[:, None]
        bias = self.bias_scale * found[-1] - np.broadcast_to(self.mean, len(kernel)) @ kernel
        return kernel.astype(np.float32), bias.astype(np.float32)

    def spectrum(self) -> tuple[Float[Array, " r"], Float[Array, "D r"]]:
        """Returns the leading eigenvalues and eigenvectors of Σ x xᵀ, estimated from a sample of the examples."""
        if self._spectrum is None:
            size = min(self.n, _SAMPLE if self.width <= _EXACT else _EXACT)
            rows = np.sort(np.random.default_rng(0).permutation(self.n)[:size])
            self._spectrum = _eigen(jnp.asarray(self._read(rows, size)), self.n / size)
        return self._spectrum

    def gradient(
        self, loss: Loss, weights: Float[Array, "D k"], c: float
    ) -> tuple[Float[Array, "n k"], Float[Array, "D k"]]:
        """Returns the outputs of all examples, and the gradients of the objectives."""
        outputs, total = [], weights
        for which, x in self.chunks():
            z, g = _gradient(loss, x, self.targets[which], weights, c)
            outputs.append(z)
            total = total + g
        return jnp.concatenate(outputs), total

    def product(
        self, curvatures: Float[Array, "n k"], s: Float[Array, "D k"]
    ) -> tuple[Float[Array, "n k"], Float[Array, "D k"]]:
        """Returns the outputs for vectors s, and the Hessians times s."""
        outputs, total = [], s
        for which, x in self.chunks():
            z, h = _product(x, curvatures[which], s)
            outputs.append(z)
            total = total + h
        return jnp.concatenate(outputs), total


def minimise(
    examples: Examples,
    loss: Loss,
    c: float,
    start: Float[Array, "D k"],
    *,
    tol: float,
    max_iter: int,
    max_products: int = 200,
) -> Minimum:
    """Minimises ½ ||w||² + c Σ loss(y w·x) for every class, by Newton's method with an exact line search.

    Args:
      examples: the x and y.
      loss: SQUARED_HINGE or LOGISTIC.
      c: weight of the losses.
      start: initial weights.
      tol: ends when no objective is further above its minimum, relative to it, estimated from the gradient.
      max_iter: maximum number of steps.
      max_products: maximum number of passes per step.
    """
    values, vectors = examples.spectrum()
    weights, best, since, passes, step = start, None, 0, 0, 0
    for step in range(max_iter + 1):
        outputs, gradient = examples.gradient(loss, weights, c)
        passes += 1
        value, curvatures, mean = _local(loss, examples.targets, outputs, weights, c, examples.n)
        search = _begin(values, vectors, gradient, outputs, mean)
        gap = search.product / jnp.maximum(2 * value, 1e-30)
        worst = float(gap.max())
        since = 0 if best is None or worst < best.gap else since + 1
        if not since:
            best = Minimum(weights, value, worst, step, passes)
        if worst <= tol or since >= _STALLED or step == max_iter:
            break
        # Early systems are solved only roughly, because the next step changes them.
        wanted = jnp.where(gap > tol, jnp.clip(jnp.sqrt(gap), 0.1, 0.3) ** 2 * search.product, jnp.inf)
        for _ in range(max_products):
            z, h = examples.product(curvatures, search.direction)
            passes += 1
            search = _advance(values, vectors, search, z, h, mean)
            if bool(jnp.all(search.product <= wanted)):
                break
        moved = _line_search(loss, examples.targets, outputs, weights, search.outputs, search.step, c)
        weights = weights + moved * search.step
    assert best is not None
    return best._replace(iterations=step, passes=passes)


def warning(end: Minimum, tol: float, max_iter: int) -> str:
    """Returns a line if minimisation ended above the tolerance, else an empty string."""
    if end.gap <= tol:
        return ""
    why = "the allowed" if end.iterations >= max_iter else "float32 allowed no progress after"
    return f"{why} {end.iterations} steps left the objective {end.gap:.1e} above its minimum, more than {tol:g}"


class _Search(NamedTuple):
    """Conjugate gradients on the Newton systems of all classes."""

    step: Array  # (D k) found so far
    outputs: Array  # (n k) of the step
    remainder: Array  # (D k)
    direction: Array  # (D k)
    product: Array  # (k) remainder times preconditioned remainder


@partial(jax.jit, static_argnames="loss")
def _gradient(loss: Loss, x: Array, y: Array, weights: Array, c: float | Array) -> tuple[Array, Array]:
    z = _dot(weights.T, x).T
    return z, _dot(x, c * y * loss.slope(y * z))


@jax.jit
def _product(x: Array, curvatures: Array, s: Array) -> tuple[Array, Array]:
    z = _dot(s.T, x).T
    return z, _dot(x, curvatures * z)


@partial(jax.jit, static_argnames="loss")
def _local(
    loss: Loss, y: Array, z: Array, weights: Array, c: float | Array, n: int | Array
) -> tuple[Array, Array, Array]:
    """Returns the objectives (k), the curvatures with respect to every output (n k), and their means (k)."""
    counts = y != 0
    losses = jnp.where(counts, loss.value(y * z), 0)
    curvatures = jnp.where(counts, c * loss.curvature(y * z), 0)
    return 0.5 * jnp.sum(weights**2, axis=0) + c * losses.sum(axis=0), curvatures, curvatures.sum(axis=0) / n


@jax.jit
def _eigen(x: Float[Array, "m D"], factor: float | Array) -> tuple[Float[Array, " r"], Float[Array, "D r"]]:
    """Returns eigenvalues and eigenvectors of xᵀ x times a factor, by the smaller of xᵀ x and x xᵀ."""
    if x.shape[1] <= len(x):
        values, vectors = jnp.linalg.eigh(_dot(x.T, x))
        return factor * jnp.maximum(values, 0), vectors
    values, vectors = jnp.linalg.eigh(_dot(x, x.T))
    # Smaller eigenvalues are rounding errors, and their vectors would not be orthonormal.
    kept = values > 1e-5 * values[-1]
    return factor * jnp.where(kept, values, 0), _dot(x.T, jnp.where(kept, vectors / jnp.sqrt(values), 0))


def _precondition(values: Array, vectors: Array, r: Array, mean: Array) -> Array:
    """Returns (I + mean Σ x xᵀ)⁻¹ r, approximately."""
    along = _dot(vectors.T, r)
    return r - _dot(vectors, along * (1 - 1 / (1 + values[:, None] * mean)))


@jax.jit
def _begin(values: Array, vectors: Array, gradient: Array, outputs: Array, mean: Array) -> _Search:
    direction = _precondition(values, vectors, -gradient, mean)
    product = -jnp.sum(gradient * direction, axis=0)
    return _Search(jnp.zeros_like(gradient), jnp.zeros_like(outputs), -gradient, direction, product)


@jax.jit
def _advance(values: Array, vectors: Array, search: _Search, z: Array, h: Array, mean: Array) -> _Search:
    """One step of conjugate gradients, from the outputs z and Hessian products h of the direction."""

    def ratio(a: Array, b: Array) -> Array:
        return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)

    along = ratio(search.product, jnp.sum(search.direction * h, axis=0))
    remainder = search.remainder - along * h
    turned = _precondition(values, vectors, remainder, mean)
    product = jnp.sum(remainder * turned, axis=0)
    return search._replace(
        step=search.step + along * search.direction,
        outputs=search.outputs + along * z,
        remainder=remainder,
        direction=turned + ratio(product, search.product) * search.direction,
        product=product,
    )


@partial(jax.jit, static_argnames="loss")
def _line_search(
    loss: Loss, y: Array, z: Array, weights: Array, q: Array, step: Array, c: float | Array
) -> Float[Array, " k"]:
    """Returns the t >= 0 that minimises each objective along its step; z and q are outputs of weights and step."""
    inner, square = jnp.sum(weights * step, axis=0), jnp.sum(step**2, axis=0)

    def derivatives(t: Array) -> tuple[Array, Array]:
        margins = y * (z + t * q)
        first = inner + t * square + c * jnp.sum(y * q * loss.slope(margins), axis=0)
        counts = jnp.where(y != 0, q**2, 0)
        return first, square + c * jnp.sum(counts * loss.curvature(margins), axis=0)

    wanted = 1e-4 * jnp.abs(derivatives(jnp.zeros_like(inner))[0])

    def go_on(carry: tuple) -> Array:
        i, _, _, _, first = carry
        return (i < 40) & jnp.any(jnp.abs(first) > wanted)

    def narrow(carry: tuple) -> tuple:
        i, t, low, high, _ = carry
        first, second = derivatives(t)
        low, high = jnp.where(first < 0, t, low), jnp.where(first > 0, t, high)
        newton = t - first / jnp.where(second > 0, second, 1)
        inside = (newton >= low) & (newton <= high)
        other = jnp.where(jnp.isfinite(high), (low + high) / 2, 2 * t)
        t = jnp.where(jnp.abs(first) <= wanted, t, jnp.where(inside, newton, other))
        return i + 1, t, low, high, first

    ones = jnp.ones_like(inner)
    return jax.lax.while_loop(go_on, narrow, (0, ones, 0 * ones, ones * jnp.inf, ones * jnp.inf))[1]
