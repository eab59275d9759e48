"""The safetensors format: eight bytes of length, a JSON header, and the tensors' bytes."""

import contextlib
import json
import math
import mmap
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from recvis_jax import reading
from recvis_jax.errors import BadRequest, Failure, brief, printable, shown

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


class File(Mapping[str, np.ndarray]):
    """A safetensors file as a mapping from name to array, read when accessed.

    The whole header is checked first: every dtype is known, every tensor is inside the file and has the bytes that its
    shape needs, and the tensors cover the rest of the file without gaps or overlaps.

    Args:
      path: of the file.

    Raises:
      BadRequest: the file is not a regular file, is truncated, is not a safetensors file, or its header contradicts
        itself or the file.
    """

    def __init__(self, path: Path):
        size, name = reading.regular(path, "weights bytes").st_size, printable(path)
        most = reading.LIMITS["header bytes"]
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or not 2 <= length <= size - 8:
                raise BadRequest(
                    f"{name} is truncated or not a safetensors file: its header claims {length} bytes, "
                    f"but the file has {size}."
                )
            if length > most:
                raise BadRequest(f"{name}: its header has {length:,} bytes; at most {most:,} are read.")
            text = f.read(length)
            self._data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        header = reading.parse_json(text, f"{name} is not a safetensors file: its header")
        try:
            if not isinstance(header, dict):
                raise ValueError("its header is not a table of tensors")
            self.metadata = _metadata(header.pop("__metadata__", {}))
            if len(header) > reading.LIMITS["tensors"]:
                raise ValueError(f"it names {len(header):,} tensors; at most {reading.LIMITS['tensors']:,} are read")
            self._where = {plain(name): _entry(name, entry) for name, entry in header.items()}
            _check_cover(self._where, size - 8 - length)
        except ValueError as e:
            raise BadRequest(f"{name} is damaged or truncated: {e}.") from None
        self._start = 8 + length

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, begin, _ = self._where[name]
        flat = np.frombuffer(self._data, dtype, math.prod(shape), self._start + begin)
        return flat.reshape(shape)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self._where[name][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def plain(name: str) -> str:
    """Returns a tensor's name; ValueError if it is too long or has characters that could control a terminal."""
    if not name.isprintable():
        raise ValueError(f"the name {shown(name)} has characters that are not printable")
    if len(name) > 1000:
        raise ValueError(f"the name {shown(name)} has {len(name):,} characters; at most 1,000 are read")
    return name


def check_shape(name: str, shape: tuple[int, ...], itemsize: int) -> int:
    """Returns the bytes of an array; ValueError if no array can have its shape. Counts the axes before multiplying."""
    if len(shape) > reading.LIMITS["axes"]:
        raise ValueError(f"{brief(name)!r} has {len(shape):,} axes, which no array can have")
    if max(shape, default=0) > sys.maxsize or math.prod(n or 1 for n in shape) * itemsize > sys.maxsize:
        raise ValueError(f"{brief(name)!r} has shape {shown(shape)}, which no array can have")
    return math.prod(shape) * itemsize


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(x, str) for x in found.values()):
        raise ValueError(f"its __metadata__ is not a table of strings: {shown(found, 40)}")
    return found


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns dtype, shape, first and last byte of one tensor; ValueError if they contradict each other."""
    title = repr(brief(name))
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise ValueError(f"the header's entry {title} is not a tensor with dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    for what, numbers in (("shape", shape), ("offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"{what} {shown(numbers)} of {title} are not whole numbers of at least 0")
    if len(offsets) != 2 or max(offsets) > sys.maxsize:
        raise ValueError(f"offsets {shown(offsets)} of {title} are not whole numbers of at least 0, first and last")
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"{title} has unknown dtype {shown(code, 40)}; there are {', '.join(DTYPES)}")
    need = check_shape(name, tuple(shape), DTYPES[code].itemsize)
    if offsets[1] - offsets[0] != need:
        raise ValueError(f"{title} needs {need} bytes, but its offsets are {offsets}")
    return DTYPES[code], tuple(shape), *offsets


def _check_cover(where: dict[str, tuple[np.dtype, tuple[int, ...], int, int]], size: int) -> None:
    end = 0
    for name, (_, _, begin, stop) in sorted(where.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise ValueError(f"{brief(name)!r} begins at byte {begin}, but the tensor before it ends at {end}")
        end = stop
    if end != size:
        raise ValueError(f"its tensors need {end} bytes, but it has {size}")


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays as a safetensors file, wide dtypes first, like the format's own implementation.

    Raises:
      BadRequest: an array has a dtype that the format does not have.
      Failure: the file cannot be written; an existing file is kept.
    """
    for name, x in tensors.items():
        if x.dtype.newbyteorder("<") not in _CODES:
            raise BadRequest(f"{name} has dtype {x.dtype}, which safetensors does not have.")
    names = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for name in names:
        x = tensors[name]
        header[name] = {
            "dtype": _CODES[x.dtype.newbyteorder("<")],
            "shape": list(x.shape),
            "data_offsets": [end, end + x.nbytes],
        }
        end += x.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors must begin at a multiple of 8 bytes
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                f.write(np.ascontiguousarray(tensors[name], tensors[name].dtype.newbyteorder("<")).tobytes())
        partial.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise Failure(f"{printable(path)} cannot be written: {e.strerror or e}.") from e
