"""Beam search: the likeliest sequences, several kept at every position."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from recvis_jax.errors import BadRequest
from recvis_jax.generation.cache import Step

_NEVER = -1e9  # finite: the difference of two is not NaN


class Beams(NamedTuple):
    """What was found, the best first.

    Attributes:
      tokens: sequences, filled up with the token that ends them.
      scores: log-probability over the length penalty.
    """

    tokens: Int[Array, "b beams n"]
    scores: Float[Array, "b beams"]


def penalty(length: Array | int, alpha: float) -> Array | float:
    """Returns ((5 + length) / 6)^alpha, by which log-probabilities are divided (Wu et al. 2016, equation 14)."""
    return ((5.0 + length) / 6.0) ** alpha


def beam_search(
    step: Step,
    cache: PyTree,
    batch: int,
    start: int,
    end: int,
    length: int,
    *,
    beams: int = 4,
    alpha: float = 0.6,
) -> Beams:
    """Returns the `beams` best sequences of each example that end within `length` tokens, or are cut there.

    The search stops when no open sequence can still beat the worst finished one of its example: log-probabilities only
    fall, so that of an open sequence, over the penalty of the greatest length, is an upper bound.

    Args:
      step, cache: of a decoder of batch * beams sequences; those of an example lie side by side. Every array of the
        cache with that many rows follows its sequence; others, as a position, are left alone.
      batch: number of examples.
      start: token before the first.
      end: token that ends a sequence; it counts as one of the sequence's tokens.
      length: most tokens of a sequence, the end included.
      beams: sequences that are kept.
      alpha: of the length penalty; 0 for none.

    Raises:
      BadRequest: fewer than one beam, or a negative alpha.

    Reference: Wu et al. 2016, "Google's neural machine translation system", section 7; Vaswani et al. 2017, section 6.1
    (4 beams, alpha 0.6).
    """
    if beams < 1 or alpha < 0:
        raise BadRequest(f"beams={beams} and alpha={alpha}; they are at least 1 and 0.")
    rows = batch * beams

    def follow(cache: PyTree, origin: Int[Array, "b beams"]) -> PyTree:
        at = (jnp.arange(batch)[:, None] * beams + origin).reshape(-1)
        return jax.tree.map(lambda x: x[at] if x.ndim and len(x) == rows else x, cache)

    def more(carry: tuple) -> Bool[Array, ""]:
        at, _, _, _, scores, _, done = carry
        bound = scores.max(1) / penalty(length, alpha)
        return (at < length) & (bound > done.min(1)).any()

    def grow(carry: tuple) -> tuple:
        at, cache, token, tokens, scores, ended, done = carry
        logits, cache = step(cache, token.reshape(-1))
        v = logits.shape[-1]
        p = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beams, v)
        total = scores[:, :, None] + p
        # Twice as many as are kept: at most one continuation of each beam ends.
        best, flat = lax.top_k(total.reshape(batch, -1), min(2 * beams, beams * v))
        origin, new = flat // v, (flat % v).astype(jnp.int32)
        grown = jnp.take_along_axis(tokens, origin[:, :, None], 1).at[:, :, at].set(new)
        finishes = (new == end) | (at == length - 1)
        candidates = jnp.where(finishes & (best > _NEVER / 2), best / penalty(at + 1, alpha), _NEVER)
        done, kept = lax.top_k(jnp.concatenate([done, candidates], 1), beams)
        ended = jnp.take_along_axis(jnp.concatenate([ended, grown], 1), kept[:, :, None], 1)
        scores, kept = lax.top_k(jnp.where(new == end, _NEVER, best), beams)
        origin, new = (jnp.take_along_axis(x, kept, 1) for x in (origin, new))
        tokens = jnp.take_along_axis(grown, kept[:, :, None], 1)
        return at + 1, follow(cache, origin), new, tokens, scores, ended, done

    blank = jnp.full((batch, beams, length), end, jnp.int32)
    # All beams begin alike; only one of them may be continued.
    scores = jnp.where(jnp.arange(beams) == 0, 0.0, _NEVER) * jnp.ones((batch, 1))
    carry = (
        jnp.int32(0), cache, jnp.full((batch, beams), start, jnp.int32), blank, scores, blank,
        jnp.full((batch, beams), _NEVER),
    )  # fmt: skip
    *_, ended, done = lax.while_loop(more, grow, carry)
    return Beams(ended, done)
