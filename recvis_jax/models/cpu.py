"""Products and convolutions of layers, in forms that are fast on CPUs; what they compute is the same everywhere.

Which form is fast was measured in whole models (`benchmarks/models.py`, `benchmarks/onednn.py`). On accelerators all of
them are the plain operation, and blocks of examples are used only where one device has them all.
"""

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from recvis_jax.models import cpu_gradients, cpu_onednn, cpu_products, cpu_shifted, cpu_winograd
from recvis_jax.models.cpu_blocks import one_device


def held(x: Array) -> Array:
    """Returns x; on CPUs its readers read it, where XLA would rather compute it again from what it was made of."""
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


def dot_rows(x: Array, kernel: Array, dimensions: Any, precision: Any = None, **kw: Any) -> Array:
    """`lax.dot_general` of a dense layer, over (rows, d) for inputs (b n d).

    The gradient of the kernel is then one product of two matrices as they lie in memory. Contracted over two axes, XLA
    would first transpose copies of both on CPUs, and compute the sum of all later blocks' gradients again for each.
    """
    if dimensions != (((x.ndim - 1,), (0,)), ((), ())) or x.ndim == 2 or any(v is not None for v in kw.values()):
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

    dilated = any(d != 1 for name in ("lhs_dilation", "rhs_dilation") for d in kw.get(name) or ())
    form, groups, strides = plain, kw.get("feature_group_count", 1), tuple(strides)
    if kernel.ndim == 4 and not dilated and math.prod(kernel.shape[:2]) > 1:
        pads = padding
        if isinstance(pads, str):
            pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, pads)
        pads = tuple(tuple(p) for p in pads)
        dense = groups == 1 and x.dtype == kernel.dtype == jnp.float32 and one_device()
        tiles = dense and strides == (1, 1) and cpu_winograd.tiles_pay(x.shape, kernel.shape, pads)
        if tiles:
            form = partial(cpu_winograd.winograd, pads=pads)
        elif dense and cpu_onednn.pays(x.shape, kernel.shape, strides, pads):
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
