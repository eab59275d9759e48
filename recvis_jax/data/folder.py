"""Folders of images as data sets: which files belong to which split and class, and what to do about bad ones."""

import dataclasses
import hashlib
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recvis_jax import errors
from recvis_jax.data import image_file, writing
from recvis_jax.data.download import Say, progress

VERSION = "1.0.0"

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .webp .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .avif .heic .heif".split()
)
_NOT_OURS = ("__MACOSX", "@eaDir", "lost+found")


class Folder(NamedTuple):
    """What a folder of images holds.

    Attributes:
      classes: class names, sorted; the index is the label.
      roots: split -> the folder that holds its class folders.
      images: split -> paths of its images below its root, as "class/name.jpg", sorted.
      size: bytes of all images.
      notes: sentences on what was left out.
    """

    classes: tuple[str, ...]
    roots: dict[str, Path]
    images: dict[str, tuple[str, ...]]
    size: int
    notes: tuple[str, ...]


def scan(source: Path) -> Folder:
    """Lists the images below `source`, which holds class folders, or train / val / test folders that hold them.

    Deeper folders count towards the class folder they are in. Hidden files and files that are no images by their
    names are left out and counted.

    Raises:
      BadRequest: no such folder, no images, a class without images, a class of val or test that train does not have,
        or a layout that could mean two things. The message names the folder.
    """
    if not source.is_dir():
        raise errors.BadRequest(f"--source={source} {'is not a folder' if source.exists() else 'does not exist'}.")
    top = _subfolders(source)
    # A class may be called "train" too; but only a split has folders inside.
    named = {d: SPLITS[d.lower()] for d in top if d.lower() in SPLITS and _subfolders(source / d)}
    roots = {"train": source}
    if "train" in named.values() or (named and len(named) == len(top)):
        if others := [d for d in top if d not in named]:
            raise errors.BadRequest(
                f"{source} holds splits ({', '.join(named)}) and beside them {', '.join(others[:10])}: move the latter "
                "elsewhere, or the splits if they are classes."
            )
        if twice := [d for d in named if list(named.values()).count(named[d]) > 1]:
            raise errors.BadRequest(f"{source} holds the same split under two names: {', '.join(twice)}.")
        given = {split: source / d for d, split in named.items()}
        roots = {split: given[split] for split in dict.fromkeys(SPLITS.values()) if split in given}
    stray: list[str] = []
    found = {split: _classes(root, stray) for split, root in roots.items()}
    _check(source, roots, found)
    classes = tuple(sorted(found["train"] if "train" in found else set().union(*found.values())))
    images = {split: tuple(sorted(i for c in by_class.values() for i in c)) for split, by_class in found.items()}
    sizes = (_size(roots[split] / image) for split in images for image in images[split])
    return Folder(classes, roots, images, sum(sizes), _notes(stray, found, classes))


def _subfolders(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not _ignored(e.name))


def _ignored(name: str) -> bool:
    return name.startswith(".") or name in _NOT_OURS


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # reported with the images that cannot be read
        return 0


def _classes(root: Path, stray: list[str]) -> dict[str, list[str]]:
    """Returns class -> images below `root`; whatever else lies there goes to `stray`."""
    out: dict[str, list[str]] = {}
    stray += [str(root / e.name) for e in os.scandir(root) if not e.is_dir()]
    for name in _subfolders(root):
        out[name] = []
        seen: set[str] = set()
        for folder, inner, files in os.walk(root / name, followlinks=True):
            if os.path.realpath(folder) in seen:  # a link back upwards
                inner.clear()
                continue
            seen.add(os.path.realpath(folder))
            inner[:] = [d for d in inner if not _ignored(d)]
            for file in files:
                path = Path(folder) / file
                if _ignored(file) or path.suffix.lower() not in SUFFIXES:
                    stray.append(str(path))
                else:
                    out[name].append(path.relative_to(root).as_posix())
    return out


