"""The cache contract: a model's collection `cache`, as a decoder that takes one token at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from recvis_jax.errors import BadRequest

Step = Callable[[PyTree, Int[Array, "b"]], tuple[Float[Array, "b v"], PyTree]]


def decoder(
    model: nn.Module, variables: Mapping[str, Any], batch: int, length: int, given: Mapping[str, Any] | None = None
) -> tuple[Step, PyTree]:
    """Returns `step(cache, tokens (b,)) -> (logits (b v), cache)` of a model, and the cache of its sequences.

    Args:
      model: of `models.DECODERS`, or one whose attribute `length` makes it decode.
      variables: of the model.
      batch: number of sequences.
      length: most tokens of a sequence that `step` is told.
      given: the input that the sequences depend on, such as texts to translate: arrays with `batch` rows, which the
        model takes at its first call. None if there is no input; the cache is then empty.

    Raises:
      BadRequest: the model does not generate.

    Example:
      >>> from recvis_jax.models import create
      >>> model = create("igpt_s", colours=4, pixels=9, width=8, depth=1, heads=2)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 9), jnp.int32), train=False)
      >>> step, cache = decoder(model, variables, batch=3, length=9)
      >>> logits, cache = step(cache, jnp.full(3, 4))
      >>> logits.shape
      (3, 4)
    """
    if not hasattr(model, "length"):
        raise BadRequest(f"{type(model).__name__} does not generate token by token: it has no cache.")
    one = model.clone(length=length)
    known = {kind: tree for kind, tree in variables.items() if kind != "cache"}

    def step(cache: PyTree, tokens: Int[Array, "b"]) -> tuple[Float[Array, "b v"], PyTree]:
        (logits, _), new = one.apply({**known, "cache": cache}, tokens[:, None], train=False, mutable=["cache"])
        return logits[:, 0], new["cache"]

    if given is not None:
        return step, _told(one, known, given)

    empty = jax.eval_shape(lambda: one.init(jax.random.key(0), jnp.zeros((batch, 1), jnp.int32), train=False)["cache"])
    return step, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)


def _told(model: nn.Module, variables: Mapping[str, Any], given: Mapping[str, Any]) -> PyTree:
    """Returns the cache of a model after its first call, before the first token."""
    cache = model.apply(variables, given, train=False, mutable=["cache"])[1]["cache"]

    def begin(path: tuple, x: Array) -> Array:  # the call includes the start token, which `step` will give again
        return jnp.zeros_like(x) if path[-1].key == "filled" else x

    return jax.tree_util.tree_map_with_path(begin, cache)
