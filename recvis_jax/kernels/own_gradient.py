"""Functions with a gradient written by hand that JAX can still differentiate forwards.

`jax.custom_vjp` forbids `jax.jvp`, and thus Hessian-vector products, `jax.linearize` and tangent kernels of every model
that contains such a function. `own_gradient` adds an operation of its own to JAX instead. It depends on how JAX
transforms operations: with a version of JAX that it was not tested with (`recvis_jax.tried`), JAX differentiates the
function itself.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.custom_derivatives import SymbolicZero

from recvis_jax import tried


class own_gradient:  # a decorator, named like `jax.custom_vjp`
    """Like `jax.custom_vjp`, but forward mode differentiates the function as written.

    Args:
      fun: maps floating-point arrays to one or several arrays.
      static: positions of arguments that are not arrays.
      plain: the same function in operations that JAX can differentiate, if `fun` is not; takes the same arguments.
    """

    def __init__(self, fun: Callable[..., Any], static: tuple[int, ...] = (), plain: Callable[..., Any] | None = None):
        self.fun, self.static, self.plain = fun, static, plain or fun
        self.signature = inspect.signature(fun)
        functools.update_wrapper(self, fun)

    def define(self, forward: Callable[..., tuple[Any, Any]], backward: Callable[..., tuple]) -> None:
        """Sets the gradient.

        Args:
          forward: takes the arguments of `fun`; returns its result and the residuals for `backward`.
          backward: maps the static arguments, the residuals and the outputs' gradients to a tuple of the arrays'
            gradients. An output without a gradient has a `SymbolicZero` instead.
        """
        self.forward, self.backward = forward, backward

    def __call__(self, *args: Any, **kw: Any) -> Any:
        args = self.signature.bind(*args, **kw).args
        fixed = [args[i] for i in self.static]

        def call(f: Callable[..., Any], arrays: tuple) -> Any:
            rest = iter(arrays)
            return f(*(arg if i in self.static else next(rest) for i, arg in enumerate(args)))

        if not tried.usable("own gradients"):
            return self.plain(*args)

        def rule(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
            out, kept = call(self.forward, primals)
            (residuals, tree), (outputs, of_outputs) = jax.tree.flatten(kept), jax.tree.flatten(out)
            # Do not store arguments twice that are already residuals.
            known = {id(x): i for i, x in enumerate(residuals)}
            others = [x for x in primals if id(x) not in known]
            known |= {id(x): len(residuals) + i for i, x in enumerate(others)}
            derivative = _Derivative(
                plain=lambda *arrays: jax.tree.leaves(call(self.plain, arrays)),
                backward=lambda kept, d_out: self.backward(
                    *fixed, jax.tree.unflatten(tree, kept), jax.tree.unflatten(of_outputs, d_out)
                ),
                kept=len(residuals),
                places=tuple(known[id(x)] for x in primals),
                residuals=len(residuals) + len(others),
                moving=tuple(i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)),
                avals=tuple(jax.typeof(x).to_tangent_aval() for x in outputs),
            )
            moved = (tangents[i] for i in derivative.moving)
            found = _primitive().bind(*residuals, *others, *moved, derivative=derivative)
            return out, jax.tree.unflatten(of_outputs, found)

        function = jax.custom_jvp(lambda *arrays: call(self.fun, arrays))
        function.defjvp(rule, symbolic_zeros=True)
        return function(*(arg for i, arg in enumerate(args) if i not in self.static))


class _Derivative(NamedTuple):
    """The derivative of a function at a point: an operation on residuals and tangents, linear in the tangents.

    Attributes:
      plain: maps the function's arguments to a list of outputs.
      backward: maps a list of residuals and a list of the outputs' gradients to the arguments' gradients.
      kept: how many of the residuals `backward` takes: the first ones.
      places: for each argument, the index of the residual that holds it.
      residuals: number of residuals.
      moving: indices of the arguments whose tangents are not zero; only these tangents are given.
      avals: types of the outputs' tangents.
    """

    plain: Callable[..., list]
    backward: Callable[[list, list], tuple]
    kept: int
    places: tuple[int, ...]
    residuals: int
    moving: tuple[int, ...]
    avals: tuple[Any, ...]

    def split(self, args: tuple) -> tuple[list, list]:
        return list(args[: self.residuals]), list(args[self.residuals :])


def _tangents(*args: Any, derivative: _Derivative) -> list:
    """Differentiates forwards."""
    residuals, tangents = derivative.split(args)
    arguments = [residuals[i] for i in derivative.places]

    def along(*moved: Any) -> list:
        whole = list(arguments)
        for i, x in zip(derivative.moving, moved, strict=True):
            whole[i] = x
        return derivative.plain(*whole)

    return jax.jvp(along, tuple(arguments[i] for i in derivative.moving), tuple(tangents))[1]


def _gradients(cts: list, *args: Any, derivative: _Derivative) -> list:
    """Differentiates backwards."""
    from jax.interpreters import ad

    residuals, tangents = derivative.split(args)
    given = [SymbolicZero(ct.aval) if isinstance(ct, ad.Zero) else ct for ct in cts]
    found = derivative.backward(residuals[: derivative.kept], given)
    wanted = [found[i] if ad.is_undefined_primal(t) else None for i, t in zip(derivative.moving, tangents, strict=True)]
    return [None] * len(residuals) + wanted


def _jvp(args: tuple, tangents: tuple, *, derivative: _Derivative) -> tuple[list, list]:
    from jax.interpreters import ad

    return jax.jvp(
        functools.partial(_tangents, derivative=derivative), args, tuple(map(ad.instantiate_zeros, tangents))
    )


def _batch(args: tuple, axes: tuple, *, derivative: _Derivative) -> tuple[list, tuple[int, ...]]:
    from jax.interpreters import batching

    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    residuals, tangents = derivative.split(args)
    of_residuals, of_tangents = derivative.split(axes)
    tangents = [batching.bdim_at_front(x, axis, size) for x, axis in zip(tangents, of_tangents, strict=True)]
    of_arguments = [of_residuals[i] for i in derivative.places]

    def plain(*arguments: Any) -> list:
        mapped = [0 if i in derivative.moving else axis for i, axis in enumerate(of_arguments)]
        return jax.vmap(derivative.plain, mapped, axis_size=size)(*arguments)

    def backward(kept: list, d_out: list) -> tuple:
        missing = [i for i, x in enumerate(d_out) if isinstance(x, SymbolicZero)]

        def one(kept: list, given: list) -> tuple:
            whole = iter(given)
            return derivative.backward(kept, [d_out[i] if i in missing else next(whole) for i in range(len(d_out))])

        given = [x for i, x in enumerate(d_out) if i not in missing]
        return jax.vmap(one, (of_residuals[: derivative.kept], 0), axis_size=size)(kept, given)

    # An argument that is the same for all examples may still have a different tangent for each.
    places = list(derivative.places)
    for i in derivative.moving:
        if of_arguments[i] != 0:
            places[i] = len(residuals)
            residuals.append(batching.bdim_at_front(residuals[derivative.places[i]], of_arguments[i], size))
    batched = derivative._replace(
        plain=plain,
        backward=backward,
        places=tuple(places),
        residuals=len(residuals),
        avals=tuple(aval.update(shape=(size, *aval.shape), sharding=None) for aval in derivative.avals),
    )
    return _primitive().bind(*residuals, *tangents, derivative=batched), (0,) * len(batched.avals)


@functools.cache
def _primitive() -> Any:
    """Returns the JAX operation that computes a `_Derivative`."""
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir

    operation = Primitive("own_gradient_derivative")
    operation.multiple_results = True
    operation.def_impl(_tangents)
    operation.def_abstract_eval(lambda *args, derivative: list(derivative.avals))
    mlir.register_lowering(operation, mlir.lower_fun(_tangents, multiple_results=True))
    ad.primitive_jvps[operation] = _jvp
    ad.primitive_transposes[operation] = _gradients
    batching.primitive_batchers[operation] = _batch
    return operation
