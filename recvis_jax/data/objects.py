"""Pictures with boxed objects: their fields, and how a prepared data set stores them.

A prepared picture is `id`, `image`, `image_id` and a sequence `objects` of `label`, `box` (x0 y0 x1 y1 in pixels),
`bbox` (the same as fractions, tfds's form), `crowd`, `difficult`, `area` (pixels), and, if there are any, `mask` (a
string of COCO's compressed runs, which pycocotools reads) and `points` (k 3). tfds's own COCO and VOC are read, too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from recvis_jax.data import annotations, coco
from recvis_jax.data.annotations import Runs, Thing
from recvis_jax.data.fields import Field
from recvis_jax.errors import BadRequest, nearest, printable

MOST = 100  # objects of a picture if the data set does not tell; COCO's measures use the same limit
# Our name -> the name in tfds's own data sets.
_THEIRS = {"crowd": "is_crowd", "difficult": "is_difficult"}


def declare(
    most: int,
    *,
    channels: int = 3,
    masks: bool = False,
    points: int = 0,
    pairs: Sequence[tuple[int, int]] = (),
) -> tuple[Field, ...]:
    """Declares the fields of a picture with objects.

    Args:
      most: objects per picture that batches are padded to.
      channels: of the images.
      masks: whether objects have masks.
      points: number of points of an object; 0 for none.
      pairs: points that are swapped in a mirrored picture.

    Returns:
      image (h w c); boxes (n 4); for each box labels, crowd, difficult, area, masks (n h w), points (n k 3); for the
      picture image_id, size (rows, columns) and frame.

    Example:
      >>> [f.name for f in declare(20)]
      ['image', 'boxes', 'labels', 'crowd', 'difficult', 'area', 'image_id', 'size', 'frame']
    """

    def of_box(name: str, kind: Any, end: tuple, dtype: str, padding: float = 0, **kw: Any) -> Field:
        return Field(name, kind, (None, *end), dtype, most, padding, "boxes", **kw)

    return (
        Field("image", "image", (None, None, channels), "uint8"),
        Field("boxes", "boxes", (None, 4), "float32", most),
        of_box("labels", "label", (), "int32", padding=-1),
        of_box("crowd", "number", (), "bool"),
        of_box("difficult", "number", (), "bool"),
        of_box("area", "number", (), "float32"),
        *([of_box("masks", "masks", (None, None), "bool")] if masks else []),
        *([of_box("points", "points", (points, 3), "float32", pairs=tuple(pairs))] if points else []),
        Field("image_id", "number", (), "int32"),
        Field("size", "number", (2,), "int32"),
        Field("frame", "frame", (4,), "float32"),
    )


def features(tfds: Any, classes: Sequence[str], masks: bool, points: int) -> dict[str, Any]:
    """Returns tfds's features of a prepared picture."""
    f = tfds.features
    one: dict[str, Any] = {
        "label": f.ClassLabel(names=list(classes)),
        "box": f.Tensor(shape=(4,), dtype=np.float32),
        "bbox": f.BBoxFeature(),
        "crowd": f.Scalar(np.bool_),
        "difficult": f.Scalar(np.bool_),
        "area": f.Scalar(np.float32),
    }
    one |= {"mask": f.Text()} if masks else {}
    one |= {"points": f.Tensor(shape=(points, 3), dtype=np.float32)} if points else {}
    image = f.Image(shape=(None, None, 3))
    return {"id": f.Text(), "image": image, "image_id": f.Scalar(np.int64), "objects": f.Sequence(one)}


def encode(
    things: Sequence[Thing], size: tuple[int, int], masks: bool, points: int, mended: annotations.Mended, where: str
) -> list[dict[str, Any]]:
    """Returns the objects of a picture in the form in which they are written.

    Args:
      things: the objects, inside the picture.
      size: rows and columns of the picture.
      masks, points: see `declare`. Without a mask, an object gets that of its box; without points, none are visible.
      mended: counts the objects without a mask.
      where: which picture, for notes.

    Raises:
      BadRequest: a mask of another size than the picture's.
    """
    out = []
    for thing in things:
        x0, y0, x1, y1 = thing.box
        bbox = np.clip(np.float32([y0 / size[0], x0 / size[1], y1 / size[0], x1 / size[1]]), 0, 1)
        row: dict[str, Any] = {
            "label": thing.label,
            "box": np.float32(thing.box),
            "bbox": bbox,
            "crowd": thing.crowd,
            "difficult": thing.difficult,
            "area": np.float32(thing.area),
        }
        if masks:
            if thing.mask is None:
                mended.add("objects have no mask, and are assumed to fill their box", where)
            row["mask"] = coco.compressed(annotations.as_mask(thing, size))
        if points:
            row["points"] = np.float32(thing.points if thing.points is not None else np.zeros((points, 3)))
        out.append(row)
    return out


def there(objects: Any, known: Any) -> tuple[Field, ...]:
    """Declares the fields of a tfds data set, with the usual maximum number of objects.

    Args:
      objects: its feature `objects` as a mapping of features.
      known: its other features.
    """
    points = objects["points"].shape[0] if "points" in objects else 0
    have = {"image", "boxes", "labels", "size", "frame"}
    have |= {name for name in ("crowd", "difficult", "area") if name in objects or _THEIRS.get(name) in objects}
    have |= {"masks"} if "mask" in objects else set()
    have |= {"points"} if points else set()
    have |= {"image_id"} if {"image_id", "image/id"} & set(known) else set()
    channels = (known["image"].shape or (None, None, 3))[-1] or 3
    return tuple(f for f in declare(MOST, channels=channels, masks=True, points=points) if f.name in have)


