"""Restricted attention: which tokens of a sequence or image a query may attend to, as masks for `attention`.

A mask is a boolean array (n m), true where query i (the row) may attend to key j (the column). Patterns with two kinds
of heads return one mask for each kind, (2 n n): `jnp.tile(pattern, (heads // 2, 1, 1))` gives (k n n), and
`pattern.any(0)` merges both into one head.
"""

import numpy as np
from jaxtyping import Bool

from recvis_jax.errors import BadRequest


def causal(n: int) -> Bool[np.ndarray, "n n"]:
    """Every token attends to itself and to those before it."""
    return np.tri(n, dtype=bool)


def local_1d(n: int, block: int, memory: int, causal: bool = True) -> Bool[np.ndarray, "n n"]:
    """The sequence is cut into query blocks; a block attends to itself and to the `memory` tokens before it.

    Args:
      n: number of tokens.
      block: l_q, tokens of a query block; the last one may be shorter.
      memory: l_m, tokens before a block that it may attend to.
      causal: whether a query attends to itself and earlier tokens only, as in generation.

    Raises:
      BadRequest: an empty block or a negative memory.

    Reference: Parmar et al. 2018, "Image transformer", section 3.3, "1D local attention".
    """
    _check(n=(n, 1), block=(block, 1), memory=(memory, 0))
    i, j = np.arange(n)[:, None], np.arange(n)[None]
    start = i // block * block
    mask = (j >= start - memory) & (j < start + block)
    return mask & (j <= i) if causal else mask


def local_2d(
    h: int, w: int, block: tuple[int, int], memory: tuple[int, int], causal: bool = True
) -> Bool[np.ndarray, "n n"]:
    """The image is cut into rectangles of queries; a rectangle attends to itself and to a margin above, left and right.

    Args:
      h, w: rows and columns of the image; tokens are in rows, then columns.
      block: h_q, w_q, rows and columns of a query block; those at the border may be smaller.
      memory: h_m rows above a block, and w_m columns on its left and on its right (the corners included).
      causal: whether a query attends only to itself and to pixels generated earlier: blocks are generated row by row,
        and pixels row by row in their block.

    Raises:
      BadRequest: an empty block or a negative memory.

    Reference: Parmar et al. 2018, "Image transformer", section 3.3, "2D local attention".
    """
    _check(h=(h, 1), w=(w, 1), block=(min(block), 1), memory=(min(memory), 0))
    y, x = np.divmod(np.arange(h * w), w)
    top, left = y // block[0] * block[0], x // block[1] * block[1]
    rows = (y >= top[:, None] - memory[0]) & (y < top[:, None] + block[0])
    columns = (x >= left[:, None] - memory[1]) & (x < left[:, None] + block[1] + memory[1])
    mask = rows & columns
    if causal:
        time = np.empty(h * w, int)
        time[np.lexsort((x, y, left, top))] = np.arange(h * w)
        mask &= time <= time[:, None]
    return mask


def strided(n: int, stride: int) -> Bool[np.ndarray, "2 n n"]:
    """One head sees the current and the `stride` tokens before it, the other every stride-th token back from it.

    If the stride is the width of an image, the first head sees the last w pixels, the second the column above.

    Raises:
      BadRequest: a stride below 1.

    Reference: Child et al. 2019, "Generating long sequences with sparse transformers", section 4.2:
    A1 = {max(0, i - l), ..., i}, A2 = {j <= i: (i - j) mod l = 0}.
    """
    _check(n=(n, 1), stride=(stride, 1))
    distance = np.arange(n)[:, None] - np.arange(n)[None]
    past = distance >= 0
    return np.stack([past & (distance <= stride), past & (distance % stride == 0)])


def fixed(n: int, stride: int, summary: int = 1) -> Bool[np.ndarray, "2 n n"]:
    """One head sees its own block of `stride` tokens up to itself, the other the last `summary` tokens of each block.

    Raises:
      BadRequest: a stride below 1, or a summary outside [1, stride].

    Reference: Child et al. 2019, "Generating long sequences with sparse transformers", section 4.2:
    A1 = {j <= i: floor(j / l) = floor(i / l)}, A2 = {j <= i: j mod l >= l - c}.
    """
    _check(n=(n, 1), stride=(stride, 1), summary=(summary, 1))
    if summary > stride:
        raise BadRequest(f"summary={summary} is more than the {stride} tokens of a block.")
    i, j = np.arange(n)[:, None], np.arange(n)[None]
    return np.stack([(j <= i) & (j // stride == i // stride), (j <= i) & (j % stride >= stride - summary)])


def _check(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if value < least:
            raise BadRequest(f"{name} must be at least {least}, not {value}.")
