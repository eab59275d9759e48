"""Layer normalisation with a gradient written by hand.

The gradient is computed from the input and its two statistics, and reads the activations half as often as JAX's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from recvis_jax.kernels.own_gradient import own_gradient


def layer_norm(plain: Callable, x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """The form of `operations.layer_norm`."""
    del plain
    return normalised(x, scale, bias, epsilon)


@partial(own_gradient, static=(3,))
def normalised(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the last axis, in float32."""
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Any]:
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(y - mean).mean(-1, keepdims=True) + epsilon)
    return (y - mean) * (inverse * scale) + bias, (x, scale, mean, inverse)


def _backward(epsilon: float, kept: Any, d_y: Array) -> tuple[Array, Array, Array]:
    del epsilon
    x, scale, mean, inverse = kept
    tokens = tuple(range(x.ndim - 1))
    normal = (x.astype(jnp.float32) - mean) * inverse
    d_normal = d_y * scale
    along = (d_normal * normal).mean(-1, keepdims=True)
    d_x = (d_normal - d_normal.mean(-1, keepdims=True) - normal * along) * inverse
    return d_x.astype(x.dtype), (d_y * normal).sum(tokens), d_y.sum(tokens)


normalised.define(_forward, _backward)
