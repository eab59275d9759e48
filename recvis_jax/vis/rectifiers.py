"""Other gradients of relus and max pools, used by guided backpropagation and the deconvnet.

`with_rule(function, rule)` computes the same as `function`, but every `jax.nn.relu` and `relu6` in it passes gradients
back by `rule`, also inside scanned or recomputed blocks, branches, and functions with custom gradients. A maximum of
shifted slices, which is how `operations.max_pool` is written, passes its gradient to one element of a window (the first
of equal ones, row by row), like the switches of a deconvnet.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from recvis_jax.errors import BadRequest, choose
from recvis_jax.vis import program

# (slope of the relu: 1 if open, else 0; gradient of its output) -> gradient of its input.
RULES: dict[str, Callable[[Array, Array], Array]] = {
    "plain": lambda slope, g: slope * g,
    "deconvnet": lambda slope, g: jnp.maximum(g, 0),
    "guided": lambda slope, g: slope * jnp.maximum(g, 0),
    "redirected": lambda slope, g: _redirected(slope, g),
}
_OF_RELUS = ("deconvnet", "guided")  # without relus these are plain gradients


def _redirected(slope: Array, g: Array) -> Array:
    """Passes gradients that open relus, for examples whose gradient would not pass this layer at all."""
    plain = slope * g
    stuck = (plain == 0).all(tuple(range(1, g.ndim)), keepdims=True)
    return jnp.where(stuck, jnp.minimum(g, 0), plain)


def with_rule(function: Callable[..., Any], rule: str) -> Callable[..., Any]:
    """Returns `function` with the same values, but with a rule for relus and one switch per max pool in gradients.

    Args:
      function: of arrays and trees of them, such as `model.apply` with the model's variables.
      rule: 'plain', 'deconvnet', 'guided', or 'redirected', which lets minimisation also open relus of a layer that are
        all closed for an example, like lucid.

    Raises:
      BadRequest: an unknown rule; a function without any relu, when it is called: `jnp.maximum(x, 0)` does not count,
        because it is also used to keep variances from being negative.

    Example:
      >>> backward = jax.grad(with_rule(lambda x: jax.nn.relu(x) @ jnp.array([1.0, -1.0, 1.0]), "deconvnet"))
      >>> backward(jnp.array([-2.0, 3.0, 4.0]))
      Array([1., 0., 1.], dtype=float32)
    """
    choose(RULES, rule, "rule")

    def replayed(*args: Any) -> Any:
        traced = program.traced(function, *args)
        if rule in _OF_RELUS and not _holds(traced.closed, _top):
            raise BadRequest(
                f"the network has no jax.nn.relu for the rule {rule!r}: the result would be the plain gradient."
            )
        return jax.tree.unflatten(traced.outputs, _rewritten(traced.closed, rule)(*jax.tree.leaves(args)))

    return replayed


def _rewritten(closed: Any, rule: str) -> Callable[..., list[Any]]:
    def run(*args: Any) -> list[Any]:
        places: dict[Any, Array] = {}  # positions of each slice's elements in the array that it was cut from

        def replace(e: Any) -> program.Replacement | None:
            if (top := _top(e)) is not None:
                return lambda x: [_rectified(x, top, rule)]
            if _is_cut(e):
                return partial(_cut, e, places)
            if _is_choice(e) and all(v in places for v in e.invars):
                return partial(_choice, e, places)
            return program.inside(e, partial(_rewritten, rule=rule), partial(_holds, what=_concerns))

        return program.evaluate(closed, args, replace)

    return run


def _holds(closed: Any, what: Callable[[Any], Any]) -> bool:
    """Whether a program has an equation of which `what` is neither None nor False, at any depth."""
    for e in closed.jaxpr.eqns:
        if what(e) not in (None, False):
            return True
        if any(_holds(program.closed(p), what) for p in program.programs_of(e)):
            return True
    return False


def _concerns(e: Any) -> bool:
    return _top(e) is not None or _is_choice(e)


def _top(e: Any) -> float | None:
    """Returns the largest output of an equation that is a relu, infinity if unlimited; None for all others."""
    if e.primitive.name != "custom_jvp_call":
        return None
    inner = program.closed(e.params["call_jaxpr"]).jaxpr
    while len(inner.eqns) == 1 and (found := [*program.programs_of(inner.eqns[0])]):
        inner = program.closed(found[0]).jaxpr
    bounds = [(i.primitive.name, _constants(i)) for i in inner.eqns]
    if len(e.invars) != 1 or not bounds or bounds[0] != ("max", [0.0]):
        return None
    if len(bounds) == 1:
        return float("inf")
    return bounds[1][1][0] if len(bounds) == 2 and bounds[1][0] == "min" and len(bounds[1][1]) == 1 else None


def _constants(e: Any) -> list[float]:
    literals = [v.val for v in e.invars if isinstance(v, jax.extend.core.Literal)]
    return [float(x) for x in literals if jnp.ndim(x) == 0]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _rectified(x: Array, top: float, rule: str) -> Array:
    return jnp.clip(x, 0, top).astype(x.dtype)


_rectified.defvjp(
    lambda x, top, rule: (_rectified(x, top, rule), x),
    lambda top, rule, x, g: (RULES[rule](((x > 0) & (x < top)).astype(g.dtype), g),),
)


def _is_cut(e: Any) -> bool:
    return e.primitive.name == "slice" and e.invars[0].aval.ndim == 4


def _is_choice(e: Any) -> bool:
    """Whether an equation is a maximum of two arrays of maps (b h w c)."""
    literal = any(isinstance(v, jax.extend.core.Literal) for v in e.invars)
    return e.primitive.name == "max" and not literal and all(v.aval.ndim == 4 for v in e.invars)


def _cut(e: Any, places: dict[Any, Array], x: Array) -> Sequence[Array]:
    source = e.invars[0]
    if source not in places:
        places[source] = lax.iota(jnp.int32, x.size).reshape(x.shape)
    bounds = e.params["start_indices"], e.params["limit_indices"], e.params["strides"]
    places[e.outvars[0]] = lax.slice(places[source], *bounds)
    return [lax.slice(x, *bounds)]


def _choice(e: Any, places: dict[Any, Array], x: Array, y: Array) -> Sequence[Array]:
    of_x, of_y = (places[v] for v in e.invars)
    first = (x > y) | ((x == y) & (of_x < of_y))
    places[e.outvars[0]] = jnp.where(first, of_x, of_y)
    return [jnp.where(first, x, y)]
