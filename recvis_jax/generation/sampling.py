"""Draws sequences token by token, with a temperature and from the likeliest tokens only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from recvis_jax.errors import BadRequest
from recvis_jax.generation.cache import Step


def keys(seed: int, examples: Int[Array, "b"]) -> Key[Array, "b"]:
    """Returns a random key for each example, of seed and number alone: its sequence does not depend on the batch.

    Example:
      >>> bool((keys(0, jnp.arange(4))[2] == keys(0, jnp.array([2]))[0]).all())
      True
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), examples)


def likeliest(logits: Float[Array, "b v"], top_k: int = 0, top_p: float = 1.0) -> Float[Array, "b v"]:
    """Returns the scores with -infinity for tokens that are not among the likeliest.

    Args:
      logits: scores of the tokens.
      top_k: how many tokens are kept, and all that score as the last of them does; 0 for all.
      top_p: keeps the fewest likeliest tokens whose probabilities sum to at least this, in (0, 1].

    Reference: Fan et al. 2018, "Hierarchical neural story generation"; Holtzman et al. 2020, "The curious case of
    neural text degeneration", section 3.1.

    Example:
      >>> jnp.isfinite(likeliest(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), top_p=0.6)).tolist()
      [[True, True, False]]
    """
    if top_k:
        least = lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p < 1:
        order = jnp.argsort(-logits, axis=-1)
        p = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), axis=-1)
        kept = jnp.cumsum(p, -1) - p < top_p  # of the likelier ones
        kept = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), -1)
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits


def sample(
    step: Step,
    cache: PyTree,
    keys: Key[Array, "b"],
    start: Int[Array, "b"] | int,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    given: Int[Array, "b n"] | None = None,
    known: Bool[Array, "b n"] | None = None,
    end: int | None = None,
    tell: Callable[[float], None] | None = None,
) -> tuple[Int[Array, "b n"], Float[Array, "b"]]:
    """Draws sequences. Compiles to one loop; give it to `jax.jit` with what is static bound.

    Args:
      step, cache: of `cache.decoder`.
      keys: one an example, of `keys`. A token is drawn with the key of its example and position.
      start: the token before the first.
      length: tokens of a sequence.
      temperature: the scores are divided by it; 0 takes the likeliest token.
      top_k, top_p: see `likeliest`.
      given, known: tokens that are not drawn where `known` is true, as the upper half of an image to complete.
      end: a token after which a sequence is filled up with it; the loop ends when all have ended. None: none.
      tell: called with the share of the tokens that are drawn, about 20 times, while the loop runs; None for nothing.

    Returns:
      The tokens, and the log-probability (nats, at temperature 1, of all tokens) of each sequence's drawn tokens.

    Raises:
      BadRequest: a negative temperature or top_k, or top_p outside (0, 1].
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise BadRequest(
            f"temperature={temperature}, top_k={top_k} and top_p={top_p}: at least 0, at least 0, and in (0, 1]."
        )
    b = keys.shape[0]
    given = jnp.zeros((b, length), jnp.int32) if given is None else given
    known = jnp.zeros((b, length), bool) if known is None else known

    def more(carry: tuple) -> Bool[Array, ""]:
        at, ended = carry[0], carry[-1]
        return (at < length) & ~ended.all()

    every = max(1, length // 20)

    def say(at: Any) -> None:
        if tell is not None and at % every == 0:
            tell(float(at) / length)

    def draw(carry: tuple) -> tuple:
        at, cache, token, tokens, total, ended = carry
        if tell is not None:
            jax.debug.callback(say, at)
        logits, cache = step(cache, token)
        logits = logits.astype(jnp.float32)
        if temperature:
            scores = likeliest(logits / temperature, top_k, top_p)
            drawn = jax.vmap(lambda k, s: jax.random.categorical(jax.random.fold_in(k, at), s))(keys, scores)
        else:
            drawn = logits.argmax(-1)
        here = known[:, at]
        token = jnp.where(here, given[:, at], drawn).astype(jnp.int32)
        if end is not None:
            token = jnp.where(ended, end, token)
        p = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], -1)[:, 0]
        total = total + jnp.where(here | ended, 0, p)
        if end is not None:
            ended = ended | (token == end)
        return at + 1, cache, token, tokens.at[:, at].set(token), total, ended

    first = jnp.broadcast_to(jnp.asarray(start, jnp.int32), (b,))
    fill = jnp.full((b, length), 0 if end is None else end, jnp.int32)
    carry = jnp.int32(0), cache, first, fill, jnp.zeros(b), jnp.zeros(b, bool)
    *_, tokens, total, _ = lax.while_loop(more, draw, carry)
    return tokens, total
