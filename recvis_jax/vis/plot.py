"""The one file that draws."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def curves(records: list[dict[str, Any]], path: Path) -> bool:
    """Draws loss and accuracy of training and validation against steps.

    Args:
      records: lines of `metrics.jsonl`: `step`, `split` and values.
      path: PNG file, replaced atomically.

    Returns:
      False where matplotlib is not installed or there is nothing to draw.
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
                axes.plot(*zip(*points, strict=True), label={"train": "training", "val": "validation"}[split], **style)
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
      False where matplotlib is not installed.
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
            shown = image[..., 0] if image.shape[-1] == 1 else image
            places[i, j].imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            places[i, j].set_axis_off()
    _save(figure, path)
    return True


def _save(figure: Any, path: Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    part = path.with_suffix(".part")
    part.write_bytes(data.getvalue())
    part.replace(path)