def _check(source: Path, roots: dict[str, Path], found: dict[str, dict[str, list[str]]]) -> None:
    for split, by_class in found.items():
        if not by_class:
            loose = any(p.suffix.lower() in SUFFIXES for p in roots[split].iterdir())
            raise errors.BadRequest(
                f"{roots[split]} has no class folders{', the images lie in it directly' if loose else ''}; "
                "each class needs a folder of its own."
            )
        if empty := [c for c, images in by_class.items() if not images]:
            what = "holds no images" if len(empty) == len(by_class) else f"has classes without images: {_some(empty)}"
            raise errors.BadRequest(f"{roots[split]} {what}.")
        for name in by_class:
            if "\n" in name or name != name.strip() or not _is_utf8(name):
                raise errors.BadRequest(f"{name!r} in {roots[split]} cannot be a class name; rename the folder.")
    classes = set().union(*found.values())
    if len(classes) == 1:
        (only,) = classes
        if any(_subfolders(root / only) for root in roots.values() if (root / only).is_dir()):
            raise errors.BadRequest(f"{source} holds one folder only; did you mean --source={source / only}?")
    for split, by_class in found.items():
        if "train" in found and (unknown := sorted(set(by_class) - set(found["train"]))):
            raise errors.BadRequest(f"classes in {roots[split]} that train does not have: {_some(unknown)}.")


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _notes(stray: list[str], found: dict[str, dict[str, list[str]]], classes: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    visible = [p for p in stray if not _ignored(Path(p).name)]
    loose = [p for p in visible if Path(p).suffix.lower() in SUFFIXES]
    other = [p for p in visible if p not in set(loose)]
    if loose:
        notes.append(f"ignored {len(loose)} images outside of any class folder: {_some(loose, 3)}")
    if other:
        notes.append(f"ignored {len(other)} files that are not images: {_some(other, 3)}")
    if hidden := len(stray) - len(visible):
        notes.append(f"ignored {hidden} hidden files")
    for split, by_class in found.items():
        if missing := [c for c in classes if c not in by_class]:
            notes.append(f"{split} has no images of {_some(missing)}")
    return tuple(notes)


def _some(names: Sequence[str], count: int = 10) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


@dataclasses.dataclass
class _Seen:
    """What came to light while the images of a folder were read, by "split/class/name.jpg"."""

    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    changed: int = 0
    turned: int = 0


def prepare(
    source: Path, root: Path, *, name: str | None = None, skip: bool = False, overwrite: bool = False, say: Say = print
) -> Path:
    """Prepares a folder of images as the data set `name` in `root` and returns its directory.

    Args:
      source: the folder, see `scan`.
      root: where prepared data sets lie.
      name: None makes it from the folder's name.
      skip: leaves out images that cannot be read, where it else is an error that lists them.
      overwrite: replaces a data set of this name that is there. Without it, one made of the same files is left alone.
      say: takes a line about what goes on.

    Raises:
      BadRequest: see `scan`; images that cannot be read; another data set of this name; or a name that will not do.
      Failure: no room.
    """
    found = scan(source)
    name = _name(source, name)
    target = root / name / VERSION
    for note in found.notes:
        say(note)
    if not overwrite and (count := writing.existing(target)) is not None:
        if writing.recorded(target).get("fingerprint") != _fingerprint(_digests(found)):
            raise errors.BadRequest(
                f"{target} holds another data set of the same name, {count:,} examples; use --overwrite to replace it, "
                "or give this one another --name."
            )
        say(f"already prepared at {target}, {count:,} examples; use --overwrite to make it again")
        return target
    writing.make_room(root, found.size)
    seen = _Seen()
    labels = {c: k for k, c in enumerate(found.classes)}
    splits = {
        split: writing.Split(images, _reader(split, found.roots[split], labels, seen), _shards(found, split))
        for split, images in found.images.items()
    }

    def features(tfds: Any) -> dict[str, Any]:
        label = tfds.features.ClassLabel(names=list(found.classes))
        return {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(None, None, 3)), "label": label}

    with writing.staging(root, name) as stage, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata
        written = writing.write(stage, name, VERSION, splits, features, f"Images of the folder {source.name}.")
        _judge(seen, found, skip, say)
        record = {
            "source": str(source.resolve()),
            "fingerprint": _fingerprint(seen.digests),
            "encoded_anew": seen.changed,
            "skipped": seen.problems,
        }
        return writing.move(written, target, stage, record)


