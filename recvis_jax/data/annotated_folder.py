"""Folders of annotated pictures in the layouts of COCO, VOC and YOLO: which files belong to which split.

What is looked for below the folder that a user names (`SPLIT` is train, val or test, in any common spelling):

    coco   annotations/*.json with SPLIT in the name, or SPLIT/*.json; pictures in SPLIT..., images/ or beside the file
    voc    Annotations/*.xml, JPEGImages/ and ImageSets/Main/SPLIT.txt, also below VOCdevkit/VOC2007; or SPLIT/*.xml
           beside their pictures
    yolo   data.yaml with names, train, val and test; pictures in images/, their text files in labels/
"""

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recvis_jax import errors, reading
from recvis_jax.data import annotations, coco, files, image_file, voc, yolo
from recvis_jax.data.annotations import Annotations, Picture
from recvis_jax.data.folder import SPLITS, some
from recvis_jax.errors import BadRequest, printable

KINDS = ("coco", "voc", "yolo")
_ORDER = tuple(dict.fromkeys(SPLITS.values()))
_FAMILIES = ("instances", "person_keypoints")  # COCO's own files, in order of preference


class AnnotatedFolder(NamedTuple):
    """The content of a folder of annotated pictures.

    Attributes:
      kind: one of `KINDS`.
      classes: names; the index is the label.
      ids: numbers of the classes in the files; they may have gaps.
      splits: split -> its pictures.
      files: annotation files that were read.
      points, pairs: see `annotations.Annotations`.
      notes: sentences on what was repaired, left out, or may be meant differently.
    """

    kind: str
    classes: tuple[str, ...]
    ids: tuple[int, ...]
    splits: dict[str, tuple[Picture, ...]]
    files: tuple[Path, ...]
    points: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]


def kind_of(source: Path) -> str | None:
    """Returns which of `KINDS` a folder's layout is; None for any other, such as a folder of images."""
    if _yaml_of(source):
        return "yolo"
    if _voc_root(source) is not None or any(_xml_below(source / d) for d in ("", *_split_folders(source))):
        return "voc"
    return "coco" if _json_files(source) else None


def scan(source: Path, kind: str, family: str | None = None) -> AnnotatedFolder:
    """Reads the annotations below `source`; pictures are not read, except their sizes for YOLO.

    Args:
      source: the folder.
      kind: one of `KINDS`.
      family: for COCO, if a split has several files: the beginning of the names of the files to read, such as
        "person_keypoints"; None prefers "instances".

    Raises:
      BadRequest: no such folder or nothing annotated in it; a file in another format; classes that contradict each
        other. The message names the file.
    """
    if not os.path.isdir(source):
        there = os.path.lexists(source)
        raise BadRequest(f"--source={printable(source)} {'is not a folder' if there else 'does not exist'}.")
    if family is not None and kind != "coco":
        raise BadRequest(f"--annotations={printable(family)[:60]} chooses among COCO's files; {kind} has none.")
    read = {"coco": lambda: _coco(source, family), "voc": lambda: _voc(source), "yolo": lambda: _yolo(source)}
    found, used, notes = errors.choose(read, kind, "format")()
    found = {split: found[split] for split in _ORDER if split in found}
    if not any(a.pictures for a in found.values()):
        raise BadRequest(f"{printable(source)} holds no annotated pictures.")
    classes, ids = _classes(found)
    if not classes:
        raise BadRequest(f"{printable(source)} annotates no object, so there are no classes.")
    points = {(a.points, a.pairs) for a in found.values() if a.points}
    if len(points) > 1:
        raise BadRequest(f"{printable(source)}: the splits name different points of an object.")
    notes += [note for a in found.values() for note in a.notes]
    splits = _numbered({split: _relabelled(a, classes) for split, a in found.items()})
    notes += _rare(splits, classes)
    names, pairs = next(iter(points), ((), ()))
    return AnnotatedFolder(kind, classes, ids, splits, tuple(used), names, pairs, tuple(notes))


