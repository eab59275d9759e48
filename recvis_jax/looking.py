"""What `python -m recvis_jax.look` shows: a function a figure, of a network and its images; `SHOWS` is the list."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from recvis_jax import build, errors, trained, vis
from recvis_jax.network import Network
from recvis_jax.tasks.mae import mae
from recvis_jax.vis import layers, page, pictures, plot, structure

_UNITS = 100  # units of a layer of which pictures are made
_MAPS = 64  # maps of an image that are shown
_PIXELS = 128  # to which small images are enlarged


class Request(NamedTuple):
    """What is to be looked at.

    Attributes:
      network: the network.
      images: (n h w c) in [0, 1], as it is given them; may be empty where figures of images are not asked for.
      names: of the images, for captions.
      split: examples of the network's data set, for the best patches; None where there is none.
      layer: name of a layer; None for what suits the figure.
      target: class whose score is explained; None for the predicted one.
      say: is told (what, done, in all).
    """

    network: Network
    images: Float[np.ndarray, "n h w c"]
    names: Sequence[str]
    split: Any
    layer: str | None
    target: int | None
    say: Callable[[str, int, int], None]


class Figure(NamedTuple):
    """A picture (h w c) in [0, 1] with a title and an explanation."""

    name: str
    title: str
    caption: str
    picture: Float[np.ndarray, "h w c"]


def show(request: Request, names: Sequence[str]) -> list[Figure]:
    """Returns the figures of these names, of `SHOWS`.

    Raises:
      BadRequest: an unknown name, or a figure that this network or request cannot have.
    """
    for name in names:
        errors.choose(SHOWS, name, "figure")
    out = []
    for done, name in enumerate(names):
        request.say("figures", done, len(names))
        with errors.at(name):
            out.append(SHOWS[name](request))
    request.say("figures", len(names), len(names))
    return out


def write(figures: Sequence[Figure], request: Request, folder: Path) -> Path:
    """Writes a PNG for each figure and `look.html`, which has them all; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    network, body = request.network, []
    body.append(f"<h1>{page.text(network.name)}</h1><p class='dim'>{page.text(network.origin, 400)}</p>")
    for figure in figures:
        plot.png(figure.picture, folder / f"{figure.name}.png")
        shown = (figure.picture.clip(0, 1) * 255).round().astype(np.uint8)
        body.append(
            f"<h2>{page.text(figure.title)}</h2><figure><img alt='' src='data:image/png;base64,"
            f"{page.encoded(shown, '.png')}'><figcaption>{page.text(figure.caption, 2000)}</figcaption></figure>"
        )
    plot.replace(folder / "look.html", page.document(f"{network.name}, looked into", body).encode())
    return folder / "look.html"


def _filters(r: Request) -> Figure:
    found = np.asarray(vis.first_filters(r.network.apply, r.network.variables, r.network.image_shape))
    tiles = pictures.stretched(_seen(found))
    picture = pictures.mosaic(tiles, zoom=pictures.zoom_for(tiles.shape[1], 32))
    return Figure("filters", "Filters of the first layer", f"{len(found)}, each stretched to its own range.", picture)


def _maps(r: Request) -> Figure:
    layer = r.layer or _placed(r)[0]
    found = vis.activations(r.network.apply, r.network.variables, _images(r)[:1], layer)
    shapes = layers.names(r.network.apply, r.network.variables, _images(r)[:1])
    found = np.asarray(layers.as_maps(found, shapes, r.network.image_shape[:2], layer))[0]
    tiles = pictures.stretched(np.moveaxis(found, -1, 0)[:_MAPS])
    picture = pictures.mosaic(tiles, zoom=pictures.zoom_for(tiles.shape[1], 48))
    caption = f"{layer}: {len(tiles)} of {found.shape[-1]} maps of {r.names[0]}, each stretched to its own range."
    return Figure("maps", "Feature maps", caption, picture)


