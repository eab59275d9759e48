"""Responses of filter banks at every place; clusters of responses are textons (Leung and Malik 2001)."""

import math
from functools import cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.classical import colour, local
from recvis_jax.classical.local import Local
from recvis_jax.errors import BadRequest

Bank = Literal["mr8", "lm"]

SUPPORT = 49  # pixels of a side of a filter
_DIRECTIONS = 6
_WEBER = 0.03


def textons(images: Float[Array, "b h w c"], *, bank: Bank = "mr8", step: int = 1, weber: bool = True) -> Local:
    """Computes the responses of a filter bank as descriptors, on images scaled to mean 0 and standard deviation 1.

    Images are mirrored beyond their borders.

    Args:
      images: grey, or RGB, which is converted to intensity; of any range.
      bank: "mr8", edges and bars at three scales, each the strongest of six directions, a Gaussian and a Laplacian: 8
        numbers that are invariant to rotation. "lm", 48 numbers: edges and bars at three scales in six directions, 8
        Laplacians and 4 Gaussians.
      step: pixels from one place to the next.
      weber: whether responses r are scaled by log(1 + |r| / 0.03) / |r|, with the norm |r| of all responses.

    Returns:
      `Local` of places row by row from the top left; `scales` is the side of the filters, `norms` the norm of the
      responses before scaling.

    Raises:
      BadRequest: an unknown bank, a step below 1, images with neither 1 nor 3 channels.

    Example:
      >>> found = textons(jnp.zeros((1, 16, 12, 1)), step=4)
      >>> found.descriptors.shape, bool(found.descriptors.any())
      ((1, 12, 8), False)

    Reference:
      Varma and Zisserman 2005, "A statistical approach to texture classification from single images", sections 2 and
      4.1; Leung and Malik 2001, "Representing and recognizing the visual appearance of materials using
      three-dimensional textons", section 3.
    """
    if bank not in ("mr8", "lm"):
        raise BadRequest(f"unknown filter bank {bank!r}. There are: mr8, lm.")
    if step < 1:
        raise BadRequest(f"step is {step}; it takes a number of pixels of at least 1.")
    return _textons(colour.convert(images, "gray")[..., 0], bank, step, weber)


@partial(jax.jit, static_argnames=("bank", "step", "weber"))
def _textons(images: Float[Array, "b h w"], bank: Bank, step: int, weber: bool) -> Local:
    b, h, w = images.shape
    away = images - images.mean(axis=(1, 2), keepdims=True)
    spread = jnp.sqrt(jnp.mean(away**2, axis=(1, 2), keepdims=True))
    away = jnp.where(spread > 1e-6, away / jnp.where(spread > 1e-6, spread, 1), 0)
    found = respond(away, filters(bank))[:, :, ::step, ::step]
    if bank == "mr8":  # 3 scales of edges, 3 of bars, each in 6 directions; the sign of a filter is arbitrary
        oriented = found[:, :36].reshape(b, 6, _DIRECTIONS, *found.shape[2:])
        strongest = jnp.argmax(jnp.abs(oriented), axis=2, keepdims=True)
        oriented = jnp.take_along_axis(oriented, strongest, axis=2)[:, :, 0]
        oriented = oriented.at[:, :3].set(jnp.abs(oriented[:, :3]))  # half a turn changes an edge's sign
        found = jnp.concatenate([oriented, found[:, 36:]], axis=1)
    rows, columns = found.shape[2:]
    descriptors = jnp.moveaxis(found, 1, -1).reshape(b, rows * columns, -1)
    norms = jnp.sqrt(jnp.sum(descriptors**2, axis=-1))
    if weber:
        safe = jnp.where(norms > 0, norms, 1)
        descriptors = descriptors * (jnp.log1p(norms / _WEBER) / safe)[..., None]
    places = local.fractions(np.arange(0.0, h, step), np.arange(0.0, w, step), h, w).reshape(-1, 2)
    n = len(places)
    scales = jnp.full((b, n), SUPPORT, jnp.float32)
    return Local(descriptors, jnp.broadcast_to(places, (b, n, 2)), scales, jnp.ones((b, n), bool), norms)


def respond(images: Float[Array, "b h w"], bank: Float[np.ndarray, "k s s"]) -> Float[Array, "b k h w"]:
    """Convolves images, mirrored beyond their borders, with filters of odd side, by Fourier transforms."""
    h, w = images.shape[1:]
    reach = bank.shape[-1] // 2
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach)), mode="symmetric")
    size = padded.shape[1:]
    product = jnp.fft.rfft2(padded)[:, None] * jnp.fft.rfft2(jnp.asarray(bank), s=size)
    return jnp.fft.irfft2(product, s=size)[:, :, 2 * reach : 2 * reach + h, 2 * reach : 2 * reach + w]


@cache
def filters(bank: Bank) -> Float[np.ndarray, "k 49 49"]:
    """Returns the filters of a bank: 38 for MR8, whose first 36 are of three scales of edges, then of bars, each in
    six directions, or the 48 of Leung and Malik. Each has mean 0 and absolute values that sum to 1.

    Example:
      >>> filters("mr8").shape, filters("lm").shape
      ((38, 49, 49), (48, 49, 49))
    """
    reach = SUPPORT // 2
    x, y = np.meshgrid(np.arange(-reach, reach + 1.0), np.arange(reach, -reach - 1.0, -1))
    scales = [1.0, 2.0, 4.0] if bank == "mr8" else [2 ** (i / 2) for i in (1, 2, 3)]
    found = []
    for derivative in (1, 2):
        for scale in scales:
            for i in range(_DIRECTIONS):
                angle = math.pi * i / _DIRECTIONS
                along = math.cos(angle) * x - math.sin(angle) * y
                across = math.sin(angle) * x + math.cos(angle) * y
                found.append(_bell(along, 3 * scale, 0) * _bell(across, scale, derivative))
    if bank == "mr8":
        found += [_round(x, y, 10.0, 0), _round(x, y, 10.0, 2)]
    else:
        blobs = [2 ** (i / 2) for i in (1, 2, 3, 4)]
        found += [_round(x, y, s, 2) for s in (*blobs, *(3 * s for s in blobs))] + [_round(x, y, s, 0) for s in blobs]
    every = np.stack(found)
    every -= every.mean(axis=(1, 2), keepdims=True)
    return (every / np.abs(every).sum(axis=(1, 2), keepdims=True)).astype(np.float32)


def _bell(x: np.ndarray, sigma: float, derivative: int) -> np.ndarray:
    """A Gaussian, or its first or second derivative, up to a factor."""
    bell = np.exp(-(x**2) / (2 * sigma**2))
    return (bell, -bell * x / sigma**2, bell * (x**2 - sigma**2) / sigma**4)[derivative]


def _round(x: np.ndarray, y: np.ndarray, sigma: float, derivative: int) -> np.ndarray:
    """A Gaussian of two variables (0), or its Laplacian (2), up to a factor."""
    square = x**2 + y**2
    bell = np.exp(-square / (2 * sigma**2))
    return bell if derivative == 0 else bell * (square - 2 * sigma**2) / sigma**4