def _reader(split: str, root: Path, labels: dict[str, int], seen: _Seen) -> Callable[..., Iterator[Any]]:
    def read(keys: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        images = image_file.parallel(image_file.load, [root / k for k in keys])
        for key, image in zip(keys, images, strict=True):
            seen.digests[f"{split}/{key}"] = image.digest
            seen.changed += image.changed
            seen.turned += image.turned
            if image.data is None:
                seen.problems[f"{split}/{key}"] = f"{root / key} ({image.problem})"
                yield None
            else:
                identity = key.encode("utf-8", "surrogateescape")
                yield {"id": identity, "image": image.data, "label": labels[key.split("/", 1)[0]]}

    return read


def _judge(seen: _Seen, found: Folder, skip: bool, say: Say) -> None:
    """Says what was wrong with images, or raises BadRequest if that was too much."""
    bad = sorted(seen.problems.values())
    if bad and not skip:
        raise errors.BadRequest(
            f"{len(bad)} of {len(seen.digests):,} images cannot be read: {_some(bad, 20)}. Mend or remove them, or "
            "leave them out with --on_error=skip. Nothing was prepared."
        )
    for line in bad:
        say(f"skipped {line}")
    if bad:
        say(f"skipped {len(bad)} of {len(seen.digests):,} images")
    for split, images in found.images.items():
        good = {i.split("/", 1)[0] for i in images if f"{split}/{i}" not in seen.problems}
        if gone := sorted({i.split("/", 1)[0] for i in images} - good):
            raise errors.BadRequest(f"{found.roots[split]} has classes of which no image can be read: {_some(gone)}.")
    if seen.changed:
        say(f"{seen.changed:,} images were stored as png, being no 8-bit grey or RGB jpeg or png")
    if seen.turned:
        say(
            f"{seen.turned:,} images carry an EXIF rotation, which is not applied: they are seen as stored. Turn them "
            "beforehand if that matters; exiftran -ai does so without loss."
        )


def _fingerprint(digests: dict[str, str]) -> str:
    """Returns a sha256 over the names ("split/class/name.jpg") and the sha256 of all files."""
    lines = (f"{name}\0{digest}\n".encode("utf-8", "surrogateescape") for name, digest in sorted(digests.items()))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _digests(found: Folder) -> dict[str, str]:
    paths = {f"{s}/{i}": found.roots[s] / i for s, images in found.images.items() for i in images}
    out = {}
    with progress("compare", len(paths), "images") as advance:
        for key, digest in zip(paths, image_file.parallel(image_file.digest, list(paths.values())), strict=True):
            out[key] = digest
            advance(1)
    return out


def _name(source: Path, given: str | None) -> str:
    name = given if given is not None else re.sub(r"[^a-z0-9]+", "_", source.resolve().name.lower()).strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        what = f"--name={given} will not do" if given is not None else f"no name comes of {source.resolve().name!r}"
        raise errors.BadRequest(f"{what}: give --name in small letters, digits and _, beginning with a letter.")
    import tensorflow_datasets as tfds

    try:
        tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError:
        return name
    except Exception:  # known to tfds, which lacks something to load it
        pass
    raise errors.BadRequest(f"{name!r} is a data set of tfds; give another --name, such as my_{name}.")


def _shards(found: Folder, split: str) -> int:
    """Returns into how many files a split goes: a power of two, of at least 128 MB each, at most 1024."""
    share = len(found.images[split]) / sum(map(len, found.images.values()))
    wanted = max(1.0, found.size * share / 2**27)
    return min(1024, 2 ** math.floor(math.log2(wanted)), len(found.images[split]))