def _top9(r: Request) -> Figure:
    if r.split is None:
        raise errors.BadRequest("the best patches are those of a data set: a run's, --weights=RUN.")
    network, split = r.network, r.split
    layer = r.layer or _placed(r)[-1]
    run = network.trained.run  # type: ignore[union-attr]

    def batches() -> Iterator[np.ndarray]:
        for batch in build.eval_batches(run, split):
            yield _as_float(np.asarray(batch["image"])[np.asarray(batch["mask"])])

    def fetch(indices: np.ndarray) -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        wanted, start = set(indices.tolist()), 0
        for images in batches():
            found |= {i: images[i - start] for i in wanted.intersection(range(start, start + len(images)))}
            start += len(images)
        return np.stack([found[i] for i in indices.tolist()])

    say = partial(r.say, split.name)
    top = vis.top_patches(network.apply, network.variables, batches(), layer, say=lambda done: say(done, split.length))
    values = partial(layers.activations, network.apply, layer=layer)
    window = structure.window(values, network.variables, network.image_shape)
    units = [u for u in np.argsort(-top.values[:, 0], kind="stable") if top.values[u, 0] > 0][:_UNITS]
    if not units:
        raise errors.BadRequest(f"no unit of {layer!r} is above zero on any image.")
    cut = _seen(vis.crops(fetch, top._replace(images=top.images[units], places=top.places[units]), window))
    picture = pictures.groups(cut, range(len(units)), pictures.zoom_for(cut.shape[2], 24))
    size = "the whole image" if window is None else f"{window.size[0]}x{window.size[1]} pixels"
    caption = (
        f"{layer}: the nine images of {split.name} ({split.length:,}) that excite a unit most, {len(units)} units, the "
        f"strongest first. A unit sees {size}."
    )
    return Figure("top9", "The patches that units like best", caption, picture)


