"""The one file that draws."""

import functools
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from recvis_jax import errors


def curves(records: list[dict[str, Any]], path: Path) -> bool:
    """Draws loss and accuracy of training and validation against steps.

    Args:
      records: lines of `metrics.jsonl`: `step`, `split` and values.
      path: PNG file, replaced atomically.

    Returns:
      False if matplotlib is not installed or there is nothing to draw.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = [n for n in ("loss", "accuracy", "mean_average_precision") if any(n in r for r in records)]
    if not names:
        return False
    figure = Figure(figsize=(5.2 * len(names), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, style in (("train", {"lw": 1}), ("val", {"lw": 1.6, "marker": "o", "ms": 3})):
            points = [(r["step"], r[name]) for r in records if r["split"] == split and name in r]
            if points:
                shown = style if len(points) > 1 else {**style, "marker": "o", "ms": 3}  # one point makes no line
                axes.plot(*zip(*points, strict=True), label={"train": "training", "val": "validation"}[split], **shown)
        axes.set_xlabel("step")
        axes.set_title(name.replace("_", " "))
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)
    return True


def image_rows(columns: Mapping[str, np.ndarray], path: Path) -> bool:
    """Draws images side by side, a row for each example.

    Args:
      columns: title -> images (b h w c) in [0, 1], of 1 or 3 channels.
      path: PNG file, replaced atomically.

    Returns:
      False if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    count = len(next(iter(columns.values())))
    figure = Figure(figsize=(1.3 * len(columns), 1.3 * count + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(count, len(columns), squeeze=False)
    for j, (title, images) in enumerate(columns.items()):
        places[0, j].set_title(title, fontsize=9)
        for i, image in enumerate(images):
            shown = np.clip(image[..., 0] if image.shape[-1] == 1 else image, 0, 1)
            places[i, j].imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            places[i, j].set_axis_off()
    _save(figure, path)
    return True


def lines_on_image(image: np.ndarray, lines: Mapping[str, np.ndarray], path: Path, title: str = "") -> bool:
    """Draws line segments over an image, such as the `grids` and `arms` of `vis.descriptors`.

    Args:
      image: (h w c) in [0, 1], of 1 or 3 channels.
      lines: colour -> segments (m 2 2), each two points (x, y) in pixels; later ones are drawn over earlier ones.
      path: PNG file, replaced atomically.
      title: above the image.

    Returns:
      False if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.collections import LineCollection
        from matplotlib.figure import Figure
    except ImportError:
        return False
    h, w = image.shape[:2]
    side = 7 / max(h, w)
    figure = Figure(figsize=(w * side + 0.2, h * side + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = np.clip(image[..., 0] if image.shape[-1] == 1 else image, 0, 1)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for colour, segments in lines.items():
        axes.add_collection(LineCollection(list(segments), colors=colour, linewidths=0.7))
    axes.set_xlim(-0.5, w - 0.5)
    axes.set_ylim(h - 0.5, -0.5)
    axes.set_axis_off()
    axes.set_title(errors.printable(title), fontsize=10).set_parse_math(False)
    _save(figure, path)
    return True


def mosaic(patches: np.ndarray, path: Path, title: str = "") -> bool:
    """Draws small images in rows and columns, with a white line between them.

    Args:
      patches: (rows columns s s c) in [0, 1], of 1 or 3 channels.
      path: PNG file, replaced atomically.
      title: above them.

    Returns:
      False if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows, columns = patches.shape[:2]
    framed = np.pad(patches, [(0, 0), (0, 0), (0, 2), (0, 2), (0, 0)], constant_values=1)
    whole = np.clip(np.concatenate(np.concatenate(framed, axis=1), axis=1), 0, 1)  # a single picture is drawn quickly
    figure = Figure(figsize=(0.55 * columns + 0.2, 0.55 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(whole[..., 0] if whole.shape[-1] == 1 else whole, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=9).set_parse_math(False)
    _save(figure, path)
    return True


def histograms(images: np.ndarray, values: np.ndarray, path: Path, title: str = "") -> bool:
    """Draws images, each with its vector as bars beside it.

    Args:
      images: (b h w c) in [0, 1], of 1 or 3 channels.
      values: (b k); all are drawn on one scale.
      path: PNG file, replaced atomically.
      title: above the bars.

    Returns:
      False if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 1.3 * len(images) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(len(images), 2, squeeze=False, width_ratios=(1, 5))
    low, high = min(0.0, float(values.min())), max(float(values.max()), 1e-6)
    for (left, right), image, row in zip(places, images, values, strict=True):
        left.imshow(np.clip(image[..., 0] if image.shape[-1] == 1 else image, 0, 1), cmap="gray", vmin=0, vmax=1)
        left.set_axis_off()
        right.bar(np.arange(len(row)), row, width=1.0)
        right.set_xlim(-0.5, len(row) - 0.5)
        right.set_ylim(low, high)
        right.tick_params(labelsize=7)
    places[0, 1].set_title(title, fontsize=9).set_parse_math(False)
    _save(figure, path)
    return True


def heat_maps(
    maps: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str], path: Path, most: int = 32
) -> bool:
    """Draws matrices of one size, with the same names at their rows and columns.

    Args:
      maps: {title: (n m)} in [0, 1]; at most `most` of them are drawn.
      rows, columns: names, n and m.
      path: PNG file, replaced atomically.
      most: matrices that are drawn.

    Returns:
      False where matplotlib is not installed.
    """
    try:
        from matplotlib import font_manager
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    shown = list(maps.items())[:most]
    across = min(4, len(shown))
    w, h = (0.16 * len(names) + 1.2 for names in (columns, rows))
    figure = Figure(figsize=(across * w, -(-len(shown) // across) * (h + 0.2)), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(-(-len(shown) // across), across, squeeze=False)
    for place in places.flat:
        place.set_axis_off()
    for place, (title, values) in zip(places.flat, shown, strict=False):
        place.set_axis_on()
        place.imshow(values, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        ticks = [
            *place.set_xticks(range(len(columns)), [_drawable(c, known) for c in columns], rotation=90, fontsize=6),
            *place.set_yticks(range(len(rows)), [_drawable(r, known) for r in rows], fontsize=6),
        ]
        for tick in ticks:
            for label in (tick.label1, tick.label2):
                label.set_parse_math(False)
        place.set_title(_drawable(title, known), fontsize=7).set_parse_math(False)
    _save(figure, path)
    return True


def confusion(counts: np.ndarray, names: Sequence[str], path: Path, title: str = "") -> bool:
    """Draws a confusion matrix: rows are the true classes, and colours show the fraction of its row in each cell.

    Up to 25 classes, cells also show their numbers. Both axes show shortened names; for more than 150 classes, only
    some numbers. Characters that the font lacks are drawn as question marks, after the number of the class.

    Args:
      counts: (k k) integers.
      names: of the classes; missing names are replaced by numbers.
      path: PNG file, replaced atomically.
      title: above the matrix.

    Returns:
      False if matplotlib is not installed.
    """
    try:
        from matplotlib import font_manager
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    k = len(counts)
    labels = [f"{i} {_drawable(names[i], known)}" if i < len(names) else str(i) for i in range(k)]
    labels = [name if len(name) <= 28 else name[:27] + "…" for name in labels]
    side = min(2.2 + k * (0.42 if k <= 25 else 0.16), 26)
    figure = Figure(figsize=(side + 1.6, side + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    of_row = counts.sum(1, keepdims=True)
    fractions = np.divide(counts, of_row, out=np.zeros(counts.shape), where=of_row > 0)
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    step = 1 if k <= 150 else -(-k // 40)
    size = 8 if k <= 25 else 6
    ticks = range(0, k, step)
    shown = [labels[i] if step == 1 else str(i) for i in ticks]
    for text in axes.set_xticks(ticks, shown, rotation=90, fontsize=size) + axes.set_yticks(
        ticks, shown, fontsize=size
    ):
        for label in (text.label1, text.label2):
            label.set_parse_math(False)  # a name may contain dollar signs
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(_drawable(title, known), fontsize=10).set_parse_math(False)
    figure.colorbar(image, ax=axes, shrink=0.7, label="fraction of the true class")
    if k <= 25:
        cell = 8 if counts.max(initial=0) < 10_000 else 5
        for i, j in np.ndindex(*counts.shape):
            if counts[i, j]:
                colour = "white" if fractions[i, j] > 0.5 else "black"
                axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", color=colour, fontsize=cell)
    _save(figure, path)
    return True


@functools.cache
def _shown() -> type:
    """Returns matplotlib's figure, with the method by which notebooks show a value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    class Shown(Figure):
        def __init__(self, width: float, height: float) -> None:
            super().__init__(figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(h_pad=0.07))
            FigureCanvasAgg(self)

        def _repr_png_(self) -> bytes:
            data = io.BytesIO()
            self.savefig(data, format="png")
            return data.getvalue()

    return Shown


def grid(
    images: Any,
    titles: Sequence[str] = (),
    *,
    columns: int = 0,
    size: float = 1.5,
    limits: tuple[float, float] | None = None,
    colours: str = "gray",
) -> Any:
    """Returns a figure of images in rows, which a notebook shows if it is the last line of a cell.

    Args:
      images: a list or an array of them, each (h w), (h w 1) or (h w 3); uint8 or numbers.
      titles: one above each image; empty for none.
      columns: images in a row; 0 puts all in one row.
      size: width of an image in inches.
      limits: values of one channel drawn in the first and the last colour. By default 0 and 255 for uint8; 0 and 1 if
        all values lie between; else the least and the largest of all images. Colours are uint8, or in [0, 1].
      colours: name of matplotlib's colour map for images of one channel.

    Raises:
      BadRequest: there are no images, or another number of titles.

    Example:
      >>> figure = grid([np.zeros((4, 4)), np.ones((4, 4))], ["black", "white"])
      >>> [axes.get_title() for axes in figure.axes]
      ['black', 'white']
    """
    shown = [np.asarray(image) for image in images]
    if not shown or (len(titles) and len(titles) != len(shown)):
        raise errors.BadRequest(
            f"there are {len(shown)} images and {len(titles)} titles; give a title for each, or none."
        )
    if limits is None:
        of = [x for x in shown if x.ndim == 2 or x.shape[2] == 1] or shown
        low, high = min(float(x.min()) for x in of), max(float(x.max()) for x in of)
        inside = 0 <= low and high <= 1
        limits = (0, 255) if shown[0].dtype == np.uint8 else (0, 1) if inside else (low, high)
    across = min(columns or len(shown), len(shown))
    down = -(-len(shown) // across)
    tall = max(x.shape[0] / x.shape[1] for x in shown) * size + (0.28 * (1 + titles[0].count("\n")) if titles else 0.06)
    figure = _shown()(across * (size + 0.08), down * tall)
    for i, place in enumerate(figure.subplots(down, across, squeeze=False).flat):
        place.set_axis_off()
        if i < len(shown):
            x = shown[i][..., 0] if shown[i].ndim == 3 and shown[i].shape[2] == 1 else shown[i]
            if x.ndim == 3 and x.dtype != np.uint8:
                x = np.clip(x, 0, 1)
            place.imshow(x, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest")
            place.set_title(titles[i] if titles else "", fontsize=9).set_parse_math(False)
    return figure


def numbers(
    matrices: Mapping[str, np.ndarray],
    *,
    marked: Mapping[str, tuple[int, int, int, int]] | None = None,
    colours: str = "gray",
    limits: tuple[float, float] | None = None,
    size: float = 0.38,
    form: str = "g",
) -> Any:
    """Returns a figure of matrices side by side, with the number in each cell, for notebooks.

    Args:
      matrices: title -> (n m).
      marked: title -> (top, left, height, width) of a rectangle of cells with a red border.
      colours, limits: as of `grid`; by default each matrix has limits of its own.
      size: side of a cell in inches.
      form: of the numbers, as in `format(number, form)`.

    Example:
      >>> figure = numbers({"a": np.eye(2, dtype=int)}, marked={"a": (0, 0, 1, 2)})
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['1', '0', '0', '1']
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    shapes = [np.shape(matrix) for matrix in matrices.values()]
    width = size * sum(m for _, m in shapes) + 0.45 * len(shapes)
    figure = _shown()(width, size * max(n for n, _ in shapes) + 0.4)
    places = figure.subplots(1, len(shapes), squeeze=False, width_ratios=[m for _, m in shapes])[0]
    for place, (title, matrix) in zip(places, matrices.items(), strict=True):
        values = np.asarray(matrix)
        low, high = limits or (float(values.min()), float(values.max()))
        place.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
        for (i, j), value in np.ndenumerate(values):
            red, green, blue, _ = colormaps[colours]((value - low) / max(high - low, 1e-12))
            bright = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
            colour = "black" if bright else "white"
            place.text(j, i, format(value, form), ha="center", va="center", color=colour, fontsize=22 * size)
        if marked and title in marked:
            top, left, h, w = marked[title]
            place.add_patch(Rectangle((left - 0.5, top - 0.5), w, h, fill=False, edgecolor="red", linewidth=2.5))
        place.set_xticks([])
        place.set_yticks([])
        place.set_title(title, fontsize=9).set_parse_math(False)
    return figure


def _drawable(text: str, known: Mapping[int, Any]) -> str:
    """Returns `text` without characters that the font lacks, to avoid warnings of matplotlib."""
    return "".join(c if ord(c) in known else "?" for c in errors.printable(text))


def _save(figure: Any, path: Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    replace(path, data.getvalue())


def png(picture: Float[np.ndarray, "h w c"], path: Path) -> None:
    """Writes a picture in [0, 1], of 1 or 3 channels, pixel by pixel; the file is replaced atomically."""
    import cv2

    shown = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    stored = cv2.cvtColor(shown, cv2.COLOR_RGB2BGR) if shown.shape[-1] == 3 else shown
    replace(path, cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes())


def replace(path: Path, data: bytes) -> None:
    """Writes a file beside `path`, then moves it there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