def cut_off(counts: Any, splits: Sequence[str], most: int) -> tuple[str, ...]:
    """Returns a sentence for each split in which a maximum drops objects.

    Args:
      counts: split -> {objects of a picture: pictures}, from the record of a data set.
      splits: names of the splits.
      most: the maximum.

    Example:
      >>> cut_off({"train": {"1": 9, "7": 2}}, ["train"], 5)[0].partition(";")[0]
      'note: train has 2 pictures with more than 5 objects (data.most_objects)'
    """
    out = []
    for split in splits:
        of = counts.get(split) if isinstance(counts, dict) else None
        many = {int(n): int(c) for n, c in of.items() if int(n) > most} if isinstance(of, dict) else {}
        if many:
            gone = sum((n - most) * c for n, c in many.items())
            out.append(
                f"note: {split} has {sum(many.values()):,} pictures with more than {most} objects (data.most_objects); "
                f"{gone:,} objects, crowds and small ones, are dropped"
            )
    return tuple(out)


def choose(declared: Sequence[Field], names: Sequence[str], most: int, where: str) -> tuple[Field, ...]:
    """Returns the requested fields, by their names in `declared`.

    Args:
      declared: the fields of the data set.
      names: names of the requested fields; empty for all. Fields that belong to boxes bring the boxes with them.
      most: maximum of objects per picture; 0 for the declared one.
      where: the data set's name, for messages.

    Raises:
      BadRequest: an unknown name; the message lists the known ones.
    """
    known = [f.name for f in declared]
    for name in names:
        if name not in known:
            raise BadRequest(f"{where} has no field {name!r}.{nearest(name, known)} It has: {', '.join(known)}.")
    wanted = set(names) | {f.of for f in declared if f.name in names}
    kept = (f for f in declared if not names or f.name in wanted)
    return tuple(f if f.most is None or not most else f._replace(most=most) for f in kept)


def reader(fields: Sequence[Field], limited: bool, where: str) -> Callable[[Mapping[str, Any], np.ndarray], dict]:
    """Returns (row of tfds, decoded image) -> example of these fields.

    Args:
      fields: from `choose`.
      limited: whether the user set the maximum: if so, crowds and the smallest objects beyond it are left out; if not,
        `read` raises BadRequest for a picture with more.
      where: for messages.
    """
    names = {f.name for f in fields}
    shapes = {f.name: tuple(n or 0 for n in f.shape or ()) for f in fields}  # tfds loses the shapes of empty sequences
    most = next((f.most for f in fields if f.kind == "boxes"), None)

    def read(row: Mapping[str, Any], image: np.ndarray) -> dict[str, Any]:
        h, w = image.shape[:2]
        objects = row["objects"]
        found = {"image": image, "size": np.int32([h, w]), "frame": np.float32([0, 0, w, h])}
        if "image_id" in names:
            found["image_id"] = np.int64(row["image_id"] if "image_id" in row else row["image/id"])
        if "box" in objects:
            boxes = np.asarray(objects["box"], np.float32).reshape(-1, 4)
        else:
            bbox = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)  # ymin xmin ymax xmax
            boxes = bbox[:, [1, 0, 3, 2]] * np.array([w, h, w, h], np.float32)
        if most and len(boxes) > most and not limited:
            raise BadRequest(
                f"{where}: a picture has {len(boxes)} objects, but {most} are expected at most; set "
                f"data.most_objects={len(boxes)}, or a smaller number to leave out the smallest objects."
            )
        keep = np.arange(len(boxes))
        if limited and most and len(boxes) > most:
            crowd = np.asarray(_column(objects, "crowd", len(boxes)), bool)
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
            keep = np.sort(np.lexsort((-areas, crowd))[:most])
        found["boxes"] = boxes[keep]
        found["labels"] = np.asarray(objects["label"], np.int64).reshape(-1)[keep]
        for name in names & {"crowd", "difficult", "area"}:
            found[name] = np.asarray(_column(objects, name, len(boxes))).reshape(-1)[keep]
        if "masks" in names:
            found["masks"] = _masks([objects["mask"][k] for k in keep], (h, w), where)
        if "points" in names:
            found["points"] = np.asarray(objects["points"], np.float32).reshape(-1, *shapes["points"][1:])[keep]
        return {f.name: found[f.name] for f in fields}

    return read


def _column(objects: Mapping[str, Any], name: str, count: int) -> Any:
    return next((objects[key] for key in (name, _THEIRS.get(name, name)) if key in objects), np.zeros(count))


def _masks(texts: Sequence[bytes | str], size: tuple[int, int], where: str) -> np.ndarray:
    out = np.zeros((len(texts), *size), bool)
    for mask, text in zip(out, texts, strict=True):
        counts = coco.uncompressed(text.decode() if isinstance(text, bytes) else text, where)
        if sum(counts) != mask.size:
            raise BadRequest(f"{printable(where)}: the runs of a mask cover {sum(counts):,} of {mask.size:,} pixels.")
        mask[:] = annotations.as_mask(Thing(0, (0, 0, 1, 1), Runs(size, tuple(counts))), size)
    return out
