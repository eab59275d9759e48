"""Writes the page of a prepared data set: its content, the look of its images, and copies among them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recvis_jax import errors
from recvis_jax.data import similar, sources, writing
from recvis_jax.vis import data_page
from recvis_jax.vis.data_page import Shown

FILE = "report.html"
MOST = 5_000  # images read of a split, at most
_CHUNK = 256  # read at a time
_SAMPLES = 8  # per class
_CLASSES = 40  # classes whose samples are shown
_PAIRS = 12
_ODD = 12
_NAMES = 200  # files listed at most
_ORDER = ("train", "validation", "test")


class _Part:
    """The images of one split that were read, without their pixels."""

    def __init__(self, source: sources.Source, most: int):
        self.source = source
        count = min(source.length, most)
        self.places = np.linspace(0, source.length, count, endpoint=False).astype(int)
        looks, labels, sizes = [], [], []
        for start in range(0, count, _CHUNK):
            rows = source.read(self.places[start : start + _CHUNK])
            looks.append(similar.look(r["image"] for r in rows))
            labels += [r["label"] for r in rows]
            sizes += [r["image"].shape[:2] for r in rows]
        self.looks, self.sizes = similar.join(looks), np.array(sizes)
        self.labels = np.array(labels)

    def image(self, i: int) -> np.ndarray:
        return self.source.read([int(self.places[i])])[0]["image"]


def of_data_set(directory: Path, name: str, splits: Sequence[str], most: int = MOST) -> str:
    """Returns the page of a prepared data set.

    Args:
      directory: of the data set, `<data_dir>/<name>/<version>`.
      name: of the data set.
      splits: names of its splits.
      most: maximum number of images read of a split, spread evenly over it.

    Raises:
      BadRequest, Failure: it cannot be read.
    """
    names = [s for s in _ORDER if s in splits] + [s for s in splits if s not in _ORDER]
    root = str(directory.parents[1])
    parts = {s: _Part(sources.open_split(name, s, data_dir=root), most) for s in names}
    classes = next(iter(parts.values())).source.class_names
    record = writing.recorded(directory)
    pairs, counts = _copies(parts, classes)
    odd = _odd(parts, classes)
    return data_page.document(
        data_page.Content(
            name=name,
            findings=_findings(parts, classes, counts),
            facts=_facts(parts, record),
            splits=names,
            classes=_classes(parts, classes),
            looked=_looked(parts),
            samples=_samples(parts, classes),
            pairs=pairs,
            odd=odd,
            files=_files(record),
        )
    )


def _single(part: _Part) -> bool:
    """Whether each image has one class."""
    return part.labels.ndim == 1 and part.labels.dtype.kind in "iu"


def _counts(part: _Part, k: int) -> np.ndarray:
    """Examples of each class."""
    return np.bincount(part.labels, minlength=k) if _single(part) else (part.labels > 0.5).sum(0).astype(int)


def _name(classes: Sequence[str], part: _Part, i: int) -> str:
    if not _single(part):
        return ", ".join(classes[k] for k in np.flatnonzero(part.labels[i] > 0.5)[:4]) if classes else ""
    k = int(part.labels[i])
    return classes[k] if k < len(classes) else f"class {k}"


def _shown(parts: dict[str, _Part], classes: Sequence[str], split: str, i: int, more: str = "") -> Shown:
    part = parts[split]
    caption = f"{_name(classes, part, i)}, {split} no. {part.places[i]:,}{more}"
    return Shown(part.image(i), caption)


def _looked(parts: dict[str, _Part]) -> str:
    told = [f"{len(p.places):,} of {p.source.length:,} of {s}" for s, p in parts.items()]
    return f"Images read: {', '.join(told)}, spread evenly. Counts of classes and copies refer to these."


def _facts(parts: dict[str, _Part], record: dict[str, Any]) -> list[tuple[str, str]]:
    out = [(split, f"{p.source.length:,} examples") for split, p in parts.items()]
    sizes = np.concatenate([p.sizes for p in parts.values()])
    low, high, middle = sizes.min(0), sizes.max(0), np.median(sizes, 0).astype(int)
    if (low == high).all():
        out.append(("images", f"{low[0]} x {low[1]} pixels"))
    else:
        ends = " to ".join(f"{h} x {w}" for h, w in (low, high))
        out.append(("rows x columns", f"{ends}, median {middle[0]} x {middle[1]}"))
    light = np.concatenate([p.looks.light for p in parts.values()])
    out.append(("mean brightness, contrast", f"{light[:, 0].mean():.3f}, {light[:, 1].mean():.3f} (of 1)"))
    for what, key in (("made of", "source"), ("converted to png", "encoded_anew"), ("turned upright", "turned")):
        if record.get(key):
            out.append((what, str(record[key])))
    return out


def _classes(parts: dict[str, _Part], classes: Sequence[str]) -> list[tuple[str, list[int]]]:
    columns = [_counts(p, len(classes)) for p in parts.values()]
    rows = [(name, [int(c[k]) for c in columns]) for k, name in enumerate(classes)]
    return sorted(rows, key=lambda row: (row[1][0], row[0]))


def _samples(parts: dict[str, _Part], classes: Sequence[str]) -> list[tuple[str, list[np.ndarray]]]:
    """Randomly drawn pictures of each class of the first split."""
    part = next(iter(parts.values()))
    order = np.random.default_rng(0).permutation(len(part.places))
    out = []
    for k in range(min(len(classes), _CLASSES)):
        of = part.labels[order] == k if _single(part) else part.labels[order][:, k] > 0.5
        out.append((classes[k], [part.image(int(i)) for i in order[of][:_SAMPLES]]))
    return out


def _copies(parts: dict[str, _Part], classes: Sequence[str]) -> tuple[list[Any], dict[str, int]]:
    """Pairs of the same picture, across splits and within one; pairs with two classes first."""
    between: list[tuple[Shown, Shown]] = []
    within: list[tuple[Shown, Shown]] = []
    several: list[tuple[Shown, Shown]] = []
    counts = {"between": 0, "near between": 0, "within": 0, "near within": 0, "two classes": 0}
    splits = list(parts)
    for j, b in enumerate(splits):
        for a in splits[: j + 1]:
            of, among = parts[b].looks, parts[a].looks
            itself = a == b
            found = similar.neighbours(of, among, itself)
            near = similar.near_copies(of, among, found, itself)
            same = np.array([i >= 0 and of.digests[n] == among.digests[i] for n, i in enumerate(near)], bool)
            pairs = [(n, int(near[n])) for n in np.flatnonzero(near >= 0).tolist()]
            if itself:
                pairs = [(n, i) for n, i in pairs if i < n]
            kind = "within" if itself else "between"
            for n, i in sorted(pairs, key=lambda p: (not same[p[0]], p)):
                counts[kind if same[n] else f"near {kind}"] += 1
                differ = not np.array_equal(parts[b].labels[n], parts[a].labels[i])
                counts["two classes"] += differ
                into = several if differ else within if itself else between
                if len(into) < _PAIRS:
                    more = ", the same pixels" if same[n] else ""
                    into.append((_shown(parts, classes, a, i), _shown(parts, classes, b, n, more)))
    rows = (
        (
            "The same picture under two classes",
            "One of the labels is wrong, or both are right and a picture needs several.",
            several,
        ),
        ("Copies and near copies between splits", "Evaluation on them uses training images.", between),
        (
            "Copies and near copies within a split",
            "They count several times, and may end up on both sides if the split is divided.",
            within,
        ),
    )
    return [row for row in rows if row[2]], counts


def _odd(parts: dict[str, _Part], classes: Sequence[str]) -> list[tuple[str, str, list[Shown]]]:
    flat, long, small = [], [], []
    areas = np.concatenate([p.sizes.prod(1) for p in parts.values()])
    for split, part in parts.items():
        for i in range(len(part.places)):
            h, w = part.sizes[i]
            if part.looks.light[i, 1] < 0.01:
                flat.append((split, i))
            elif max(h, w) > 4 * min(h, w):
                long.append((split, i))
            elif h * w < np.median(areas) / 16:
                small.append((split, i))
    rows = (
        ("Images of nearly one colour", "Nothing can be seen on them.", flat),
        ("Very long or very wide images", "More than four to one: crops show little of them.", long),
        ("Very small images", "Less than a sixteenth of the median area: they are strongly enlarged.", small),
    )
    out = []
    for title, about, items in rows:
        if items:
            sizes = [f", {parts[s].sizes[i][0]} x {parts[s].sizes[i][1]}" for s, i in items[:_ODD]]
            images = [_shown(parts, classes, *item, size) for item, size in zip(items[:_ODD], sizes, strict=True)]
            out.append((f"{title} ({len(items):,})", about, images))
    return out


def _files(record: dict[str, Any]) -> list[tuple[str, list[str]]]:
    out = []
    skipped, dropped, notes = (record.get(k) for k in ("skipped", "dropped", "notes"))
    for what, names in (
        ("images that could not be read were left out", list(skipped.values()) if isinstance(skipped, dict) else []),
        ("copies were left out", dropped if isinstance(dropped, list) else []),
        ("notes on the folder", notes if isinstance(notes, list) else []),
    ):
        if names:
            more = [f"and {len(names) - _NAMES:,} more"] if len(names) > _NAMES else []
            out.append((f"{len(names):,} {what}", [*map(str, names[:_NAMES]), *more]))
    return out


def _findings(
    parts: dict[str, _Part], classes: Sequence[str], counts: dict[str, int]
) -> list[tuple[str, str, str, str]]:
    out = []
    between, near = counts["between"], counts["near between"]
    if between or near >= max(3, 0.003 * sum(len(p.places) for p in parts.values())):
        why = f"{between:,} images have a copy in another split, {near:,} a near copy."
        advice = "Split by what the pictures show, or leave copies out: prepare --duplicates=drop."
        out.append(("problem", "Splits share images: measurements will be too good.", why, advice))
    if counts["two classes"]:
        why = f"{counts['two classes']:,} pairs of the same or nearly the same picture have different labels."
        out.append(("caution", "Some pictures have two labels.", why, "Look at them below."))
    part = next(iter(parts.values()))
    number = _counts(part, len(classes)) if classes else np.zeros(0, int)
    if len(number) > 1 and number.max() > 20 * max(1, number.min()):
        most, least = int(number.argmax()), int(number.argmin())
        why = f"{classes[most]}: {number[most]:,}, {classes[least]}: {number[least]:,} of the images read."
        advice = "Report the mean accuracy over classes, too (--metrics=per_class_accuracy)."
        out.append(("caution", "The classes are very unequal.", why, advice))
    for split, other in list(parts.items())[1:]:
        gone = [classes[k] for k in np.flatnonzero((_counts(other, len(classes)) == 0) & (number > 0)).tolist()]
        if gone and len(other.places) > 5 * len(classes):
            some = ", ".join(errors.brief(n, 30) for n in gone[:5])
            why = f"{len(gone):,} classes have no image in {split}: {some}."
            out.append(("caution", f"{split} lacks classes.", why, "They are not measured."))
    return out or [("fine", "Nothing stands out.", "No copies between splits, no class much smaller than another.", "")]
