"""Folders of images: which files belong to which split and class, and which layouts are refused."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from recvis_jax import errors, reading
from recvis_jax.data import files

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


class Folder(NamedTuple):
    """The content of a folder of images.

    Attributes:
      classes: class names in Unicode's composed form, sorted; the index is the label.
      roots: split -> the folder that holds its class folders.
      images: split -> paths of its images below its root, as "class/name.jpg", sorted.
      size: bytes of all images.
      notes: sentences on what was left out, and on what may be meant differently.
    """

    classes: tuple[str, ...]
    roots: dict[str, Path]
    images: dict[str, tuple[str, ...]]
    size: int
    notes: tuple[str, ...]


def scan(source: Path) -> Folder:
    """Lists the images below `source`, which holds class folders, or train / val / test folders that hold them.

    Deeper folders count towards their class folder. Hidden files, and files whose names are not those of images, are
    left out and counted. A class name may be written in different Unicode forms in different splits.

    Raises:
      BadRequest: no such folder, no images, a class without images, a class of val or test that train does not have,
        two classes whose names print alike, or an ambiguous layout. The message names the folder.
    """
    shown = errors.printable(source)
    if not os.path.isdir(source):  # pathlib's is_dir raises for very long names
        there = os.path.lexists(source)
        raise errors.BadRequest(f"--source={shown} {'is not a folder' if there else 'does not exist'}.")
    top = files.subfolders(source)
    # A class may be called "train", too; but only a split contains folders.
    named = {d: SPLITS[d.lower()] for d in top if d.lower() in SPLITS and files.subfolders(source / d)}
    roots = {"train": source}
    if "train" in named.values() or (named and len(named) == len(top)):
        if others := [d for d in top if d not in named]:
            raise errors.BadRequest(
                f"{shown} holds splits ({some(list(named))}) and beside them {some(others)}: move the latter "
                "elsewhere, or rename the splits if they are classes."
            )
        if twice := [d for d in named if list(named.values()).count(named[d]) > 1]:
            raise errors.BadRequest(f"{shown} holds the same split under two names: {some(twice)}.")
        given = {split: source / d for d, split in named.items()}
        roots = {split: given[split] for split in dict.fromkeys(SPLITS.values()) if split in given}
    stray: list[Path] = []
    found = {split: _classes(root, stray) for split, root in roots.items()}
    _check(source, roots, found)
    classes = tuple(sorted({composed(c) for by_class in found.values() for c in by_class}))
    images = {split: tuple(sorted(i for c in by_class.values() for i in c)) for split, by_class in found.items()}
    sizes = (_size(roots[split] / image) for split in images for image in images[split])
    return Folder(classes, roots, images, sum(sizes), _notes(stray, found, classes))


def class_of(image: str) -> str:
    """Returns the class of an image "class/name.jpg"."""
    return composed(image.split("/", 1)[0])


def composed(name: str) -> str:
    """Returns a name in Unicode's composed form (NFC); macOS stores names decomposed."""
    return unicodedata.normalize("NFC", name)


def some(names: Sequence[object], count: int = 10) -> str:
    """Returns the first few names of files or classes, made printable, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(errors.printable(n) for n in names[:count]) + more


def _size(path: Path) -> int:
    try:
        return reading.regular(path, "image bytes").st_size
    except errors.BadRequest:  # reported with the images that cannot be read
        return 0


def _classes(root: Path, stray: list[Path]) -> dict[str, list[str]]:
    """Returns class -> images below `root`; all other files go to `stray`."""
    names = files.subfolders(root)
    hidden_or_class = {e.name for e in files.entries(root) if (root / e.name).is_dir()}
    stray += [root / e.name for e in files.entries(root) if e.name not in hidden_or_class]
    return {name: [p.relative_to(root).as_posix() for p in files.walk(root / name, stray)] for name in names}


def _check(source: Path, roots: dict[str, Path], found: dict[str, dict[str, list[str]]]) -> None:
    for split, by_class in found.items():
        where = errors.printable(roots[split])
        if not by_class:
            loose = any(files.is_image(p.name) for p in roots[split].iterdir())
            raise errors.BadRequest(
                f"{where} has no class folders{', its images are directly in it' if loose else ''}; "
                "each class needs a folder of its own."
            )
        if empty := [c for c, images in by_class.items() if not images]:
            what = "holds no images" if len(empty) == len(by_class) else f"has classes without images: {some(empty)}"
            raise errors.BadRequest(f"{where} {what}.")
        for name in by_class:
            if name != name.strip() or any(map(_is_control, name)):
                raise errors.BadRequest(
                    f"'{errors.printable(name)}' in {where} cannot be a class name: it has control characters or "
                    "begins or ends with a space; rename the folder."
                )
        alike: dict[str, str] = {}
        for name in by_class:
            other = alike.setdefault(composed(name), name)
            if other != name:
                raise errors.BadRequest(
                    f"{where} has two classes whose names print alike, '{errors.printable(name)}', in two Unicode "
                    f"forms ({_points(other)}; {_points(name)}): join or rename the folders."
                )
    classes = set().union(*found.values())
    if len(classes) == 1:
        (only,) = classes
        if any(files.subfolders(root / only) for root in roots.values() if (root / only).is_dir()):
            raise errors.BadRequest(
                f"{errors.printable(source)} holds one folder only; did you mean "
                f"--source={errors.printable(source / only)}?"
            )
    if "train" in found:
        known = {composed(c) for c in found["train"]}
        for split, by_class in found.items():
            if unknown := sorted(c for c in by_class if composed(c) not in known):
                raise errors.BadRequest(
                    f"classes in {errors.printable(roots[split])} that train does not have: {some(unknown)}."
                    f"{errors.nearest(unknown[0], sorted(known))}"
                )


def _is_control(c: str) -> bool:
    """Whether a character disturbs printing, as line feeds, escapes and changes of the writing direction do."""
    return unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(c) in (
        "LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI",
    )  # fmt: skip


def _points(name: str) -> str:
    """Returns the code points of a name that are not ASCII, as U+00E9."""
    return " ".join(f"U+{ord(c):04X}" for c in name if not c.isascii())


def _notes(stray: list[Path], found: dict[str, dict[str, list[str]]], classes: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    visible = [p for p in stray if not files.ignored(p.name)]
    loose = [p for p in visible if files.is_image(p.name)]
    other = [p for p in visible if not files.is_image(p.name)]
    if loose:
        notes.append(f"ignored {len(loose)} images outside any class folder: {some(loose, 3)}")
    if other:
        notes.append(f"ignored {len(other)} files that are not images: {some(other, 3)}")
    if hidden := len(stray) - len(visible):
        notes.append(f"ignored {hidden} hidden files")
    for split, by_class in found.items():
        there = {composed(c) for c in by_class}
        if missing := [c for c in classes if c not in there]:
            notes.append(f"{split} has no images of {some(missing)}")
    alike: dict[str, list[str]] = {}
    for c in classes:
        alike.setdefault(unicodedata.normalize("NFKC", c).casefold(), []).append(c)
    for names in alike.values():
        if len(names) > 1:
            notes.append(f"note: {' and '.join(map(errors.printable, names))} are two classes with similar names")
    if len(classes) == 1:
        notes.append(
            f"note: there is only one class, {errors.printable(classes[0])}: a classifier has nothing to distinguish; "
            "for training without labels, such as a masked autoencoder, this does not matter"
        )
    return tuple(notes)
