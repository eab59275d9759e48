"""Draws the initial parameters of equal layers in one loop, so that the program does not grow with the depth."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core


def looped(init: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    """Returns a function with the same result as `init`, which draws arrays of one shape and distribution in a loop.

    Hundreds of separate draws make a program that takes longer to compile than a training step, and that is the
    slowest part of a start even when it comes from the compilation cache.

    Args:
      init: key -> arrays, for one device. Arrays that share a loop are functions of the key folded with a number.
    """

    def run(key: jax.Array) -> Any:
        closed, shapes = jax.make_jaxpr(init, return_shape=True)(key)
        while [e.primitive.name for e in closed.jaxpr.eqns] == ["jit"] and not closed.consts:
            closed = closed.jaxpr.eqns[0].params["jaxpr"]
        return jax.tree.unflatten(jax.tree.structure(shapes), _evaluate(closed, key))

    return run


class _Draw(NamedTuple):
    """How an array is drawn. Draws of the same kind differ only in the number.

    Attributes:
      key: random key: `folded` folded with `number`.
      equations: they make the array from the key.
    """

    kind: tuple
    key: core.Var
    folded: core.Var
    number: Any
    equations: list[core.JaxprEqn]


def _evaluate(closed: core.ClosedJaxpr, key: jax.Array) -> list[jax.Array]:
    """Returns the values of the outputs; outputs of one kind are drawn in a loop."""
    jaxpr = closed.jaxpr
    makers = {v: e for e in jaxpr.eqns for v in e.outvars}
    kinds: dict[tuple, list[tuple[int, _Draw]]] = defaultdict(list)
    for place, out in enumerate(jaxpr.outvars):
        if draw := _draw(out, makers):
            kinds[draw.kind].append((place, draw))
    loops = [members for members in kinds.values() if len(members) > 1]
    together = {place for members in loops for place, _ in members}
    alone = [place for place in range(len(jaxpr.outvars)) if place not in together]

    wanted = [jaxpr.outvars[place] for place in alone] + [members[0][1].folded for members in loops]
    once = jaxpr.replace(outvars=wanted, eqns=_needed(jaxpr.eqns, wanted))
    values = core.jaxpr_as_fun(core.ClosedJaxpr(once, closed.consts))(key)
    outputs = dict(zip(alone, values, strict=False))
    for members, folded in zip(loops, values[len(alone) :], strict=True):
        place, first = members[0]
        of_key = dict(constvars=[], invars=[first.key], outvars=[jaxpr.outvars[place]], eqns=first.equations)
        numbers = jnp.array([draw.number for _, draw in members], jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(folded, numbers)
        drawn = lax.map(core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr.replace(**of_key), [])), keys)[0]
        outputs.update((place, drawn[i]) for i, (place, _) in enumerate(members))
    return [outputs[place] for place in range(len(jaxpr.outvars))]


def _needed(equations: list[core.JaxprEqn], wanted: list[core.Var]) -> list[core.JaxprEqn]:
    """Returns the equations needed for some values: initialising a network also runs it, only to get shapes."""
    read, found = set(map(id, wanted)), []
    for equation in reversed(equations):
        if not read.isdisjoint(map(id, equation.outvars)):
            read.update(map(id, equation.invars))
            found.append(equation)
    return found[::-1]


def _draw(out: core.Var, makers: dict[core.Var, core.JaxprEqn]) -> _Draw | None:
    """Returns how an output is drawn; None if it is not random, or drawn in a way that a loop cannot share."""
    folds: list[tuple[core.Var, core.Var, Any]] = []
    equations: list[core.JaxprEqn] = []
    names: dict[core.Var, int] = {}
    kind: list[Any] = []

    def visit(var: core.Var) -> bool:
        if var in names:
            return True
        equation = makers.get(var)
        if equation is None or len(equation.outvars) > 1:
            return False
        if equation.primitive.name == "random_fold_in":
            folded, number = equation.invars
            if folds or not isinstance(number, core.Literal) or isinstance(folded, core.Literal):
                return False
            folds.append((var, folded, number.val))
            kind.append(folded)
        else:
            if not all(isinstance(a, core.Literal) or visit(a) for a in equation.invars):
                return False
            read = [repr(a) if isinstance(a, core.Literal) else names[a] for a in equation.invars]
            kind.append((equation.primitive.name, *read, *map(_name, sorted(equation.params.items()))))
            equations.append(equation)
        names[var] = len(names)
        return True

    if not visit(out) or not folds:
        return None
    return _Draw(tuple(kind), *folds[0], equations)


def _name(parameter: tuple[str, Any]) -> tuple[str, Any]:
    """Returns an identity for an equation's parameter; equal traced functions are the same object."""
    name, value = parameter
    return name, id(value) if isinstance(value, core.ClosedJaxpr) else repr(value)
