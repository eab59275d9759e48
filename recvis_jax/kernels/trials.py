"""Trials of settings and forms that could crash a process: small programs like parts of models, compared with numpy.

`recvis_jax.tried` runs them in processes of their own, with the settings in question.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recvis_jax.kernels import blocks, convolutions, onednn


def try_settings() -> None:
    """Raises if a net with convolutions, barriers and loops, or its gradient, differs from numpy's."""
    draw = np.random.default_rng(0).normal
    x, kernel, weight = (draw(size=s) for s in ((8, 12, 12, 3), (3, 3, 3, 16), (16, 16)))
    along = [draw(size=a.shape) for a in (kernel, weight)]
    value, gradients = jax.jit(jax.value_and_grad(_loss, (0, 1)))(*(jnp.float32(a) for a in (kernel, weight, x)))
    _check(value, _expected(kernel, weight, x))
    step = 1e-5
    ahead, behind = (_expected(kernel + moved * along[0], weight + moved * along[1], x) for moved in (step, -step))
    _check(sum((g * d).sum() for g, d in zip(gradients, along, strict=True)), (ahead - behind) / (2 * step))


def _loss(kernel: jax.Array, weight: jax.Array, x: jax.Array) -> jax.Array:
    numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    convolve = partial(convolutions.convolve, lax.conv_general_dilated)
    y = jnp.tanh(convolve(x, kernel, (2, 2), "VALID", dimension_numbers=numbers))
    y = blocks.in_memory((y - y.mean((0, 1, 2))) * lax.rsqrt(jnp.square(y).mean((0, 1, 2)) + 1)).mean((1, 2))

    def block(carried: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        carried = lax.optimization_barrier(jnp.tanh(carried @ weight + row))
        return carried, carried.sum()

    last, sums = lax.scan(jax.checkpoint(block), jnp.zeros_like(y), jnp.stack([y, 2 * y, y.at[0].mul(3)]))
    e = lax.optimization_barrier(jnp.exp(last - last.max(-1, keepdims=True)))
    mapped = lax.map(lambda row: lax.optimization_barrier(jnp.sin(row)).sum() + 1, last)
    return (jnp.log(e.sum(-1)) + mapped).sum() + jnp.square(sums).sum()


def _expected(kernel: np.ndarray, weight: np.ndarray, x: np.ndarray) -> float:
    """Returns `_loss` in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2]
    y = np.tanh(np.einsum("bpqcij,ijcd->bpqd", windows, kernel))
    y = ((y - y.mean((0, 1, 2))) / np.sqrt(np.square(y).mean((0, 1, 2)) + 1)).mean((1, 2))
    third = y.copy()
    third[0] *= 3
    last, sums = np.zeros_like(y), []
    for row in (y, 2 * y, third):
        last = np.tanh(last @ weight + row)
        sums.append(last.sum())
    e = np.exp(last - last.max(-1, keepdims=True))
    return (np.log(e.sum(-1)) + np.sin(last).sum(-1) + 1).sum() + np.square(sums).sum()


def try_onednn() -> None:
    """Raises if oneDNN's convolution or product, by its custom call, differs from numpy's."""
    draw = np.random.default_rng(0).normal
    images, kernel, heads = (draw(size=s).astype(np.float32) for s in ((2, 7, 5, 8), (3, 3, 8, 16), (2, 4, 3, 6)))

    def product(x: jax.Array) -> jax.Array:
        x = x.swapaxes(1, 2)
        swapped = (0, 2, 1, 3)
        return onednn.matmul(x, x, transpose_a=True, layouts=(swapped, swapped, None))

    def both(images: jax.Array, kernel: jax.Array, heads: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = onednn.convolution(images, kernel, strides=(2, 1), pads=((1, 0), (2, 1)), gradient=None)
        return y, product(heads)

    found = jax.jit(both)(images, kernel, heads)
    padded = np.pad(images, ((0, 0), (1, 0), (2, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2]
    _check(found[0], np.einsum("bpqcij,ijcd->bpqd", windows, kernel), 1e-4)
    _check(found[1], np.einsum("bnkd,bnke->bkde", heads, heads), 1e-4)

    a, b = draw(size=(16, 32, 24)).astype(np.float32), draw(size=(16, 24, 40)).astype(np.float32)
    d_a, d_b = jax.jit(jax.grad(lambda a, b: jnp.square(onednn.matmul(a, b)).sum(), (0, 1)))(a, b)
    _check(d_a, 2 * (a @ b) @ b.swapaxes(1, 2))
    _check(d_b, 2 * a.swapaxes(1, 2) @ (a @ b))

    # Long sums, several times: what threads do to each other does not show at once.
    for shape in ((8, 2048, 96), (3, 512, 96), (1, 16384, 48)):
        x = draw(size=shape).astype(np.float32)
        long = jax.jit(lambda x: onednn.matmul(x, x, transpose_a=True))
        expected = x.swapaxes(1, 2) @ x
        for _ in range(10):
            _check(long(x) / shape[1], expected / shape[1])


def _check(found: jax.Array, expected: np.ndarray | float, tolerance: float = 2e-3) -> None:
    # Not an assertion: those may be turned off.
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
