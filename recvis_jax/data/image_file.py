"""Image files: read, decoded once to see whether they are whole, and encoded so that every decoder reads them."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")


class Image(NamedTuple):
    """One file, read and checked.

    Attributes:
      data: jpeg or png that every decoder reads as 8 bits and 1 or 3 channels; None if the file is no good.
      digest: sha256 of the file's own bytes, "unreadable" if there are none.
      problem: why it is no good.
      changed: whether `data` was encoded anew.
      turned: whether it carries an EXIF rotation, which decoders of data sets do not apply.
    """

    data: bytes | None
    digest: str
    problem: str = ""
    changed: bool = False
    turned: bool = False


def load(path: Path) -> Image:
    """Reads a file and decodes it wholly.

    A jpeg or png whose pixels are 8-bit grey or RGB keeps its bytes. Everything else becomes a png of the same
    pixels: other formats, palettes, 16 bits (the high byte is kept), CMYK, and images with an alpha channel (which is
    dropped). Of an animation the first frame is taken.
    """
    import PIL.Image

    try:
        raw = path.read_bytes()
    except OSError as e:
        return Image(None, "unreadable", e.strerror or str(e))
    key = hashlib.sha256(raw).hexdigest()
    if not raw:
        return Image(None, key, "zero bytes")
    try:
        with PIL.Image.open(io.BytesIO(raw)) as image:
            image.load()
            turned = _is_turned(image)
            if _reads_as_is(image, raw):
                return Image(raw, key, turned=turned)
            return Image(png(_eight_bit(image)), key, changed=True, turned=turned)
    except PIL.UnidentifiedImageError:
        return Image(None, key, "not an image that Pillow can read")
    except Exception as e:  # decoders raise whatever they like on damaged files
        return Image(None, key, " ".join(str(e).split())[:200] or type(e).__name__)


def digest(path: Path) -> str:
    """Returns the sha256 of a file's bytes, "unreadable" if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "unreadable"


def parallel(function: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
    """Yields `function(path)` in order, computed by threads a little ahead (decoders release the interpreter lock)."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), 16 * workers):  # map() alone would read everything at once
            yield from pool.map(function, paths[start : start + 16 * workers])


def png(image: Any) -> bytes:
    """Encodes a Pillow image as png."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _is_turned(image: Any) -> bool:
    try:
        return image.getexif().get(0x0112, 1) in range(2, 9)
    except Exception:  # damaged EXIF data do not harm the pixels
        return False


def _reads_as_is(image: Any, raw: bytes) -> bool:
    """Whether OpenCV, with which tfds decodes, gets the same 8-bit pixels from the bytes as Pillow."""
    import cv2

    if image.format not in ("JPEG", "MPO", "PNG") or image.mode not in ("L", "RGB") or "transparency" in image.info:
        return False
    pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    expected = (image.height, image.width, 3) if image.mode == "RGB" else (image.height, image.width)
    return pixels is not None and pixels.dtype == np.uint8 and pixels.shape == expected


def _eight_bit(image: Any) -> Any:
    """Returns a Pillow image as mode L or RGB, without its metadata (a transparent colour among them)."""
    import PIL.Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return PIL.Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a channel, whose range is not known")
    out = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    out.info.clear()
    return out
