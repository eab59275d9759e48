"""The figures of `python -m recvis_jax.look`, for a network and its images: one function per figure, see `SHOWS`."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from recvis_jax import build, errors, figure, imagining, patches, trained, vis
from recvis_jax.figure import Figure, Request
from recvis_jax.network import Network
from recvis_jax.tasks import boxes as detection
from recvis_jax.tasks.mae import mae
from recvis_jax.vis import boxes, layers, page, pictures, plot

_UNITS = 100  # most units of a layer that are shown
_AMONG, _NEAREST = 10_000, 8  # training images compared with an image, and the number shown
_QUERIES = 4  # of an image that are shown
_MAPS = 64  # most maps of an image that are shown
_PIXELS = 128  # side that small images are enlarged to


def usual(r: Request) -> list[str]:
    """Returns the names of a few quick figures that this network can have."""
    network, known = r.network, figure.named(r)
    out = []
    with contextlib.suppress(errors.BadRequest):  # its first layer is no filter
        vis.first_filters(network.apply, network.variables, network.image_shape)
        out.append("filters")
    if r.split is not None and any(len(known[n]) == 4 for n in layers.with_places(known)):
        out.append("top9")
    if "block0/attention" in known:
        out.append("attention")
    if {"decoder0/cross_attention", "decoder0/boxes"} <= set(known):
        out.append("queries")
    for name, weights in (("positions", vis.position_similarity), ("mixing", vis.token_mixing)):
        with contextlib.suppress(errors.BadRequest):  # it has no patches, or no such weights
            weights(network.variables, figure.grid(r))
            out.append(name)
    if not len(r.images):
        return out
    if hasattr(network.trained.run.model if network.trained else None, "mask_ratio"):
        out.append("reconstructions")
    image = jax.ShapeDtypeStruct((1, *network.image_shape), np.float32)
    if len(jax.eval_shape(network.apply, network.variables, image)[0].shape) == 2:
        out += ["saliency", *(["gradcam"] if layers.with_places(known) else [])]
    return out


def show(request: Request, names: Sequence[str]) -> Iterator[Figure]:
    """Yields the figures with these names in `SHOWS`, as they are made.

    Raises:
      BadRequest: an unknown name, or a figure that is impossible for this network or request.
    """
    for name in names:
        errors.choose(SHOWS, name, "figure")
    for done, name in enumerate(names):
        request.say("figures", done, len(names))
        with errors.at(name):
            yield SHOWS[name](request)
    request.say("figures", len(names), len(names))


def write(figures: Iterable[Figure], request: Request, folder: Path) -> Path:
    """Writes a PNG for each figure as it is made, then `look.html` with all of them; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    network, body = request.network, []
    of = f"; examples of {request.split.name}" if request.split is not None else ""
    body.append(f"<h1>{page.text(network.name)}</h1><p class='dim'>{page.text(network.origin + of, 500)}</p>")
    for name, title, caption, picture in figures:
        plot.png(picture, folder / f"{name}.png")
        shown = (picture.clip(0, 1) * 255).round().astype(np.uint8)
        body.append(
            f"<h2>{page.text(title)}</h2><figure><img alt='' src='data:image/png;base64,"
            f"{page.encoded(shown, '.png')}'><figcaption>{page.text(caption, 2000)}</figcaption></figure>"
        )
    plot.replace(folder / "look.html", page.document(f"{network.name}, looked into", body).encode())
    return folder / "look.html"


def _filters(r: Request) -> Figure:
    found = np.asarray(vis.first_filters(r.network.apply, r.network.variables, r.network.image_shape))
    tiles = pictures.stretched(figure.seen(found))
    picture = pictures.mosaic(tiles, zoom=_zoom(tiles))
    return Figure("filters", "Filters of the first layer", f"{len(found)}, each stretched to its own range.", picture)


def _maps(r: Request) -> Figure:
    layer = r.layer or figure.placed(r)[0]
    found = vis.activations(r.network.apply, r.network.variables, figure.images(r)[:1], layer)
    shapes = layers.names(r.network.apply, r.network.variables, figure.images(r)[:1])
    found = np.asarray(layers.as_maps(found, shapes, r.network.image_shape[:2], layer))[0]
    tiles = pictures.stretched(np.moveaxis(found, -1, 0)[:_MAPS])
    picture = pictures.mosaic(tiles, zoom=_zoom(tiles))
    caption = f"{layer}: {len(tiles)} of {found.shape[-1]} maps of {r.names[0]}, each stretched to its own range."
    return Figure("maps", "Feature maps", caption, picture)


