"""Convolutions and matrix products by oneDNN, which jaxlib contains for CPUs.

oneDNN's convolutions copy no patches. XLA's own convolutions multiply matrices of copied patches, which is slow for
narrow layers: oneDNN's are twice as fast for 16 to 64 channels. Its products read transposed matrices and heads of
attention without copying them. They are custom calls of XLA, and only this file knows their format. If a jaxlib does
not have them, or they compute something else, the plain operation is used.
"""

import json
import logging
import math
import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from recvis_jax import tried
from recvis_jax.kernels.blocks import turned_pads
from recvis_jax.kernels.own_gradient import own_gradient

_CONVOLUTION, _MATMUL = "__onednn$convolution", "__onednn$matmul"

# Smallest numbers of examples and multiplications for which they are used. Programs with these calls cannot be kept in
# the compilation cache, so they pay off for throughput, not for a single image.
_LEAST_EXAMPLES, _LEAST = 8, 2**25


def large(examples: int, multiplications: int) -> bool:
    """Whether oneDNN is faster for these numbers of examples and multiplications, as measured (AVX-512)."""
    return examples >= _LEAST_EXAMPLES and multiplications >= _LEAST and available()


def pays(image: tuple[int, ...], kernel: tuple[int, ...], strides: Any, pads: Any) -> bool:
    """Whether `convolution` is faster for shapes (b h w c) and (i j c d), as measured (AVX-512)."""
    outputs = image[0] * math.prod(_sizes(image, kernel, strides, pads))
    patches = all(s >= k for s, k in zip(strides, kernel, strict=False))  # already a matrix product
    fits = not patches and kernel[3] >= 16 and min(map(min, pads)) >= 0
    return fits and large(image[0], outputs * math.prod(kernel))


@cache
def available() -> bool:
    """Whether this process computes on a CPU with a jaxlib whose oneDNN passed its trial.

    `RECVIS_JAX_ONEDNN=0` in the environment turns oneDNN off; all programs are then kept in the compilation cache.
    """
    if os.environ.get("RECVIS_JAX_ONEDNN") == "0" or jax.default_backend() != "cpu" or not tried.usable("onednn"):
        return False
    try:
        _keep_from_cache()
    except Exception as e:  # of any kind: the plain operation still works
        logging.getLogger(__name__).debug("oneDNN is not used: %s", e)
        return False
    return True


def _keep_from_cache() -> None:
    """Keeps programs with these calls out of JAX's compilation cache.

    When jaxlib writes such programs, it takes the calls for another kind and reads fields that they do not have.
    """
    from jax._src import compilation_cache  # not public: if it is gone, oneDNN is not used

    put = compilation_cache.put_executable_and_time

    def guarded(key: str, module: str, executable: Any, *args: Any) -> None:
        texts = [m.to_string() for m in executable.hlo_modules()]
        if not any(f'"{target}"' in text for text in texts for target in (_CONVOLUTION, _MATMUL)):
            put(key, module, executable, *args)

    compilation_cache.put_executable_and_time = guarded  # type: ignore[assignment]


_Layouts = tuple[tuple[int, ...] | None, tuple[int, ...] | None, tuple[int, ...] | None]


def matmul(
    a: Float[Array, "*b _ _"],
    b: Float[Array, "*b _ _"],
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    layouts: _Layouts = (None, None, None),
) -> Float[Array, "*b _ _"]:
    """a @ b in float32.

    Args:
      a: matrices (*b r c).
      b: as many (*b c d).
      transpose_a: a is (*b c r).
      transpose_b: b is (*b d c).
      layouts: memory layouts of a, b and the product: their axes from major to minor; None is the usual order.
    """
    return _matmul(a, b, transpose_a, transpose_b, layouts)


def _numpys(a: Array, b: Array, transpose_a: bool, transpose_b: bool, layouts: _Layouts) -> Array:
    del layouts
    return (a.mT if transpose_a else a) @ (b.mT if transpose_b else b)


# Largest number of terms of a sum in a batch of products. For longer sums, oneDNN's threads compute parts and wait for
# each other, which XLA's threads cannot do (seen without AVX-512, where oneDNN is not used at all).
_LONGEST_SUM = 512


