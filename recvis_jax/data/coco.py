"""Reads the JSON of COCO (`instances_*.json`, `person_keypoints_*.json`), as pycocotools does.

Reference: https://cocodataset.org/#format-data; Lin et al. 2014, "Microsoft COCO: Common objects in context".
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from recvis_jax import reading
from recvis_jax.data.annotations import Annotations, Mended, Picture, Runs, Thing, box_within, file_below, number
from recvis_jax.errors import BadRequest, printable


def read(path: Path, images: Path | Callable[[str], Path]) -> Annotations:
    """Reads one JSON file.

    Objects without area are left out and boxes are clipped to their picture; the notes count both. Pictures without
    objects are kept. Categories are numbered in the order of their ids, which need not be 0, 1, ...

    Args:
      path: the JSON.
      images: the folder that its file names are relative to, or a function that finds it from the first of them.

    Raises:
      BadRequest: it is not such a file; the message names the file and the annotation.

    Example:
      >>> found = read(Path("coco/annotations/instances_val.json"), Path("coco/val"))  # doctest: +SKIP
    """
    where = printable(path)
    content = reading.read_json(path, "COCO annotations", "annotation bytes")
    lists = {}
    for key in ("images", "annotations", "categories"):
        lists[key] = content.get(key)
        if not isinstance(lists[key], list) or not all(isinstance(x, dict) for x in lists[key]):
            raise BadRequest(f"{where} is not a COCO file: it has no list of objects {key!r}.")
    categories = _by_id(lists["categories"], "category", where)
    classes = {key: k for k, key in enumerate(sorted(categories))}
    names = tuple(str(categories[key].get("name", key)) for key in classes)
    if len(set(names)) != len(names):
        raise BadRequest(f"{where}: two categories have the same name.")
    points, pairs = _points(list(categories.values()), where)
    pictures = _by_id(lists["images"], "image", where)
    mended = Mended()
    if not isinstance(images, Path):
        first = next((p.get("file_name") for p in pictures.values()), None)
        images = images(first) if isinstance(first, str) and first else path.parent
    sizes = {key: _size(p, where) for key, p in pictures.items()}
    files = {key: file_below(images, p.get("file_name"), f"{where}, image {key}") for key, p in pictures.items()}
    things: dict[Any, list[Thing]] = {key: [] for key in pictures}
    for k, annotation in enumerate(lists["annotations"]):
        place = f"{where}, annotation {printable(annotation.get('id', k))[:40]}"
        image, category = annotation.get("image_id"), annotation.get("category_id")
        if not _known(image, pictures):
            raise BadRequest(f"{place} belongs to image {printable(image)[:40]}, which is not in the list of images.")
        if not _known(category, categories):
            raise BadRequest(f"{place} has category {printable(category)[:40]}, which is not in the file's list.")
        thing = _thing(annotation, classes[category], sizes[image], len(points), place, mended)
        if thing:
            things[image].append(thing)
    found = (Picture(files[key], sizes[key], tuple(things[key]), key) for key in pictures)
    return Annotations(names, tuple(found), points, pairs, mended.notes, tuple(classes))


def _known(key: Any, table: dict) -> bool:
    return isinstance(key, (int, str)) and key in table


def _by_id(entries: list[dict], kind: str, where: str) -> dict[Any, dict]:
    out: dict[Any, dict] = {}
    for entry in entries:
        key = entry.get("id")
        if type(key) is not int:
            raise BadRequest(f"{where}: the id of a {kind} is {printable(key)[:40]!r}, not a whole number.")
        if key in out:
            raise BadRequest(f"{where}: the {kind} {key} occurs twice.")
        out[key] = entry
    return out


def _size(picture: dict, where: str) -> tuple[int, int] | None:
    if "height" not in picture and "width" not in picture:
        return None
    place = f"{where}, image {picture['id']}"
    rows, columns = (number(picture.get(key), key, place) for key in ("height", "width"))
    if rows < 1 or columns < 1 or rows != int(rows) or columns != int(columns):
        raise BadRequest(f"{place} has {rows:g}x{columns:g} pixels.")
    return int(rows), int(columns)


def _points(categories: list[dict], where: str) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Returns the names of the points, and pairs of "left_x" and "right_x"."""
    found = {tuple(map(str, c["keypoints"])) for c in categories if isinstance(c.get("keypoints"), list)}
    if len(found) > 1:
        raise BadRequest(f"{where}: the categories have different keypoints.")
    names = found.pop() if found else ()
    pairs = []
    for i, name in enumerate(names):
        mirrored = name.replace("left", "right")
        if mirrored != name and mirrored in names:
            pairs.append((i, names.index(mirrored)))
    return names, tuple(pairs)


