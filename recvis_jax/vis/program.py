"""Functions as JAX's own programs (jaxprs), evaluated with some of their operations replaced.

A network is a function; its relus and layers are not objects with hooks. But its program contains them all: `traced`
records it, and `evaluate` runs it and can compute something else in place of an equation or change a value. Models do
not need to support this.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
from jax import lax

from recvis_jax.errors import BadRequest
from recvis_jax.vis.structure import default_branch

# A replacement of an equation: its inputs -> its outputs.
Replacement = Callable[..., Sequence[Any]]

# Equations that only wrap a program, which may be evaluated in their place -> the parameter that holds it.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
          "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "call_jaxpr"}  # fmt: skip
_REMAT = ("remat", "remat2", "checkpoint")


class Program(NamedTuple):
    """A function for given shapes.

    Attributes:
      closed: its closed jaxpr.
      outputs: structure of its result.
    """

    closed: Any
    outputs: Any

    @property
    def equations(self) -> list[Any]:
        return self.closed.jaxpr.eqns

    def named(self) -> Any:
        """Returns the variables of the outputs, in the structure of the outputs."""
        return jax.tree.unflatten(self.outputs, self.closed.jaxpr.outvars)


def traced(function: Callable[..., Any], *args: Any) -> Program:
    """Returns the program of `function` for arguments of these shapes, without equations that only wrap a function.

    Equations keep the names of their modules.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    program = Program(closed, jax.tree.structure(shapes))
    if any(e.primitive.name in ("jit", "pjit", "closed_call") for e in program.equations):
        flat = jax.tree.leaves(args)
        inlined = jax.make_jaxpr(lambda *xs, closed=program.closed: evaluate(closed, xs, _inline))(*flat)
        program = Program(inlined, program.outputs)
    return program


def evaluate(
    closed: Any,
    args: Sequence[Any],
    replace: Callable[[Any], Replacement | None] = lambda equation: None,
    change: Mapping[Any, Callable[[Any], Any]] | None = None,
) -> list[Any]:
    """Evaluates a program.

    Args:
      closed: a closed jaxpr.
      args: its inputs, as a flat list.
      replace: equation -> the function to compute in its place; None for the equation itself.
      change: variable -> a function applied to its value before anything reads it.

    Returns:
      The outputs, as a flat list.
    """
    jaxpr, known = closed.jaxpr, dict[Any, Any]()
    changes = change or {}

    def write(variables: Sequence[Any], values: Sequence[Any]) -> None:
        for variable, value in zip(variables, values, strict=True):
            known[variable] = changes[variable](value) if variable in changes else value

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, jax.extend.core.Literal) else known[variable]

    write(jaxpr.constvars, closed.consts)
    write(jaxpr.invars, args)
    for e in jaxpr.eqns:
        values = [read(v) for v in e.invars]
        with jax.named_scope(str(e.source_info.name_stack)), e.ctx.manager:
            write(e.outvars, (replace(e) or own(e))(*values))
    return [read(v) for v in jaxpr.outvars]


def own(e: Any) -> Replacement:
    """Returns the function that an equation itself computes."""

    def compute(*values: Any) -> Sequence[Any]:
        found = e.primitive.bind(*values, **e.primitive.get_bind_params(e.params))
        return found if e.primitive.multiple_results else [found]

    return compute


def inside(e: Any, rewrite: Callable[[Any], Callable[..., list[Any]]], concerns: Callable[[Any], bool]) -> Any:
    """Returns the replacement of an equation that contains programs, with these rewritten; None if it has none.

    Custom gradients of rewritten programs are lost: the rewritten program is differentiated. If there are forms for
    several platforms, the one for all platforms is used.

    Args:
      e: an equation.
      rewrite: closed jaxpr -> function of a flat list of arguments, to be used in its place.
      concerns: whether a closed jaxpr contains anything to rewrite; other equations are not changed.

    Raises:
      BadRequest: something to rewrite is inside a kind of equation that cannot be rebuilt, such as a `while_loop`.
    """
    inner = [closed(p) for p in programs_of(e)]
    if not any(map(concerns, inner)):
        return None
    name = e.primitive.name
    if (default := default_branch(e)) is not None:  # the first input is the platform's number
        run = rewrite(default)
        return lambda which, *values: run(*values)
    if name in _CALLS:
        return rewrite(closed(e.params[_CALLS[name]]))
    if name in _REMAT:
        return jax.checkpoint(rewrite(inner[0]), policy=e.params["policy"], prevent_cse=e.params["prevent_cse"])
    if name == "scan":
        body = jax.make_jaxpr(rewrite(inner[0]))(*_shapes(inner[0]))
        return lambda *values: e.primitive.bind(*values, **{**e.params, "jaxpr": body})
    if name == "cond":
        branches = [rewrite(branch) for branch in inner]
        return lambda which, *values: lax.switch(which, branches, *values)
    raise BadRequest(f"the network has operations to replace inside a {name!r}, where they cannot be replaced.")


def programs_of(e: Any) -> Iterator[Any]:
    """Yields the programs in an equation's parameters."""
    for value in e.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                yield part


def closed(program: Any) -> Any:
    """Returns a program as a closed jaxpr; an open one has no constants."""
    return program if hasattr(program, "consts") else jax.extend.core.ClosedJaxpr(program, ())


def _shapes(program: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in program.jaxpr.invars]


def _inline(e: Any) -> Replacement | None:
    if e.primitive.name not in ("jit", "pjit", "closed_call"):
        return None
    inner = closed(e.params[_CALLS[e.primitive.name]])
    return lambda *values: evaluate(inner, values, _inline)
