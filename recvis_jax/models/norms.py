"""Normalisation: batch, frozen batch, layer, group, none, and how a model chooses one by name."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from recvis_jax.axes import DATA_AXIS
from recvis_jax.errors import BadRequest, choose
from recvis_jax.operations import layer_norm


class BatchNorm(nn.Module):
    """Batch normalisation with the statistics of the global batch, or of parts of it.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, per channel (the last axis). In training, mean and (biased)
    variance are those of the batch, in float32 and one pass: var = E[x^2] - E[x]^2. In evaluation they are the
    running ones, kept in the collection `batch_stats` as `mean` and `var` and updated as
    running = momentum * running + (1 - momentum) * batch. As in PyTorch, the running variance uses the unbiased
    variance of the batch, n / (n - 1) times the one above.

    Statistics are those of the global batch, however it is split: under `jit` the array is already global; if a mapped
    axis `data` is bound (`pmap`), statistics are averaged over it. With `groups` = g > 1 the global batch is cut into
    g equal parts, example j into part j mod g, and each is normalised by its own statistics (ghost batch
    normalisation); the running statistics then use the average over the parts. Such strided parts are spread evenly
    over any number of devices, and are the same as the micro-batches of accumulated gradients.

    Attributes:
      groups: number of parts of the global batch, at least 1; must divide the number of examples on each device.
      momentum: weight of the old running statistics, in [0, 1].
      epsilon: added to the variance.
      use_scale, use_bias: whether there is a learnt scale and bias per channel.
      zero_init: starts the scale at 0 instead of 1.
      dtype: of the output.

    Raises:
      BadRequest: the batch, or a device's share of it under `pmap`, cannot be cut into `groups` equal parts.

    Reference: Ioffe & Szegedy 2015; Hoffer et al. 2017, "Train longer, generalize better", section 4.
    """

    groups: int = 1
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    zero_init: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"], *, train: bool) -> Float[Array, "b *space c"]:
        c = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
        scale = jnp.ones((c,), jnp.float32)
        if self.use_scale:
            init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
            scale = self.param("scale", init, (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32) if self.use_bias else 0.0

        if train and not self.is_initializing():
            mean, var, mean_all, var_all = batch_statistics(x, self.groups)
            m = self.momentum
            running_mean.value = m * running_mean.value + (1 - m) * lax.stop_gradient(mean_all)
            running_var.value = m * running_var.value + (1 - m) * lax.stop_gradient(var_all)
        else:
            mean, var = running_mean.value[None], running_var.value[None]

        # One multiply and one add per element, so that forward and backward pass each read the activations once.
        a = lax.rsqrt(var + self.epsilon) * scale
        shift = bias - mean * a
        if len(a) == 1:  # without a reshape: around one, XLA does not vectorise its loops on CPUs
            return (x.astype(jnp.float32) * a[0] + shift[0]).astype(self.dtype)
        rows = (len(a), *(1,) * (x.ndim - 2), c)
        parts = x.reshape(-1, len(a), *x.shape[1:]).astype(jnp.float32)
        return (parts * a.reshape(rows) + shift.reshape(rows)).reshape(x.shape).astype(self.dtype)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by running statistics that training does not change, and with a fixed scale and bias.

    Names and values are those of `BatchNorm`, so that weights of a classifier fit. Detectors and segmenters freeze the
    norms of a pretrained backbone because their batches are too small for statistics.

    Attributes:
      epsilon: added to the variance.
      zero_init: starts the scale at 0 instead of 1.
      dtype: of the output.

    Reference: Carion et al. 2020, "End-to-end object detection with transformers", section 4.
    """

    epsilon: float = 1e-5
    zero_init: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"], *, train: bool = False) -> Float[Array, "b *space c"]:
        c = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32).value
        var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32).value
        init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        scale = lax.stop_gradient(self.param("scale", init, (c,), jnp.float32))
        bias = lax.stop_gradient(self.param("bias", nn.initializers.zeros, (c,), jnp.float32))
        a = lax.rsqrt(var + self.epsilon) * scale
        return (x.astype(jnp.float32) * a + (bias - mean * a)).astype(self.dtype)


