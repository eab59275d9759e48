"""Reads the XML of Pascal VOC (`Annotations/`, `ImageSets/Main/`, `JPEGImages/`), also written by labelImg and others.

Reference: Everingham et al. 2010, "The Pascal visual object classes (VOC) challenge"; the development kit's section 2.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from recvis_jax import reading
from recvis_jax.data.annotations import Annotations, Mended, Picture, Thing, box_within, file_below, number
from recvis_jax.data.image_file import SUFFIXES
from recvis_jax.errors import BadRequest, printable


def read(paths: Sequence[Path], images: Path | Sequence[Path], classes: Sequence[str] = ()) -> Annotations:
    """Reads one XML file per picture.

    Boxes count pixels from 1 and include the last: xmin 1, xmax 10 are the ten pixels [0, 10).

    Args:
      paths: the XML files.
      images: the folder of the pictures, one for all or one per file.
      classes: names in order; empty takes the occurring names, sorted.

    Raises:
      BadRequest: a file is not such XML, or a class is not among `classes`; the message names the file.
    """
    found, mended = [], Mended()
    roots = {path: _parse(path) for path in paths}
    known = tuple(classes) or tuple(sorted({name for root in roots.values() for name in _names(root)}))
    folders = [images] * len(roots) if isinstance(images, Path) else images
    for (path, root), folder in zip(roots.items(), folders, strict=True):
        where = printable(path)
        name = (root.findtext("filename") or "").strip()
        picture = file_below(folder, name, where) if name else None
        if picture is None or not picture.exists():
            alike = next((p for p in (folder / (path.stem + s) for s in SUFFIXES) if p.exists()), None)
            if picture is not None and alike:
                mended.add("pictures have the name of their annotation file, not the name in it", where)
            picture = alike or picture or folder / f"{path.stem}.jpg"
        size = _size(root, where)
        things = []
        for thing in root.iter("object"):
            label = (thing.findtext("name") or "").strip()
            if label not in known:
                raise BadRequest(f"{where}: the class {printable(label)[:60]!r} is not among {', '.join(known)[:200]}.")
            box = thing.find("bndbox")
            if box is None:
                raise BadRequest(f"{where}: the object {printable(label)!r} has no bndbox.")
            x0, y0, x1, y1 = (number(box.findtext(key), key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
            if x1 < x0 or y1 < y0:
                raise BadRequest(f"{where}: the box of the object {printable(label)!r} ends before it begins.")
            kept = box_within((x0 - 1, y0 - 1, x1, y1), size, where, mended)
            if kept:
                difficult = (thing.findtext("difficult") or "0").strip() == "1"
                area = (kept[2] - kept[0]) * (kept[3] - kept[1])
                things.append(Thing(known.index(label), kept, difficult=difficult, area=area))
        found.append(Picture(picture, size, tuple(things)))
    return Annotations(known, tuple(found), notes=mended.notes)


def _parse(path: Path) -> ElementTree.Element:
    text = reading.read_bytes(path, "annotation bytes", "VOC annotation")
    where = printable(path)
    # Entities can expand a small file to any size, and name other files; VOC files have no document type.
    if re.search(rb"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE) or b"\0" in text:
        raise BadRequest(f"{where} declares a document type or is not UTF-8; VOC's annotations do not.")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError, LookupError) as e:
        raise BadRequest(f"{where} is not XML: {printable(e)[:100]}.") from None
    if root.tag != "annotation":
        raise BadRequest(f"{where} is not a VOC file: its element is <{printable(root.tag)[:40]}>, not <annotation>.")
    return root


def _names(root: ElementTree.Element) -> list[str]:
    return [(thing.findtext("name") or "").strip() for thing in root.iter("object")]


def _size(root: ElementTree.Element, where: str) -> tuple[int, int] | None:
    size = root.find("size")
    if size is None:
        return None
    rows, columns = (number(size.findtext(key), key, where) for key in ("height", "width"))
    return (int(rows), int(columns)) if rows >= 1 and columns >= 1 else None  # some tools write 0
