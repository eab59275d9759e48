"""The safetensors format: eight bytes of length, a JSON header, and the tensors' bytes."""

import json
import math
import mmap
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from recvis_jax.errors import BadRequest

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
_HEADER_LIMIT = 100_000_000  # bytes, as in the format's own implementation
_MOST_AXES = 32  # of a numpy array, in all its versions


class File(Mapping[str, np.ndarray]):
    """A safetensors file as a mapping from name to array, read when asked for.

    The whole header is checked first: every dtype is known, every tensor lies inside the file and has the bytes that
    its shape needs, and the tensors cover the rest of the file without gaps or overlaps.

    Args:
      path: of the file.

    Raises:
      BadRequest: the file is truncated, is not a safetensors file, or its header contradicts itself or the file.
    """

    def __init__(self, path: Path):
        size = path.stat().st_size
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _HEADER_LIMIT):
                raise BadRequest(
                    f"{path} is truncated or no safetensors file: its header claims {length} bytes, "
                    f"and the file has {size}."
                )
            text = f.read(length)
            self._data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            header = json.loads(text.decode(), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as e:
            raise BadRequest(f"{path} is no safetensors file: its header is not JSON ({str(e)[:80]}).") from None
        if not isinstance(header, dict):
            raise BadRequest(f"{path} is no safetensors file: its header is no table of tensors.")
        self.metadata = header.pop("__metadata__", {})
        try:
            self._where = {plain(name): _entry(name, entry) for name, entry in header.items()}
            _check_cover(self._where, size - 8 - length)
        except ValueError as e:
            raise BadRequest(f"{path} is damaged or truncated: {e}.") from None
        self._start = 8 + length

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, begin, _ = self._where[name]
        flat = np.frombuffer(self._data, dtype, math.prod(shape), self._start + begin)
        return flat.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name occurs twice")
    return out


def plain(name: str) -> str:
    """Returns a tensor's name; ValueError where it could do more to a terminal than be read."""
    if not name.isprintable():
        raise ValueError(f"the name {name[:80]!r} is not of printable characters")
    return name


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns dtype, shape, first and last byte of one tensor; ValueError where they contradict each other."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise ValueError(f"the header's entry {name!r} is no tensor")
    shape, offsets = entry["shape"], entry["data_offsets"]
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if not all(type(n) is int and n >= 0 for n in numbers) or len(offsets) != 2:
        raise ValueError(f"shape {shape} and offsets {offsets} of {name!r} are not whole numbers of at least 0")
    dtype = DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        raise ValueError(f"{name!r} is of unknown dtype {entry['dtype']!r}; there are {', '.join(DTYPES)}")
    need = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != need:
        raise ValueError(f"{name!r} needs {need} bytes, and its offsets are {offsets}")
    if len(shape) > _MOST_AXES or math.prod(n or 1 for n in shape) * dtype.itemsize > sys.maxsize:
        raise ValueError(f"{name!r} is of shape {str(shape)[:80]}, which no array can have")
    return dtype, tuple(shape), *offsets


def _check_cover(where: dict[str, tuple[np.dtype, tuple[int, ...], int, int]], size: int) -> None:
    end = 0
    for name, (_, _, begin, stop) in sorted(where.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise ValueError(f"{name!r} begins at byte {begin}, and what comes before ends at {end}")
        end = stop
    if end != size:
        raise ValueError(f"its tensors take {end} bytes, and it has {size}")


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays as a safetensors file, wide dtypes first as the format's own implementation does.

    Raises:
      BadRequest: an array of a dtype that the format does not have.
    """
    for name, x in tensors.items():
        if x.dtype.newbyteorder("<") not in _CODES:
            raise BadRequest(f"{name} is of dtype {x.dtype}, which safetensors does not have.")
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
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8 bytes
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            f.write(np.ascontiguousarray(tensors[name], tensors[name].dtype.newbyteorder("<")).tobytes())
    partial.replace(path)
