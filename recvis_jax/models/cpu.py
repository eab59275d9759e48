"""Products and convolutions of layers, in forms that are fast on CPUs; what they compute is the same everywhere.

Which form is fast was measured in whole models (`benchmarks/models.py`, `benchmarks/onednn.py`). On accelerators all of
them are the plain operation, as with versions of JAX that nobody has tried (`recvis_jax.tried`), and blocks of examples
are used only where one device has them all.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from recvis_jax import tried
from recvis_jax.models import cpu_gradients, cpu_onednn, cpu_products, cpu_shifted, cpu_winograd
from recvis_jax.models.cpu_blocks import one_device


def held(x: Array) -> Array:
    """Returns x; on CPUs its readers read it, where XLA would rather compute it again from what it was made of."""
    if not tried.usable("forms"):
        return x
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


def dot_rows(x: Array, kernel: Array, dimensions: Any, precision: Any = None, **kw: Any) -> Array:
    """`lax.dot_general` of a dense layer, over (rows, d) for inputs (b n d).

    The gradient of the kernel is then one product of two matrices as they lie in memory. Contracted over two axes, XLA
    would first transpose copies of both on CPUs, and compute the sum of all later blocks' gradients again for each.
    """
    plain = x.ndim == 2 or any(v is not None for v in kw.values()) or not tried.usable("forms")
    if plain or dimensions != (((x.ndim - 1,), (0,)), ((), ())):
        return lax.dot_general(x, kernel, dimensions, precision=precision, **kw)
    onednn = cpu_products.pay(len(x), x.size * kernel.shape[1], x, kernel)
    return cpu_products.dense(x.reshape(-1, x.shape[-1]), kernel, precision, onednn).reshape(*x.shape[:-1], -1)


def convolve(x: Array, kernel: Array, strides: Any, padding: Any, **kw: Any) -> Array:
    """`lax.conv_general_dilated` for flax's `Conv`, in forms that are fast on CPUs.

    Its operands in the gradient of the kernel are read, not computed again: XLA's CPU convolutions want both of them
    transposed there, and it would compute what comes before a convolution while transposing, element by element: four
    fifths of the time of a small ResNet. Where a matrix product would be wasted on them, convolutions of stride 1 are
    sums of shifted images (`cpu_shifted`); large ones are oneDNN's, if there is one (`cpu_onednn`), but for those of
    3x3 that are not narrow: they are Winograd's (`cpu_winograd`). Gradients to narrow layers' kernels are products of
    shifted images (`cpu_gradients`).
    """

    def plain(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **kw)

    if not tried.usable("forms"):
        return plain(x, kernel)
    form, groups, strides = plain, kw.get("feature_group_count", 1), tuple(strides)
    if (pads := _pads(x, kernel, strides, padding, **kw)) and math.prod(kernel.shape[:2]) > 1:
        if _tiles(x, kernel, strides, pads, **kw):
            form = partial(cpu_winograd.winograd, pads=pads)
        elif _dense(x, kernel, **kw) and cpu_onednn.pays(x.shape, kernel.shape, strides, pads):
            gradient = None
            if strides == (1, 1) and cpu_gradients.pays(x.shape, kernel.shape):
                gradient = partial(cpu_gradients.kernel_gradient, size=kernel.shape[:2], pads=pads)
            form = partial(cpu_onednn.convolution, strides=strides, pads=pads, gradient=gradient)
        elif strides != (1, 1):
            pass
        elif groups == x.shape[-1] == kernel.shape[-1] > 1:
            form = partial(cpu_shifted.depthwise, pads=pads)
        elif groups == 1:
            form = cpu_shifted.of_few_channels(x.shape, kernel.shape, pads, plain, kw.get("precision"))
    if form is plain:
        return held(plain(held(x), kernel))
    return held(lax.platform_dependent(held(x), kernel, cpu=form, default=plain))


def convolve_and_pool(
    x: Array, kernel: Array, strides: Any, padding: Any, pool: Callable[[Array], Array], **kw: Any
) -> Array:
    """`pool` of `convolve`: the maximum over windows of 2x2. A last odd row or column is not even computed.

    Winograd's convolutions do both block by block: what is pooled is not written to memory.
    """
    pads = _pads(x, kernel, strides, padding, **kw)
    if pads and tuple(strides) == (1, 1) and tried.usable("forms"):
        sizes = [n + sum(p) - k + 1 for n, p, k in zip(x.shape[1:3], pads, kernel.shape, strict=False)]
        odd = [n % 2 if high else 0 for n, (_, high) in zip(sizes, pads, strict=True)]
        padding = pads = tuple((low, high - o) for (low, high), o in zip(pads, odd, strict=True))
        even = all((n - o) % 2 == 0 for n, o in zip(sizes, odd, strict=True))
        if even and _tiles(x, kernel, strides, pads, **kw):

            def plain(x: Array, kernel: Array) -> Array:
                return pool(lax.conv_general_dilated(x, kernel, strides, pads, **kw))

            form = partial(cpu_winograd.winograd_pooled, pads=pads)
            return held(lax.platform_dependent(held(x), kernel, cpu=form, default=plain))
    return pool(convolve(x, kernel, strides, padding, **kw))


def _pads(x: Array, kernel: Array, strides: Any, padding: Any, **kw: Any) -> tuple[tuple[int, int], ...] | None:
    """Returns the padding of rows and columns in numbers; None where something is dilated, or is no image."""
    dilated = any(d != 1 for name in ("lhs_dilation", "rhs_dilation") for d in kw.get(name) or ())
    if kernel.ndim != 4 or dilated:
        return None
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return tuple(tuple(p) for p in padding)


def _dense(x: Array, kernel: Array, **kw: Any) -> bool:
    """Whether a convolution has one group, is computed in float32, and where there is one device."""
    one_group = kw.get("feature_group_count", 1) == 1
    return one_group and x.dtype == kernel.dtype == jnp.float32 and one_device()


def _tiles(x: Array, kernel: Array, strides: Any, pads: Any, **kw: Any) -> bool:
    tiled = tuple(strides) == (1, 1) and _dense(x, kernel, **kw)
    return tiled and cpu_winograd.tiles_pay(x.shape, kernel.shape, pads)
