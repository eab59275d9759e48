"""Layer-wise learning-rate decay for fine-tuning: layers closer to the input get smaller learning rates."""

import re
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from recvis_jax import trees
from recvis_jax.errors import BadRequest

BLOCK = r"block(\d+)"

# Parts of path names that come before the blocks. The convolutions of a hybrid model make its tokens.
_FIRST = re.compile(r"((patch|pos|token|position)_)?embed(ding)?|(cls|dist)_token|stem.*|stage\d+.*")


def layer_factors(params: PyTree, layer_decay: float, blocks: str = BLOCK) -> PyTree:
    """Returns the factor of every parameter's learning rate, layer_decay ** (depth + 1 - layer).

    Patch embedding, class token, positions and stem are layer 0, and block i is layer i + 1. Everything after the
    blocks, such as the final norm and the head, is layer depth + 1, with factor 1.

    Args:
      params: the parameters, or their shapes; only names and shapes are used.
      layer_decay: factor from a layer to the one before, in (0, 1].
      blocks: regular expression with `(\\d+)` for the number of the block. It must match one whole part of the path
        name, at any position: 'backbone/block3/mlp/fc1/kernel'. Blocks stacked for a scan have 's' in place of the
        number: 'blocks/mlp/fc1/kernel', of shape (depth, ...).

    Returns:
      A tree of floats; for stacked blocks, arrays (depth, 1, ...), which broadcast over the updates.

    Raises:
      BadRequest: a factor out of range, an expression without its group, or blocks with no clear depth: no blocks,
        several stacks of them, numbers with gaps, or stacked arrays of different lengths.

    Example:
      >>> w = np.zeros((2, 2))
      >>> layer_factors({"patch_embed": w, "block0": w, "block1": w, "head": w}, 0.5)
      {'block0': 0.25, 'block1': 0.5, 'head': 1.0, 'patch_embed': 0.125}

    Reference:
      Clark et al., 2020, "ELECTRA"; Bao et al., 2022, "BEiT"; formula and block numbers as in facebookresearch/mae,
      util/lr_decay.py.
    """
    if not 0 < layer_decay <= 1:
        raise BadRequest(f"optim.layer_decay is {layer_decay}; it takes a number above 0 and at most 1, or None.")
    try:
        one, stacked = re.compile(blocks), re.compile(blocks.replace(r"(\d+)", "s"))
    except re.error as e:
        raise BadRequest(f"optim.layer_blocks = {blocks!r} is not a regular expression: {e}.") from e
    if blocks.count(r"(\d+)") != 1 or one.groups != 1:
        raise BadRequest(rf"optim.layer_blocks is {blocks!r}; it takes a regular expression with one group, (\d+).")

    numbers: dict[str, int | None] = {}  # of parameters in blocks; None for stacked ones
    places: dict[str, str] = {}  # where a stack is -> one of its names
    lengths = set()
    flat = trees.flatten(params)
    for name, leaf in flat.items():
        parts = name.split("/")
        for i, part in enumerate(parts):
            match = one.fullmatch(part)
            if match or stacked.fullmatch(part):
                numbers[name] = int(match.group(1)) if match else None
                places.setdefault("/".join(parts[:i]), name)
                if not match:
                    lengths.add(np.shape(leaf)[0] if np.ndim(leaf) else 0)
                break
    if not numbers:
        shown = trees.shorten(list(flat), 8)
        raise BadRequest(f"optim.layer_decay: no name has a part {blocks!r}, so the depth is unknown; names: {shown}.")
    if len(places) > 1:
        shown = ", ".join(sorted(places.values()))
        raise BadRequest(f"optim.layer_decay: {blocks!r} is in several places, so the depth is unclear: {shown}.")
    found = {i for i in numbers.values() if i is not None}
    counts = sorted(lengths) if lengths else [len(found)]
    if found != set(range(len(found))) or (found and lengths) or len(counts) > 1 or not counts[0]:
        seen = f"numbered {sorted(found)}" if found else f"of {counts} in one array"
        raise BadRequest(
            f"optim.layer_decay: blocks {blocks!r} are {seen}; they must be 0, 1, ..., or all of one length."
        )
    depth = counts[0]

    def factor(name: str, leaf: Any) -> Any:
        if name not in numbers:
            first = any(_FIRST.fullmatch(part) for part in name.split("/"))
            return layer_decay ** (depth + 1) if first else 1.0
        if (i := numbers[name]) is not None:
            return layer_decay ** (depth - i)
        powers = np.array([layer_decay ** (depth - i) for i in range(depth)], np.float32)
        return powers.reshape(depth, *[1] * (len(np.shape(leaf)) - 1))

    return jax.tree.unflatten(jax.tree.structure(params), [factor(*item) for item in flat.items()])
