"""Pieces that several model families share: activations, normalisation, pooling, initialisers."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest, choose

Acts = dict[str, Array]

# Name of the mapped axis over which a data-parallel program splits the batch.
DATA_AXIS = "data"

# Axes of a mesh over which `jit` splits the batch.
BATCH_AXES = ("data", "fsdp")

# He et al. 2015, "Delving deep into rectifiers", eq. 10: normal with variance 2 / fan_in.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def gelu(x: Array) -> Array:
    """x Phi(x), with the distribution function of the normal from erf: one piece of arithmetic, where erfc is three."""
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
    "relu": nn.relu,
    "relu6": nn.relu6,
    "selu": nn.selu,
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "softplus": nn.softplus,
    "tanh": jnp.tanh,
}


def dot_rows(x: Array, kernel: Array, dimensions: Any, precision: Any = None, **kw: Any) -> Array:
    """`lax.dot_general` of a dense layer, over (rows, d) for inputs (b n d).

    The gradient of the kernel is then one product of two matrices as they lie in memory. Contracted over two axes, XLA
    would first transpose copies of both on CPUs, and compute the sum of all later blocks' gradients again for each.
    """
    if dimensions != (((x.ndim - 1,), (0,)), ((), ())) or x.ndim == 2 or any(v is not None for v in kw.values()):
        return lax.dot_general(x, kernel, dimensions, precision=precision, **kw)
    return _product(x.reshape(-1, x.shape[-1]), kernel, precision).reshape(*x.shape[:-1], -1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Float[Array, "r c"], kernel: Float[Array, "c d"], precision: Any) -> Float[Array, "r d"]:
    return jnp.dot(x, kernel, precision=precision)


def _product_forward(x: Array, kernel: Array, precision: Any) -> tuple[Array, tuple[Array, Array]]:
    return jnp.dot(x, kernel, precision=precision), (x, kernel)


def _product_backward(precision: Any, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    dot = partial(jnp.dot, precision=precision)

    def narrow(x: Array, d_y: Array) -> Array:
        # Twice as fast on CPUs as the tall product; without the barrier XLA turns the one into the other.
        return lax.optimization_barrier(dot(d_y.T, x)).T

    def plain(x: Array, d_y: Array) -> Array:
        return dot(x.T, d_y)

    tall = kernel.shape[0] > kernel.shape[1]
    d_kernel = lax.platform_dependent(x, d_y, cpu=narrow, default=plain) if tall else plain(x, d_y)
    return dot(d_y, kernel.T), d_kernel


_product.defvjp(_product_forward, _product_backward)


# A dense layer on tokens (b n d); use it wherever there is more than a batch axis.
Dense = partial(nn.Dense, dot_general=dot_rows)


def convolve(x: Array, kernel: Array, strides: Any, padding: Any, **kw: Any) -> Array:
    """`lax.conv_general_dilated` for flax's `Conv`, in forms that are fast on CPUs.

    Its operands in the gradient of the kernel are read, not computed again: XLA's CPU convolutions want both of them
    transposed there, and it would compute what comes before a convolution while transposing, element by element: four
    fifths of the time of a small ResNet. Where a matrix product would be wasted on them, convolutions of stride 1 are
    sums of shifted images: `_depthwise`, and `_by_products` for few channels, which `_by_neighbours` may find.
    """

    def plain(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **kw)

    dilated = any(d != 1 for name in ("lhs_dilation", "rhs_dilation") for d in kw.get(name) or ())
    form = plain
    if kernel.ndim == 4 and tuple(strides) == (1, 1) and not dilated and math.prod(kernel.shape[:2]) > 1:
        pads = padding
        if isinstance(pads, str):
            pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, pads)
        pads = tuple(tuple(p) for p in pads)
        groups = kw.get("feature_group_count", 1)
        if groups == x.shape[-1] == kernel.shape[-1] > 1:
            form = partial(_depthwise, pads=pads)
        elif groups == 1:
            form = _of_few_channels(x.shape, kernel.shape, pads, plain, kw.get("precision"))
    if form is plain:
        return held(plain(held(x), kernel))
    return held(lax.platform_dependent(held(x), kernel, cpu=form, default=plain))


def _of_few_channels(image: tuple, kernel: tuple, pads: Any, plain: Callable, precision: Any) -> Callable:
    """Returns a form of the convolution `plain` of shapes (b h w c) and (i j c d), stride 1: itself or a faster one."""
    form, (across, c, d) = plain, kernel[1:]
    out = image[2] + sum(pads[1]) - across + 1
    if c < 8 and across >= 5 and out > 0:
        fits = [n for n in (4, 2) if n * d <= 40 and out % n == image[2] % n == 0]
        if fits:
            form = partial(_by_neighbours, n=fits[0], pads=pads, precision=precision)
    return partial(_by_products, pads=pads, other=form) if _few(c, d) else form


def _few(c: int, d: int) -> bool:
    """Whether a sum of products is faster than a matrix product from c to d channels, as measured with AVX2.

    Alone it is from 16 to 16 too, by 1.4; not within a net, where the sums are no longer in the cache.
    """
    return c <= 8 and d % 8 == 0 and c * d <= 128


def _by_neighbours(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"], n: int, pads: Any, precision: Any
) -> Float[Array, "b p q d"]:
    """A convolution that computes n neighbours of a row at once, as n d channels from n c: 1 to 3 times as fast.

    A pixel's channels fill no vector register where they are fewer than 8, the outputs' only with luck. In memory n
    neighbours are one pixel of n c channels; the kernel is repeated, shifted by one for each of the n outputs, with
    zeros for what an output does not see. Of wide kernels the zeros are few.
    """
    rows, across, c, d = kernel.shape
    left, right = pads[1]
    before = -(-left // n)  # groups of n pixels left of the first
    shift = before * n - left
    groups = -(-(shift + n - 1 + across) // n)
    moved = [jnp.pad(kernel, ((0, 0), (shift + k, groups * n - across - shift - k), (0, 0), (0, 0))) for k in range(n)]
    wide = jnp.stack(moved, axis=3).reshape(rows, groups, n * c, n * d)
    b, h, w, _ = x.shape
    out = w + left + right - across + 1
    wide_pads = (pads[0], (before, out // n - 1 + groups - before - w // n))

    def plain(x: Array, kernel: Array) -> Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), wide_pads, dimension_numbers=numbers, precision=precision)

    form = partial(_by_products, pads=wide_pads, other=plain) if _few(n * c, n * d) else plain
    y = form(x.reshape(b, h, w // n, n * c), wide)
    return y.reshape(b, y.shape[1], out, d)


# Products that one loop adds up: with more of them the operands would no longer stay in the first cache.
_TERMS = 16


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_products(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"], pads: Any, other: Callable
) -> Float[Array, "b p q d"]:
    """A convolution as a sum over pixels and channels of x times a row of the kernel: outputs lie along registers.

    XLA's copies patches for a matrix product, and a narrow one does not pay for them: from 3 channels to 16 this is
    five times as fast. `other` is the same convolution, for the gradients where it is better.
    """
    del other
    return _sum_of_products(x, kernel, pads, [slice(k, k + 1) for k in range(kernel.shape[2])])


def _by_products_forward(x: Array, kernel: Array, pads: Any, other: Callable) -> tuple[Array, tuple[Array, Array]]:
    return _by_products(x, kernel, pads, other), (x, kernel)


def _by_products_backward(pads: Any, other: Callable, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    d_x, d_kernel = jax.vjp(other, x, kernel)[1](d_y)
    if _few(kernel.shape[3], kernel.shape[2]):
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        d_x = _by_products(d_y, turned, _turned_pads(kernel.shape, pads), other)
    return d_x, d_kernel


_by_products.defvjp(_by_products_forward, _by_products_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: Float[Array, "b h w c"], kernel: Float[Array, "i j 1 c"], pads: Any) -> Float[Array, "b p q c"]:
    """A depthwise convolution as a sum of shifted images, each times its row of the kernel, and gradients alike.

    XLA's own takes the channels one by one: on CPUs this is some 25 times as fast, a kernel of 9x9 on 256 channels.
    """
    return _sum_of_products(x, kernel, pads, [slice(None)])


def _depthwise_forward(x: Array, kernel: Array, pads: Any) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(x, kernel, pads), (x, kernel)


def _depthwise_backward(pads: Any, kept: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    d_x = _depthwise(d_y, kernel[::-1, ::-1], _turned_pads(kernel.shape, pads))

    # Sums over a row's pixels first; what they leave is small.
    rows, across = kernel.shape[:2]
    h, w = d_y.shape[1:3]
    moved, d_y = _padded(x, pads), lax.optimization_barrier(d_y.astype(jnp.float32))
    d_kernel = []
    for i in range(rows):
        sums = jnp.zeros((across, x.shape[-1]), jnp.float32)
        for first in range(0, w, _TERMS):
            pixels = range(first, min(first + _TERMS, w))
            terms = [moved[:, i : i + h, v : v + across] * d_y[:, :, v : v + 1] for v in pixels]
            sums += lax.optimization_barrier(_sum(terms)).sum((0, 1))
        d_kernel.append(sums)
    return d_x, jnp.stack(d_kernel)[:, :, None].astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _sum_of_products(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j k d"], pads: Any, channels: list[slice]
) -> Float[Array, "b p q d"]:
    """Returns the sum over i, j, k of x, padded and moved by (-i, -j), its channels[k], times kernel[i, j, k].

    In float32, in loops of `_TERMS` products each. What they read is in memory, or it would be made anew for each.
    """
    rows, across, _, d = kernel.shape
    moved = _padded(x, pads)
    # Two axes, as XLA would keep a transposed kernel as it lies, and gather what it multiplies by.
    vectors = lax.optimization_barrier(kernel.reshape(-1, d).astype(jnp.float32))
    h, w = moved.shape[1] - rows + 1, moved.shape[2] - across + 1
    places = list(itertools.product(range(rows), range(across), channels))
    y = jnp.float32(0)
    for first in range(0, len(places), _TERMS):
        at_once = enumerate(places[first : first + _TERMS], first)
        terms = [moved[:, i : i + h, j : j + w, k] * vectors[n] for n, (i, j, k) in at_once]
        y = lax.optimization_barrier(y + _sum(terms))
    return y.astype(x.dtype)


def _sum(terms: list[Array]) -> Array:
    """Two sums side by side: each of a processor's additions would wait for the one before."""
    return sum(terms[2::2], terms[0]) + sum(terms[3::2], terms[1]) if len(terms) > 1 else terms[0]


