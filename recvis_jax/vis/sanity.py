"""Whether an attribution depends on the network at all: compares its maps of a network and of a scrambled network."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.vis import targets
from recvis_jax.vis.layers import Apply, Images
from recvis_jax.vis.targets import Target


def scrambled(key: Array, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns variables in which every array of parameters has its numbers in a different order.

    Args:
      key: for the orders.
      variables: with "params"; other collections are not changed.

    Example:
      >>> found = scrambled(jax.random.key(0), variables)["params"]["conv1"]["kernel"]
      >>> bool(jnp.allclose(jnp.sort(found, axis=None), jnp.sort(variables["params"]["conv1"]["kernel"], axis=None)))
      True
    """
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(key, len(leaves))
    mixed = [jax.random.permutation(k, x.ravel()).reshape(x.shape) for k, x in zip(keys, leaves, strict=True)]
    return {**variables, "params": jax.tree.unflatten(tree, mixed)}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "b"]:
    """Spearman's rank correlation of the two maps of each image; equal values share their mean rank.

    Args:
      a, b: (b ...), maps of the same shape.

    Example:
      >>> rank_correlation(np.array([[1.0, 2.0, 3.0]]), np.array([[10.0, 30.0, 20.0]]))
      array([0.5])
    """
    found = []
    for x, y in zip(np.asarray(a), np.asarray(b), strict=True):
        x, y = (_ranks(v.ravel()) for v in (x, y))
        x, y = x - x.mean(), y - y.mean()
        scale = np.sqrt((x * x).sum() * (y * y).sum())
        found.append((x * y).sum() / scale if scale else np.nan)
    return np.array(found)


def sanity(
    methods: Mapping[str, Callable[..., Any]],
    apply: Apply,
    variables: Mapping[str, Any],
    images: Images,
    target: Target = None,
    *,
    key: Array | None = None,
) -> dict[str, float]:
    """Returns each method's mean rank correlation between its maps of a network and of the scrambled network.

    Near 1, the method shows the image and not what the network has learned. Maps are magnitudes, summed over colours.

    Args:
      methods: name -> function (apply, variables, images, target) -> maps, such as `vis.ATTRIBUTIONS`.
      apply, variables, images: see `saliency.gradient`.
      target: the same for both networks; None for the class that the original network predicts.
      key: for the scrambling; `jax.random.key(0)` by default.

    Reference: Adebayo et al. 2018, "Sanity checks for saliency maps", section 3.

    Example:
      >>> from recvis_jax.vis import saliency
      >>> found = sanity({"saliency": saliency, "the image": lambda a, v, x, t: x}, apply, variables, images)
      >>> round(found["the image"], 4), found["saliency"] < 0.9
      (1.0, True)
    """
    target = targets.fixed(apply, variables, images, target)
    others = scrambled(jax.random.key(0) if key is None else key, variables)
    found = {}
    for name, method in methods.items():
        maps = [np.asarray(method(apply, v, images, target)) for v in (variables, others)]
        maps = [np.abs(m).sum(-1) if m.ndim == 4 else np.abs(m) for m in maps]
        found[name] = float(np.nanmean(rank_correlation(*maps)))
    return found


def _ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
