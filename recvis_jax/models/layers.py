"""Pieces that several model families share: activations, pooling, initialisers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from recvis_jax.axes import BATCH_AXES
from recvis_jax.errors import choose
from recvis_jax.operations import avg_pool, convolve, convolve_and_pool, dot_rows, max_pool

Acts = dict[str, Array]

# He et al. 2015, "Delving deep into rectifiers", eq. 10: normal with variance 2 / fan_in.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def gelu(x: Array) -> Array:
    """x Phi(x), Phi the distribution function of the normal: exact GELU by erf, cheaper than erfc."""
    return 0.5 * x * (1 + lax.erf(x * (0.5**0.5)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "elu": nn.elu,
    "gelu": gelu,
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "hard_sigmoid": nn.hard_sigmoid,
    "hard_swish": nn.hard_swish,
    "identity": lambda x: x,
    "leaky_relu": nn.leaky_relu,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "relu6": nn.relu6,
    "selu": nn.selu,
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "softplus": nn.softplus,
    "tanh": jnp.tanh,
}


# A dense layer on tokens (b n d); use it for inputs with more than a batch and a channel axis.
Dense = partial(nn.Dense, dot_general=dot_rows)

# A convolution (b h w c); use it instead of flax's.
Conv = partial(nn.Conv, conv_general_dilated=convolve)

# A convolution and 2x2 max pooling of its outputs; the bias is added after the pooling, with the same result.
ConvMaxPool = partial(nn.Conv, conv_general_dilated=convolve_and_pool)

POOLS = {"avg": avg_pool, "max": max_pool}


def activation(name: str) -> Callable[[Array], Array]:
    """Returns the elementwise function of that name; `BadRequest` lists them for an unknown one."""
    return choose(ACTIVATIONS, name, "activation")


def batch_split(x: Float[Array, "b *rest"]) -> Float[Array, "b *rest"]:
    """Tells the compiler to split activations over the devices by examples only.

    Otherwise the compiler may follow the layout of split parameters and keep activations of the whole batch on every
    device. Does nothing outside a mesh with `BATCH_AXES`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not set(BATCH_AXES) <= set(mesh.auto_axes):
        return x
    return lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def global_avg_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Mean over rows and columns, summed in float32."""
    return x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)


def global_max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Maximum over rows and columns; the first of several has the gradient.

    The place of the maximum is kept for the gradient. JAX's own compares the elements with the maximum again; a program
    that computes the elements twice, in two ways that round differently, then finds none that is equal.

    Example:
      >>> global_max_pool(jnp.array([1.0, 3.0, 2.0, 3.0]).reshape(1, 2, 2, 1)).tolist()
      [[3.0]]
    """
    places = x.reshape(x.shape[0], -1, x.shape[-1])
    first = jax.lax.stop_gradient(places).argmax(1, keepdims=True)
    return jnp.where(jnp.arange(places.shape[1])[:, None] == first, places, 0).sum(1)


def flatten(x: Array) -> Float[Array, "b n"]:
    """All axes but the first as one, rows slowest, channels fastest."""
    return x.reshape(x.shape[0], -1)


def linear_head(acts: Acts, x: Float[Array, "b d"], num_classes: int, dtype: Any) -> tuple[Float[Array, "b k"], Acts]:
    """Ends a network with a dense layer on `x`; called inside a compact method.

    Args:
      acts: intermediates, among them `features` (b d).
      x: the features, perhaps after dropout.
      num_classes: number of outputs; 0 returns the features.
      dtype: of the computation.

    Returns:
      Output in float32, and `acts` with `logits` where there is a head.
    """
    if not num_classes:
        return acts["features"].astype(jnp.float32), acts
    logits = nn.Dense(num_classes, dtype=dtype, name="head")(x).astype(jnp.float32)
    return logits, {**acts, "logits": logits}
