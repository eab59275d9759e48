"""Building blocks of forms: blocks of examples that fit into the cache, images with a border, arrays kept in memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped


def in_memory(x: Array) -> Array:
    """Identity; on CPUs it stops XLA from recomputing x for each consumer."""
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


def softmax(plain: Callable, scores: Array) -> Array:
    """The form of `operations.softmax`."""
    return in_memory(plain(scores))


def in_blocks(
    work: Callable[..., Any],
    channels: int,
    images: Float[Array, "b _ _ _"],
    *more: Shaped[Array, "b ..."],
    size: int,
    least: int,
    total: bool = False,
) -> Any:
    """Returns work(images, *more), computed block by block if all examples are on one device.

    Args:
      work: maps any number of examples to arrays with one row per example, or to a sum over the examples.
      channels: of the largest array that it reads or writes, which has about the images' size.
      images, more: arrays with one row per example.
      size: largest number of bytes of a block; blocks are equal and at least half as large, or nothing is cut.
      least: smallest number of blocks for which cutting is worth it.
      total: whether the result is a sum.
    """
    (b, h, w, _), arrays = images.shape, (images, *more)
    most = max(1, size // (4 * h * w * channels))
    n = max(k for k in range(1, min(b, most) + 1) if b % k == 0)
    if n == b or b < least * most or 2 * n < most or not one_device():
        return work(*arrays)
    blocks = [x.reshape(-1, n, *x.shape[1:]) for x in arrays]
    if total:  # a running sum: adding all blocks at the end would take another tenth of the time
        one = jax.eval_shape(work, *(x[0] for x in blocks))
        return lax.scan(lambda found, block: (found + work(*block), None), jnp.zeros(one.shape, one.dtype), blocks)[0]
    parts = lax.map(lambda block: work(*block), blocks)
    return jax.tree.map(lambda x: x.reshape(b, *x.shape[2:]), parts)


def one_device() -> bool:
    """Whether the program being traced is for one device, or for each device alone."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def padded(x: Float[Array, "b h w c"], pads: Any) -> Float[Array, "b p q c"]:
    """Returns the images in float32 with a border of zeros (negative widths crop); kept in memory."""
    config = [(0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)]
    return lax.optimization_barrier(lax.pad(x.astype(jnp.float32), np.float32(0), config))


def turned_pads(kernel: tuple, pads: Any) -> tuple:
    """Returns the padding for the gradient to a convolution's input: a convolution with the kernel turned around."""
    return tuple((n - 1 - low, n - 1 - high) for n, (low, high) in zip(kernel, pads, strict=False))
