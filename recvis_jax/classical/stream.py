"""Descriptors that do not fit in memory: batches of any length, read again in each pass, in blocks of one shape."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from recvis_jax.errors import BadRequest

# An array (n d), or a function that returns a new iterator over batches (n d) at every call.
Descriptors = np.ndarray | Array | Callable[[], Iterable[Any]]

ROWS = 8192  # per block
State = TypeVar("State", bound=Any)  # what is learnt, and how far


class Total(NamedTuple):
    """A sum in float32 and its rounding error, so that sums of millions of terms are precise (Kahan)."""

    value: Float[Array, "*s"]
    lost: Float[Array, "*s"]


def zero(*shape: int) -> Total:
    """Returns an empty sum."""
    return Total(jnp.zeros(shape), jnp.zeros(shape))


def add(total: Total, term: Float[Array, "*s"]) -> Total:
    """Returns the sum with one more term."""
    term = term - total.lost
    value = total.value + term
    return Total(value, (value - total.value) - term)


def batches(descriptors: Descriptors) -> Iterator[Float[np.ndarray, "n d"]]:
    """Yields the batches of a new pass in float32.

    Raises:
      BadRequest: batches that are not matrices of one width, or numbers that are not finite.
    """
    found = descriptors() if callable(descriptors) else [descriptors]
    width = None
    for batch in found:
        x = np.asarray(batch, np.float32)
        if x.ndim != 2 or (width is not None and x.shape[1] != width):
            wanted = "(n, d)" if width is None else f"(n, {width})"
            raise BadRequest(f"descriptors have shape {x.shape}; it must be {wanted}.")
        width = x.shape[1]
        if not np.isfinite(x).all():
            raise BadRequest("descriptors are not all finite numbers.")
        yield x


def blocks(
    descriptors: Descriptors, rows: int = ROWS, width: int | None = None, what: str = ""
) -> Iterator[tuple[Float[np.ndarray, "r d"], Bool[np.ndarray, " r"]]]:
    """Yields blocks of `rows` descriptors with a mask of the real ones; the last block is padded with zeros.

    The result does not depend on the batches.

    Args:
      descriptors: an array (n d), or a function that returns an iterator over batches (n d).
      rows: per block. It limits the memory.
      width: d, if it must be that of `what`, such as "words".

    Raises:
      BadRequest: descriptors of another width; see also `batches`.

    Example:
      >>> [(x.shape, int(real.sum())) for x, real in blocks(np.zeros((5, 2)), rows=3)]
      [((3, 2), 3), ((3, 2), 2)]
    """
    left: list[np.ndarray] = []
    count = 0
    whole = np.ones(rows, bool)
    for x in batches(descriptors):
        if width not in (None, x.shape[1]):
            raise BadRequest(f"descriptors have {x.shape[1]} numbers, the {what} {width}.")
        left.append(x)
        count += len(x)
        if count < rows:
            continue
        joined = left[0] if len(left) == 1 else np.concatenate(left)
        end = count - count % rows
        for start in range(0, end, rows):
            yield joined[start : start + rows], whole
        left, count = ([joined[end:]], count - end) if end < count else ([], 0)
    if count:
        joined = np.concatenate(left)
        padded = np.zeros((rows, joined.shape[1]), np.float32)
        padded[:count] = joined
        yield padded, np.arange(rows) < count


def repeat(state: State, one: Callable[[State], State], passes: int, keep: Callable[[State], None]) -> State:
    """Makes passes over descriptors until the state is done, or has made `passes` in total.

    Args:
      state: with `passes` so far, and `done`: whether more passes would change little.
      one: makes one pass.
      passes: maximum number.
      keep: called with the state after every pass.
    """
    while not bool(state.done) and int(state.passes) < passes:
        state = one(state)
        keep(state)
    return state


def sample(descriptors: Descriptors, most: int, seed: int) -> tuple[Float[np.ndarray, "m d"], int]:
    """Draws up to `most` descriptors in one pass; all subsets of that size are equally likely.

    Args:
      descriptors: see `blocks`.
      most: number to draw; all if there are no more.
      seed: for the draw.

    Returns:
      The drawn descriptors in the order of reading, and the total number of descriptors.

    Raises:
      BadRequest: there are no descriptors.

    Reference: Vitter, 1985, "Random sampling with a reservoir".

    Example:
      >>> drawn, n = sample(np.arange(20.0).reshape(10, 2), most=3, seed=0)
      >>> drawn.shape, n
      ((3, 2), 10)
    """
    rng, total = np.random.default_rng(seed), 0
    keys, rows = np.empty(0), None
    for x in batches(descriptors):
        drawn = rng.random(len(x))  # one number per descriptor, independent of the batches
        total += len(x)
        below = drawn < (keys.max() if len(keys) >= most else 1.0)
        keys = np.concatenate([keys, drawn[below]])
        rows = x[below] if rows is None else np.concatenate([rows, x[below]])
        if len(keys) > most:
            kept = np.sort(np.argpartition(keys, most - 1)[:most])
            keys, rows = keys[kept], rows[kept]
    if rows is None or not total:
        raise BadRequest("there are no descriptors to learn from: all images are constant or too small.")
    return rows, total


def check_enough(found: int, wanted: int, what: str) -> None:
    """Refuses more words than descriptors."""
    if found < wanted:
        raise BadRequest(f"{found:,} descriptors are too few for {wanted:,} {what}; use fewer, or more images.")


def squared_distances(x: Float[Array, "n d"], centers: Float[Array, "k d"]) -> Float[Array, "n k"]:
    """Returns squared Euclidean distances, computed relative to the mean of the centers for precision."""
    shift = centers.mean(0)
    x, centers = x - shift, centers - shift  # differences of large numbers would lose digits
    products = jnp.matmul(x, centers.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(x**2, 1, keepdims=True) - 2 * products + jnp.sum(centers**2, 1)