def _attribution(name: str, r: Request) -> Figure:
    network, images = r.network, _images(r)
    more: dict[str, Any] = {}
    if name == "gradcam":
        more["layer"] = r.layer or vis.default_layer(network.apply, network.variables, images)
    if name == "occlusion":
        more |= {"window": max(2, images.shape[1] // 7), "fill": float(images.mean())}
    if name == "rise":
        more["masks"] = 1000
    found = vis.ATTRIBUTIONS[name](network.apply, network.variables, images, r.target, **more)
    if name == "gradcam":
        found = vis.enlarged(found, images.shape[1:3])
    maps, shown = np.asarray(found), _seen(images)
    if name in ("gradcam", "occlusion", "rise"):
        below = pictures.over(shown, maps - (maps.min((1, 2), keepdims=True) if name == "rise" else 0))
    elif name in ("guided_backpropagation", "deconvnet"):
        below = pictures.around_grey(_seen(maps))
    else:
        below = pictures.coloured(pictures.magnitudes(maps))
    rows = np.concatenate([_rgb(shown), _rgb(below)])
    picture = pictures.mosaic(rows, columns=len(images), gap=2, zoom=pictures.zoom_for(images.shape[1], _PIXELS))
    title = name.replace("_", " ").capitalize().replace("Gradcam", "Grad-CAM").replace("Rise", "RISE")
    of_layer = f" Layer {more['layer']}." if "layer" in more else ""
    return Figure(name, title, f"{_explained(r)}{of_layer}", picture)


def _attention(r: Request) -> Figure:
    network, images = r.network, _images(r)
    acts = jax.jit(network.apply)(network.variables, images)[1]
    weights = vis.attention_weights(acts)
    shapes = {name: x.shape for name, x in acts.items()}
    where = layers.grid(shapes, weights[0].shape[-1], images.shape[1:3])
    last = np.asarray(vis.from_class_token(weights[-1], where))
    rolled = np.asarray(vis.from_class_token(vis.rollout(acts), where))
    columns = np.concatenate([last, rolled[:, None]], axis=1)  # (b k+1 i j)
    maps = np.stack([np.asarray(vis.enlarged(c, images.shape[1:3])) for c in columns])
    shown = _seen(images)
    rows = []
    for image, of_heads in zip(shown, maps, strict=True):
        beside = image[None].repeat(len(of_heads), 0)
        rows.append(np.concatenate([_rgb(image[None]), pictures.over(beside, of_heads)]))
    tiles, zoom = np.concatenate(rows), pictures.zoom_for(images.shape[1], 96)
    picture = pictures.mosaic(tiles, columns=len(rows[0]), gap=2, zoom=zoom)
    heads = last.shape[1]
    who = "the class token attends" if where.extra else "all tokens together attend"
    caption = f"What {who} to in the last block, by its {heads} heads; last column: rollout over all blocks."
    return Figure("attention", "Attention", caption, picture)


def _positions(r: Request) -> Figure:
    found = np.asarray(vis.position_similarity(r.network.variables, _grid(r)))
    tiles = pictures.coloured((found + 1) / 2)
    picture = pictures.mosaic(tiles, columns=found.shape[2], gap=2, zoom=pictures.zoom_for(found.shape[1], 32))
    caption = "For each patch, in its place: the cosine of its position embedding with those of all patches."
    return Figure("positions", "Position embeddings", caption, picture)


def _mixing(r: Request) -> Figure:
    found = vis.token_mixing(r.network.variables, _grid(r))
    name = r.layer if r.layer in found else next(iter(found))
    tiles = pictures.around_grey(np.asarray(found[name])[:_MAPS, ..., None])
    picture = pictures.mosaic(tiles, zoom=pictures.zoom_for(tiles.shape[1], 40))
    return Figure("mixing", "Token mixing", f"{name}: how {len(tiles)} units read the patches; grey is zero.", picture)


_RATIOS = (0.25, 0.5, 0.75, 0.9)  # of patches that are masked


def _reconstructions(r: Request) -> Figure:
    network, images = r.network, _images(r)
    run = network.trained.run if network.trained else None
    if run is None or not hasattr(run.model, "mask_ratio"):
        raise errors.BadRequest("reconstructions are those of a masked autoencoder's run.")
    section = {k: v for k, v in (network.trained.config.get("task") or {}).items() if k != "name"}  # type: ignore[union-attr]
    columns = [_seen(images)]
    for ratio in _RATIOS:
        objective = mae(run.model.clone(mask_ratio=ratio), image_shape=network.image_shape, **section)
        batch = run.data.preprocess({"image": images})
        found = objective.figure(network.trained.params, network.trained.model_state, batch)  # type: ignore
        for name in ("masked", "reconstruction"):
            columns.append(_seen(run.data.denormalise(found[name])))
    tiles = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
    picture = pictures.mosaic(tiles, columns=len(columns), gap=2, zoom=pictures.zoom_for(images.shape[1], 96))
    shown = ", ".join(f"{ratio:.0%}" for ratio in _RATIOS)
    caption = f"The image, then what is seen and what is made of it with {shown} of the patches masked."
    return Figure("reconstructions", "Reconstructions", caption, picture)


SHOWS: dict[str, Callable[[Request], Figure]] = {
    "filters": _filters,
    "maps": _maps,
    "top9": _top9,
    **{name: partial(_attribution, name) for name in vis.ATTRIBUTIONS},
    "attention": _attention,
    "positions": _positions,
    "mixing": _mixing,
    "reconstructions": _reconstructions,
}


def example_images(network: Network, split: Any, count: int) -> tuple[np.ndarray, list[str]]:
    """Returns the first `count` images of a split in [0, 1], and their names."""
    if network.trained is None:
        raise errors.BadRequest("--split takes images of a run's data; of published weights name images.")
    chosen = list(range(min(count, split.length)))
    run = network.trained.run
    found = next(iter(build.eval_batches(run, split)))
    return _as_float(np.asarray(found["image"])[: len(chosen)]), [f"{split.name} {i}" for i in chosen]


def open_split(network: Network, name: str | None) -> Any:
    """Returns a split of a run's data; None of published weights, or where the data are not there and none is named."""
    if network.trained is None:
        return None
    data = network.trained.run.data
    return trained.open_named(data, name or trained.default_split(data))


def given_images(network: Network, paths: Sequence[Path]) -> np.ndarray:
    """Returns image files as the network is given them, in [0, 1]."""
    return _as_float(np.stack([network.prepare(path) for path in paths]))


def _as_float(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32)


def _images(r: Request) -> np.ndarray:
    if not len(r.images):
        raise errors.BadRequest("this figure is of images: name some, or a --split of the run's data.")
    return r.images


def _seen(x: np.ndarray) -> np.ndarray:
    """Returns images of 1 or 3 channels; of any other number the mean."""
    x = np.asarray(x)
    return x if x.shape[-1] in (1, 3) else x.mean(-1, keepdims=True)


def _rgb(x: np.ndarray) -> np.ndarray:
    return x.repeat(3, -1) if x.shape[-1] == 1 else x


def _placed(r: Request) -> list[str]:
    image = jax.ShapeDtypeStruct((1, *r.network.image_shape), np.float32)
    found = layers.with_places(layers.names(r.network.apply, r.network.variables, image))
    if not found:
        raise errors.BadRequest("none of the network's layers has places; name one by --layer.")
    return found


def _grid(r: Request) -> tuple[int, int]:
    """Returns rows and columns of the network's patches."""
    image = jax.ShapeDtypeStruct((1, *r.network.image_shape), np.float32)
    shapes = layers.names(r.network.apply, r.network.variables, image)
    stem = shapes.get("stem", ())
    if len(stem) != 3:
        raise errors.BadRequest("the network cuts its images into no patches.")
    where = layers.grid(shapes, stem[1], r.network.image_shape[:2])
    return where.rows, where.columns


def _explained(r: Request) -> str:
    """Returns whose score is explained, image by image."""
    output = np.asarray(jax.jit(r.network.apply)(r.network.variables, _images(r))[0])
    chosen = output.argmax(1) if r.target is None else np.full(len(output), r.target)
    probable = np.asarray(jax.nn.softmax(output))
    classes = r.network.classes
    known = [classes[c] if c < len(classes) else f"class {c}" for c in chosen]
    parts = [f"{n}: {k} ({p[c]:.0%})" for n, k, p, c in zip(r.names, known, probable, chosen, strict=True)]
    return f"Above the images, below what speaks for the class. {'; '.join(map(errors.printable, parts))}."
