"""What lies in the images of a batch follows their augmentation, on the device: boxes, masks, points, maps, frames.

Like `geometry`, but for padded batches of static shapes: a dropped box keeps its row, which becomes padding and false
in its mask.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Shaped

from recvis_jax.data.augment_images import Window, rounded
from recvis_jax.data.fields import Field

Batch = dict[str, Any]


def follow(batch: Batch, windows: Sequence[Window], fields: Sequence[Field], visible: float = 0.0) -> Batch:
    """Moves everything that lies in the images by the windows that already moved the images.

    Args:
      batch: its values by name, with `NAME_mask` for each padded field.
      windows: one after the other.
      fields: declarations of the values; the one called "image" is not changed.
      visible: the smallest share of a box's area that must stay inside for the box to be kept.
    """
    out, own = dict(batch), {f.name: f for f in fields}
    for field in fields:
        if field.kind != "boxes":
            continue
        kept = _boxes(out, windows, field, visible)
        for name, row in own.items():
            if row.of == field.name:
                lost = ~kept.reshape(*kept.shape, *[1] * (out[name].ndim - 2))
                out[name] = jnp.where(lost, np.asarray(row.padding, out[name].dtype), out[name])
    for window in windows:
        for name, field in own.items():
            if field.kind == "points":
                out[name] = _points(out[name], window, field)
            elif field.kind == "frame":
                out[name] = move(out[name].reshape(-1, 2, 2), window).reshape(-1, 4)
                out[name] = _ordered(out[name])
            elif field.kind == "masks":
                out[name] = nearest(out[name], window, 0)
            elif field.kind == "map":
                out[name] = nearest(out[name][:, None], window, field.padding)[:, 0]
    return out


def move(points: Float[Array, "b *n 2"], window: Window) -> Float[Array, "b *n 2"]:
    """Returns x y in pixels of the windows' result."""
    top, left, height, width = (
        v.astype(jnp.float32).reshape(-1, *[1] * (points.ndim - 2))
        for v in (window.top, window.left, window.height, window.width)
    )
    rows, columns = window.size
    x = rounded((points[..., 0] - left) * (columns / width))
    y = rounded((points[..., 1] - top) * (rows / height))
    mirrored = window.mirrored.reshape(-1, *[1] * (points.ndim - 2))
    return jnp.stack([jnp.where(mirrored, columns - x, x), y], -1)


def nearest(pixels: Shaped[Array, "b n h w"], window: Window, fill: float) -> Shaped[Array, "b n p q"]:
    """Returns what windows show of masks or of a map, by nearest pixels; `fill` beyond the image."""
    rows, columns = window.size
    h, w = pixels.shape[2:]
    y = window.top[:, None] + (jnp.arange(rows) + 0.5) * (window.height[:, None] / rows)
    x = (jnp.arange(columns) + 0.5) * (window.width[:, None] / columns)
    x = window.left[:, None] + jnp.where(window.mirrored[:, None], x[:, ::-1], x)
    i, j = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    inside = ((i >= 0) & (i < h))[:, None, :, None] & ((j >= 0) & (j < w))[:, None, None, :]
    out = jax.vmap(lambda p, i, j: jnp.take(jnp.take(p, i, 1, mode="clip"), j, 2, mode="clip"))(pixels, i, j)
    return jnp.where(inside, out, np.asarray(fill, pixels.dtype))


def _boxes(out: Batch, windows: Sequence[Window], field: Field, visible: float) -> Bool[Array, "b n"]:
    """Moves the boxes and their mask in `out`, and returns which boxes are kept."""
    uncut = seen = out[field.name]
    for window in windows:
        rows, columns = window.size
        limits = jnp.asarray([columns, rows, columns, rows], jnp.float32)
        uncut = _ordered(move(uncut.reshape(len(uncut), -1, 2, 2), window).reshape(uncut.shape))
        seen = _ordered(move(seen.reshape(len(seen), -1, 2, 2), window).reshape(seen.shape)).clip(0, limits)
    area, inside = ((b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (uncut, seen))
    kept = out[str(field.mask_name)] & (inside > 0) & (inside >= visible * area * (1 - 1e-5))
    out[field.name] = jnp.where(kept[..., None], seen, np.float32(field.padding))
    out[str(field.mask_name)] = kept
    return kept


def _ordered(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """Returns x0 y0 x1 y1 with x0 <= x1, also for mirrored boxes."""
    x0, y0, x1, y1 = (boxes[..., i] for i in range(4))
    return jnp.stack([jnp.minimum(x0, x1), y0, jnp.maximum(x0, x1), y1], -1)


def _points(points: Float[Array, "b n k 3"], window: Window, field: Field) -> Float[Array, "b n k 3"]:
    place, seen = move(points[..., :2], window), points[..., 2:]
    rows, columns = window.size
    x = jnp.where(window.mirrored[:, None, None], columns - place[..., 0], place[..., 0])  # as in the window
    inside = (x >= 0) & (x < columns) & (place[..., 1] >= 0) & (place[..., 1] < rows)
    there = (seen > 0) & inside[..., None]
    out = jnp.where(there, jnp.concatenate([place, seen], -1), 0)
    order = np.arange(points.shape[2])
    for a, b in field.pairs:
        order[[a, b]] = order[[b, a]]
    return jnp.where(window.mirrored[:, None, None, None], out[:, :, order], out)
