"""The page of one run, or of several side by side."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from recvis_jax.vis import chart, page
from recvis_jax.vis.page import Html, percent, text

_CELLS = 25  # most classes for which a confusion matrix is a table
_SHOWN = 20  # number of confusions listed for more classes
_ROWS = 1000  # classes that are listed, those with the lowest accuracy first
_FOLDED = 30  # number of classes from which the list is folded
_PIXELS = 250  # of the picture of a large confusion matrix
_DIFFERENCES = 100  # keys in which configs differ that are listed
_FEW = 3  # predictions of a group on a page that has no room for more
_CONFIG = 20_000  # characters of a config that are shown
LIMIT = 2_000_000  # bytes of a page


class Prediction(NamedTuple):
    """One example on the page.

    Attributes:
      image: (h w c).
      place: its index in the split.
      label, predicted: classes.
      p_true, p_predicted: their probabilities.
    """

    image: np.ndarray
    place: int
    label: int
    predicted: int
    p_true: float
    p_predicted: float


class Images(NamedTuple):
    """Pictures of the run itself, such as its first filters.

    Attributes:
      title, explanation: above them.
      pictures: (h w c) each.
      width: of each on the page, pixels.
    """

    title: str
    explanation: str
    pictures: Sequence[np.ndarray]
    width: int = 48


class Content(NamedTuple):
    """The content of a run's page; all texts are untrusted until the page escapes them.

    Attributes:
      name: of the run.
      facts: (what, value), for the top and for the comparison.
      numbers: rows of a table of its metrics; the first is the head; may be empty.
      findings: (level, title, why, advice), see `evaluation.diagnosis`.
      notes: sentences on what is not shown, and why.
      records: of `metrics.jsonl`.
      classes: names.
      confusion: (k k) counts, rows are true classes; None if not counted.
      confused: which examples were counted, for its title.
      train_counts: training examples of each class (k); None if not counted.
      groups: (title, explanation, predictions).
      images: pictures of the run itself.
      cost: (what, value).
      origin: (what, value): data, machine, commit.
      command: the command that made it.
      config: as plain dicts.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    numbers: Sequence[tuple[str, ...]]
    findings: Sequence[tuple[str, str, str, str]]
    notes: Sequence[str]
    records: Sequence[Mapping[str, Any]]
    classes: Sequence[str]
    confusion: np.ndarray | None
    confused: str
    train_counts: np.ndarray | None
    groups: Sequence[tuple[str, str, Sequence[Prediction]]]
    images: Sequence[Images]
    cost: Sequence[tuple[str, str]]
    origin: Sequence[tuple[str, str]]
    command: str
    config: Mapping[str, Any]


def document(runs: Sequence[Content]) -> str:
    """Returns the page of one run, or of several: first what differs, then each.

    A page that would exceed `LIMIT` shows fewer predictions, then no pictures of the run itself, in the end none.
    """
    for most in (12, 6, _FEW, 0):
        found = _document(runs, most)
        if len(found.encode()) < LIMIT:
            break
    return found


def _document(runs: Sequence[Content], most: int) -> str:
    if len(runs) == 1:
        run = runs[0]
        return page.document(run.name, [f"<h1>{text(run.name)}</h1>", *_run(run, most)])
    body = [f"<h1>{len(runs)} runs</h1>", _compared(runs), _differences(runs), _together(runs)]
    for run in runs:
        body.append(f"<h2>{text(run.name)}</h2>")
        body += [page.finding(*f) for f in run.findings]
        body.append(page.folded(f"All of {run.name}", "".join(_run(run, most))))
    return page.document(f"{len(runs)} runs", body)


# --- one run ---


def _run(run: Content, most: int) -> list[str]:
    parts = [*(page.finding(*f) for f in run.findings), page.table(["", ""], run.facts)]
    parts += [f'<p class="dim">{text(note, 400)}</p>' for note in run.notes]
    if run.numbers:
        head, *rows = run.numbers
        parts += ["<h2>Numbers</h2>", page.table(head, rows, range(1, len(head)))]
    if charts := _curves(run.records):
        parts += ["<h2>Curves</h2>", f'<div class="charts">{charts}</div>']
    if run.confusion is not None:
        parts += [f"<h2>Confusions, {text(run.confused)}</h2>", _confusion(run.confusion, run.classes)]
        parts += ["<h2>Classes</h2>", _by_class(run)]
    if most and any(group for *_, group in run.groups):
        parts.append("<h2>Predictions</h2>")
        for title, explanation, group in run.groups:
            parts.append(f"<h3>{text(title)}</h3><p><small>{text(explanation, 400)}</small></p>")
            parts.append(page.pictures((p.image, _caption(p, run.classes)) for p in group[:most]))
            parts.append("" if group else "<p>None.</p>")
    for title, explanation, images, width in run.images if most > _FEW else ():
        parts.append(f"<h2>{text(title)}</h2><p><small>{text(explanation, 400)}</small></p>")
        shown = "".join(page.picture(image, 2 * width) for image in images)
        parts.append(f'<div class="tiles" style="--side:{width}px">{shown}</div>')
    parts += ["<h2>Throughput and cost</h2>", page.table(["", ""], run.cost)] if run.cost else []
    parts += ["<h2>What was run</h2>", page.table(["", ""], run.origin)]
    parts.append(f"<pre>{text(run.command, 4000)}</pre>" if run.command else "")
    shown = json.dumps(run.config, indent=2, ensure_ascii=False, default=str)
    parts.append(page.folded("Config", f"<pre>{_lines(shown, _CONFIG)}</pre>"))
    return parts


