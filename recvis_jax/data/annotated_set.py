"""Makes a data set from a folder of annotated pictures: checks each, turns it upright, compares it with the others."""

import collections
import dataclasses
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recvis_jax.data import annotated_folder, duplicates, fields, image_file, image_header, objects, writing
from recvis_jax.data.annotated_folder import AnnotatedFolder
from recvis_jax.data.annotations import Mended, Picture, box_within
from recvis_jax.data.download import Say
from recvis_jax.data.folder import some
from recvis_jax.data.folder_set import VERSION, check_same, digests, fingerprint, name_of, shards
from recvis_jax.errors import BadRequest, printable

_LARGEST_ID = 2**31 - 1  # of a picture; devices use 32-bit integers


@dataclasses.dataclass
class _Seen:
    """What was found while the pictures were read, by "split/file"."""

    pixels: dict[str, str] = dataclasses.field(default_factory=dict)
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    counts: dict[str, collections.Counter] = dataclasses.field(default_factory=dict)  # objects -> pictures
    mended: Mended = dataclasses.field(default_factory=Mended)
    changed: int = 0
    turned: int = 0


def prepare(
    source: Path,
    root: Path,
    kind: str,
    *,
    name: str | None = None,
    family: str | None = None,
    skip: bool = False,
    on_duplicate: str = "fail",
    overwrite: bool = False,
    say: Say = print,
) -> Path:
    """Prepares a folder of annotated pictures as the data set `name` in `root` and returns its directory.

    Args:
      source: the folder, see `annotated_folder`.
      root: the folder of prepared data sets.
      kind: one of `annotated_folder.KINDS`.
      name: None derives it from the folder's name.
      family: see `annotated_folder.scan`.
      skip: leaves out pictures that cannot be read or do not fit their annotation; otherwise an error lists them.
      on_duplicate: what to do if the same picture is in several places, one of `duplicates.WAYS`.
      overwrite: replaces an existing data set of this name. Without it, one made from the same files is kept as it is.
      say: called with each line about the progress.

    Raises:
      BadRequest: see `annotated_folder.scan` and `duplicates.judge`; pictures that cannot be read; another data set of
        this name; or an invalid name.
      Failure: the disk is full.
    """
    found = annotated_folder.scan(source, kind, family)
    name = name_of(source, name)
    target = root / name / VERSION
    for note in found.notes:
        say(note)
    paths = {f"{s}/{_key(p, source)}": p.path for s, pictures in found.splits.items() for p in pictures}
    of_files = {_relative(p, source): p for p in found.files}
    if not overwrite and (count := writing.existing(target)) is not None:
        check_same(target, fingerprint(digests({**paths, **of_files})), on_duplicate, count)
        say(f"already prepared at {printable(target)}, {count:,} examples; use --overwrite to make it again")
        return target
    found = _small_ids(found, say)
    size = sum(p.stat().st_size for p in paths.values() if p.is_file())
    writing.make_room(root, size)

    with writing.staging(root, name) as stage, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about metadata
        seen, dropped = _Seen(), set[str]()
        written = _write(stage, name, source, found, size, seen, dropped)
        _check_readable(seen, len(paths), skip, say)
        same = duplicates.find(seen.pixels, classes=False)
        if on_duplicate == "drop" and (dropped := duplicates.to_drop(same)):
            shutil.rmtree(written.parent)
            seen = _Seen()
            written = _write(stage, name, source, found, size, seen, dropped)
        for line in (*duplicates.judge(same, on_duplicate, len(dropped)), *seen.mended.notes):
            say(line)
        if gone := [s for s in found.splits if not seen.counts.get(s)]:
            raise BadRequest(f"{printable(source)}: no picture of {gone[0]} is left.")
        if seen.changed - seen.turned:
            say(f"{seen.changed - seen.turned:,} images were stored as png, not being 8-bit grey or RGB jpeg/png")
        if seen.turned:
            say(
                f"note: {seen.turned:,} images were turned by their EXIF orientation and stored as png; their "
                "annotations are assumed to refer to the upright picture"
            )
        for line in _told(seen):
            say(line)
        most = max(max(counts) for counts in seen.counts.values())
        masks, points = _has(found)
        declared = objects.declare(max(1, most), masks=masks, points=points, pairs=found.pairs)
        record = {
            "source": str(source.resolve()),
            "format": kind,
            "fingerprint": fingerprint({**seen.digests, **digests(of_files)}),
            "fields": fields.as_json(declared),
            "objects": {s: {str(n): counts[n] for n in sorted(counts)} for s, counts in seen.counts.items()},
            "class_ids": list(found.ids),
            "points": list(found.points),
            "notes": [*found.notes, *seen.mended.notes],
            "encoded_anew": seen.changed,
            "turned": seen.turned,
            "skipped": seen.problems,
            "duplicates": on_duplicate,
            "dropped": sorted(dropped),
        }
        return writing.move(written, target, stage, record)


