"""Image files: read within limits, decoded once to check that they are complete, encoded so that all decoders agree.

`FORMATS` lists the supported formats. The content of a file decides its format, never its name; formats whose decoders
start programs (EPS, PDF, WMF) are excluded. HEIC, JPEG 2000 and TGA are pictures too, but are not read: Pillow has no
decoder for HEIC, the two headers of JPEG 2000 may give different sizes, and TGA files cannot be recognised.
"""

import contextlib
import hashlib
import importlib
import io
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from recvis_jax import errors, reading
from recvis_jax.data import image_header

T = TypeVar("T")

# Pillow's name of a format (its plugin is <name>ImagePlugin) -> suffixes of its files in folders.
FORMATS = {
    "Jpeg": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),  # phones write MPO as .jpg: a jpeg with further images
    "Png": (".png", ".apng"),
    "Bmp": (".bmp", ".dib"),
    "Gif": (".gif",),
    "Tiff": (".tif", ".tiff"),
    "WebP": (".webp",),
    "Ppm": (".ppm", ".pgm", ".pbm", ".pnm"),
    "Avif": (".avif",),  # from Pillow 11.3 on
}
NOT_READ = (".heic", ".heif", ".jp2", ".tga", ".jxl")  # reported as unreadable instead of skipped
SUFFIXES = frozenset(sum(FORMATS.values(), NOT_READ))


class Image(NamedTuple):
    """One file, read and checked.

    Attributes:
      data: jpeg or png that every decoder reads as 8 bits and 1 or 3 channels; None if the file is unusable.
      digest: sha256 of the file's own bytes, "unreadable" if there are none.
      problem: why it is unusable.
      changed: whether `data` was encoded again.
      turned: whether it was turned by its EXIF orientation.
      pixels: hash of the decoded pixels; equal for the same picture in two files.
    """

    data: bytes | None
    digest: str
    problem: str = ""
    changed: bool = False
    turned: bool = False
    pixels: str = ""


def load(path: Path, compress_level: int = 6) -> Image:
    """Reads a file and decodes it completely.

    A jpeg or png whose pixels are 8-bit grey or RGB keeps its bytes. Everything else becomes a png of the same
    pixels: other formats, palettes, 16 bits (the high byte is kept), CMYK, images with an alpha channel (which is
    dropped), and images whose EXIF orientation turns or mirrors them. The first frame of an animation is used.

    Args:
      path: of the file; only regular files within `reading.LIMITS` are opened.
      compress_level: of a png that is written, 0 to 9.
    """
    with _complaints() as said:
        image = _load(path, compress_level)
    if image.data is not None and (fault := _fault(said, path)):
        return Image(None, image.digest, fault)
    return image


def load_all(paths: Sequence[Path]) -> Iterator[Image]:
    """Yields `load(path)` in order, computed by threads (decoders release the interpreter lock)."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), 16 * workers):  # map() alone would read everything at once
            part = paths[start : start + 16 * workers]
            with _complaints() as said:
                images = list(pool.map(_load, part))
            # A decoder's warning does not say which image it is about: after a warning, load them one by one.
            yield from map(load, part) if said else images


def upright_size(path: Path) -> tuple[int, int] | None:
    """Returns the rows and columns of an image after `load` turns it, from its header alone; None if it has none."""
    import PIL.Image

    try:
        reading.regular(path, "image bytes")
        with _quiet(), PIL.Image.open(path, formats=_plugins()) as image:
            columns, rows = image.size
            return (columns, rows) if _orientation(image) >= 5 else (rows, columns)
    except Exception:  # `load` will report the error
        return None


def digest(path: Path) -> str:
    """Returns the sha256 of a file's bytes, "unreadable" if it cannot be read."""
    try:
        return hashlib.sha256(reading.read_bytes(path, "image bytes")).hexdigest()
    except errors.BadRequest:
        return "unreadable"


