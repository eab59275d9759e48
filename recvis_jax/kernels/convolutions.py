"""Chooses the form of a convolution.

The fastest form was measured in whole models (`benchmarks/models.py`, `benchmarks/onednn.py`). Forms that work on
blocks of examples are used only if one device has all examples.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from recvis_jax.kernels import gradients, onednn, shifted, winograd
from recvis_jax.kernels.blocks import in_memory, one_device
from recvis_jax.kernels.pool import max_pool_2x2


def convolve(plain: Callable, x: Array, kernel: Array, strides: Any, padding: Any, **kw: Any) -> Array:
    """The form of `operations.convolve`.

    Inputs and outputs are kept in memory. XLA's CPU convolutions transpose both operands of the kernel's gradient.
    Otherwise they would recompute everything before the convolution while transposing, element by element: four fifths
    of the time of a small ResNet.

    Large 3x3 convolutions with many channels use `winograd`, other large ones `onednn`. The rest with stride 1 are sums
    of shifted images (`shifted`), if depthwise or with few channels. Gradients to the kernels of narrow layers are
    products of shifted images (`gradients`).
    """

    def same(x: Array, kernel: Array) -> Array:
        return plain(x, kernel, strides, padding, **kw)

    form, groups, steps = same, kw.get("feature_group_count", 1), tuple(strides)
    if (pads := _pads(x, kernel, steps, padding, **kw)) and math.prod(kernel.shape[:2]) > 1:
        if _tiles(x, kernel, steps, pads, **kw):
            form = partial(winograd.winograd, pads=pads)
        elif _dense(x, kernel, **kw) and onednn.pays(x.shape, kernel.shape, steps, pads):
            gradient = None
            if steps == (1, 1) and gradients.pays(x.shape, kernel.shape):
                gradient = partial(gradients.kernel_gradient, size=kernel.shape[:2], pads=pads)
            form = partial(onednn.convolution, strides=steps, pads=pads, gradient=gradient)
        elif steps != (1, 1):
            pass
        elif groups == x.shape[-1] == kernel.shape[-1] > 1:
            form = partial(shifted.depthwise, pads=pads)
        elif groups == 1:
            form = shifted.of_few_channels(x.shape, kernel.shape, pads, same, kw.get("precision"))
    if form is same:
        return in_memory(same(in_memory(x), kernel))
    return in_memory(lax.platform_dependent(in_memory(x), kernel, cpu=form, default=same))


def convolve_and_pool(plain: Callable, x: Array, kernel: Array, strides: Any, padding: Any, **kw: Any) -> Array:
    """The form of `operations.convolve_and_pool`.

    Pooling discards a last odd row or column, so it is not computed. Winograd's convolutions are pooled block by block:
    their outputs are never in memory.
    """
    pads = _pads(x, kernel, strides, padding, **kw)
    if pads and tuple(strides) == (1, 1):
        sizes = [n + sum(p) - k + 1 for n, p, k in zip(x.shape[1:3], pads, kernel.shape, strict=False)]
        odd = [n % 2 if high else 0 for n, (_, high) in zip(sizes, pads, strict=True)]
        padding = pads = tuple((low, high - o) for (low, high), o in zip(pads, odd, strict=True))
        even = all((n - o) % 2 == 0 for n, o in zip(sizes, odd, strict=True))
        if even and _tiles(x, kernel, strides, pads, **kw):

            def same(x: Array, kernel: Array) -> Array:
                return max_pool_2x2(lax.conv_general_dilated(x, kernel, strides, pads, **kw))

            form = partial(winograd.winograd_pooled, pads=pads)
            return in_memory(lax.platform_dependent(in_memory(x), kernel, cpu=form, default=same))
    return plain(x, kernel, strides, padding, **kw)


def _pads(x: Array, kernel: Array, strides: Any, padding: Any, **kw: Any) -> tuple[tuple[int, int], ...] | None:
    """Returns the padding of rows and columns in numbers; None for a dilated convolution, or one not of images."""
    dilated = any(d != 1 for name in ("lhs_dilation", "rhs_dilation") for d in kw.get(name) or ())
    if kernel.ndim != 4 or dilated:
        return None
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return tuple(tuple(p) for p in padding)


def _dense(x: Array, kernel: Array, **kw: Any) -> bool:
    """Whether a convolution has one group, is computed in float32, and on one device."""
    one_group = kw.get("feature_group_count", 1) == 1
    return one_group and x.dtype == kernel.dtype == jnp.float32 and one_device()


def _tiles(x: Array, kernel: Array, strides: Any, pads: Any, **kw: Any) -> bool:
    """Whether a convolution uses Winograd's form."""
    tiled = tuple(strides) == (1, 1) and _dense(x, kernel, **kw)
    return tiled and winograd.tiles_pay(x.shape, kernel.shape, pads)
