"""Finds image files below a folder: only in regular folders, in sorted order, and without endless loops."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from recvis_jax import errors, reading
from recvis_jax.data.image_file import SUFFIXES

_NOT_OURS = ("__MACOSX", "@eaDir", "lost+found")
# Virtual file systems of the kernel: they are endless, and reading from them has side effects.
_MADE_UP = ("proc", "sysfs", "devtmpfs", "devpts", "debugfs", "tracefs", "configfs", "securityfs", "cgroup", "cgroup2")


def ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or created by an operating system for its own use."""
    return name.startswith(".") or name in _NOT_OURS


def is_image(name: str) -> bool:
    """Whether a file is an image, judged by its name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def subfolders(folder: Path) -> list[str]:
    """Returns the names of the folders in `folder` that are not ignored, sorted; links to folders are folders.

    Raises:
      BadRequest: it cannot be read, or belongs to a virtual file system of the kernel.
    """
    return sorted(e.name for e in entries(folder) if not ignored(e.name) and _is_dir(e))


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder, sorted by name; see `subfolders` for errors."""
    try:
        device = folder.stat().st_dev
        if kind := _made_up().get(device):
            raise errors.BadRequest(
                f"{errors.printable(folder)} belongs to the kernel ({kind}), not a folder of images; nothing was read."
            )
        with os.scandir(folder) as found:
            return sorted(found, key=lambda e: e.name)
    except OSError as e:
        raise errors.BadRequest(f"{errors.printable(folder)} cannot be read: {e.strerror or e}.") from None


def walk(root: Path, stray: list[Path]) -> Iterator[Path]:
    """Yields the image files below `root`, sorted by name; other files, and hidden ones, go to `stray`.

    Links to folders are followed, but no folder is entered twice, and none that contains `root`.

    Raises:
      BadRequest: see `entries`; or there are more files or deeper folders than `reading.LIMITS` allows.
    """
    seen = {_identity(p) for p in root.resolve().parents}
    count = 0
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop()
        if _identity(folder) in seen:  # a link to a folder already visited
            continue
        seen.add(_identity(folder))
        if depth > reading.LIMITS["depth"]:
            raise errors.BadRequest(
                f"{errors.printable(root)} holds folders nested more than {reading.LIMITS['depth']} deep."
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
    """Returns device number -> kind of the kernel's virtual file systems, as Linux lists them."""
    found = {}
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return {}
    for line in lines:
        before, _, after = line.partition(" - ")
        major, _, minor = before.split()[2].partition(":")
        if (kind := after.split()[0]) in _MADE_UP:
            found[os.makedev(int(major), int(minor))] = kind
    return found
