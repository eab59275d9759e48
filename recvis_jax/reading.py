"""Opens files from outside: only regular files of limited size, and strict JSON.

Reading must not run code, wait for ever, or fill the memory. `LIMITS` is the table of all limits. A file above its
limit is refused before it is decoded; the message has its size and the limit.
"""

import json
import math
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from recvis_jax import errors

# Largest sizes of input from outside.
LIMITS = {
    "image bytes": 256 * 2**20,  # of one encoded image
    "image pixels": 80_000_000,  # of one decoded image; Pillow's own limit is 179 million
    "jpeg scans": 100,  # of a progressive jpeg; encoders write about ten
    "record bytes": 64 * 2**20,  # of a JSON file: a run's records, annotations have a limit of their own
    "records bytes": 2**30,  # of a run's metrics.jsonl, some hundred bytes a line
    "annotation bytes": 2**30,  # of a JSON or XML file of boxes and masks; COCO's largest has 470 MB
    "config bytes": 2**20,  # of a config file
    "text bytes": 16 * 2**20,  # of a list of names
    "entries": 20_000_000,  # files below a folder; ImageNet-21k has 14 million
    "depth": 32,  # folders in folders
    "weights bytes": 2**38,  # of a checkpoint file
    "features bytes": 2**42,  # of features on disk, which are mapped
    "header bytes": 16 * 2**20,  # of a safetensors file; a thousand tensors take about 100 kB
    "pickle bytes": 16 * 2**20,  # of what a .pth says about its tensors; a thousand take about 150 kB
    "pickle steps": 1_500_000,  # of the same; a tensor takes about 40
    "tensors": 20_000,  # of a checkpoint file; a training state of ViT-H/14 has 2,000
    "axes": 32,  # of an array, as of numpy's in all its versions
    "archive bytes": 2**30,  # of a raw file of a data set, packed or unpacked; CIFAR's has 170 MB
    "expansion": 1_100,  # bytes of a compressed array for each of the file; deflate has at most 1,032
}


def regular(path: Path, limit: str, what: str = "") -> os.stat_result:
    """Checks that `path` is a regular file of at most `LIMITS[limit]` bytes, and returns its status.

    Links are followed. Anything but a regular file (a pipe, a device, a folder) is not opened, as reading it might wait
    for ever or never end.

    Args:
      path: of the file.
      limit: a key of `LIMITS`.
      what: description for the message ("config.json of a run"); empty by default.

    Raises:
      BadRequest: there is no such file, it is not regular, or too large.
    """
    name = f"{errors.printable(path)}{f' ({what})' if what else ''}"
    try:
        found = path.stat()
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the name
        raise errors.BadRequest(f"{name} cannot be read: {getattr(e, 'strerror', None) or e}.") from None
    if not stat.S_ISREG(found.st_mode):
        raise errors.BadRequest(f"{name} is {_kind(found.st_mode)}, not a regular file.")
    if found.st_size > LIMITS[limit]:
        raise errors.BadRequest(f"{name} has {found.st_size:,} bytes; at most {LIMITS[limit]:,} are read.")
    return found


def read_bytes(path: Path, limit: str, what: str = "") -> bytes:
    """Returns the bytes of a regular file; see `regular` for arguments and errors."""
    regular(path, limit, what)
    try:
        with path.open("rb") as f:
            data = f.read(LIMITS[limit] + 1)  # files in /proc claim size 0 but have content
    except OSError as e:
        raise errors.BadRequest(f"{errors.printable(path)} cannot be read: {e.strerror or e}.") from None
    if len(data) > LIMITS[limit]:
        raise errors.BadRequest(f"{errors.printable(path)} is larger than the limit of {LIMITS[limit]:,} bytes.")
    return data


def read_text(path: Path, limit: str = "text bytes", what: str = "") -> str:
    """Returns the text of a regular UTF-8 file, without a byte order mark.

    Raises:
      BadRequest: see `regular`; or the file is not UTF-8.
    """
    data = read_bytes(path, limit, what)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise errors.BadRequest(
            f"{errors.printable(path)} is not UTF-8 text: byte {e.start} is {data[e.start]:#04x}."
        ) from None


def parse_json(text: str | bytes, where: str) -> Any:
    """Returns the value of a JSON text in which every name occurs once and every number is finite.

    Args:
      text: the JSON.
      where: what it was read from, for the message.

    Raises:
      BadRequest: it is not such JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
            raise ValueError(f"the name {errors.brief(twice)!r} occurs twice")
        return out

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def finite(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            raise ValueError(f"the number {digits[:40]} is too large")
        return number

    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError) as e:
        raise errors.BadRequest(f"{where} is not valid JSON: {errors.printable(e)[:200]}.") from None


def read_json(path: Path, what: str = "", limit: str = "record bytes", kind: type = dict) -> Any:
    """Returns the content of a JSON file.

    Args:
      path: of the file.
      what: description for the message.
      limit: a key of `LIMITS`.
      kind: type of the top level, `dict` or `list`.

    Raises:
      BadRequest: it cannot be read, is too large, is not JSON, or has another type. The message names the file.
    """
    name = f"{errors.printable(path)}{f' ({what})' if what else ''}"
    value = parse_json(read_bytes(path, limit, what), name)
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise errors.BadRequest(f"{name} holds {type(value).__name__} {str(value)[:40]!r}, not {wanted}.")
    return value


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
        stat.S_ISSOCK: "a socket",
    }
    return next((name for test, name in kinds.items() if test(mode)), "of an unknown kind")
