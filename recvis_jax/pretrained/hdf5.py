"""HDF5 files of arrays, as Keras writes them (.weights.h5, .h5); needs the package h5py."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recvis_jax import reading
from recvis_jax.errors import BadRequest, brief, printable
from recvis_jax.pretrained import archive, safetensors

# HDF5's own compression: deflate, shuffle, checksum. Others may load libraries from a folder of plug-ins.
_FILTERS = {1, 2, 3}


class File(Mapping[str, np.ndarray]):
    """The arrays of an HDF5 file by their paths, 'block1/layers/conv2d/vars/0'; each is read when it is accessed.

    Only what lies in the file itself is read: links to other files, arrays stored outside and views of others are
    refused, as is an array that claims more bytes than its stored ones can unpack to.

    Args:
      path: of the file.

    Raises:
      BadRequest: h5py is not installed; the file is damaged, or holds anything other than such arrays.
    """

    def __init__(self, path: Path):
        self._name = printable(path)
        reading.regular(path, "weights bytes")
        try:
            import h5py
        except ImportError:
            raise BadRequest(
                f"{self._name} is an HDF5 file, which needs the package h5py: pip install h5py, "
                "or convert the file to .safetensors."
            ) from None
        self._sets: dict[str, Any] = {}
        try:
            self._file = h5py.File(path, "r")
            self._walk(h5py, self._file, "", 0)
            if not self._sets:
                raise ValueError("it holds no arrays")
        except Exception as e:  # damaged content can raise anything
            raise BadRequest(f"{self._name} is damaged or no HDF5 file of arrays: {archive.line(e)}.") from None

    def _walk(self, h5py: Any, group: Any, prefix: str, depth: int) -> None:
        if depth > reading.LIMITS["axes"]:
            raise ValueError("its groups are nested too deeply, or in a circle")
        for key in group:
            name = f"{prefix}{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ValueError(f"{brief(name)} is a link, perhaps to another file")
            found = group[key]
            if isinstance(found, h5py.Group):
                self._walk(h5py, found, f"{name}/", depth + 1)
                continue
            if len(self._sets) >= reading.LIMITS["tensors"]:
                raise ValueError(f"it has more than {reading.LIMITS['tensors']:,} arrays")
            self._check(h5py, name, found)
            self._sets[safetensors.plain(name)] = found

    def _check(self, h5py: Any, name: str, found: Any) -> None:
        if not isinstance(found, h5py.Dataset) or found.shape is None:
            raise ValueError(f"{brief(name)} is no array")
        if found.dtype.kind not in "biuf":
            raise ValueError(f"{brief(name)} has dtype {brief(found.dtype, 40)}, which is not numeric")
        if found.is_virtual or found.external:
            raise ValueError(f"{brief(name)} is stored outside the file")
        created = found.id.get_create_plist()
        filters = {created.get_filter(i)[0] for i in range(created.get_nfilters())}
        if not filters <= _FILTERS:
            raise ValueError(f"{brief(name)} is compressed in a way that Keras does not use")
        claimed = safetensors.check_shape(name, found.shape, found.dtype.itemsize)
        stored = found.id.get_storage_size()
        if claimed > stored * (reading.LIMITS["expansion"] if filters else 1):
            raise ValueError(f"{brief(name)} claims shape {brief(found.shape)}, but has {stored:,} bytes")

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return np.asarray(self._sets[name][()])
        except KeyError:
            raise
        except Exception as e:  # as above
            raise BadRequest(f"{brief(name)} in {self._name} is damaged: {archive.line(e)}.") from None

    def __contains__(self, name: object) -> bool:
        return name in self._sets

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an array, without reading it."""
        return self._sets[name].shape

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)
