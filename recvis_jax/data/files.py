"""Finds image files below a folder: regular folders only, in order, and not for ever."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from recvis_jax import errors, reading
from recvis_jax.data.image_file import SUFFIXES

_NOT_OURS = ("__MACOSX", "@eaDir", "lost+found")
# File systems that the kernel makes up: they do not end, and reading in them has effects.
_MADE_UP = ("proc", "sysfs", "devtmpfs", "devpts", "debugfs", "tracefs", "configfs", "securityfs", "cgroup", "cgroup2")


def ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or something that a system keeps there for itself."""
    return name.startswith(".") or name in _NOT_OURS


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def subfolders(folder: Path) -> list[str]:
    """Returns the names of the folders in `folder` that are not ignored, sorted; links to folders are folders.

    Raises:
      BadRequest: it cannot be read, or belongs to a file system that the kernel makes up.
    """
    return sorted(e.name for e in entries(folder) if not ignored(e.name) and _is_dir(e))


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns what lies in a folder, by name; see `subfolders` for errors."""
    try:
        device = folder.stat().st_dev
        if kind := _made_up().get(device):
            raise errors.BadRequest(
                f"{errors.printable(folder)} is of the kernel ({kind}), not a folder of images; nothing was read."
            )
        with os.scandir(folder) as found:
            return sorted(found, key=lambda e: e.name)
    except OSError as e:
        raise errors.BadRequest(f"{errors.printable(folder)} cannot be read: {e.strerror or e}.") from None


def walk(root: Path, stray: list[Path]) -> Iterator[Path]:
    """Yields the image files below `root`, in order of their names; other files, and hidden ones, go to `stray`.

    Links to folders are followed, but no folder is entered twice, nor one that holds `root`.

    Raises:
      BadRequest: see `entries`; or there are more files or deeper folders than `reading.LIMITS` allows.
    """
    seen = {_identity(p) for p in root.resolve().parents}
    count = 0
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop()
        if _identity(folder) in seen:  # a link that leads back
            continue
        seen.add(_identity(folder))
        if depth > reading.LIMITS["depth"]:
            raise errors.BadRequest(
                f"{errors.printable(root)} holds folders in folders, more than {reading.LIMITS['depth']} deep."
            )
        inner = []
        for entry in entries(folder):
            count += 1
            if count > reading.LIMITS["entries"]:
                raise errors.BadRequest(f"{errors.printable(root)} holds more than {count - 1:,} files and folders.")
            if _is_dir(entry):
                if not ignored(entry.name):
                    inner.append((folder / entry.name, depth + 1))
            elif is_image(entry.name) and not ignored(entry.name):
                yield folder / entry.name
            else:
                stray.append(folder / entry.name)
        pending += reversed(inner)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except OSError as e:
        raise errors.BadRequest(f"{errors.printable(folder)} cannot be read: {e.strerror or e}.") from None
    return found.st_dev, found.st_ino


@functools.cache
def _made_up() -> dict[int, str]:
    """Returns device number -> kind of the file systems that the kernel makes up, as Linux lists them."""
    found = {}
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:  # no Linux
        return {}
    for line in lines:
        before, _, after = line.partition(" - ")
        major, _, minor = before.split()[2].partition(":")
        if (kind := after.split()[0]) in _MADE_UP:
            found[os.makedev(int(major), int(minor))] = kind
    return found