def _thing(
    annotation: dict, label: int, size: tuple[int, int] | None, points: int, where: str, mended: Mended
) -> Thing | None:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise BadRequest(f"{where}: bbox is {printable(box)[:60]}, not [x, y, width, height].")
    x, y, width, height = (number(v, "bbox", where) for v in box)
    if width < 0 or height < 0:
        raise BadRequest(f"{where}: bbox is {width:g}x{height:g} pixels.")
    kept = box_within((x, y, x + width, y + height), size, where, mended)
    if kept is None:
        return None
    area = number(annotation["area"], "area", where) if annotation.get("area") is not None else width * height
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise BadRequest(f"{where}: iscrowd is {printable(crowd)[:40]}, neither 0 nor 1.")
    mask = _mask(annotation.get("segmentation"), size, where)
    return Thing(label, kept, mask, _place(annotation.get("keypoints"), points, where), bool(crowd), area=area)


def _place(values: Any, count: int, where: str) -> tuple[tuple[float, float, float], ...] | None:
    if not count or values is None:
        return None
    if not isinstance(values, list) or len(values) != 3 * count:
        raise BadRequest(f"{where}: keypoints must be {count} times x, y, visibility.")
    numbers = np.array([number(v, "keypoints", where) for v in values]).reshape(-1, 3)
    if not np.isin(numbers[:, 2], (0, 1, 2)).all():
        raise BadRequest(f"{where}: the visibility of a keypoint is not 0, 1 or 2.")
    numbers[:, :2] += 0.5 * (numbers[:, 2:] > 0)  # COCO's points are pixel indices; ours are the pixels' centres
    return tuple((float(x), float(y), float(v)) for x, y, v in numbers)


def _mask(segmentation: Any, size: tuple[int, int] | None, where: str) -> Any:
    """Returns polygons or `Runs`; None if there is no mask."""
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        polygons = []
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                raise BadRequest(f"{where}: a polygon of the segmentation is not x, y of at least three corners.")
            polygons.append(_corners(polygon, where))
        return tuple(polygons)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise BadRequest(f"{where}: the segmentation is neither polygons nor runs.")
    wanted = list(size) if size else segmentation["size"]
    if segmentation["size"] != wanted or len(wanted) != 2 or not all(type(n) is int and n > 0 for n in wanted):
        raise BadRequest(f"{where}: the segmentation's size is {printable(segmentation['size'])[:40]}.")
    counts = segmentation["counts"]
    counts = uncompressed(counts, where) if isinstance(counts, str) else counts
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise BadRequest(f"{where}: the segmentation's runs are not whole numbers.")
    if sum(counts) != wanted[0] * wanted[1]:
        raise BadRequest(f"{where}: the segmentation's runs cover {sum(counts):,} of {wanted[0] * wanted[1]:,} pixels.")
    return Runs((wanted[0], wanted[1]), tuple(counts))


def _corners(polygon: list, where: str) -> Float[np.ndarray, "n 2"]:
    """Returns x y of the corners; vectorised, because COCO has tens of millions."""
    found = np.asarray(polygon) if all(type(v) in (int, float) for v in polygon) else np.zeros((0, 0))
    if found.ndim != 1 or found.dtype.kind not in "if" or not (np.abs(found) <= 1e7).all():
        found = np.array([number(v, "segmentation", where) for v in polygon])  # to raise an error that names the value
    return found.reshape(-1, 2).astype(np.float32)


def compressed(mask: Bool[np.ndarray, "h w"]) -> str:
    """Returns the runs of a mask as the string that COCO writes and pycocotools reads; see `uncompressed`.

    Example:
      >>> compressed(np.array([[False, True], [True, False]]))
      '121'
    """
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *([0] if len(flat) and flat[0] else []), *ends, len(flat)]).tolist()
    out = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            out.append(chr(48 + bits + 32 * more))
    return "".join(out)


def uncompressed(text: str, where: str) -> list[int]:
    """Returns the lengths of the runs in one of COCO's compressed strings.

    Each length is written in groups of five bits, the lowest first, as characters from "0" (48) on: bit 32 says that
    more groups follow, bit 16 of the last one is the sign. From the fourth length on, the difference to the run two
    places before is written.

    Example:
      >>> uncompressed("5510", "example")
      [5, 5, 1, 5]
    """
    out: list[int] = []
    k = 0
    while k < len(text):
        value, shift, more = 0, 0, True
        while more:
            if k >= len(text) or not 0 <= ord(text[k]) - 48 < 64 or shift > 60:
                raise BadRequest(f"{where}: the segmentation's compressed runs are damaged at character {k}.")
            bits = ord(text[k]) - 48
            value |= (bits & 31) << shift
            more, shift, k = bool(bits & 32), shift + 5, k + 1
        if bits & 16:
            value -= 1 << shift
        out.append(value + (out[-2] if len(out) > 2 else 0))
    return out