def batch_statistics(
    x: Float[Array, "b *space c"], groups: int
) -> tuple[Float[Array, "g c"], Float[Array, "g c"], Float[Array, "c"], Float[Array, "c"]]:
    """Returns mean and biased variance of each part of the global batch, and the values for the running statistics.

    Args:
      x: activations; this device's share of them if the axis `data` is mapped.
      groups: number of parts; example j belongs to part j mod groups.

    Returns:
      mean, var: a row for each part, float32.
      mean_all, var_all: averages over the parts of their means and unbiased variances.
    """
    b, c = x.shape[0], x.shape[-1]
    if groups < 1 or b % groups:
        raise BadRequest(f"bn_groups={groups} does not divide the {b} examples of a batch on one device.")
    space = math.prod(x.shape[1:-1])
    parts = (x if groups == 1 else x.reshape(-1, groups, *x.shape[1:])).astype(jnp.float32)
    axes = tuple(axis for axis in range(parts.ndim - 1) if groups == 1 or axis != 1)
    moments = jnp.stack([parts.mean(axes), jnp.square(parts).mean(axes)]).reshape(2, groups, c)
    devices = data_axis_size()
    if devices > 1:
        moments = lax.pmean(moments, DATA_AXIS)
    mean, square = moments
    # Rounding may leave a constant channel's variance slightly below zero.
    var = jnp.maximum(square - jnp.square(mean), 0.0)
    n = b * devices * space // groups
    return mean, var, mean.mean(0), var.mean(0) * (n / max(n - 1, 1))


def data_axis_size() -> int:
    """Returns the size of the mapped axis `data`, or 1 if it is not bound."""
    try:
        return lax.axis_size(DATA_AXIS)
    except NameError:  # what JAX raises for an axis name that is not bound
        return 1


class LayerNorm(nn.Module):
    """Normalises every token over its channels: (x - mean) / sqrt(var + epsilon) * scale + bias, in float32.

    Attributes:
      epsilon: added to the variance.
      dtype: of the output.

    Reference: Ba, Kiros & Hinton 2016, "Layer normalization".
    """

    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        d = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (d,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (d,), jnp.float32)
        return layer_norm(x, scale, bias, self.epsilon).astype(self.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale, over the last axis, in float32.

    Attributes:
      epsilon: added to the mean square.
      dtype: of the output.

    Reference: Zhang & Sennrich 2019, "Root mean square layer normalization".
    """

    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        return (x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon) * scale).astype(self.dtype)


class GroupNorm(nn.Module):
    """Normalises each example over space and each of `groups` runs of channels; 1 group: layer norm, c: instance norm.

    Attributes:
      groups: number of runs of channels; 0 means gcd(32, c), -1 means c.
      zero_init: starts the scale at 0 instead of 1.

    Raises:
      BadRequest: `groups` does not divide the channels, or a group would hold a single number.

    Reference: Wu & He 2018, "Group normalization".
    """

    groups: int = 0
    epsilon: float = 1e-5
    zero_init: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"], *, train: bool = False) -> Float[Array, "b *space c"]:
        b, c = x.shape[0], x.shape[-1]
        groups = {0: math.gcd(32, c), -1: c}.get(self.groups, self.groups)
        if groups < 1 or c % groups:
            raise BadRequest(f"{groups} groups do not divide {c} channels.")
        if x.size == b * groups:
            raise BadRequest(f"{groups} groups of {c} channels without spatial extent hold one number each.")
        init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        scale = self.param("scale", init, (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
        parts = x.astype(jnp.float32).reshape(b, -1, groups, c // groups)
        mean = parts.mean((1, 3))
        var = jnp.maximum(jnp.square(parts).mean((1, 3)) - jnp.square(mean), 0.0)
        a = (lax.rsqrt(var + self.epsilon)[..., None] * scale.reshape(groups, -1)).reshape(b, 1, c)
        shift = bias - jnp.repeat(mean, c // groups, axis=1)[:, None] * a
        return (x.astype(jnp.float32).reshape(b, -1, c) * a + shift).reshape(x.shape).astype(self.dtype)


class NoNorm(nn.Module):
    """Identity with the signature of a normaliser."""

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"], *, train: bool = False) -> Float[Array, "b *space c"]:
        return x


NORMS = ("batch", "frozen", "group", "instance", "layer", "none")


def make_norm(
    kind: str, *, bn_groups: int = 1, norm_groups: int = 0, dtype: Any = jnp.float32
) -> Callable[..., nn.Module]:
    """Returns a constructor of normalisers, each called as `norm(name=...)(x, train=train)`.

    Args:
      kind: 'batch'; 'frozen', a batch norm that training does not change; 'layer' (over space and channels), 'instance'
        (over space) or 'group' (over space and runs of channels), each within an example; or 'none'.
      bn_groups: parts of the global batch with statistics of their own, for 'batch'.
      norm_groups: runs of channels, for 'group'; 0 takes gcd(32, channels).
      dtype: of the output.

    Raises:
      BadRequest: unknown `kind`.
    """
    if kind == "none":
        return lambda name=None, zero_init=False: NoNorm(name=name)
    table = {
        "batch": partial(BatchNorm, groups=bn_groups, dtype=dtype),
        "frozen": partial(FrozenBatchNorm, dtype=dtype),
        "group": partial(GroupNorm, groups=norm_groups, dtype=dtype),
        "instance": partial(GroupNorm, groups=-1, dtype=dtype),
        "layer": partial(GroupNorm, groups=1, dtype=dtype),
    }
    return choose(table | {"none": None}, kind, "norm")