def _top9(r: Request) -> Figure:
    network, split = r.network, r.split
    if split is None and not len(r.images):
        raise errors.BadRequest("the best patches need images: name some, or the data of a run by --weights=RUN.")
    layer = r.layer or figure.placed(r)[-1]
    count = len(r.images) if split is None else split.length
    of = f"{count:,} given images" if split is None else f"{count:,} images of {split.name}"

    def batches() -> Iterator[np.ndarray]:
        if split is None:
            yield r.images
            return
        for batch in build.eval_batches(network.trained.run, split):  # type: ignore[union-attr]
            yield figure.as_float(np.asarray(batch["image"])[np.asarray(batch["mask"])])

    found = patches.best(
        network.apply, network.variables, network.image_shape, batches, layer, most=_UNITS,
        units=r.units, say=lambda done: r.say(of, done, count),
    )  # fmt: skip
    cut = figure.seen(found.crops)
    picture = pictures.groups(cut, range(len(cut)), pictures.zoom_for(cut.shape[2], 24))
    size = "the whole image" if found.window is None else f"{found.window.size[0]}x{found.window.size[1]} pixels"
    caption = (
        f"{layer}: the nine patches of {of} that excite a unit most, {len(cut)} units"
        f"{'' if r.units else ', the strongest first'}. A unit sees {size}."
    )
    return Figure("top9", "The patches that excite units most", caption, picture)


def _attribution(name: str, r: Request) -> Figure:
    network, images = r.network, figure.images(r)
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
    maps, shown = np.asarray(found), figure.seen(images)
    if name in ("gradcam", "occlusion", "rise"):
        below = pictures.over(shown, maps - (maps.min((1, 2), keepdims=True) if name == "rise" else 0))
    elif name in ("guided_backpropagation", "deconvnet"):
        below = pictures.around_grey(figure.seen(maps))
    else:
        below = pictures.coloured(pictures.magnitudes(maps))
    rows = np.concatenate([figure.rgb(shown), figure.rgb(below)])
    picture = pictures.mosaic(rows, columns=len(images), gap=2, zoom=pictures.zoom_for(images.shape[1], _PIXELS))
    title = name.replace("_", " ").capitalize().replace("Gradcam", "Grad-CAM").replace("Rise", "RISE")
    of_layer = f" Layer {more['layer']}." if "layer" in more else ""
    return Figure(name, title, f"{_explained(r)}{of_layer}", picture)


def _attention(r: Request) -> Figure:
    network, images = r.network, figure.images(r)
    acts = jax.jit(network.apply)(network.variables, images)[1]
    weights = vis.attention_weights(acts)
    shapes = {name: x.shape for name, x in acts.items()}
    where = layers.grid(shapes, weights[0].shape[-1], images.shape[1:3])
    last = np.asarray(vis.from_class_token(weights[-1], where))
    rolled = np.asarray(vis.from_class_token(vis.rollout(acts), where))
    columns = np.concatenate([last, rolled[:, None]], axis=1)  # (b k+1 i j)
    maps = np.stack([np.asarray(vis.enlarged(c, images.shape[1:3])) for c in columns])
    shown = figure.seen(images)
    rows = []
    for image, of_heads in zip(shown, maps, strict=True):
        beside = image[None].repeat(len(of_heads), 0)
        rows.append(np.concatenate([figure.rgb(image[None]), pictures.over(beside, of_heads)]))
    tiles, zoom = np.concatenate(rows), pictures.zoom_for(images.shape[1], 96)
    picture = pictures.mosaic(tiles, columns=len(rows[0]), gap=2, zoom=zoom)
    heads = last.shape[1]
    who = "the class token attends" if where.extra else "all tokens together attend"
    patch = images.shape[1] / where.rows, images.shape[2] / where.columns
    distance = np.asarray(vis.attention_distance(weights[-1], where, patch)).mean(0)
    caption = (
        f"What {who} to in the last block, by its {heads} heads; last column: rollout over all blocks. Patches attend "
        f"to others at a mean distance of {', '.join(f'{d:.1f}' for d in distance)} pixels, by head."
    )
    return Figure("attention", "Attention", caption, picture)


