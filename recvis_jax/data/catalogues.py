"""Message catalogues of programs, compiled (.mo) and as text (.po): pairs of a message and its translation."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from recvis_jax import errors, reading
from recvis_jax.data.parallel import Pair

ENDINGS = (".mo", ".po")
_ACCELERATOR = re.compile(r"~(?=\w)|(?<![A-Z\d_%])_(?=[^\W_])|(?<=\b[A-Z])_(?=[^\WA-Z_])|(?<=[A-Z])_(?=[a-z])")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"'}


def read(path: Path, group: str) -> Iterator[Pair]:
    """Yields the translated messages of a catalogue, without untranslated and fuzzy ones.

    Messages with plural forms give two pairs, of the first two forms. Accelerator marks are removed: they stand before
    a letter, which differs between languages.

    Args:
      path: of the catalogue.
      group: the document of these pairs, which stays in one split.

    Raises:
      BadRequest: the file cannot be read, is damaged, or is not in UTF-8.
    """
    entries = _of_mo if path.suffix == ".mo" else _of_po
    for number, source, target in entries(path):
        for a, b in zip(source.split("\0"), target.split("\0"), strict=False):
            pair = Pair(plain(a), plain(b), group, f"{errors.printable(path)}, message {number}")
            if pair.source and pair.target:  # otherwise the header, or an untranslated message
                yield pair


def plain(message: str) -> str:
    """Returns a message as one line, without its accelerator mark: ~, or _ in a lower-case word.

    Example:
      >>> plain("~Save\\nall"), plain("M_odule"), plain("%ROW_NUMBER of %ROWS")
      ('Save all', 'Module', '%ROW_NUMBER of %ROWS')
    """
    return _ACCELERATOR.sub("", " ".join(message.split()), count=1)


def _of_mo(path: Path) -> Iterator[tuple[int, str, str]]:
    data = reading.read_bytes(path, "text bytes")
    magic = data[:4]
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(magic)
    if order is None:
        raise errors.BadRequest(f"{errors.printable(path)} is not a compiled catalogue: it begins with {magic!r}.")
    try:
        _, count, *tables = struct.unpack_from(f"{order}4I", data, 4)
        if 8 * count > len(data):
            raise struct.error
        rows = [struct.unpack_from(f"{order}{2 * count}I", data, at) for at in tables[:2]]
    except struct.error:
        raise errors.BadRequest(f"{errors.printable(path)} is damaged: its tables are cut off.") from None
    for i in range(count):
        texts = []
        for table in rows:
            length, start = table[2 * i : 2 * i + 2]
            if start + length > len(data):
                raise errors.BadRequest(f"{errors.printable(path)} is damaged: message {i} lies beyond its end.")
            texts.append(_decoded(data[start : start + length], path, i))
        yield i, texts[0].rpartition("\x04")[2] if texts[0] else "", texts[1]


def _decoded(data: bytes, path: Path, i: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise errors.BadRequest(
            f"{errors.printable(path)}, message {i} is not UTF-8: byte {e.start} is {data[e.start]:#04x}. msgconv "
            "--to-code=UTF-8 converts a .po file."
        ) from None


def _of_po(path: Path) -> Iterator[tuple[int, str, str]]:
    entry: dict[str, str] = {}
    key, fuzzy, number = "", False, 0

    def whole() -> Iterator[tuple[int, str, str]]:
        if entry and not fuzzy:
            sources = [entry.get("msgid", ""), *([entry["msgid_plural"]] if "msgid_plural" in entry else [])]
            targets = [entry[k] for k in ("msgstr", "msgstr[0]", "msgstr[1]") if k in entry]
            yield number, "\0".join(sources), "\0".join(targets)

    for n, line in enumerate(reading.read_text(path).splitlines(), 1):
        line = line.strip()
        word, _, rest = line.partition(" ")
        if not line or line.startswith("#") or (word in ("msgctxt", "msgid") and any(k[:6] == "msgstr" for k in entry)):
            if any(k[:6] == "msgstr" for k in entry):
                yield from whole()
                entry, key, fuzzy = {}, "", False
                number += 1
            fuzzy = fuzzy or (line.startswith("#,") and "fuzzy" in line)
            if not line or line.startswith("#"):
                continue
        if not line.startswith('"'):
            key, line = word, rest.strip()
            entry[key] = ""
        found = _QUOTED.fullmatch(line)
        if not found or not (key == "msgctxt" or key.startswith(("msgid", "msgstr"))):
            raise errors.BadRequest(
                f"{errors.printable(path)}, line {n} is not valid in a .po file: {errors.shown(line)}."
            )
        entry[key] += re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), found[1])
    yield from whole()
