"""The patches of a data set that excite the units of a layer most, cut out; for `look` and for the report."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from recvis_jax import errors, vis
from recvis_jax.vis import layers, structure
from recvis_jax.vis.layers import Apply
from recvis_jax.vis.structure import Window


class Patches(NamedTuple):
    """The patches that excite units most.

    Attributes:
      layer: of the units.
      units: channels (u), the one with the largest activation first.
      crops: the parts that a unit sees of its best images, the best first.
      window: their size; None if a unit sees the whole image.
    """

    layer: str
    units: Int[np.ndarray, " u"]
    crops: Float[np.ndarray, "u k h w c"]
    window: Window | None


def best(
    apply: Apply,
    variables: Any,
    image_shape: tuple[int, int, int],
    batches: Callable[[], Iterable[np.ndarray]],
    layer: str,
    *,
    most: int = 100,
    k: int = 9,
    units: Sequence[int] = (),
    say: Callable[[int], None] = lambda done: None,
) -> Patches:
    """Returns the best patches of the units of a layer that are ever above zero, or of chosen ones.

    Args:
      apply, variables, image_shape: the network, of images in [0, 1].
      batches: returns the images (b h w c) of the data set in order; it is called twice and must return the same.
      layer: see `vis.activations`.
      most: maximum number of units; those with the largest activations are kept.
      k: number of patches of each.
      units: chosen channels, in their order; empty for those with the largest activations.
      say: called with the number of images done.

    Raises:
      BadRequest: no unit is above zero on any image, or no such layer or unit.
    """
    top = vis.top_patches(apply, variables, batches(), layer, k, say=say)
    if wrong := [u for u in units if not 0 <= u < len(top.values)]:
        raise errors.BadRequest(f"unit {wrong[0]} of {layer!r} is outside 0 to {len(top.values) - 1}.")
    shown = np.array(units, int) if units else np.argsort(-top.values[:, 0], kind="stable")
    shown = shown[top.values[shown, 0] > 0][:most]
    if not len(shown):
        raise errors.BadRequest(f"no unit of {layer!r} is above zero on any image.")
    seen = window_of(apply, variables, image_shape, layer)

    def fetch(indices: np.ndarray) -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        wanted, start = set(indices.tolist()), 0
        for images in batches():
            found |= {i: images[i - start] for i in wanted.intersection(range(start, start + len(images)))}
            start += len(images)
        return np.stack([found[i] for i in indices.tolist()])

    chosen = top._replace(values=top.values[shown], images=top.images[shown], places=top.places[shown])
    return Patches(layer, shown, vis.crops(fetch, chosen, seen), seen)


def window_of(apply: Apply, variables: Any, image_shape: tuple[int, int, int], layer: str) -> Window | None:
    """Returns the window that a unit of a layer sees; None if it is the whole image."""
    found = structure.window(partial(layers.activations, apply, layer=layer), variables, image_shape)
    whole = found is None or all(size >= n for size, n in zip(found.size, image_shape[:2], strict=True))
    return None if whole else found


def last_layer_of_parts(apply: Apply, variables: Any, image_shape: tuple[int, int, int]) -> str | None:
    """Returns the last layer of maps whose units see less than the image; None if there is none.

    Later units see no less than earlier ones, so only few layers have to be examined.
    """
    shapes = layers.names(apply, variables, jax.ShapeDtypeStruct((1, *image_shape), np.float32))
    names = [n for n in layers.with_places(shapes) if len(shapes[n]) == 4]
    low, high = -1, len(names)  # the units of `low` see parts, those of `high` the whole
    while high - low > 1:
        middle = (low + high) // 2
        if window_of(apply, variables, image_shape, names[middle]) is None:
            high = middle
        else:
            low = middle
    return names[low] if low >= 0 else None
