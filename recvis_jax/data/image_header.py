"""The size of an image from its first bytes, read without a decoder and checked against the limits.

A header costs nothing and may claim anything: 868 bytes of jpeg can stand for 177 million pixels. So sizes are checked
before a decoder sees the data.
"""

import re
import struct
import zlib
from typing import Any

from recvis_jax import errors, reading

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in coded data, others are escapes, restarts or padding


_KINDS = (  # position, bytes, kind: formats that are read, and others that people confuse with them
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"\x89PNG", "png"),
    (0, b"BM", "bmp"),
    (0, b"GIF8", "gif"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (8, b"WEBP", "webp"),
    (4, b"ftypavif", "avif"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "PSD"),
    *((0, b"P%d" % i, "ppm") for i in range(1, 7)),
)


def kind(raw: bytes) -> str:
    """Returns the kind of image that bytes begin like, "" if it is unknown."""
    return next((name for at, sign, name in _KINDS if raw[at : at + len(sign)] == sign), "")


def size(raw: bytes) -> tuple[int, int] | None:
    """Returns (width, height) from the header of a jpeg, png, gif, bmp or webp, None for anything else."""
    try:
        if raw[:2] == b"\xff\xd8":
            return _jpeg_size(raw)
        if raw[:8] == b"\x89PNG\r\n\x1a\n":
            return struct.unpack_from(">II", raw, 16)
        if raw[:6] in (b"GIF87a", b"GIF89a"):
            return struct.unpack_from("<HH", raw, 6)
        if raw[:2] == b"BM" and len(raw) >= 26:
            if struct.unpack_from("<I", raw, 14)[0] == 12:
                return struct.unpack_from("<HH", raw, 18)
            width, height = struct.unpack_from("<ii", raw, 18)
            return abs(width), abs(height)
        if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
            return _webp_size(raw)
    except (struct.error, IndexError):  # ends inside the header; the decoder will report it
        pass
    return None


def check(width: int, height: int, raw: bytes) -> None:
    """Checks that an image may be decoded.

    Raises:
      BadRequest: it has or claims too many pixels, or is a jpeg with too many scans. The message has no subject.
    """
    pixels, limit = width * height, reading.LIMITS["image pixels"]
    if pixels > limit:
        raise errors.BadRequest(f"has {width:,} x {height:,} pixels; at most {limit:,} are decoded")
    if raw[:2] == b"\xff\xd8":
        if pixels > 1024 * len(raw):  # Huffman codes need at least a bit for 64 pixels
            raise errors.BadRequest(
                f"claims {width:,} x {height:,} pixels, which {len(raw):,} bytes cannot hold: premature end of data"
            )
        if (scans := _scans(raw)) > reading.LIMITS["jpeg scans"]:
            raise errors.BadRequest(f"has {scans:,} scans; at most {reading.LIMITS['jpeg scans']} are decoded")


def check_png(raw: bytes) -> None:
    """Checks that a png is complete: decoders stop at the last pixel, before the last checksums.

    Raises:
      BadRequest: it ends too early, a checksum is wrong, or a required palette is missing. The message has no subject.
    """
    at, name, palette = 8, b"", False
    while name != b"IEND":
        length, name = int.from_bytes(raw[at : at + 4], "big"), raw[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(raw):
            raise errors.BadRequest("damaged png: premature end of data")
        wrong = zlib.crc32(raw[at + 4 : end]) != int.from_bytes(raw[end : end + 4], "big")
        if wrong and not name[0] & 32:  # lower case marks chunks without pixels
            raise errors.BadRequest(f"damaged png: the checksum of {errors.printable(name.decode('latin1'))} is wrong")
        palette |= name == b"PLTE"
        at = end + 4
    if raw[25] == 3 and not palette:
        raise errors.BadRequest("damaged png: it has no palette")


def check_tiles(image: Any) -> None:
    """Checks the tiles of a Pillow image that is a TIFF; they may be larger than the image.

    Raises:
      BadRequest: a tile has too many pixels. The message has no subject.
    """
    tags = getattr(image, "tag_v2", None) or {}
    if 322 in tags and 323 in tags and tags[322] * tags[323] > reading.LIMITS["image pixels"]:
        raise errors.BadRequest(f"has tiles of {tags[322]:,} x {tags[323]:,} pixels")


def jpeg_end(raw: bytes) -> int:
    """Returns the position of the end marker of a jpeg, the length of `raw` if there is none."""
    return next((at for kind, at in _jpeg_markers(raw) if kind == 0xD9), len(raw))


def _jpeg_size(raw: bytes) -> tuple[int, int] | None:
    for kind, at in _jpeg_markers(raw):
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", raw, at + 5)
            return width, height
        if kind in (0xD9, 0xDA):
            return None
    return None


def _scans(raw: bytes) -> int:
    if raw.count(b"\xff\xda") <= reading.LIMITS["jpeg scans"]:  # counts other data as well, but is fast
        return 0
    return sum(kind == 0xDA for kind, _ in _jpeg_markers(raw))


def _jpeg_markers(raw: bytes) -> Any:
    """Yields (kind, position) of the markers of a jpeg up to its end marker; later ones belong to another image."""
    at = 2
    while found := _MARKER.search(raw, at):
        at = found.start()
        kind = raw[at + 1]
        yield kind, at
        if kind == 0xD9:
            return
        bare = kind == 0x01 or at + 4 > len(raw)
        at += 2 if bare else 2 + int.from_bytes(raw[at + 2 : at + 4], "big")


def _webp_size(raw: bytes) -> tuple[int, int] | None:
    kind = raw[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(raw[24:27], "little"), 1 + int.from_bytes(raw[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", raw, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", raw, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None
