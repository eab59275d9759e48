"""Reads YOLO's text files: one line per object, in fractions of the picture.

`CLASS cx cy w h`, or `CLASS x1 y1 x2 y2 ...` (at least three corners: a polygon), or with points
`CLASS cx cy w h px py [v] ...`; a picture `images/a/b.jpg` has `labels/a/b.txt`.

Reference: https://docs.ultralytics.com/datasets/
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recvis_jax import reading
from recvis_jax.data.annotations import Annotations, Mended, Picture, Thing, box_within
from recvis_jax.errors import BadRequest, printable


def read(
    pictures: Sequence[tuple[Path, Path, tuple[int, int] | None]],
    classes: Sequence[str],
    points: tuple[int, int] | None = None,
    pairs: Sequence[tuple[int, int]] = (),
) -> Annotations:
    """Reads one text file per picture; a missing or empty file means a picture without objects.

    Args:
      pictures: (image, label file, (rows, columns)). If the size is None, the image cannot be read, and its objects are
        left out; the reader of the image reports why.
      classes: names; the index is the number in the files.
      points: (k, 2 or 3): number of points of an object, and 3 if they have a visibility (YOLO's `kpt_shape`); None
        for none.
      pairs: points that are swapped in a mirrored picture.

    Raises:
      BadRequest: a line has another form; the message names file and line.
    """
    found, mended, missing = [], Mended(), Mended()
    for image, labels, size in pictures:
        things: list[Thing] = []
        if size is None:
            pass
        elif labels.exists():
            text = reading.read_text(labels, "text bytes", "YOLO labels")
            for k, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    thing = _thing(line, size, len(classes), points, f"{printable(labels)}, line {k}", mended)
                    things += [thing] if thing else []
        else:
            missing.add("pictures have no label file and are treated as empty", printable(image))
        found.append(Picture(image, size, tuple(things)))
    names = tuple(f"point {k}" for k in range(points[0])) if points else ()
    return Annotations(tuple(classes), tuple(found), names, tuple(pairs), (*mended.notes, *missing.notes))


def _thing(
    line: str, size: tuple[int, int], classes: int, points: tuple[int, int] | None, where: str, mended: Mended
) -> Thing | None:
    try:
        label, *rest = (float(word) for word in line.split())
    except ValueError:
        raise BadRequest(f"{where}: {printable(line)[:60]!r} is not numbers.") from None
    values = np.array(rest)
    if not np.isfinite(values).all() or (np.abs(values) > 1e4).any():
        raise BadRequest(f"{where}: a number is not finite, or not a fraction of the picture.")
    if label != int(label) or not 0 <= label < classes:
        raise BadRequest(f"{where}: the class {label:g} is outside 0..{classes - 1}.")
    rows, columns = size
    mask = place = None
    if points and len(values) == 4 + points[0] * points[1]:
        each = values[4:].reshape(points)
        seen = each[:, 2] if points[1] == 3 else (each > 0).any(1) * 2.0
        place = tuple(
            (float(x * columns), float(y * rows), float(v)) for (x, y), v in zip(each[:, :2], seen, strict=True)
        )
        values = values[:4]
    if len(values) == 4:
        if (values < -0.01).any() or (values > 1.01).any():
            raise BadRequest(f"{where}: {printable(line)[:60]!r} is not in fractions of the picture.")
        cx, cy, w, h = values
        box = ((cx - w / 2) * columns, (cy - h / 2) * rows, (cx + w / 2) * columns, (cy + h / 2) * rows)
    elif len(values) >= 6 and len(values) % 2 == 0:
        corners = values.reshape(-1, 2) * (columns, rows)
        mask = (tuple((float(x), float(y)) for x, y in corners),)
        box = (*corners.min(0), *corners.max(0))
    else:
        raise BadRequest(
            f"{where}: {len(values)} numbers after the class; boxes have 4, polygons an even number of at least 6"
            f"{f', boxes with points {4 + points[0] * points[1]}' if points else ''}."
        )
    kept = box_within(box, size, where, mended)
    if kept is None:
        return None
    area = (kept[2] - kept[0]) * (kept[3] - kept[1]) if mask is None else _area(mask[0])
    return Thing(int(label), kept, mask, place, area=area)


def _area(corners: Sequence[tuple[float, float]]) -> float:
    """Returns the area of a polygon that does not cross itself, by the shoelace formula."""
    x, y = np.array(corners).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