def _padded(x: Float[Array, "b h w c"], pads: Any) -> Float[Array, "b p q c"]:
    config = [(0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)]
    return lax.optimization_barrier(lax.pad(x.astype(jnp.float32), np.float32(0), config))


def _turned_pads(kernel: tuple, pads: Any) -> tuple:
    """Returns the padding of a convolution's gradient to its input: a convolution by the kernel turned around."""
    return tuple((n - 1 - low, n - 1 - high) for n, (low, high) in zip(kernel, pads, strict=False))


# A convolution (b h w c); use it instead of flax's.
Conv = partial(nn.Conv, conv_general_dilated=convolve)


def activation(name: str) -> Callable[[Array], Array]:
    """Returns the elementwise function of that name; `BadRequest` lists them for an unknown one."""
    return choose(ACTIVATIONS, name, "activation")


class BatchNorm(nn.Module):
    """Batch normalisation with the statistics of the global batch, or of parts of it.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, per channel (the last axis). In training, mean and (biased)
    variance are those of the batch, in float32 and one pass: var = E[x^2] - E[x]^2. In evaluation they are the
    running ones, kept in the collection `batch_stats` as `mean` and `var`, updated as
    running = momentum * running + (1 - momentum) * batch, where, as in PyTorch, the variance that enters is the
    unbiased one, n / (n - 1) of that above.

    The batch is the global one however it is split: under `jit` the array is global already; where a mapped axis
    named `data` is bound (`pmap`), statistics are averaged over it. With `groups` = g > 1 the global batch is cut into
    g equal parts, example j into part j mod g, and each is normalised by its own statistics (ghost batch
    normalisation); the running statistics then take the average over the parts. Strided parts lie evenly over any
    devices, and are the micro-batches of accumulated gradients.

    Attributes:
      groups: number of parts of the global batch, at least 1; divides the examples of each device.
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

        # One multiply and one add an element: forward and backward then read the activations once each.
        a = lax.rsqrt(var + self.epsilon) * scale
        shift = bias - mean * a
        if len(a) == 1:  # no reshape around elementwise work: XLA's CPU loops would not be vectorised
            return (x.astype(jnp.float32) * a[0] + shift[0]).astype(self.dtype)
        rows = (len(a), *(1,) * (x.ndim - 2), c)
        parts = x.reshape(-1, len(a), *x.shape[1:]).astype(jnp.float32)
        return (parts * a.reshape(rows) + shift.reshape(rows)).reshape(x.shape).astype(self.dtype)


def batch_statistics(
    x: Float[Array, "b *space c"], groups: int
) -> tuple[Float[Array, "g c"], Float[Array, "g c"], Float[Array, "c"], Float[Array, "c"]]:
    """Returns mean and biased variance of each part of the global batch, and what the running statistics take in.

    Args:
      x: activations, this device's share of them where the axis `data` is mapped.
      groups: number of parts; example j belongs to part j mod groups.

    Returns:
      mean, var: a row a part, float32.
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


