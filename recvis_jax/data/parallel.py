"""Parallel texts: two files with corresponding lines, or one file with tab-separated columns."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from recvis_jax import errors, reading

LONGEST = 5_000  # characters of a side


class Pair(NamedTuple):
    """A text and its translation.

    Attributes:
      source, target: one line each.
      group: the document that holds it, such as a catalogue or a book; empty if unknown.
      where: file and line, for error messages.
    """

    source: str
    target: str
    group: str
    where: str


def two_files(source: Path, target: Path) -> Iterator[Pair]:
    """Yields the lines of two files side by side.

    Raises:
      BadRequest: a file that cannot be read or is not UTF-8, or different numbers of lines.
    """
    a, b = lines(source), lines(target)
    if len(a) != len(b):
        raise errors.BadRequest(
            f"{errors.printable(source)} has {len(a):,} lines, {errors.printable(target)} {len(b):,}; corresponding "
            "lines must have the same number."
        )
    for i, (one, other) in enumerate(zip(a, b, strict=True), 1):
        yield Pair(one.strip(), other.strip(), "", f"{errors.printable(source)}, line {i}")


def columns(path: Path) -> Iterator[Pair]:
    """Yields the rows of a file with tab-separated source, target and, optionally, document.

    Raises:
      BadRequest: a file that cannot be read or is not UTF-8, or a row of another number of columns.
    """
    for i, line in enumerate(lines(path), 1):
        parts = line.split("\t")
        where = f"{errors.printable(path)}, line {i}"
        if len(parts) not in (2, 3) and line.strip():
            raise errors.BadRequest(
                f"{where} has {len(parts)} columns; expected source, target and optionally a document."
            )
        parts += [""] * (3 - len(parts))
        yield Pair(parts[0].strip(), parts[1].strip(), parts[2].strip(), where)


def lines(path: Path) -> list[str]:
    """Returns the lines of a UTF-8 file; only line feeds end one.

    Raises:
      BadRequest: it cannot be read, or is not UTF-8; the message names the line.
    """
    data = reading.read_bytes(path, "archive bytes").removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        raise errors.BadRequest(
            f"{errors.printable(path)}, line {1 + data.count(10, 0, e.start)} is not UTF-8: byte "
            f"{data[e.start]:#04x}. iconv -t UTF-8 converts files of a known encoding."
        ) from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def problem(pair: Pair) -> str:
    """Returns what is wrong with a pair, or an empty string.

    Example:
      >>> problem(Pair("save", "", "", "a.tsv, line 3"))
      'a.tsv, line 3: the target is empty'
    """
    for side in ("source", "target"):
        text = getattr(pair, side)
        if not text:
            return f"{pair.where}: the {side} is empty"
        if len(text) > LONGEST:
            return f"{pair.where}: the {side} has {len(text):,} characters, more than {LONGEST:,}"
    return ""
