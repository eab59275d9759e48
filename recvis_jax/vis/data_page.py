"""The page of a data set: its splits and classes, pictures of each, copies across and within splits, unusual images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recvis_jax.vis import page
from recvis_jax.vis.page import text

_FOLDED = 30  # number of classes from which their table is folded
_ROWS = 1000  # classes that are listed
LIMIT = 2_000_000  # bytes of a page


class Shown(NamedTuple):
    """An image with a caption, any text."""

    image: np.ndarray
    caption: str


class Content(NamedTuple):
    """The content of a data set's page; all texts are untrusted until the page escapes them.

    Attributes:
      name: of the data set.
      findings: (level, title, why, advice), like those of a run.
      facts: (what, value).
      splits: names.
      classes: (name, number of inspected examples of each split), the smallest classes first.
      looked: sentence on how much was inspected.
      samples: (class, images).
      pairs: (title, explanation, pairs of equal or nearly equal images).
      odd: (title, explanation, images).
      files: (title, names) of files that were left out or changed.
    """

    name: str
    findings: Sequence[tuple[str, str, str, str]]
    facts: Sequence[tuple[str, str]]
    splits: Sequence[str]
    classes: Sequence[tuple[str, Sequence[int]]]
    looked: str
    samples: Sequence[tuple[str, Sequence[np.ndarray]]]
    pairs: Sequence[tuple[str, str, Sequence[tuple[Shown, Shown]]]]
    odd: Sequence[tuple[str, str, Sequence[Shown]]]
    files: Sequence[tuple[str, Sequence[str]]]


def document(found: Content) -> str:
    """Returns the page; one that would exceed `LIMIT` shows fewer pictures."""
    for side in (96, 64, 32, 0):
        out = _document(found, side)
        if len(out.encode()) < LIMIT:
            break
    return out


def _document(found: Content, side: int) -> str:
    body = [
        f"<h1>{text(found.name)}</h1>",
        *(page.finding(*f) for f in found.findings),
        page.table(["", ""], found.facts),
    ]
    body.append(f'<p class="dim">{text(found.looked, 400)}</p>')
    head = ["class", *found.splits]
    rows = [(name, *(f"{n:,}" for n in counts)) for name, counts in found.classes[:_ROWS]]
    shown = page.table(head, rows, range(1, len(head)))
    more = f", the {_ROWS:,} with the fewest images" if len(found.classes) > _ROWS else ""
    many = len(found.classes) > _FOLDED
    body += ["<h2>Classes</h2>", page.folded(f"{len(found.classes):,} classes{more}", shown) if many else shown]
    if side and found.samples:
        body.append("<h2>Samples</h2>")
        for name, images in found.samples:
            tiles = "".join(page.picture(image, side) for image in images)
            body.append(f'<h3>{text(name)}</h3><div class="tiles">{tiles}</div>')
    for title, about, pairs in found.pairs:
        body.append(f"<h2>{text(title)}</h2><p><small>{text(about, 400)}</small></p>")
        body += [_pair(a, b, side) for a, b in pairs] if side else []
    for title, about, items in found.odd:
        body.append(f"<h2>{text(title)}</h2><p><small>{text(about, 400)}</small></p>")
        captions = ((s.image, f"<small>{text(s.caption)}</small>") for s in items)
        body.append(page.pictures(captions, side) if side else "")
    for title, names in found.files:
        lines = "".join(f"<li>{text(n, 300)}</li>" for n in names)
        body.append(page.folded(title, f"<ul>{lines}</ul>"))
    return page.document(found.name, body)


def _pair(a: Shown, b: Shown, side: int) -> str:
    figures = (
        f"<figure>{page.picture(s.image, side)}<figcaption>{text(s.caption)}</figcaption></figure>" for s in (a, b)
    )
    return f'<div class="pair">{"".join(figures)}</div>'