def batch_split(x: Float[Array, "b *rest"]) -> Float[Array, "b *rest"]:
    """Tells the compiler to split activations over the devices by their examples, and by nothing else.

    Without it the layout of the parameters may win: split parameters would then have activations of the whole batch on
    every device. Does nothing outside a mesh with `BATCH_AXES`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not set(BATCH_AXES) <= set(mesh.auto_axes):
        return x
    return lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def data_axis_size() -> int:
    """Returns the size of the mapped axis `data`, 1 where none is bound."""
    try:
        return lax.axis_size(DATA_AXIS)
    except NameError:  # what JAX raises for an axis name that is not bound
        return 1


class LayerNorm(nn.Module):
    """Normalises every token over its numbers: (x - mean) / sqrt(var + epsilon) * scale + bias, in float32.

    The variance takes two passes: E[x^2] - E[x]^2 loses the small ones that the epsilon is there for. The gradient is
    written out, from the input and its two statistics, and reads the activations half as often as that of the formula.

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
        return _layer_norm(x, scale, bias, self.epsilon).astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Any]:
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(y - mean).mean(-1, keepdims=True) + epsilon)
    return (y - mean) * (inverse * scale) + bias, (x, scale, mean, inverse)


def _layer_norm_backward(epsilon: float, kept: Any, d_y: Array) -> tuple[Array, Array, Array]:
    del epsilon
    x, scale, mean, inverse = kept
    tokens = tuple(range(x.ndim - 1))
    normal = (x.astype(jnp.float32) - mean) * inverse
    d_normal = d_y * scale
    along = (d_normal * normal).mean(-1, keepdims=True)
    d_x = (d_normal - d_normal.mean(-1, keepdims=True) - normal * along) * inverse
    return d_x.astype(x.dtype), (d_y * normal).sum(tokens), d_y.sum(tokens)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def held(x: Array) -> Array:
    """Returns x; on CPUs its readers read it, where XLA would rather compute it again from what it was made of."""
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


