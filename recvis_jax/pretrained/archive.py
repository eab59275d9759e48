"""Zip archives of arrays, checked before anything is unpacked: .npz, and the container of .pth."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from recvis_jax import reading
from recvis_jax.errors import BadRequest, brief, printable
from recvis_jax.pretrained import safetensors

_END, _END64 = b"PK\x05\x06", b"PK\x06\x06"
_ENTRY_BYTES = 46 + 2**10  # of an entry in the table of contents: the fixed part, and room for long names
_HEADER_VERSIONS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def opened(path: Path) -> zipfile.ZipFile:
    """Opens a zip archive after checking the size of its table of contents, and that its entries do not overlap.

    Args:
      path: of a regular file.

    Raises:
      ValueError: too many entries, overlapping entries, or an entry whose claimed size no compression can reach.
      Exception: any other problem that `zipfile` finds.
    """
    limits = reading.LIMITS
    with path.open("rb") as f:
        f.seek(0, 2)
        size = f.tell()
        f.seek(max(0, size - 2**16 - 1024))
        tail = f.read()
    contents = _contents_bytes(tail)
    if contents > limits["tensors"] * _ENTRY_BYTES:
        raise ValueError(f"its table of contents has {contents:,} bytes")
    archive = zipfile.ZipFile(path)
    infos = archive.infolist()
    if len(infos) > 2 * limits["tensors"]:  # a .pth has a few more entries than tensors
        raise ValueError(f"it has {len(infos):,} entries; at most {2 * limits['tensors']:,} are read")
    end = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        if info.header_offset < end:
            raise ValueError(f"{brief(info.filename)!r} begins inside the entry before it")
        end = info.header_offset + 30 + info.compress_size  # without name and extra field, which may be empty
        if info.flag_bits & 1:
            raise ValueError(f"{brief(info.filename)!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others have no limit when unpacked
            raise ValueError(f"{brief(info.filename)!r} is compressed in a way that neither numpy nor torch writes")
        if info.file_size > limits["expansion"] * (info.compress_size + 1):
            raise ValueError(
                f"{brief(info.filename)!r} claims {info.file_size:,} bytes in {info.compress_size:,}: impossible"
            )
    if end > size:
        raise ValueError("its last entry ends after the end of the file")
    return archive


def _contents_bytes(tail: bytes) -> int:
    """Returns the largest size of the table of contents that the end of a zip file claims."""
    found, at = 0, -1
    while (at := tail.find(_END, at + 1)) >= 0:
        found = max(found, int.from_bytes(tail[at + 12 : at + 16], "little") % 0xFFFFFFFF)
    while (at := tail.find(_END64, at + 1)) >= 0:
        found = max(found, int.from_bytes(tail[at + 40 : at + 48], "little"))
    return found


class Npz(Mapping[str, np.ndarray]):
    """An .npz archive as a mapping. Every header is first checked against its size; pickled objects are refused.

    Names and shapes are read without unpacking; an array is unpacked when it is accessed.

    Raises:
      BadRequest: it is not an .npz archive, is damaged, or holds something other than plain arrays.
    """

    def __init__(self, path: Path):
        reading.regular(path, "weights bytes")
        self._name = printable(path)
        self._entries: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        try:
            self._archive = opened(path)
            infos = self._archive.infolist()
            if len(infos) > reading.LIMITS["tensors"]:
                raise ValueError(f"it has {len(infos):,} entries; at most {reading.LIMITS['tensors']:,} are read")
            for info in infos:
                name = safetensors.plain(info.filename.removesuffix(".npy"))
                if name in self._entries:
                    raise ValueError(f"{brief(name)} occurs twice")
                self._entries[name] = info.filename
                self._shapes[name] = self._check(info)
        except Exception as e:  # damaged content can raise anything
            raise BadRequest(f"{self._name} is damaged or not an .npz archive: {line(e)}.") from None

    def _check(self, info: zipfile.ZipInfo) -> tuple[int, ...]:
        name = brief(info.filename)
        with self._archive.open(info) as f:
            version = np.lib.format.read_magic(f)
            if version not in _HEADER_VERSIONS:
                raise ValueError(f"{name} has an unknown version {version}")
            shape, _, dtype = _HEADER_VERSIONS[version](f)
            if dtype.hasobject:
                raise ValueError(f"{name} holds pickled objects, which could execute code")
            if dtype.kind not in "biufc" and dtype != np.dtype("V2"):
                raise ValueError(f"{name} has dtype {brief(dtype, 40)}, which is not numeric")
            if min(shape, default=0) < 0:
                raise ValueError(f"{name} claims shape {brief(shape)}, but has {info.file_size} bytes")
            if f.tell() + safetensors.check_shape(name, shape, dtype.itemsize) != info.file_size:
                raise ValueError(f"{name} claims shape {brief(shape)}, but has {info.file_size} bytes")
        return shape

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        try:
            with self._archive.open(entry) as f:
                found = np.lib.format.read_array(f, allow_pickle=False)
        except Exception as e:  # as above
            raise BadRequest(f"{brief(name)} in {self._name} is damaged: {line(e)}.") from None
        return found.view(ml_dtypes.bfloat16) if found.dtype.kind == "V" else found  # numpy writes bfloat16 as V2

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an array, from its header."""
        return self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def line(e: BaseException) -> str:
    """Returns another library's error message as part of one line: torch's have several lines and bold text."""
    text = "".join(c for c in " ".join(str(e).split()) if c.isprintable())
    return brief(text, 200) or type(e).__name__
