"""Copies of a picture in a folder: across splits they make measurements wrong, under two classes they mislead.

Pictures are the same if their decoded pixels are equal; names, formats and metadata of the files do not matter.
"""

from collections.abc import Mapping
from typing import NamedTuple

from recvis_jax import errors
from recvis_jax.data import folder

WAYS = ("fail", "drop", "keep")
_KEPT_FIRST = ("test", "validation", "train")  # the copy in the split used for measuring stays


class Found(NamedTuple):
    """Groups of images "split/class/name.jpg" with the same pixels, by the kind of problem.

    Attributes:
      labels: groups with more than one class.
      splits: other groups in more than one split.
      within: the rest: copies in one split and class.
    """

    labels: tuple[tuple[str, ...], ...]
    splits: tuple[tuple[str, ...], ...]
    within: tuple[tuple[str, ...], ...]


def find(pixels: Mapping[str, str], classes: bool = True) -> Found:
    """Groups images by the hash of their pixels.

    Args:
      pixels: "split/class/name.jpg" -> hash.
      classes: whether a folder is a class; if not, pictures have no classes that could differ.
    """
    groups: dict[str, list[str]] = {}
    for name, key in pixels.items():
        groups.setdefault(key, []).append(name)
    several = [tuple(sorted(g, key=_rank)) for g in groups.values() if len(g) > 1]
    labels = tuple(sorted(g for g in several if classes and len(set(map(_class, g))) > 1))
    splits = tuple(sorted(g for g in several if g not in labels and len({n.split("/", 1)[0] for n in g}) > 1))
    return Found(labels, splits, tuple(sorted(set(several) - set(labels) - set(splits))))


def to_drop(found: Found) -> set[str]:
    """Returns the images to leave out: all copies but one (test is kept before train); all if their classes differ."""
    return {n for g in found.labels for n in g} | {n for g in (*found.splits, *found.within) for n in g[1:]}


def judge(found: Found, way: str, dropped: int) -> list[str]:
    """Returns notes on copies.

    Args:
      found: see `find`.
      way: one of `WAYS`. With "drop" copies were left out; otherwise they are kept, unless "fail" refuses them.
      dropped: how many were left out.

    Raises:
      BadRequest: a picture is in two splits, and `way` is "fail".
    """
    between = [g for g in (*found.splits, *found.labels) if len({n.split("/", 1)[0] for n in g}) > 1]
    if way == "fail" and between:
        raise errors.BadRequest(
            f"{_count(between)} in more than one split ({_show(between[0])}), so evaluation would use training "
            "images. Remove copies, leave them out with --duplicates=drop (it keeps those of test, then validation), "
            "or keep all with --duplicates=keep. Nothing was prepared."
        )
    lines = []
    if found.labels:
        taken = "they are kept under each; --duplicates=drop leaves them out"
        what = "all their copies are left out" if way == "drop" else taken
        lines.append(f"note: {_count(found.labels)} under more than one class ({_show(found.labels[0])}): {what}")
    if found.splits and way != "drop":
        lines.append(f"note: {_count(found.splits)} in more than one split ({_show(found.splits[0])}), and kept")
    if found.within and way != "drop":
        lines.append(
            f"note: {_count(found.within)} more than once in one split ({_show(found.within[0])}), and may end up on "
            "both sides if the split is divided; --duplicates=drop leaves copies out"
        )
    if dropped:
        lines.append(f"left out {dropped:,} copies of pictures")
    return lines


def _class(name: str) -> str:
    return folder.class_of(name.split("/", 1)[1])


def _rank(name: str) -> tuple[int, str]:
    return _KEPT_FIRST.index(name.split("/", 1)[0]), name


def _count(groups: tuple[tuple[str, ...], ...] | list[tuple[str, ...]]) -> str:
    return f"{len(groups):,} picture{' is' if len(groups) == 1 else 's are'}"


def _show(group: tuple[str, ...]) -> str:
    return "such as " + " = ".join(errors.printable(n)[:200] for n in group[:2])
