"""Curves as SVG inside a page: lines of at most a few hundred points, for any number of records."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from recvis_jax.vis import page

_WIDTH, _HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 8, 10, 30
_COLUMNS = 150  # of a curve: with more points, only the lowest and highest of each column are drawn
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")


class Line(NamedTuple):
    """A curve.

    Attributes:
      name: for the legend, any text.
      x, y: points (n) with increasing x; a y that is not finite leaves a gap.
      colour: a number; 0 and 1 are the colours of training and validation, larger ones are for many runs.
      dots: whether points are marked, for curves with few points.
    """

    name: str
    x: Shaped[np.ndarray, " _"]
    y: Float[np.ndarray, " _"]
    colour: int
    dots: bool = False


def thinned(x: np.ndarray, y: np.ndarray, columns: int = _COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most two points per column, the lowest and the highest, so that no peak is lost.

    Example:
      >>> x, y = thinned(np.arange(1000), np.where(np.arange(1000) == 500, 9.0, 0.0), 10)
      >>> len(x) <= 20, float(y.max())
      (True, 9.0)
    """
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) <= 2 * columns:
        return x, y
    edges = np.unique(np.linspace(0, len(x), columns + 1).astype(int))
    keep = {0, len(x) - 1}
    for low, high in itertools.pairwise(edges):
        keep |= {low + int(y[low:high].argmin()), low + int(y[low:high].argmax())}
    kept = sorted(keep)
    return x[kept], y[kept]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Returns round numbers from `low` to `high`.

    Example:
      >>> ticks(0.03, 1.02)
      [0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / most
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(scale * m for m in (1, 2, 5, 10) if scale * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def curves(title: str, lines: Sequence[Line], unit: str = "", log: bool = False, x_title: str = "step") -> str:
    """Returns a figure of curves with axes, grid and legend; empty if there is no point to draw.

    Args:
      title: above it.
      lines: the curves.
      unit: "%" draws fractions as percent.
      log: logarithmic y axis; only positive values are drawn.
      x_title: below the x axis.
    """
    factor = 100.0 if unit == "%" else 1.0
    drawn = []
    for line in lines:
        y = np.where(line.y > 0, line.y, np.nan) if log else line.y
        x, y = thinned(line.x, factor * np.clip(y, -1e100, 1e100))  # so that differences are finite, too
        if len(x):
            drawn.append((line, x.astype(float), np.log10(y) if log else y))
    if not drawn:
        return ""
    x0, x1 = min(x[0] for _, x, _ in drawn), max(x[-1] for _, x, _ in drawn)
    y0, y1 = min(float(y.min()) for *_, y in drawn), max(float(y.max()) for *_, y in drawn)
    if not log and y0 > 0 and y0 < 0.5 * y1:
        y0 = 0.0
    margin = (y1 - y0) * 0.03 or abs(y1) * 0.1 or 1.0
    y0, y1 = (y0 if y0 == 0 else y0 - margin), y1 + margin

    def place_x(x: float) -> float:
        return _LEFT + (x - x0) / max(x1 - x0, 1e-12) * (_WIDTH - _LEFT - _RIGHT)

    def place_y(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for t in _log_ticks(y0, y1) if log else ticks(y0, y1):
        at_y = place_y(t)
        shown = f"{10.0 ** min(t, 307):.3g}" if log else f"{t:g}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at_y:.1f}" y2="{at_y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{at_y + 4:.1f}" text-anchor="end">{shown}</text>')
    for t in ticks(x0, x1, 4):
        parts.append(f'<text x="{place_x(t):.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{_short(t)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 3}" text-anchor="middle">{page.text(x_title)}</text>')
    for line, xs, ys in drawn:
        points = [f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in zip(xs, ys, strict=True)]
        kind, own = _colour(line.colour, len(lines))
        stroke = f' style="stroke:{own}"' if own else ""
        parts.append(f'<polyline class="line {kind}"{stroke} points="{" ".join(points)}"/>')
        if (line.dots and len(points) <= 60) or len(points) == 1:
            fill = f' style="fill:{own}"' if own else ""
            at = (p.split(",") for p in points)
            parts += [f'<circle class="dot {kind}"{fill} cx="{x}" cy="{y}" r="2.4"/>' for x, y in at]
    legend = " ".join(_key(line, len(lines)) for line, *_ in drawn) if len(lines) > 1 else ""
    label = f"{title}, {x_title} on the x axis"
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{page.text(label)}">{"".join(parts)}</svg>'
    named = f"{page.text(title)}{' (%)' if unit == '%' else ''}{', logarithmic' if log else ''}"
    return f"<figure><figcaption>{named} {legend}</figcaption>{svg}</figure>"


def _log_ticks(low: float, high: float) -> list[float]:
    whole = [float(t) for t in range(math.ceil(low), math.floor(high) + 1)]
    return whole[:: max(1, len(whole) // 6)] if len(whole) >= 2 else ticks(low, high, 4)


def _short(x: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= 10 * size or (abs(x) >= size and x % (size / 10) == 0):
            return f"{x / size:g}{letter}"
    return f"{x:g}"


def _colour(number: int, lines: int) -> tuple[str, str]:
    """The CSS class and the colour of a line."""
    if lines <= 2:
        return f"s{number % 2}", ""
    return "", _COLOURS[number % len(_COLOURS)]


def _key(line: Line, lines: int) -> str:
    kind, own = _colour(line.colour, lines)
    colour = own or ("var(--a)" if kind == "s0" else "var(--b)")
    return f'<span><span class="key" style="background:{colour}"></span>{page.text(line.name, 60)}</span>'
