"""The one file that draws."""

import io
from pathlib import Path
from typing import Any


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
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    part = path.with_suffix(".part")
    part.write_bytes(data.getvalue())
    part.replace(path)
    return True
