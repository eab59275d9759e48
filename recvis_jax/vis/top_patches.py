"""The patches of a data set that excite a layer's units most: one pass over the images keeps the best of each unit.

Reference: Zeiler & Fergus 2013, "Visualizing and understanding convolutional networks", section 4.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from recvis_jax.errors import BadRequest
from recvis_jax.vis import layers
from recvis_jax.vis.layers import Apply
from recvis_jax.vis.structure import Window

CHUNK = 64  # images computed at a time on a device


class Top(NamedTuple):
    """The best patches of d units, the best first; an image counts once, with its strongest place.

    Attributes:
      values: (d k) activations; -infinity for missing ones if there were fewer than k images.
      images: (d k) index of the image in the data set; -1 for missing ones.
      places: (d k 2) row and column of the strongest place in the layer, in ties the first; (token, 0) for tokens.
    """

    values: Float[np.ndarray, "d k"]
    images: Int[np.ndarray, "d k"]
    places: Int[np.ndarray, "d k 2"]


def top_patches(
    apply: Apply,
    variables: Any,
    batches: Iterable[Any],
    layer: str,
    k: int = 9,
    *,
    chunk: int = CHUNK,
    mesh: Mesh | None = None,
    say: Callable[[int], None] = lambda done: None,
) -> Top:
    """Returns the k images that excite each unit of a layer most, and the places.

    The result is identical, bit for bit, for any batches and any number of devices: images are regrouped into chunks,
    which one program computes, and among equal values the first image counts.

    Args:
      apply: the network.
      variables: its variables.
      batches: images (b h w c) in the order of the data set, in batches of any size, as input of `apply`.
      layer: a name in `acts`, or the path of a module, see `layers.activations`.
      k: number of images per unit.
      chunk: images computed at a time on a device.
      mesh: devices to use, with one axis; None for one device.
      say: called with the number of images done.

    Raises:
      BadRequest: no images, no such layer, or k below 1.

    Example:
      >>> found = top_patches(apply, variables, [images[:1], images[1:]], "stage1/block1", k=2)
      >>> found.values.shape, found.places.shape
      ((6, 2), (6, 2, 2))
    """
    if k < 1 or chunk < 1:
        raise BadRequest(f"k={k} and chunk={chunk} must be at least 1.")
    size = chunk * (1 if mesh is None else mesh.size)
    split = None if mesh is None else NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    if mesh is not None:
        variables = jax.device_put(variables, whole)
    kept, done = None, 0
    for images, count in _recut(batches, size):
        given = jnp.asarray(images) if mesh is None else jax.device_put(images, split)
        shape = jax.eval_shape(partial(layers.activations, apply, layer=layer), variables, given).shape
        if kept is None:
            kept = _nothing(shape[-1], k)
            kept = kept if mesh is None else jax.device_put(kept, whole)
        kept = _merged(apply, layer, variables, given, kept, done, count)
        done += count
        say(done)
    if kept is None:
        raise BadRequest("there are no images to search for patches.")
    values, found, flat = (np.asarray(x) for x in kept)
    columns = shape[2] if len(shape) == 4 else 1
    places = np.stack(np.divmod(np.maximum(flat, 0), columns), axis=-1)
    return Top(values, found, places)


def crops(
    fetch: Callable[[np.ndarray], np.ndarray], top: Top, window: Window | None, fill: float = 0.0
) -> Float[np.ndarray, "d k h w c"]:
    """Cuts the parts that excite the units out of their images.

    Args:
      fetch: indices (n) of images -> images (n h w c).
      top: from `top_patches`.
      window: of the layer, see `structure.window`; None shows whole images.
      fill: value outside the image.

    Returns:
      Crops with the size of the receptive field, or of the image if the field is larger.
    """
    d, k = top.images.shape
    pictures = np.asarray(fetch(np.maximum(top.images.ravel(), 0)))
    h, w = pictures.shape[1:3]
    if window is None:
        return pictures.reshape(d, k, *pictures.shape[1:])
    rows, columns = min(window.size[0], h), min(window.size[1], w)
    out = np.full((d * k, rows, columns, pictures.shape[3]), fill, pictures.dtype)
    for i, (image, place) in enumerate(zip(pictures, top.places.reshape(-1, 2), strict=True)):
        if top.images.flat[i] < 0:
            continue
        # If the field is larger than the image, the image itself; else the field, filled beyond the edges.
        first = [
            0 if window.size[axis] >= n else int(place[axis]) * window.stride[axis] - window.padding[axis]
            for axis, n in enumerate((h, w))
        ]
        begin = [max(0, f) for f in first]
        end = [min(n, f + size) for n, f, size in zip((h, w), first, (rows, columns), strict=True)]
        at = tuple(slice(b - f, e - f) for b, e, f in zip(begin, end, first, strict=True))
        out[i][at] = image[begin[0] : end[0], begin[1] : end[1]]
    return out.reshape(d, k, *out.shape[1:])


def _recut(batches: Iterable[Any], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the images in chunks of `size`, the last padded with zeros, and the number of real images in each."""
    held: list[np.ndarray] = []
    count = 0
    for batch in batches:
        held.append(np.asarray(batch))
        count += len(held[-1])
        if count < size:
            continue
        images = np.concatenate(held)
        for start in range(0, count - size + 1, size):
            yield images[start : start + size], size
        held = [images[count - count % size :]]
        count %= size
    if count:
        images = np.concatenate(held)
        yield np.concatenate([images, np.zeros((size - count, *images.shape[1:]), images.dtype)]), count


_Kept = tuple[Array, Array, Array]


def _nothing(units: int, k: int) -> _Kept:
    none = jnp.full((units, k), -1, jnp.int32)
    return jnp.full((units, k), -jnp.inf, jnp.float32), none, none


@partial(jax.jit, static_argnums=(0, 1))
def _merged(apply: Apply, layer: str, variables: Any, images: Array, kept: _Kept, done: Any, count: Any) -> _Kept:
    x = layers.activations(apply, variables, images, layer).astype(jnp.float32)
    x = x.reshape(len(x), -1, x.shape[-1])
    best = jax.lax.optimization_barrier(x.max(1))  # read twice, but must not be computed twice
    at = jnp.arange(x.shape[1], dtype=jnp.int32)[None, :, None]
    place = jnp.where(x == best[:, None], at, x.shape[1]).min(1)
    real = jnp.arange(len(x)) < count
    best = jnp.where(real[:, None], best, -jnp.inf)
    which = jnp.where(real, jnp.arange(len(x), dtype=jnp.int32) + done, -1)
    values, index, places = kept
    values = jnp.concatenate([values, best.T], axis=1)  # earlier images first: in ties top_k takes the first
    index = jnp.concatenate([index, jnp.broadcast_to(which, best.T.shape)], axis=1)
    places = jnp.concatenate([places, place.T], axis=1)
    values, chosen = jax.lax.top_k(values, kept[0].shape[1])
    return values, jnp.take_along_axis(index, chosen, axis=1), jnp.take_along_axis(places, chosen, axis=1)
