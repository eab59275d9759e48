"""The operations of models, each as defined in its paper.

Operations marked `@fast` have a second form in `recvis_jax.kernels` that is faster on CPUs and equal up to rounding.
Only this file imports that folder; without the folder everything is computed as written here.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from recvis_jax.errors import BadRequest

_Function = TypeVar("_Function", bound=Callable[..., Any])

_found = importlib.util.find_spec("recvis_jax.kernels")
if _found is not None and _found.origin:  # a folder that only holds old bytecode has no origin
    from recvis_jax.kernels import fast
else:

    def fast(plain: _Function) -> _Function:
        return plain


# True where a query may attend to a key; broadcasts to (b k n m).
Mask = Bool[Array, "..."] | Bool[np.ndarray, "..."]


@fast
def dot_rows(x: Array, kernel: Array, dimensions: Any, precision: Any = None, **kw: Any) -> Array:
    """The product of a dense layer, called by flax.

    Args:
      x: vectors, along the last axis.
      kernel: matrix (c d).
      dimensions, precision, kw: see `lax.dot_general`.
    """
    return lax.dot_general(x, kernel, dimensions, precision=precision, **kw)


@fast
def convolve(x: Array, kernel: Array, strides: Any, padding: Any, **kw: Any) -> Array:
    """The convolution of a layer, called by flax.

    Args:
      x: images (b h w c).
      kernel: (i j c d).
      strides: of rows and columns.
      padding: a name, or pairs of numbers.
      kw: see `lax.conv_general_dilated`.
    """
    return lax.conv_general_dilated(x, kernel, strides, padding, **kw)


@fast
def convolve_and_pool(x: Array, kernel: Array, strides: Any, padding: Any, **kw: Any) -> Array:
    """`convolve`, then the maximum over windows of 2x2 of the outputs (b h w d)."""
    return max_pool(convolve(x, kernel, strides, padding, **kw), 2)


@fast
def max_pool(
    x: Float[Array, "b h w c"], window: int, stride: int | None = None, padding: int = 0
) -> Float[Array, "b i j c"]:
    """Maximum over windows; incomplete windows at the right and bottom are left out.

    Several equal maxima share the gradient.

    Args:
      x: feature maps.
      window: rows and columns of a window.
      stride: step between windows, `window` by default.
      padding: rows and columns of -infinity added on every side.

    Raises:
      BadRequest: the window does not fit.
    """
    return _windows(x, window, stride, padding, -jnp.inf, jnp.maximum)


def avg_pool(
    x: Float[Array, "b h w c"], window: int, stride: int | None = None, padding: int = 0
) -> Float[Array, "b i j c"]:
    """Mean over windows, with the conventions of `max_pool`; padding counts as zeros."""
    return _windows(x, window, stride, padding, 0.0, jnp.add) * (1.0 / window**2)


def _windows(x: Array, window: int, stride: int | None, padding: int, fill: float, reduce: Callable) -> Array:
    """Reduces sliding windows over axes 1 and 2 by combining strided slices, rows first, then columns.

    The gradient of `lax.reduce_window` would be several times slower on CPUs.
    """
    stride = window if stride is None else stride
    if min(x.shape[1:3]) + 2 * padding < window:
        raise BadRequest(f"a {window}x{window} pooling window does not fit a {x.shape[1]}x{x.shape[2]} feature map.")
    if padding:
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=fill)
    for axis in (1, 2):
        size = (x.shape[axis] - window) // stride + 1
        slices = [lax.slice_in_dim(x, i, i + (size - 1) * stride + 1, stride, axis) for i in range(window)]
        out = slices[0]
        for s in slices[1:]:
            out = reduce(out, s)
        x = out
    return x


@fast
def layer_norm(
    x: Float[Array, "*b d"], scale: Float[Array, "d"], bias: Float[Array, "d"], epsilon: float
) -> Float[Array, "*b d"]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, for every token over its channels, in float32.

    The variance takes two passes: E[x^2] - E[x]^2 is too inexact for small variances, for which epsilon matters.

    Reference: Ba, Kiros & Hinton 2016, "Layer normalization".
    """
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred * (lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon) * scale) + bias


@fast
def softmax(scores: Float[Array, "... m"]) -> Float[Array, "... m"]:
    """exp(s) / sum of exp(s), over the last axis."""
    return jax.nn.softmax(scores)


def masked_softmax(scores: Float[Array, "... m"], mask: Mask) -> Float[Array, "... m"]:
    """Softmax over the scores where `mask` is true, 0 elsewhere; a row that is masked everywhere gives zeros."""
    scores = jnp.where(mask, scores, -jnp.inf)
    peak = lax.stop_gradient(scores.max(-1, keepdims=True))  # any constant gives the same weights
    e = jnp.exp(scores - jnp.where(jnp.isfinite(peak), peak, 0.0))
    return e / jnp.maximum(e.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)


@fast
def attention(
    q: Float[Array, "b n k d"],
    k: Float[Array, "b m k d"],
    v: Float[Array, "b m k e"],
    mask: Mask | None = None,
) -> tuple[Float[Array, "b n k e"], Float[Array, "b k n m"]]:
    """softmax(Q K^T / sqrt(d)) V in every head; the softmax is computed in float32.

    Args:
      q: queries, of n tokens and k heads.
      k, v: keys and values, of m tokens.
      mask: true where a query may attend to a key; broadcasts to (b k n m). A masked key has no influence at all, and a
        query without any key gets zeros.

    Returns:
      out: per head, the weighted mean of the values.
      weights: the softmax; its rows sum to 1.

    Reference: Vaswani et al. 2017, "Attention is all you need", section 3.2.1.
    """
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    scores = jnp.einsum("bnkd,bmkd->bknm", q, k, preferred_element_type=jnp.float32)
    weights = softmax(scores) if mask is None else masked_softmax(scores, mask)
    return jnp.einsum("bknm,bmke->bnke", weights.astype(v.dtype), v), weights