class GroupNorm(nn.Module):
    """Normalises each example over space and each of `groups` runs of channels; one group is layer, c instance norm.

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
    """The absence of normalisation, with a normaliser's signature."""

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"], *, train: bool = False) -> Float[Array, "b *space c"]:
        return x


NORMS = ("batch", "group", "instance", "layer", "none")


def make_norm(
    kind: str, *, bn_groups: int = 1, norm_groups: int = 0, dtype: Any = jnp.float32
) -> Callable[..., nn.Module]:
    """Returns a constructor of normalisers, each called as `norm(name=...)(x, train=train)`.

    Args:
      kind: 'batch'; 'layer' (over space and channels of an example), 'instance' (over space), 'group' (over space and
        runs of channels), which know no batch; or 'none'.
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
        "group": partial(GroupNorm, groups=norm_groups, dtype=dtype),
        "instance": partial(GroupNorm, groups=-1, dtype=dtype),
        "layer": partial(GroupNorm, groups=1, dtype=dtype),
    }
    return choose(table | {"none": None}, kind, "norm")


def _windows(x: Array, window: int, stride: int, reduce: Callable[[Array, Array], Array]) -> Array:
    """Reduces sliding windows over axes 1 and 2 by combining strided slices, rows first, then columns."""
    for axis in (1, 2):
        size = (x.shape[axis] - window) // stride + 1
        slices = [lax.slice_in_dim(x, i, i + (size - 1) * stride + 1, stride, axis) for i in range(window)]
        out = slices[0]
        for s in slices[1:]:
            out = reduce(out, s)
        x = out
    return x


def _check_pool(x: Array, window: int, stride: int | None, padding: int) -> int:
    stride = window if stride is None else stride
    if min(x.shape[1:3]) + 2 * padding < window:
        raise BadRequest(f"a {window}x{window} pooling window does not fit a {x.shape[1]}x{x.shape[2]} feature map.")
    return stride


def max_pool(
    x: Float[Array, "b h w c"], window: int, stride: int | None = None, padding: int = 0
) -> Float[Array, "b i j c"]:
    """Maximum over windows; incomplete windows at the right and bottom are left out.

    Strided slices instead of `lax.reduce_window`, whose gradient is several times slower on CPU. Where several
    elements are the maximum, they share the gradient.

    Args:
      x: feature maps.
      window: rows and columns of a window.
      stride: step between windows, `window` by default.
      padding: rows and columns of -infinity added on every side.

    Raises:
      BadRequest: the window does not fit.
    """
    stride = _check_pool(x, window, stride, padding)
    if padding:
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-jnp.inf)
    return _windows(x, window, stride, jnp.maximum)


def avg_pool(
    x: Float[Array, "b h w c"], window: int, stride: int | None = None, padding: int = 0
) -> Float[Array, "b i j c"]:
    """Mean over windows, with the conventions of `max_pool`; padding counts as zeros."""
    stride = _check_pool(x, window, stride, padding)
    if padding:
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return _windows(x, window, stride, jnp.add) * (1.0 / window**2)


POOLS = {"avg": avg_pool, "max": max_pool}


def global_avg_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Mean over rows and columns, summed in float32."""
    return x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)


def global_max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Maximum over rows and columns."""
    return x.max((1, 2))


def flatten(x: Array) -> Float[Array, "b n"]:
    """All axes but the first as one, rows slowest, channels fastest."""
    return x.reshape(len(x), -1)


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