def _queries(r: Request) -> Figure:
    network, images = r.network, figure.images(r)
    logits, acts = jax.jit(network.apply)(network.variables, images)
    maps = vis.of_queries(acts)
    scores = np.asarray(jax.nn.softmax(logits))[..., :-1]
    best = np.argsort(-scores.max(-1), axis=1, kind="stable")[:, :_QUERIES]  # (b q)
    h, w = images.shape[1:3]
    placed = np.asarray(detection.corners(acts["boxes"])).clip(0, 1) * [w, h, w, h]
    scale, tiles = pictures.zoom_for(h, 256), []
    for i, image in enumerate(figure.rgb(figure.seen(images))):
        rows, labels = placed[i, best[i]], scores[i, best[i]].argmax(-1)
        bytes_ = (image.clip(0, 1) * 255).round().astype(np.uint8)
        tiles.append(boxes.over(bytes_, rows, labels, names=network.classes, scale=scale))
        seen = np.asarray(vis.enlarged(maps[i, best[i]], (h, w)))
        for looked, row, label in zip(pictures.over(image[None].repeat(len(seen), 0), seen), rows, labels, strict=True):
            bytes_ = (looked * 255).round().astype(np.uint8)
            tiles.append(boxes.over(bytes_, row[None], label[None], scale=scale))
    picture = pictures.mosaic(np.stack(tiles) / 255, columns=1 + best.shape[1], gap=2)
    parts = []
    for name, of, own in zip(r.names, scores, best, strict=True):
        said = ", ".join(f"{figure.class_name(r, int(s.argmax()))} ({s.max():.0%})" for s in of[own])
        parts.append(f"{errors.printable(name)}: {said}")
    caption = f"The best queries' boxes, then where each of them looks in the last decoder layer. {'; '.join(parts)}."
    return Figure("queries", "Queries", caption, picture)


def _positions(r: Request) -> Figure:
    found = np.asarray(vis.position_similarity(r.network.variables, figure.grid(r)))
    tiles = pictures.coloured((found + 1) / 2)
    picture = pictures.mosaic(tiles, columns=found.shape[2], gap=2, zoom=pictures.zoom_for(found.shape[1], 32))
    caption = "For each patch, in its place: the cosine of its position embedding with those of all patches."
    return Figure("positions", "Position embeddings", caption, picture)


def _mixing(r: Request) -> Figure:
    found = vis.token_mixing(r.network.variables, figure.grid(r))
    name = r.layer if r.layer in found else next(iter(found))
    tiles = pictures.around_grey(np.asarray(found[name])[:_MAPS, ..., None])
    picture = pictures.mosaic(tiles, zoom=_zoom(tiles))
    return Figure("mixing", "Token mixing", f"{name}: how {len(tiles)} units mix the patches; grey is zero.", picture)


def _neighbours(r: Request) -> Figure:
    network, images = r.network, figure.images(r)
    if network.trained is None:
        raise errors.BadRequest("the nearest images need the training data of a run: --weights=RUN.")
    run, known = network.trained.run, figure.named(r)
    layer = r.layer or ("features" if "features" in known else next(reversed(known)))
    source = trained.open_named(run.data, "train")
    places = np.unique(np.linspace(0, source.length, min(source.length, _AMONG), endpoint=False).astype(int))
    part = source._replace(length=len(places), read=lambda indices: source.read(places[np.asarray(indices, int)]))

    def features(x: np.ndarray) -> np.ndarray:
        found = np.asarray(vis.activations(network.apply, network.variables, x, layer))
        return found.reshape(len(found), -1, found.shape[-1]).mean(1)  # maps and tokens: the mean over places

    there, found = [], []
    for batch in build.eval_batches(run, part):
        x = np.asarray(batch["image"])
        found.append(features(figure.as_float(x))[np.asarray(batch["mask"])])
        there.append(x[np.asarray(batch["mask"])])
        r.say(source.name, sum(map(len, there)), len(places))
    nearest = vis.neighbours(features(images), np.concatenate(found), min(_NEAREST, len(places)))
    near = figure.as_float(np.concatenate(there)[nearest])  # (n k h w c)
    tiles = figure.seen(np.concatenate([images[:, None], near], axis=1).reshape(-1, *images.shape[1:]))
    columns = 1 + near.shape[1]
    picture = pictures.mosaic(tiles, columns=columns, gap=2, zoom=pictures.zoom_for(images.shape[1], 96))
    caption = (
        f"The image, then the {columns - 1} of {len(places):,} images of {source.name} whose {layer} have the largest "
        "cosine with those of the image."
    )
    return Figure("neighbours", "Nearest training images", caption, picture)


