"""Matrix products of dense layers and of attention; large ones use oneDNN."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from recvis_jax.kernels import onednn
from recvis_jax.kernels.blocks import one_device
from recvis_jax.kernels.own_gradient import own_gradient

# Memory layout of (b k n d) if a layer keeps the heads of a token together.
_TOKENS = (0, 2, 1, 3)


def pay(examples: int, multiplications: int, *operands: Array) -> bool:
    """Whether products of this size use oneDNN."""
    floats = all(x.dtype == jnp.float32 for x in operands)
    return floats and one_device() and onednn.large(examples, multiplications)


def dot_rows(plain: Callable, x: Array, kernel: Array, dimensions: Any, precision: Any = None, **kw: Any) -> Array:
    """The form of `operations.dot_rows`: over (rows, d) for inputs (b n d).

    The gradient of the kernel is then one product of two matrices in their memory order. If it contracted two axes,
    XLA on CPUs would first transpose copies of both, and recompute the sum of all later blocks' gradients for each.
    """
    special = x.ndim == 2 or any(v is not None for v in kw.values())
    if special or dimensions != (((x.ndim - 1,), (0,)), ((), ())):
        return plain(x, kernel, dimensions, precision=precision, **kw)
    large = pay(len(x), x.size * kernel.shape[1], x, kernel)
    return dense(x.reshape(-1, x.shape[-1]), kernel, precision, large).reshape(*x.shape[:-1], -1)


@partial(own_gradient, static=(2, 3))
def dense(x: Float[Array, "r c"], kernel: Float[Array, "c d"], precision: Any, large: bool) -> Float[Array, "r d"]:
    """x @ kernel; its gradient to the kernel is one product of two matrices in their memory order.

    Args:
      x: rows.
      kernel: matrix.
      precision: of XLA's products.
      large: whether the products use oneDNN.
    """
    return _dot(x, kernel, precision, large)


def _dense_forward(x: Array, kernel: Array, precision: Any, large: bool) -> tuple[Array, tuple[Array, Array]]:
    return _dot(x, kernel, precision, large), (x, kernel)


def _dense_backward(precision: Any, large: bool, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    dot = partial(jnp.dot, precision=precision)

    def narrow(x: Array, d_y: Array) -> Array:
        # Twice as fast on CPUs as the tall product; without the barrier XLA turns this into the tall one.
        return lax.optimization_barrier(dot(d_y.T, x)).T

    def plain(x: Array, d_y: Array) -> Array:
        return dot(x.T, d_y)

    form = narrow if kernel.shape[0] > kernel.shape[1] else plain
    form = partial(onednn.matmul, transpose_a=True) if large else form
    d_kernel = plain(x, d_y) if form is plain else lax.platform_dependent(x, d_y, cpu=form, default=plain)
    return _dot(d_y, kernel, precision, large, transposed=True), d_kernel


dense.define(_dense_forward, _dense_backward)


def _dot(x: Array, kernel: Array, precision: Any, large: bool, transposed: bool = False) -> Array:
    def plain(x: Array, kernel: Array) -> Array:
        return jnp.dot(x, kernel.T if transposed else kernel, precision=precision)

    if not large:
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=partial(onednn.matmul, transpose_b=transposed), default=plain)


def scores(q: Float[Array, "b n k d"], k: Float[Array, "b m k d"]) -> Float[Array, "b k n m"]:
    """Scalar products of queries and keys in every head, in float32.

    Do not differentiate it: JAX would keep the operands of both platforms' products. `attention` has the gradients.
    """

    def ours(q: Array, k: Array) -> Array:
        # Read the heads in place; copying them would take as long as the product.
        q, k = q.swapaxes(1, 2), k.swapaxes(1, 2)
        return onednn.matmul(q, k, transpose_b=True, layouts=(_TOKENS, _TOKENS, None))

    def plain(q: Array, k: Array) -> Array:
        return jnp.einsum("bnkd,bmkd->bknm", q, k, preferred_element_type=jnp.float32)

    if not pay(len(q), q.size * k.shape[1], q, k):
        return plain(q, k)
    return lax.platform_dependent(q, k, cpu=ours, default=plain)


def mixtures(
    weights: Float[Array, "b k _ _"], v: Float[Array, "b m k d"], transposed: bool = False
) -> Float[Array, "b n k d"]:
    """Sums of values in every head, weighted per query; `transposed` if the weights are (b k m n)."""

    def ours(weights: Array, v: Array) -> Array:
        layouts = (None, _TOKENS, _TOKENS)
        out = onednn.matmul(weights, v.swapaxes(1, 2), transpose_a=transposed, layouts=layouts)
        return out.swapaxes(1, 2)

    def plain(weights: Array, v: Array) -> Array:
        return jnp.einsum("bkmn,bmkd->bnkd" if transposed else "bknm,bmkd->bnkd", weights, v)

    if not pay(len(v), weights.size * v.shape[-1], weights, v):
        return plain(weights, v)
    return lax.platform_dependent(weights, v, cpu=ours, default=plain)