def _in_pieces(a: Array, b: Array, transpose_a: bool, transpose_b: bool, layouts: _Layouts) -> Array:
    """A batch of products with sums over `_LONGEST_SUM`: in shorter sums if the layout allows, else by XLA."""
    terms = a.shape[-2]
    pieces = next((n for n in range(2, terms) if terms % n == 0 and terms // n <= _LONGEST_SUM), terms)
    if not transpose_a or transpose_b or any(layouts) or terms // pieces < 64:
        return _numpys(a, b, transpose_a, transpose_b, layouts)
    a, b = (x.reshape(-1, terms // pieces, x.shape[-1]) for x in (a, b))
    out = _matmul(a, b, True, False, (None, None, None))
    return out.reshape(-1, pieces, *out.shape[1:]).sum(1)


@partial(own_gradient, static=(2, 3, 4), plain=_numpys)
def _matmul(a: Array, b: Array, transpose_a: bool, transpose_b: bool, layouts: _Layouts) -> Array:
    if a.shape[-2 if transpose_a else -1] > _LONGEST_SUM and math.prod(a.shape[:-2]) > 1:
        out = _in_pieces(a, b, transpose_a, transpose_b, layouts)
        return out.reshape(*a.shape[:-2], *out.shape[-2:])
    rows, columns = a.shape[-1 if transpose_a else -2], b.shape[-2 if transpose_b else -1]
    *read, written = (tuple(range(a.ndim)) if layout is None else layout for layout in layouts)
    call = jax.ffi.ffi_call(
        _MATMUL,
        jax.ShapeDtypeStruct((*a.shape[:-2], rows, columns), jnp.float32),
        vmap_method="sequential",
        custom_call_api_version=2,
        input_layouts=read,
        output_layouts=written,
        legacy_backend_config=json.dumps(
            {"onednn_matmul_config": {"transpose_a": transpose_a, "transpose_b": transpose_b}}
        ),
    )
    return call(a, b)


def _matmul_backward(
    transpose_a: bool, transpose_b: bool, layouts: _Layouts, kept: tuple[Array, Array], d: Array
) -> tuple[Array, Array]:
    (a, b), (of_a, of_b, of_d) = kept, layouts
    d_a = (
        _matmul(b, d, transpose_b, True, (of_b, of_d, of_a))
        if transpose_a
        else _matmul(d, b, False, not transpose_b, (of_d, of_b, of_a))
    )
    d_b = (
        _matmul(d, a, True, transpose_a, (of_d, of_a, of_b))
        if transpose_b
        else _matmul(a, d, not transpose_a, False, (of_a, of_d, of_b))
    )
    return d_a, d_b


_matmul.define(lambda a, b, *how: (_matmul(a, b, *how), (a, b)), _matmul_backward)


def _plain(x: Array, kernel: Array, strides: Any, pads: Any, gradient: Callable | None = None) -> Array:
    del gradient
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(own_gradient, static=(2, 3, 4), plain=_plain)
def convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"], strides: Any, pads: Any, gradient: Callable | None
) -> Float[Array, "b p q d"]:
    """A convolution in float32; its gradient to the input also uses oneDNN if the stride is 1.

    Args:
      x: images.
      kernel: as flax keeps it.
      strides: of rows and columns.
      pads: ((above, below), (left, right)), none negative.
      gradient: maps x and the gradient to the output to that of the kernel; None leaves it to XLA.
    """
    del gradient
    return _call(x, kernel, strides, pads)


def _forward(x: Array, kernel: Array, strides: Any, pads: Any, gradient: Any) -> tuple[Array, tuple[Array, Array]]:
    return convolution(x, kernel, strides, pads, gradient), (x, kernel)


def _backward(
    strides: Any, pads: Any, gradient: Callable | None, kept: tuple[Array, Array], d_y: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    d_x, d_kernel = jax.vjp(partial(_plain, strides=strides, pads=pads), x, kernel)[1](d_y)
    turned = turned_pads(kernel.shape, pads)
    if strides == (1, 1) and min(map(min, turned)) >= 0:
        d_x = convolution(d_y, kernel[::-1, ::-1].swapaxes(2, 3), strides, turned, None)
    return d_x, gradient(x, d_y) if gradient else d_kernel


convolution.define(_forward, _backward)


def _call(x: Array, kernel: Array, strides: Any, pads: Any) -> Array:
    sizes = _sizes(x.shape, kernel.shape, strides, pads)
    out = jax.ShapeDtypeStruct((len(x), *sizes, kernel.shape[3]), jnp.float32)
    images = {"dims": 4, "data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    config = {
        "dims": 4,
        "input": images,
        "kernel": {"dims": 4, "filter": {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]}},
        "output": images,
        "window": {
            "size": kernel.shape[:2],
            "pad_left": [low for low, _ in pads],
            "pad_right": [high for _, high in pads],
            "strides": strides,
            "window_dilations": [1, 1],
        },
        "feature_groups": 1,
    }
    call = jax.ffi.ffi_call(
        _CONVOLUTION,
        out,
        vmap_method="sequential",
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    )
    return call(x, kernel)


def _sizes(image: tuple[int, ...], kernel: tuple[int, ...], strides: Any, pads: Any) -> tuple[int, int]:
    """Returns the rows and columns of the output."""
    rows, columns = (
        (n + sum(pad) - k) // s + 1 for n, k, s, pad in zip(image[1:3], kernel, strides, pads, strict=False)
    )
    return rows, columns