def parallel(function: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
    """Yields `function(path)` in order, computed by threads a little ahead."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), 16 * workers):
            yield from pool.map(function, paths[start : start + 16 * workers])


def png(image: Any, compress_level: int = 6) -> bytes:
    """Encodes a Pillow image as png."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=compress_level)
    return out.getvalue()


def is_readable_kind(raw: bytes) -> bool:
    """Whether bytes begin like one of `FORMATS`, with a header within the limits.

    Raises:
      BadRequest: it is such a header, but it exceeds a limit; the message begins with "has" or "claims".
    """
    import PIL.Image

    if size := image_header.size(raw):
        image_header.check(*size, raw)
        return True
    try:
        with _quiet(), PIL.Image.open(io.BytesIO(raw), formats=_plugins()) as image:
            image_header.check(*image.size, raw)
            return True
    except errors.BadRequest:
        raise
    except Exception:  # headers may be damaged in any way
        return False


def _load(path: Path, compress_level: int = 6) -> Image:
    """`load` without checking for warnings of libjpeg."""
    import PIL.Image

    try:
        raw = reading.read_bytes(path, "image bytes")
    except errors.BadRequest as e:
        reason = str(e).removeprefix(errors.printable(path)).strip(" .")
        return Image(None, "unreadable", reason.removeprefix("is ").removeprefix("cannot be read: "))
    key = hashlib.sha256(raw).hexdigest()
    if not raw:
        return Image(None, key, "zero bytes")
    try:
        if size := image_header.size(raw):
            image_header.check(*size, raw)
        with PIL.Image.open(io.BytesIO(raw), formats=_plugins()) as image:
            image_header.check(*image.size, raw)
            image_header.check_tiles(image)
            if image.format == "PNG":
                image.load()  # raises a clear error; `getexif` would hide it
                image_header.check_png(raw)
            orientation = _orientation(image)
            if orientation == 1 and (pixels := _as_is(image, raw)) is not None:
                return Image(raw, key, pixels=_hash(pixels))
            made = _eight_bit(image, raw)
            made = _turned(made, _orientation(image))  # read again: Pillow itself turns a TIFF while decoding
        encoded = png(made, compress_level)
        return Image(encoded, key, changed=True, turned=orientation != 1, pixels=_hash(np.asarray(made)))
    except PIL.UnidentifiedImageError:
        return Image(None, key, _unknown(raw))
    except MemoryError:
        return Image(None, key, "too large for this machine's memory")
    except errors.BadRequest as e:
        return Image(None, key, str(e))
    except Exception as e:  # decoders raise all kinds of errors on damaged files
        what = errors.printable(" ".join(str(e).split()))[:200].rstrip(".") or type(e).__name__
        early = "premature end of data, " if "truncated" in what else ""
        return Image(None, key, f"damaged {image_header.kind(raw)}: {early}{what}")


def _unknown(raw: bytes) -> str:
    """Returns why Pillow recognised none of `FORMATS` in a file."""
    kind, names = image_header.kind(raw), [name.lower() for name in FORMATS]
    if kind in names:
        return f"damaged {kind}: its header cannot be read"
    remedy = "; export it as jpeg" if kind in ("HEIC", "JPEG 2000") else ""  # phones store HEIC by default
    return f"{f'{kind}, ' if kind else ''}not an image in a supported format: {', '.join(names)}{remedy}"


def _plugins() -> list[str]:
    """Returns Pillow's names of `FORMATS`, of those with an installed plugin."""
    import PIL.Image

    for name in FORMATS:
        with contextlib.suppress(ImportError):
            importlib.import_module(f"PIL.{name}ImagePlugin")
    return [name.upper() for name in FORMATS if name.upper() in PIL.Image.OPEN]


def _as_is(image: Any, raw: bytes) -> np.ndarray | None:
    """Returns the pixels if OpenCV (tfds's decoder) reads the same 8 bits from the bytes as Pillow; else None.

    Raises:
      OSError: the data end too early.
    """
    import cv2

    if image.format not in ("JPEG", "MPO", "PNG") or image.mode not in ("L", "RGB") or "transparency" in image.info:
        return None
    pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        image.load()  # raises a clear error
    expected = (image.height, image.width, 3) if image.mode == "RGB" else (image.height, image.width)
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape != expected:
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if pixels.ndim == 3 else pixels


def _eight_bit(image: Any, raw: bytes) -> Any:
    """Returns a Pillow image as mode L or RGB, without its metadata (including a transparent colour)."""
    import cv2
    import PIL.Image

    if image.format in ("JPEG", "MPO"):  # only for libjpeg's warnings
        cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    image.load()
    if image.mode.startswith("I;16"):
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits in 32
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise errors.BadRequest("32 bits per channel, with unknown range")
    out = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    out.info.clear()
    return out


def _orientation(image: Any) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 is upright."""
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF data do not affect the pixels
        return 1
    return found if found in range(1, 9) else 1


def _turned(image: Any, orientation: int) -> Any:
    """Returns a Pillow image as it is meant to be seen."""
    import PIL.Image

    how = PIL.Image.Transpose
    ways = {
        2: how.FLIP_LEFT_RIGHT,
        3: how.ROTATE_180,
        4: how.FLIP_TOP_BOTTOM,
        5: how.TRANSPOSE,
        6: how.ROTATE_270,
        7: how.TRANSVERSE,
        8: how.ROTATE_90,
    }
    return image.transpose(ways[orientation]) if orientation in ways else image


def _hash(pixels: np.ndarray) -> str:
    """Returns a hash of 8-bit pixels (h w) or (h w 3) and their shape."""
    found = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(pixels))
    return found.hexdigest()


# libjpeg decodes damaged data to the end and only warns on stderr; Pillow suppresses that, OpenCV does not.
_FAULTS = re.compile(r"Corrupt JPEG data: (?!bad ICC).*|Premature end of JPEG file|Inconsistent progression sequence.*")
_STDERR = threading.RLock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses Pillow's warnings about metadata; one thread at a time, as filters of warnings belong to all."""
    with _STDERR, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Yields a list that afterwards holds libjpeg's warnings about the data decoded inside the context.

    Meanwhile the stderr of C libraries goes to a file; Python's goes to its usual place.
    """
    said: list[str] = []
    with _quiet(), contextlib.ExitStack() as stack:
        try:
            kept = os.dup(2)
        except OSError:  # there is no stderr
            yield said
            return
        stack.callback(os.close, kept)
        file = stack.enter_context(tempfile.TemporaryFile())
        ours = sys.stderr
        with contextlib.suppress(AttributeError, OSError, ValueError):  # replaced by another object
            if ours.fileno() == 2:
                ours.flush()
                sys.stderr = stack.enter_context(open(kept, "w", buffering=1, errors="backslashreplace", closefd=False))
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            sys.stderr = ours
            file.seek(0)
            said += _FAULTS.findall(file.read().decode("utf-8", "replace"))


def _fault(said: list[str], path: Path) -> str:
    """Returns what is wrong with a jpeg that libjpeg warned about, an empty string if it is harmless."""
    for line in said:
        if m := re.search(r"(\d+) extraneous bytes before marker 0xd9", line):
            # Some cameras pad the data before the end with zeros.
            end = image_header.jpeg_end(raw := reading.read_bytes(path, "image bytes"))
            if not raw[max(0, end - int(m[1])) : end].strip(b"\0"):
                continue
        return f"damaged jpeg: {line.removeprefix('Corrupt JPEG data: ').strip()}"
    return ""
