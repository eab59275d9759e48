"""Convolutions by oneDNN, which jaxlib brings along for CPUs, and whose direct convolutions copy no patches.

XLA's own ones multiply matrices of patches, which narrow layers do not pay for: of 16 to 64 channels oneDNN's are twice
as fast. They are custom calls of XLA that only this file knows; where a jaxlib has them not, or they compute something
else, everything is the plain operation.
"""

import json
import logging
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from recvis_jax.models.cpu_blocks import turned_pads

_TARGET = "__onednn$convolution"

# Of jaxlib, in which the custom call was tried: what another one does with it may be the end of the process.
_VERSIONS = ("0.10.",)

# Images and multiplications from which on a convolution gains more than its program loses, which no compilation cache
# keeps: throughput, not the answer for one image.
_LEAST_IMAGES, _LEAST = 8, 2**25


def pays(image: tuple[int, ...], kernel: tuple[int, ...], strides: Any, pads: Any) -> bool:
    """Whether `convolution` of shapes (b h w c) and (i j c d) is worth it here, as measured (AVX-512)."""
    outputs = image[0] * math.prod(_sizes(image, kernel, strides, pads))
    large = image[0] >= _LEAST_IMAGES and outputs * math.prod(kernel) >= _LEAST
    patches = all(s >= k for s, k in zip(strides, kernel, strict=False))  # a matrix product as it is
    return large and not patches and kernel[3] >= 16 and min(map(min, pads)) >= 0 and available()


@cache
def available() -> bool:
    """Whether this process computes on a CPU with a jaxlib whose oneDNN gives what XLA does; tried once."""
    if jax.default_backend() != "cpu" or not jax.lib.__version__.startswith(_VERSIONS):
        return False
    x, kernel = (np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((2, 7, 5, 8), (3, 3, 8, 16)))
    strides, pads = (2, 1), ((1, 0), (2, 1))
    try:
        with jax.ensure_compile_time_eval():
            found, expected = (jax.jit(partial(f, strides=strides, pads=pads))(x, kernel) for f in (_call, _plain))
            return bool(np.allclose(found, expected, rtol=1e-4, atol=1e-4))
    except Exception as e:  # of any kind: there is the plain operation
        logging.getLogger(__name__).debug("no convolutions by oneDNN: %s", e)
        return False


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"], strides: Any, pads: Any, gradient: Callable | None
) -> Float[Array, "b p q d"]:
    """A convolution in float32, and likewise its gradient to the input where the stride is 1.

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
        d_x = _call(d_y, kernel[::-1, ::-1].swapaxes(2, 3), strides, turned)
    return d_x, gradient(x, d_y) if gradient else d_kernel


convolution.defvjp(_forward, _backward)


def _plain(x: Array, kernel: Array, strides: Any, pads: Any) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


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
        _TARGET,
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