def _lines(shown: str, longest: int) -> str:
    """Escapes a text of several lines and shortens each line."""
    cut = shown[:longest] + ("\n..." if len(shown) > longest else "")
    return "\n".join(text(line, 1000) for line in cut.split("\n"))


def _values(records: Sequence[Mapping[str, Any]], split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [r for r in records if r["split"] == split and isinstance(r.get(name), int | float)]
    return np.array([r["step"] for r in rows], float), np.array([r[name] for r in rows], float)


def _line(records: Sequence[Mapping[str, Any]], split: str, name: str, title: str, colour: int) -> chart.Line:
    return chart.Line(title, *_values(records, split, name), colour, dots=split == "val")


_CURVES = (  # value, title, unit
    ("loss", "Loss", ""),
    ("accuracy", "Accuracy", "%"),
    ("mean_average_precision", "Mean average precision", "%"),
    ("error", "Error", ""),
)
_OTHERS = (("learning_rate", "Learning rate"), ("grad_norm", "Norm of the gradient"))


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    charts = []
    for name, title, unit in _CURVES:
        lines = [_line(records, "train", name, "training", 0), _line(records, "val", name, "validation", 1)]
        lines = [line for line in lines if len(line.x)]
        charts.append(chart.curves(title, lines, unit, log=name == "loss" and _wide(lines)))
    for name, title in _OTHERS:
        line = _line(records, "train", name, title, 0)
        charts.append(chart.curves(title, [line], log=name == "grad_norm" and _wide([line])))
    return "".join(charts)


def _wide(lines: Sequence[chart.Line]) -> bool:
    """Whether the range of values is so large that a logarithmic axis shows more."""
    values = np.concatenate([line.y for line in lines]) if lines else np.zeros(0)
    values = values[np.isfinite(values) & (values > 0)]
    return len(values) > 2 and bool(values.max() > 30 * values.min())


def _name(classes: Sequence[str], k: int) -> str:
    return classes[k] if k < len(classes) else f"class {k}"


def _caption(p: Prediction, classes: Sequence[str]) -> str:
    right = p.label == p.predicted
    lines = [f'<div class="{"right" if right else "wrong"}">{text(_name(classes, p.predicted), 40)} ']
    lines.append(f"{percent(p.p_predicted)}</div>")
    if not right:
        lines.append(f"<div>is {text(_name(classes, p.label), 40)} {percent(p.p_true)}</div>")
    lines.append(f"<small>no. {p.place:,}</small>")
    return "".join(lines)


def _confusion(counts: np.ndarray, classes: Sequence[str]) -> str:
    k = len(counts)
    note = "<p><small>Rows are true classes, columns predicted ones; darker cells hold more of their row.</small></p>"
    if k <= _CELLS:
        return note + _matrix(counts, classes)
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_SHOWN].tolist()
    pairs = [divmod(cell, k) for cell in order if wrong.flat[cell]]
    rows = [
        (_name(classes, i), _name(classes, j), f"{wrong[i, j]:,}", percent(wrong[i, j] / counts[i].sum()))
        for i, j in pairs
    ]
    head = ["true class", "predicted as", "times", "of the class"]
    return note + _matrix_picture(counts) + "<h3>The most frequent</h3>" + page.table(head, rows, (2, 3))


def _shares(counts: np.ndarray) -> np.ndarray:
    """Each cell's share of its row."""
    of_row = counts.sum(1, keepdims=True)
    return np.divide(counts, of_row, out=np.zeros(counts.shape), where=of_row > 0)


