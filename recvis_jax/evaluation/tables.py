"""Metrics as text for a terminal."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from recvis_jax import errors

_NAME = 24  # characters of a class name that are shown
_COLUMN = 8  # characters of a class name as the head of a column
_WHOLE = 30  # most classes for which a confusion matrix is printed
_LINE = 110  # most characters of a line with names as heads of the columns
_TOP = 10  # number of confusions printed for larger ones


def show(name: str, value: Any, classes: Sequence[str] = ()) -> str:
    """Returns a metric as one or more lines, indented by two spaces.

    Args:
      name: of the metric.
      value: a number; or (k,) one number per class, NaN for a class without examples; or a confusion matrix (k k),
        whose rows are the true classes.
      classes: names of the classes; missing names are replaced by numbers.
    """
    value = np.asarray(value)
    if value.ndim == 0:
        return f"  {name}: {float(value):.4f}"
    names = labels(classes, len(value))
    if value.ndim == 2:
        return f"  {name} {matrix(value, names)}"
    width = max(map(len, names))
    rows = (f"    {n:<{width}}  {v:.4f}" if math.isfinite(v) else f"    {n:<{width}}  no examples"
            for n, v in zip(names, value, strict=True))  # fmt: skip
    return f"  {name}:\n" + "\n".join(rows)


def labels(classes: Sequence[str], count: int) -> list[str]:
    """Returns printable names of `count` classes: without control characters, and shortened."""
    names = [errors.printable(c) for c in classes[:count]] + [str(i) for i in range(len(classes), count)]
    return [n if len(n) <= _NAME else n[: _NAME - 1] + "…" for n in names]


def matrix(counts: Int[np.ndarray, "k k"], names: Sequence[str]) -> str:
    """Returns a confusion matrix as text that explains its axes; for many classes only the most frequent confusions.

    Columns are headed by the classes' names if these are short, else by their numbers, which are also shown before the
    names of the rows.
    """
    if len(names) > _WHOLE:
        wrong = counts - np.diag(np.diag(counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:_TOP]
        pairs = [(i, j) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
        width = max((len(names[i]) for i, _ in pairs), default=0)
        rows = [f"    {names[i]:<{width}}  predicted  {names[j]}: {wrong[i, j]:,}" for i, j in pairs]
        return "\n".join([f"({len(names)} classes; the most frequent confusions, true class first):", *rows])
    numbers = [str(i) for i in range(len(names))]
    cell = len(str(counts.max(initial=0)))
    width = max(cell, *map(len, names))
    if width <= _COLUMN and len(names) * (width + 1) + max(map(len, names)) + 4 <= _LINE:
        head, rows = list(names), list(names)
    else:
        width = max(cell, len(numbers[-1]))
        head, rows = numbers, [f"{n:>{len(numbers[-1])}} {name}" for n, name in zip(numbers, names, strict=True)]
    first = max(map(len, rows))
    lines = ["(rows: true class; columns: predicted class):"]
    lines += [f"    {'':<{first}} " + "".join(f" {h:>{width}}" for h in head)]
    for row, numbers_of in zip(rows, counts, strict=True):
        lines += [f"    {row:<{first}} " + "".join(f" {int(n):>{width}}" for n in numbers_of)]
    return "\n".join(lines)