_RATIOS = (0.25, 0.5, 0.75, 0.9)  # of patches that are masked


def _reconstructions(r: Request) -> Figure:
    network, images = r.network, figure.images(r)
    run = network.trained.run if network.trained else None
    if run is None or not hasattr(run.model, "mask_ratio"):
        raise errors.BadRequest("reconstructions need the run of a masked autoencoder.")
    section = {k: v for k, v in (network.trained.config.get("task") or {}).items() if k != "name"}  # type: ignore[union-attr]
    columns = [figure.seen(images)]
    for ratio in _RATIOS:
        objective = mae(run.model.clone(mask_ratio=ratio), image_shape=network.image_shape, **section)
        batch = run.data.preprocess({"image": images})
        found = objective.figure(network.trained.params, network.trained.model_state, batch)  # type: ignore
        for name in ("masked", "reconstruction"):
            columns.append(figure.seen(run.data.denormalise(found[name])))
    tiles = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
    picture = pictures.mosaic(tiles, columns=len(columns), gap=2, zoom=pictures.zoom_for(images.shape[1], 96))
    shown = ", ".join(f"{ratio:.0%}" for ratio in _RATIOS)
    caption = f"The image, then its visible patches and the reconstruction, with {shown} of the patches masked."
    return Figure("reconstructions", "Reconstructions", caption, picture)


SHOWS: dict[str, Callable[[Request], Figure]] = {
    "filters": _filters,
    "maps": _maps,
    "top9": _top9,
    **{name: partial(_attribution, name) for name in vis.ATTRIBUTIONS},
    "attention": _attention,
    "queries": _queries,
    "positions": _positions,
    "mixing": _mixing,
    "reconstructions": _reconstructions,
    "neighbours": _neighbours,
    **imagining.SHOWS,
}


def open_split(network: Network, name: str | None, say: Callable[[str], None] = print) -> Any:
    """Returns a split of a run's data; None for published weights, or if the data are missing and no split is named.

    Args:
      network: of a run, or published weights.
      name: of the split; None for the one that is reported.
      say: called with the reason if the data cannot be opened.

    Raises:
      BadRequest: the named split cannot be opened.
    """
    if network.trained is None:
        if name:
            raise errors.BadRequest("--split takes images of a run's data; of published weights name images.")
        return None
    data = network.trained.run.data
    try:
        return trained.open_named(data, name or trained.default_split(data))
    except errors.BadRequest as e:
        if name:
            raise
        say(f"without data: {e}")
        return None


def example_images(network: Network, split: Any, count: int) -> tuple[np.ndarray, list[str]]:
    """Returns the first `count` images of a split in [0, 1], and their names; none without a split."""
    if split is None:
        return np.zeros((0, *network.image_shape), np.float32), []
    found, there, count = [], 0, min(count, split.length)
    for batch in build.eval_batches(network.trained.run, split):  # type: ignore[union-attr]
        found.append(np.asarray(batch["image"])[np.asarray(batch["mask"])])
        there += len(found[-1])
        if there >= count:
            break
    return figure.as_float(np.concatenate(found)[:count]), [f"no. {i}" for i in range(count)]


def given_images(network: Network, paths: Sequence[Path]) -> np.ndarray:
    """Returns image files as input of the network, in [0, 1]."""
    return figure.as_float(np.stack([network.prepare(path) for path in paths]))


def _zoom(tiles: np.ndarray) -> int:
    """Returns how often to enlarge tiles so that all of them are about 500 pixels wide, and none wider than 128."""
    return pictures.zoom_for(tiles.shape[2], min(128, max(32, round(500 / len(tiles) ** 0.5))))


def _explained(r: Request) -> str:
    """Returns the explained class of each image, for a caption."""
    output = np.asarray(jax.jit(r.network.apply)(r.network.variables, figure.images(r))[0])
    chosen = output.argmax(1) if r.target is None else np.full(len(output), r.target)
    several = r.network.trained is not None and r.network.trained.run.data.info.multi_label
    probable = np.asarray(jax.nn.sigmoid(output) if several else jax.nn.softmax(output))
    parts = [
        f"{errors.printable(n)}: {figure.class_name(r, int(c))} ({p[c]:.0%})"
        for n, p, c in zip(r.names, probable, chosen, strict=True)
    ]
    return f"Above the images, below the evidence for the class. {'; '.join(parts)}."