def _write(
    stage: Path, name: str, source: Path, found: AnnotatedFolder, size: int, seen: _Seen, dropped: set[str]
) -> Path:
    masks, points = _has(found)
    total = sum(map(len, found.splits.values()))
    splits = {}
    for split, pictures in found.splits.items():
        by_key = {_key(p, source): p for p in pictures}
        if len(by_key) < len(pictures):
            raise BadRequest(f"{split} names a picture twice: {printable(_twice(pictures))}.")
        read = _Reader(split, by_key, masks, points, seen, dropped)
        splits[split] = writing.Split(tuple(by_key), read, shards(size, len(by_key), total))
    about = f"Annotated pictures of the folder {printable(source.name)}, in the format of {found.kind}."
    return writing.write(
        stage, name, VERSION, splits, lambda tfds: objects.features(tfds, found.classes, masks, points), about
    )


class _Reader:
    """Yields the examples of a split by the keys of its pictures."""

    def __init__(
        self, split: str, pictures: dict[str, Picture], masks: bool, points: int, seen: _Seen, dropped: set[str]
    ):
        self.split, self.pictures, self.masks, self.points = split, pictures, masks, points
        self.seen, self.dropped = seen, dropped

    def __call__(self, keys: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        images = image_file.load_all([self.pictures[k].path for k in keys])
        counts = self.seen.counts.setdefault(self.split, collections.Counter())
        for key, image in zip(keys, images, strict=True):
            name, picture = f"{self.split}/{key}", self.pictures[key]
            self.seen.digests[name] = image.digest
            where = f"{printable(picture.path)}, image {picture.id}"
            try:
                if image.data is None:
                    raise BadRequest(image.problem)
                rows = self._objects(picture, _size(image.data), where)
            except BadRequest as e:
                self.seen.problems[name] = f"{where} ({str(e).removeprefix(where + ': ')})"
                yield None
                continue
            self.seen.pixels[name] = image.pixels
            if name in self.dropped:
                yield None
                continue
            self.seen.changed += image.changed
            self.seen.turned += image.turned
            counts[len(rows)] += 1
            yield {
                "id": key.encode("utf-8", "surrogateescape"),
                "image": image.data,
                "image_id": picture.id,
                "objects": rows,
            }

    def _objects(self, picture: Picture, size: tuple[int, int], where: str) -> list[dict[str, Any]]:
        things = picture.things
        if picture.size is None:  # not clipped yet, because the size was unknown
            boxes = [box_within(t.box, size, where, self.seen.mended) for t in things]
            things = tuple(t._replace(box=b) for t, b in zip(things, boxes, strict=True) if b)
        elif picture.size != size:
            turned = " (rows and columns swapped: EXIF orientation?)" if picture.size == size[::-1] else ""
            raise BadRequest(
                f"it has {size[0]}x{size[1]} pixels, its annotation says {picture.size[0]}x{picture.size[1]}{turned}"
            )
        return objects.encode(things, size, self.masks, self.points, self.seen.mended, where)


def _has(found: AnnotatedFolder) -> tuple[bool, int]:
    """Returns whether any object has a mask, and how many points objects have."""
    things = [t for pictures in found.splits.values() for p in pictures for t in p.things]
    return any(t.mask is not None for t in things), len(found.points) * any(t.points is not None for t in things)


def _size(data: bytes) -> tuple[int, int]:
    columns, rows = image_header.size(data) or (0, 0)
    return rows, columns


def _small_ids(found: AnnotatedFolder, say: Say) -> AnnotatedFolder:
    """Renumbers the pictures if their numbers are too large, or if two splits use the same number."""
    ids = [p.id or 0 for pictures in found.splits.values() for p in pictures]
    if min(ids) >= 0 and max(ids) <= _LARGEST_ID and len(set(ids)) == len(ids):
        return found
    what = "several splits use the same" if len(set(ids)) < len(ids) else f"they are not within 0 and {_LARGEST_ID:,}"
    say(f"note: the ids of the pictures are replaced by 0, 1, ..., because {what}")
    fresh = iter(range(len(ids)))
    splits = {s: tuple(p._replace(id=next(fresh)) for p in pictures) for s, pictures in found.splits.items()}
    return found._replace(splits=splits)


def _told(seen: _Seen) -> list[str]:
    """Returns lines on how many objects there are, and how many pictures have none."""
    out = []
    for split, counts in seen.counts.items():
        objects_of, pictures = sum(n * c for n, c in counts.items()), sum(counts.values())
        empty = f", {counts[0]:,} without objects" if counts[0] else ""
        out.append(f"{split}: {objects_of:,} objects in {pictures:,} pictures{empty}, at most {max(counts)} in one")
    return out


def _check_readable(seen: _Seen, total: int, skip: bool, say: Say) -> None:
    bad = sorted(seen.problems.values())
    if bad and not skip:
        raise BadRequest(
            f"{len(bad)} of {total:,} pictures cannot be used: {some(bad, 20)}. Repair or remove them, or leave them "
            "out with --on_error=skip. Nothing was prepared."
        )
    for line in bad:
        say(f"skipped {line}")
    if bad:
        say(f"skipped {len(bad)} of {total:,} pictures")


def _twice(pictures: Sequence[Picture]) -> Path:
    seen: set[Path] = set()
    return next(p.path for p in pictures if p.path in seen or seen.add(p.path))  # type: ignore[func-returns-value]


def _key(picture: Picture, source: Path) -> str:
    return _relative(picture.path, source)


def _relative(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix() if path.is_relative_to(source) else path.as_posix()
