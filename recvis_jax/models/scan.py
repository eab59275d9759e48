"""Converts the parameters of equal blocks between two forms: one subtree per block, or one with a leading axis.

A model with `scan=True` has `blocks/...`, arrays (depth, ...); otherwise it has `block0/...`, `block1/...`, and so on.
Likewise, a masked autoencoder's decoder has `decoder_blocks` or `decoder_block0`, ...
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax.errors import BadRequest

# Not "stage1_block1": the convolutional blocks of a hybrid are never stacked.
_BLOCK = re.compile(r"((?:[a-z]+_)?block)(\d+)")
_BLOCKS = re.compile(r"(?:[a-z]+_)?blocks")


def unstack(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree with a subtree for every block.

    Args:
      tree: parameters or variables, nested dicts of arrays (of jax or numpy) or of `ShapeDtypeStruct`.

    Example:
      >>> tree = {"params": {"blocks": {"kernel": jnp.zeros((12, 3, 5))}, "head": {"bias": jnp.zeros(10)}}}
      >>> sorted(unstack(tree)["params"])[:3]
      ['block0', 'block1', 'block10']

    Raises:
      BadRequest: stacked arrays of different lengths.
    """
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(value, Mapping):
            out[key] = value
        elif _BLOCKS.fullmatch(key):
            depths = {x.shape[:1] for x in jax.tree.leaves(value)}
            if len(depths) != 1 or depths == {()}:
                raise BadRequest(f"the arrays below {key!r} are not stacked: their first axes are {sorted(depths)}.")
            for i in range(depths.pop()[0]):
                out[f"{key[:-1]}{i}"] = jax.tree.map(lambda x, i=i: _take(x, i), dict(value))
        else:
            out[key] = unstack(value)
    return out


def stack(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree with equal blocks stacked along a new first axis; the inverse of `unstack`.

    Raises:
      BadRequest: blocks whose numbers are not 0, 1, ..., or which differ in names or shapes.
    """
    out: dict[str, Any] = {}
    groups: dict[str, dict[int, Any]] = {}
    for key, value in tree.items():
        if (match := _BLOCK.fullmatch(key)) and isinstance(value, Mapping):
            groups.setdefault(f"{match[1]}s", {})[int(match[2])] = value
            out.setdefault(f"{match[1]}s", None)  # keeps the place
        else:
            out[key] = stack(value) if isinstance(value, Mapping) else value
    for name, blocks in groups.items():
        if sorted(blocks) != list(range(len(blocks))):
            raise BadRequest(f"{name} are numbered {sorted(blocks)}, not from 0 without a gap.")
        subtrees = [dict(blocks[i]) for i in range(len(blocks))]
        shapes = [jax.tree_util.tree_map(lambda x: tuple(x.shape), t) for t in subtrees]
        if any(s != shapes[0] for s in shapes):
            raise BadRequest(f"{name} differ in names or shapes and cannot be stacked.")
        out[name] = jax.tree.map(lambda *x: _join(x), *subtrees)
    return out


def _take(x: Any, i: int) -> Any:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x[i]


def _join(parts: tuple[Any, ...]) -> Any:
    first = parts[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(parts), *first.shape), first.dtype)
    return (np if isinstance(first, np.ndarray) else jnp).stack(parts)