def _matrix(counts: np.ndarray, classes: Sequence[str]) -> str:
    shares = _shares(counts)
    head = "".join(f'<th title="{text(_name(classes, j))}">{j}</th>' for j in range(len(counts)))
    rows = []
    for i, row in enumerate(counts):
        cells = "".join(
            f'<td style="background:rgba(var(--cell),{share:.2f})">{n:,}</td>' if n else "<td></td>"
            for n, share in zip(row.tolist(), 0.75 * shares[i], strict=True)
        )
        rows.append(f'<tr><th class="row">{text(_name(classes, i), 24)} {i}</th>{cells}</tr>')
    return f'<div class="scroll"><table class="matrix"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _matrix_picture(counts: np.ndarray) -> str:
    """A confusion matrix as a picture; a pixel that covers several classes shows the largest value."""
    shares = np.sqrt(_shares(counts))  # makes rare confusions visible, too
    cell = -(-len(shares) // _PIXELS)
    side = -(-len(shares) // cell)
    padded = np.zeros((side * cell, side * cell))
    padded[: len(shares), : len(shares)] = shares
    seen = padded.reshape(side, cell, side, cell).max((1, 3))
    image = (255 * (1 - seen)).round().astype(np.uint8)[..., None]
    size = max(1, 500 // side) * side
    data = page.encoded(image, ".png")
    return f'<img alt="confusion matrix" width="{size}" height="{size}" src="data:image/png;base64,{data}">'


def _by_class(run: Content) -> str:
    assert run.confusion is not None
    counts = run.confusion
    of_class, of_predicted, right = counts.sum(1), counts.sum(0), np.diag(counts)
    recall = np.where(of_class > 0, right / np.maximum(of_class, 1), np.inf)  # classes without examples last
    wrong = counts - np.diag(right)
    rows = []
    for k in np.argsort(recall, kind="stable")[:_ROWS].tolist():
        most = int(wrong[k].argmax())
        rows.append(
            (
                _name(run.classes, k),
                *([f"{int(run.train_counts[k]):,}"] if run.train_counts is not None else []),
                f"{int(of_class[k]):,}",
                percent(recall[k]) if of_class[k] else "",
                percent(right[k] / of_predicted[k]) if of_predicted[k] else "never predicted",
                f"{_name(run.classes, most)} ({int(wrong[k, most]):,})" if wrong[k, most] else "",
            )
        )
    trained = ["training images read"] if run.train_counts is not None else []
    head = ["class", *trained, "examples", "right", "of those predicted", "most often predicted as"]
    shown = page.table(head, rows, range(1, len(head) - 1))
    if len(counts) <= _FOLDED:
        return shown
    left_out = f", the {_ROWS:,} with the lowest accuracy" if len(counts) > _ROWS else ""
    return page.folded(f"{len(counts):,} classes{left_out}", shown)


# --- several ---


def _compared(runs: Sequence[Content]) -> str:
    names = list(dict.fromkeys(what for run in runs for what, _ in run.facts))
    rows = []
    for run in runs:
        facts = dict(run.facts)
        rows.append((run.name, run.findings[0][1] if run.findings else "", *(facts.get(n, "") for n in names)))
    return page.table(["run", "diagnosis", *names], rows)


def flattened(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Returns a config as {path: value as text}.

    Example:
      >>> flattened({"optim": {"lr": 0.1}, "seed": 0})
      {'optim.lr': '0.1', 'seed': '0'}
    """
    out: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out |= flattened(value, f"{above}{key}.")
        else:
            out[f"{above}{key}"] = json.dumps(value, default=str, ensure_ascii=False)
    return out


def _differences(runs: Sequence[Content]) -> str:
    flat = [flattened(run.config) for run in runs]
    keys = sorted({key for f in flat for key in f})
    rows = [(key, *(f.get(key, "") for f in flat)) for key in keys if len({f.get(key, "") for f in flat}) > 1]
    if not rows:
        return "<h2>Configs</h2><p>The configs are the same.</p>"
    more = f"<p>and {len(rows) - _DIFFERENCES:,} more</p>" if len(rows) > _DIFFERENCES else ""
    table = page.table(["key", *(run.name for run in runs)], rows[:_DIFFERENCES])
    return f"<h2>What differs in their configs</h2>{table}{more}"


def _together(runs: Sequence[Content]) -> str:
    charts = []
    for name, title, unit in _CURVES:
        for split, which in (("train", "training"), ("val", "validation")):
            lines = [_line(run.records, split, name, run.name, i) for i, run in enumerate(runs)]
            lines = [line for line in lines if len(line.x)]
            charts.append(chart.curves(f"{title}, {which}", lines, unit, log=name == "loss" and _wide(lines)))
    return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>' if any(charts) else ""


__all__ = ["LIMIT", "Content", "Html", "Images", "Prediction", "document", "flattened"]
