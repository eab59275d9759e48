"""Figures of `look` that make images: by maximisation, inversion, dreaming, and in another picture's style."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax import errors, figure, vis
from recvis_jax.figure import Figure, Request
from recvis_jax.vis import layers, pictures, style

_UNITS = 16  # units for which images are made, unless some are named
_IMAGES = 4  # images that are changed, at most
_LAYERS = 5  # layers that are inverted or give the style, at most
_PIXELS = 128  # side that small images are enlarged to


def _maximised(r: Request) -> Figure:
    network = r.network
    if r.layer is None:
        shape = jax.eval_shape(network.apply, network.variables, _one(r))[0].shape
        if len(shape) != 2:
            raise errors.BadRequest("the network has no classes: name a layer by --layer.")
        chosen = [*r.units] or (list(range(min(shape[1], _UNITS))) if r.target is None else [r.target])
        target: Any = chosen
        what = "classes " + ", ".join(figure.class_name(r, c) for c in chosen)
    elif r.target is not None:
        raise errors.BadRequest("name a class by --class, or units of --layer by --units, not both.")
    else:
        values = partial(layers.activations, network.apply, layer=r.layer)
        shape = jax.eval_shape(values, network.variables, _one(r)).shape
        chosen = [*r.units] or list(range(min(shape[-1], _UNITS)))
        target = vis.Channel(r.layer, np.array(chosen))
        what = f"units {', '.join(map(str, chosen))} of {r.layer}"
    steps = r.steps or 512
    found = vis.maximise(
        network.apply, network.variables, target, network.image_shape, count=len(chosen), steps=steps,
        say=_part(r, "maximise", 0, steps),
    )  # fmt: skip
    tiles = figure.seen(found)
    picture = pictures.mosaic(tiles, gap=2, zoom=pictures.zoom_for(tiles.shape[1], _PIXELS))
    caption = f"Images made from noise in {steps} steps that most excite {what}, row by row."
    return Figure("maximise", "What excites units and classes most", caption, picture)


def _inverted(r: Request) -> Figure:
    network, images = r.network, figure.images(r)[:_IMAGES]
    known = figure.named(r)
    names = [*layers.with_places(known), *(n for n in ("features", "logits") if n in known)]
    names = [r.layer] if r.layer else _spread(names)
    columns = [figure.seen(images)]
    steps = r.steps or 400
    for i, name in enumerate(names):
        found = vis.invert(
            network.apply, network.variables, images, name, steps=steps,
            say=_part(r, "invert", i * steps, len(names) * steps),
        )  # fmt: skip
        columns.append(figure.seen(found))
    tiles = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
    picture = pictures.mosaic(tiles, columns=len(columns), gap=2, zoom=pictures.zoom_for(images.shape[1], _PIXELS))
    caption = f"The image, then images made from noise that look the same to {', '.join(names)}."
    return Figure("invert", "What layers keep", caption, picture)


def _dream(r: Request) -> Figure:
    network, images = r.network, figure.images(r)[:_IMAGES]
    placed = figure.placed(r)
    layer = r.layer or placed[2 * len(placed) // 3]
    octaves = 4 if _takes_other_sizes(r) else 1
    steps = r.steps or 10
    found = vis.deep_dream(
        network.apply, network.variables, images, layer, octaves=octaves, steps=steps,
        jitter=max(1, images.shape[1] // 14), say=_part(r, "dream", 0, octaves),
    )  # fmt: skip
    rows = np.concatenate([figure.seen(images), figure.seen(found)])
    picture = pictures.mosaic(rows, columns=len(images), gap=2, zoom=pictures.zoom_for(images.shape[1], _PIXELS))
    alone = "" if octaves > 1 else " The network takes no smaller images, so there is one octave."
    caption = f"Below, the images changed so that {layer} is excited more, in {octaves} x {steps} steps.{alone}"
    return Figure("dream", "Dreams", caption, picture)


def _styled(r: Request) -> Figure:
    network, images = r.network, figure.images(r)[:_IMAGES]
    if r.style is None:
        raise errors.BadRequest("name the picture with the style: --style=FILE.")
    known = figure.named(r)
    of_vgg = {style.CONTENT, *style.STYLE} <= set(known)
    names = style.STYLE if of_vgg else tuple(_spread(figure.placed(r)))
    content = r.layer or (style.CONTENT if of_vgg else names[-2 if len(names) > 1 else -1])
    steps, found = r.steps or 300, []
    for i, image in enumerate(images):
        made = vis.style_transfer(
            network.apply, network.variables, image[None], r.style, steps=steps, style_layers=names,
            content_layer=content, say=_part(r, "style", i * steps, len(images) * steps),
        )  # fmt: skip
        found.append(np.asarray(made)[0])
    shown = jax.image.resize(jnp.asarray(r.style[0]), images.shape[1:], "linear")[None]
    tiles = np.concatenate([figure.seen(x) for x in (images, shown, np.stack(found))])
    picture = pictures.mosaic(tiles, columns=len(images) + 1, gap=2, zoom=pictures.zoom_for(images.shape[1], _PIXELS))
    caption = (
        f"Above the images and, last, the picture with the style; below the images in that style, after {steps} "
        f"steps. Content of {content}, style of {', '.join(names)}."
    )
    return Figure("style", "In another style", caption, picture)


def _one(r: Request) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *r.network.image_shape), np.float32)


def _part(r: Request, what: str, before: int, whole: int) -> Callable[[int], None]:
    """Returns the callback of one of several optimisations, whose progress continues that of the others."""
    return lambda done: r.say(what, before + done, whole)


def _spread(names: list[str]) -> list[str]:
    """Returns at most `_LAYERS` evenly spread names, including the first and the last."""
    return [names[i] for i in np.unique(np.linspace(0, len(names) - 1, _LAYERS).round().astype(int))]


def _takes_other_sizes(r: Request) -> bool:
    """Whether the network runs on smaller images than its own, as dreams of several octaves need."""
    h, w, c = r.network.image_shape
    smaller = jax.ShapeDtypeStruct((1, max(8, round(h / 1.4**3)), max(8, round(w / 1.4**3)), c), np.float32)
    if smaller.shape[1:3] == (h, w):
        return False
    try:
        jax.eval_shape(r.network.apply, r.network.variables, smaller)
    except Exception:  # models may raise any error for an image of another size
        return False
    return True


SHOWS: dict[str, Callable[[Request], Figure]] = {
    "maximise": _maximised,
    "invert": _inverted,
    "dream": _dream,
    "style": _styled,
}
