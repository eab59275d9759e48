"""Weights as pictures: the filters of the first layer, and the mixing of tokens."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.vis import structure
from recvis_jax.vis.layers import Apply

# Parameters whose first axis is the tokens of the image, in networks that mix tokens by a fixed matrix.
_MIXING = re.compile(r"(?:.*/)?block(\d+)/(?:mlp_tokens/fc1|linear_tokens|gate)/kernel")


def first_filters(
    apply: Apply, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> Float[Array, "d i j c"]:
    """Returns the kernels of the first layer, as images.

    Args:
      apply: the network.
      variables: its variables.
      image_shape: (h, w, c) of its input. A first layer on all pixels has kernels of this size.

    Raises:
      BadRequest: the first layer is not a convolution and does not read all pixels.

    Example:
      >>> first_filters(apply, variables, (28, 28, 1)).shape
      (4, 5, 5, 1)
    """
    kernels = _flat(variables["params"])
    for layer in structure.layers(lambda v, x: apply(v, x)[0], variables, image_shape):
        x = kernels.get(f"{layer.name}/kernel")
        if x is not None and x.ndim == 4:
            return jnp.moveaxis(x, -1, 0)
        if x is not None and x.ndim == 2 and x.shape[0] == math.prod(image_shape):
            return x.T.reshape(-1, *image_shape)
        if x is not None:
            break
    raise BadRequest("the network's first layer is neither a convolution nor one on all pixels: it has no filters.")


def token_mixing(variables: Mapping[str, Any], grid: tuple[int, int]) -> dict[str, Float[Array, "m i j"]]:
    """Returns the weights with which each block's units mix the patches, as maps.

    Args:
      variables: of a network without attention: MLP-Mixer, ResMLP, gMLP, or a network with two MLPs per block.
      grid: rows and columns of patches; an additional first token, the class token, is left out.

    Raises:
      BadRequest: the network does not mix tokens by fixed weights.

    Reference: Tolstikhin et al. 2021, "MLP-Mixer", figure 5.

    Example:
      >>> block = {"mlp_tokens": {"fc1": {"kernel": jnp.zeros((6, 8))}}}
      >>> {name: maps.shape for name, maps in token_mixing({"params": {"block0": block}}, (2, 3)).items()}
      {'block0': (8, 2, 3)}
    """
    n = grid[0] * grid[1]
    found = {}
    for name, x in _flat(variables["params"]).items():
        if (match := _MIXING.fullmatch(name)) and x.ndim == 2 and x.shape[0] in (n, n + 1):
            found[f"block{match[1]}"] = x[x.shape[0] - n :].T.reshape(-1, *grid)
    if not found:
        raise BadRequest(f"the network has no weights that mix {n} tokens; with attention, show that.")
    return dict(sorted(found.items(), key=lambda item: int(item[0].removeprefix("block"))))


def position_similarity(variables: Mapping[str, Any], grid: tuple[int, int]) -> Float[Array, "n i j"]:
    """Returns the cosines between the position embedding of each patch and those of all patches.

    Args:
      variables: of the network; the embedding is `pos_embed`, learned or constant.
      grid: rows and columns of patches; additional first tokens, such as the class token, are left out.

    Returns:
      A map for each of the n patches, row by row; 1 at its own place.

    Raises:
      BadRequest: the network stores no position embeddings, or those of another grid.

    Reference: Dosovitskiy et al. 2020, "An image is worth 16x16 words", figure 7.

    Example:
      >>> table = jnp.eye(7, 4)[None]
      >>> position_similarity({"params": {"pos_embed": table}}, (2, 3)).shape
      (6, 2, 3)
    """
    n = grid[0] * grid[1]
    for kind in ("params", "constants"):
        table = _flat(variables.get(kind, {})).get("pos_embed")
        if table is not None:
            if not n <= table.shape[1] <= n + 2:
                raise BadRequest(f"the {table.shape[1]} position embeddings do not fit {grid[0]}x{grid[1]} patches.")
            x = table[0, table.shape[1] - n :]
            x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), jnp.finfo(x.dtype).tiny)
            return (x @ x.T).reshape(n, *grid)
    raise BadRequest("the network stores no position embeddings: it has none, or computes them.")


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(getattr(k, "key", k)) for k in path): x for path, x in leaves}