def _classes(found: dict[str, Annotations]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Merges the classes of the splits, in the order of their numbers in the files."""
    by_id: dict[int, str] = {}
    for a in found.values():
        for number, name in zip(a.ids or range(len(a.classes)), a.classes, strict=True):
            if by_id.setdefault(number, name) != name:
                raise BadRequest(
                    f"class {number} is {printable(by_id[number])[:60]!r} in one split and "
                    f"{printable(name)[:60]!r} in another."
                )
    names = tuple(by_id[number] for number in sorted(by_id))
    if twice := [n for n in names if names.count(n) > 1]:
        raise BadRequest(f"two classes have the same name, {printable(twice[0])[:60]!r}.")
    for name in names:
        if not name.strip() or "\n" in name or "\r" in name or name != name.strip():
            raise BadRequest(f"{printable(name)[:60]!r} cannot be a class name; remove line feeds and outer spaces.")
    return names, tuple(sorted(by_id))


def _relabelled(a: Annotations, classes: tuple[str, ...]) -> tuple[Picture, ...]:
    new = [classes.index(name) for name in a.classes]
    return tuple(p._replace(things=tuple(t._replace(label=new[t.label]) for t in p.things)) for p in a.pictures)


def _numbered(splits: dict[str, tuple[Picture, ...]]) -> dict[str, tuple[Picture, ...]]:
    """Numbers the pictures in the order of the splits, if their format does not."""
    out, count = {}, 0
    for split, pictures in splits.items():
        out[split] = tuple(p if p.id is not None else p._replace(id=count + k) for k, p in enumerate(pictures))
        count += len(pictures)
    return out


def _rare(splits: dict[str, tuple[Picture, ...]], classes: tuple[str, ...]) -> list[str]:
    """Returns notes on classes without objects in any split, or without objects in train."""
    seen = {split: {t.label for p in pictures for t in p.things} for split, pictures in splits.items()}
    never = [c for k, c in enumerate(classes) if not any(k in labels for labels in seen.values())]
    notes = [f"note: there are no objects of {some(never)}"] if never else []
    for split, labels in seen.items():
        if new := [classes[k] for k in sorted(labels - seen.get("train", labels))]:
            notes.append(f"note: {split} has objects of classes that are missing in train: {some(new)}")
    return notes


# COCO


def _coco(source: Path, family: str | None) -> tuple[dict[str, Annotations], list[Path], list[str]]:
    there = _json_files(source)
    if not there:
        raise BadRequest(f"{printable(source)} holds no JSON files, neither in annotations/ nor in folders of splits.")
    by_split: dict[str, list[Path]] = {}
    for path in there:
        by_split.setdefault(_split_of(path, source), []).append(path)
    chosen, notes, out = {}, [], {}
    for split, paths in by_split.items():
        chosen[split] = _of_family(paths, family)
        if left := [p for p in paths if p != chosen[split]]:
            notes.append(f"{split}: {printable(chosen[split].name)} is used, not {some([p.name for p in left], 3)}")
    for split, path in chosen.items():
        out[split] = coco.read(path, functools.partial(_pictures_of, path, split, source))
    return out, list(chosen.values()), notes


def _of_family(paths: Sequence[Path], family: str | None) -> Path:
    wanted = (family,) if family else _FAMILIES
    for name in wanted:
        found = [p for p in paths if p.name.startswith(name)]
        if len(found) == 1:
            return found[0]
    if len(paths) == 1 and not family:
        return paths[0]
    what = f"none of these begins with {printable(family)[:60]!r}" if family else "any of these may be meant"
    raise BadRequest(
        f"{what}: {some([p.name for p in paths])}; choose the beginning of the name: --annotations=instances."
    )


def _json_files(source: Path) -> list[Path]:
    folders = ("", "annotations", *_split_folders(source))
    found = [source / d / e.name for d in folders for e in _entries(source / d) if e.name.lower().endswith(".json")]
    return [p for p in found if not files.ignored(p.name) and p.is_file()]


def _split_of(path: Path, source: Path) -> str:
    """Returns the split of an annotation file from its name or its folder's name; train if neither tells."""
    names = [path.stem, *([path.parent.name] if path.parent != source else [])]
    for name in names:
        words = "".join(c if c.isalpha() else " " for c in name.lower()).split()
        if split := next((SPLITS[w] for w in reversed(words) if w in SPLITS), None):
            return split
    return "train"


def _pictures_of(path: Path, split: str, source: Path, first: str) -> Path:
    """Returns the folder of a file's pictures: the first folder that contains the first picture."""
    suffix = path.stem.rpartition("_")[2]
    spelled = [name for name, of in SPLITS.items() if of == split]
    names = [suffix, *spelled, *(f"images/{n}" for n in (suffix, *spelled)), "images", ""]
    places = [path.parent, *(source / n for n in names), path.parent / "images"]
    for place in dict.fromkeys(places):
        if annotations.file_below(place, first, printable(path)).exists():
            return place
    looked = some([p.relative_to(source).as_posix() for p in dict.fromkeys(places) if p.is_dir()], 6)
    raise BadRequest(
        f"{printable(path)}: the picture {printable(first)[:80]!r} is missing; searched below {printable(source)} in "
        f"{looked}."
    )


# VOC


def _voc(source: Path) -> tuple[dict[str, Annotations], list[Path], list[str]]:
    root = _voc_root(source)
    notes: list[str] = []
    if root is None:
        folders = {SPLITS[d.lower()]: source / d for d in _split_folders(source) if _xml_below(source / d)}
        folders = folders or {"train": source}
        xml = {split: [(p, p.parent) for p in _xml_below(folder)] for split, folder in folders.items()}
    else:
        images = next((root / d for d in ("JPEGImages", "images") if (root / d).is_dir()), None)
        if images is None:
            raise BadRequest(f"{printable(root)} has annotations, but neither JPEGImages nor images beside them.")
        xml = {split: [(p, images) for p in paths] for split, paths in _image_sets(root, notes).items()}
    if not any(xml.values()):
        raise BadRequest(f"{printable(source)} holds no annotations in XML files.")
    paths = sorted({pair for pairs in xml.values() for pair in pairs})
    whole = voc.read([p for p, _ in paths], [folder for _, folder in paths])
    by_path = dict(zip((p for p, _ in paths), whole.pictures, strict=True))
    out = {
        split: Annotations(whole.classes, tuple(by_path[p] for p, _ in pairs)) for split, pairs in xml.items() if pairs
    }
    if lonely := [i for i in _images_beside(paths) if i not in {p.path for p in whole.pictures}]:
        notes.append(f"left out {len(lonely):,} images without an annotation file, such as {printable(lonely[0])}")
    first = next(iter(out))
    out[first] = out[first]._replace(notes=whole.notes)
    return out, [p for p, _ in paths], notes


def _voc_root(source: Path) -> Path | None:
    """Returns the folder that holds Annotations/, or annotations/ with XML files."""
    if (source / "Annotations").is_dir() or _xml_below(source / "annotations"):
        return source
    kit = source / "VOCdevkit" if (source / "VOCdevkit").is_dir() else source
    years = [kit / d for d in _folders(kit) if d.upper().startswith("VOC") and (kit / d / "Annotations").is_dir()]
    if len(years) > 1:
        raise BadRequest(f"{printable(kit)} holds several years; choose one, such as --source={printable(years[0])}.")
    return years[0] if years else None


def _image_sets(root: Path, notes: list[str]) -> dict[str, list[Path]]:
    lists = {p.stem: p for p in sorted((root / "ImageSets" / "Main").glob("*.txt")) if p.stem in (*SPLITS, "trainval")}
    if "train" in lists or "trainval" not in lists:
        lists.pop("trainval", None)
    all_of = {p.stem: p for p in _xml_below(root / "Annotations") or _xml_below(root / "annotations")}
    if not lists:
        return {"train": list(all_of.values())}
    out: dict[str, list[Path]] = {}
    for name, path in lists.items():
        wanted = [line.split()[0] for line in reading.read_text(path).splitlines() if line.strip()]
        missing = [w for w in wanted if w not in all_of]
        if missing and len(missing) == len(wanted):
            notes.append(f"left out {printable(path.name)}: none of its pictures are annotated")
            continue
        if missing:
            raise BadRequest(f"{printable(path)} lists pictures without a file in Annotations: {some(missing, 5)}.")
        out[SPLITS.get(name, "train")] = [all_of[w] for w in dict.fromkeys(wanted)]
    return out


def _xml_below(folder: Path) -> list[Path]:
    return [folder / e.name for e in _entries(folder) if e.name.lower().endswith(".xml")]


def _images_beside(paths: Iterable[tuple[Path, Path]]) -> list[Path]:
    folders = sorted({folder for _, folder in paths})
    return [f / e.name for f in folders for e in _entries(f) if files.is_image(e.name) and not files.ignored(e.name)]


# YOLO


def _yolo(source: Path) -> tuple[dict[str, Annotations], list[Path], list[str]]:
    path = _yaml_of(source)
    if path is None:
        raise BadRequest(f"{printable(source)} has no data.yaml that names the classes (names) and the splits (train).")
    content = _yaml(path)
    names = _names(content.get("names"), path)
    classes = [names.get(k, "") for k in range(max(names) + 1)]
    points = _shape(content.get("kpt_shape"), path)
    pairs = _flip_pairs(content.get("flip_idx"), points, path)
    out, used = {}, [path]
    for key, split in SPLITS.items():
        if content.get(key) is None:
            continue
        if split in out:
            raise BadRequest(f"{printable(path)} names the split {split} twice.")
        paths = _yolo_images(content[key], content.get("path"), key, path)
        rows = [(image, _labels_of(image, source), image_file.upright_size(image)) for image in paths]
        found = yolo.read(rows, classes, points, pairs)
        used += [labels for _, labels, _ in rows if labels.exists()]
        if nameless := [p for p in found.pictures for t in p.things if t.label not in names]:
            raise BadRequest(f"{printable(nameless[0].path)} has an object of a class without a name in {path.name}.")
        new = {k: i for i, k in enumerate(sorted(names))}
        pictures = tuple(
            p._replace(things=tuple(t._replace(label=new[t.label]) for t in p.things)) for p in found.pictures
        )
        out[split] = found._replace(
            classes=tuple(names[k] for k in sorted(names)), ids=tuple(sorted(names)), pictures=pictures
        )
    if not out:
        raise BadRequest(f"{printable(path)} names no split: give train, and val and test if they exist.")
    return out, used, []


def _yaml_of(source: Path) -> Path | None:
    """Returns the YAML file of a YOLO data set: data.yaml, or the only YAML file."""
    found = [source / e.name for e in _entries(source) if e.name.lower().endswith((".yaml", ".yml"))]
    named = [p for p in found if p.stem.lower() in ("data", "dataset")]
    return named[0] if named else found[0] if len(found) == 1 else None


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    text = reading.read_text(path, "config bytes", "YOLO data set")
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        what = " ".join(str(e).split())
        raise BadRequest(f"{printable(path)} is not YAML: {printable(what)[:100]}.") from None
    if not isinstance(found, dict):
        raise BadRequest(f"{printable(path)} is not a YOLO data set: it has no keys such as names and train.")
    return found


def _names(found: Any, path: Path) -> dict[int, str]:
    named = dict(enumerate(found)) if isinstance(found, list) else found
    if not isinstance(named, dict) or not named:
        raise BadRequest(f"{printable(path)}: names is not a list of class names.")
    for key, name in named.items():
        if type(key) is not int or not 0 <= key < 100_000 or not isinstance(name, str | int):
            raise BadRequest(f"{printable(path)}: names: {errors.shown(key)}: {errors.shown(name)} is not a class.")
    return {key: str(name) for key, name in named.items()}


def _shape(found: Any, path: Path) -> tuple[int, int] | None:
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != 2 or found[1] not in (2, 3) or found[0] not in range(1, 1001):
        raise BadRequest(f"{printable(path)}: kpt_shape is {errors.shown(found)}, not [number of points, 2 or 3].")
    return found[0], found[1]


def _flip_pairs(found: Any, points: tuple[int, int] | None, path: Path) -> tuple[tuple[int, int], ...]:
    if found is None or points is None:
        return ()
    if not isinstance(found, list) or sorted(map(str, found)) != sorted(map(str, range(points[0]))):
        raise BadRequest(f"{printable(path)}: flip_idx is {errors.shown(found)}, not an order of {points[0]} points.")
    if any(found[k] != i for i, k in enumerate(found)):
        raise BadRequest(f"{printable(path)}: flip_idx does not exchange points in pairs.")
    return tuple((i, k) for i, k in enumerate(found) if i < k)


def _yolo_images(value: Any, base: Any, key: str, path: Path) -> list[Path]:
    """Returns the images of a split of the YAML file, which names folders of images or text files that list images."""
    out: list[Path] = []
    for name in value if isinstance(value, list) else [value]:
        if not isinstance(name, str) or not name:
            raise BadRequest(f"{printable(path)}: {key} is {errors.shown(name)}, not a folder of images.")
        parts = [p for p in Path(name).parts if p not in ("..", ".", "/")]  # Roboflow writes ../train/images
        bases = [path.parent, *([path.parent / Path(base).name] if isinstance(base, str) else [])]
        places = [b.joinpath(*parts[k:]) for b in bases for k in range(len(parts))]
        place = next((p for p in places if p.exists()), None)
        if place is None:
            raise BadRequest(f"{printable(path)}: {key} names {printable(name)[:80]!r}, which is not below its folder.")
        if place.is_dir():
            out += sorted(files.walk(place, []))
        else:
            lines = [line.strip() for line in reading.read_text(place).splitlines() if line.strip()]
            out += [annotations.file_below(place.parent, line.removeprefix("./"), printable(place)) for line in lines]
    return out


def _labels_of(image: Path, source: Path) -> Path:
    """Returns the label file of an image: in labels/ if the image is in images/, else beside it."""
    parts = list(image.relative_to(source).parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        parts[last] = "labels"
    return source.joinpath(*parts).with_suffix(".txt")


def _split_folders(source: Path) -> list[str]:
    return [d for d in _folders(source) if d.lower() in SPLITS]


def _folders(source: Path) -> list[str]:
    return files.subfolders(source) if source.is_dir() else []


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    return files.entries(folder) if folder.is_dir() else []
