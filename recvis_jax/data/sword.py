"""Texts of SWORD modules (zText, as Debian's `sword-text-*`): the verses of every book, as plain text.

A testament has three files: .bzz holds compressed blocks, one per book; .bzs locates each block (offset, length,
uncompressed length, as int32); .bzv locates each verse (block, offset, length, as int32, int32, int16). Modules with
the same versification hold the same verses in the same rows.
"""

import re
import struct
import zlib
from pathlib import Path

from recvis_jax import errors, reading
from recvis_jax.data.parallel import Pair

BOOKS = """Gen Exod Lev Num Deut Josh Judg Ruth 1Sam 2Sam 1Kgs 2Kgs 1Chr 2Chr Ezra Neh Esth Job Ps Prov Eccl Song Isa
Jer Lam Ezek Dan Hos Joel Amos Obad Jonah Mic Nah Hab Zeph Hag Zech Mal Matt Mark Luke John Acts Rom 1Cor 2Cor Gal Eph
Phil Col 1Thess 2Thess 1Tim 2Tim Titus Phlm Heb Jas 1Pet 2Pet 1John 2John 3John Jude Rev""".split()
_FIRST = {"ot": 0, "nt": 39}  # number of a testament's first book
_LEFT_OUT = re.compile(r"<(note|title)\b[^>]*?(?<!/)>.*?</\1>", re.DOTALL)  # notes of editors, headings
_BREAK = re.compile(r"<(?:lb|l|lg|milestone|p|div)\b[^>]*>")
_MARK = re.compile(r"<[^>]*>")


def pairs(source: Path, target: Path) -> list[Pair]:
    """Returns the verses that both modules have, as pairs; the group is the book.

    Args:
      source, target: folders with nt.bzz, ot.bzz and the like.

    Raises:
      BadRequest: a file is missing or damaged, or the modules number their verses differently.
    """
    out = []
    for testament in _FIRST:
        a, b = verses(source, testament), verses(target, testament)
        if len(a) != len(b):
            raise errors.BadRequest(
                f"{errors.printable(source)} has {len(a):,} rows of verses in {testament}.bzv, "
                f"{errors.printable(target)} {len(b):,}: they do not have the same versification."
            )
        for i, ((book, one), (other_book, other)) in enumerate(zip(a, b, strict=True)):
            if one and other and book == other_book:
                out.append(Pair(one, other, book, f"{errors.printable(source)}, {testament}.bzv, row {i}"))
    return out


def verses(folder: Path, testament: str) -> list[tuple[str, str]]:
    """Returns (book, text) of every row of a testament; the text is empty where there is no verse.

    Args:
      folder: of the module's files.
      testament: "ot" or "nt".

    Raises:
      BadRequest: a file is missing or damaged.
    """

    def data(ending: str) -> bytes:
        return reading.read_bytes(folder / f"{testament}.{ending}", "text bytes", "of a SWORD module")

    packed, index, rows = data("bzz"), data("bzs"), data("bzv")
    books: list[bytes] = []
    where = f"{errors.printable(folder)}/{testament}"
    for start, length, size in struct.iter_unpack("<3I", index[: len(index) // 12 * 12]):
        try:
            unpacker = zlib.decompressobj()
            books.append(unpacker.decompress(packed[start : start + length], reading.LIMITS["text bytes"]))
        except zlib.error as e:
            raise errors.BadRequest(
                f"{where}.bzz is damaged: block {len(books)} cannot be decompressed ({e})."
            ) from None
        if len(books[-1]) != size:
            raise errors.BadRequest(f"{where}.bzz is damaged: block {len(books) - 1} does not have {size:,} bytes.")
    out, names = [], BOOKS[_FIRST[testament] :]
    for block, start, length in struct.iter_unpack("<IIH", rows[: len(rows) // 10 * 10]):
        if length and block >= len(books):
            raise errors.BadRequest(f"{where}.bzv is damaged: it names block {block} of {len(books)}.")
        text = books[block][start : start + length] if length else b""
        # The first block holds the introduction of the testament.
        book = names[block - 1] if 1 <= block <= len(names) else ""
        out.append((book, plain(text.decode("utf-8", "replace")) if book else ""))
    return out


def plain(marked: str) -> str:
    """Returns the text of a verse without OSIS tags, notes and headings.

    Example:
      >>> plain('<title>Psalm</title><w>Praise</w> ye<note>Hebrew: x</note> the <divineName>Lord</divineName>.')
      'Praise ye the Lord.'
    """
    text = _MARK.sub("", _BREAK.sub(" ", _LEFT_OUT.sub("", marked)))
    for name, character in (("lt", "<"), ("gt", ">"), ("quot", '"'), ("apos", "'"), ("amp", "&")):
        text = text.replace(f"&{name};", character)
    return " ".join(text.replace("¶", " ").split())
