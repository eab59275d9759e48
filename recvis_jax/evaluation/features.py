"""Features on disk: computed once, memory-mapped, and refused if they are damaged or from another model or data.

Every layer has three files in the folder `features/` of a run: `NAME.npy` (n d) float32, `NAME.labels.npy` (n) or (n
k), and `NAME.json`, written last, with their origin. The JSON also holds types, shapes and checksums of the other two
files, and a checksum of itself; all are verified whenever features are read.
"""

import contextlib
import glob
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recvis_jax import errors, reading
from recvis_jax.training import processes

_CHUNK = 16 * 2**20  # bytes read at a time while files are checked
_REMEDY = "give --overwrite to compute them again"
_LEFT = 3600  # seconds without a write after which a partial file must come from a killed process

Progress = Callable[[int, int], None]  # (done, total)


class Features(NamedTuple):
    """Features of one split.

    Attributes:
      values: (n d) float32, memory-mapped.
      labels: (n) classes, or (n k) multi-hot.
      origin: what they were computed from.
    """

    values: np.ndarray
    labels: np.ndarray
    origin: dict[str, Any]


def make_extract(
    layers_of: Callable[[Any, dict], Mapping[str, jax.Array]], preprocess: Callable[[dict], dict], mesh: Mesh
) -> Callable[[Any, dict], Mapping[str, jax.Array]]:
    """Returns the compiled `extract(variables, batch) -> {layer: (b d)}`, complete on every host.

    Args:
      layers_of: (variables, batch) -> {layer: (b d)}, in evaluation mode.
      preprocess: batch -> input of the model.
      mesh: devices.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    extract = jax.jit(lambda variables, batch: layers_of(variables, preprocess(batch)), out_shardings=whole)
    return processes.compiled_together(extract)


def path_of(folder: Path, split: str, layer: str, pool: str, weights: str) -> Path:
    """Returns the `.npy` file of a layer's features, named after the user's choices."""
    name = "-".join([split, layer, pool, weights])
    short = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    if len(short.encode()) > 150:  # file systems allow 255 bytes, and partial files need some of them
        short = f"{short.encode()[:120].decode(errors='ignore')}-{zlib.crc32(name.encode()):08x}"
    return folder / "features" / f"{short}.npy"


def rows_of(
    batches: Iterable[dict], extract: Callable[[dict], Mapping[str, jax.Array]]
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields (labels, {layer: features}) of each batch, in numpy and without padding, the same on every host.

    The label of an example without one is -1.

    Args:
      batches: of a split, in its order; `mask` is false on the padding of the last one.
      extract: batch -> {layer: (b d)}.
    """
    whole: Any = None
    for batch in batches:
        keep = batch["mask"]
        label = batch["label"] if "label" in batch else jnp.where(keep, -1, -1)
        if jax.process_count() > 1:  # labels are split over the hosts
            whole = whole or jax.jit(lambda x: x, out_shardings=NamedSharding(keep.sharding.mesh, PartitionSpec()))
            label, keep = whole((label, keep))
        label, keep, found = jax.device_get((label, keep, dict(extract(batch))))
        yield label[keep], {layer: np.asarray(x, np.float32)[keep] for layer, x in found.items()}


def collect(
    batches: Iterable[dict], extract: Callable[[dict], Mapping[str, jax.Array]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns ({layer: (n d)}, labels (n)) of all batches, in memory."""
    labels, rows = zip(*rows_of(batches, extract), strict=True)
    return {layer: np.concatenate([r[layer] for r in rows]) for layer in rows[0]}, np.concatenate(labels)


def write(
    paths: Mapping[str, Path],
    origins: Mapping[str, dict[str, Any]],
    rows: Iterable[tuple[np.ndarray, dict[str, np.ndarray]]],
    length: int,
    say: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes the features of a whole split, several layers in one pass, on the first host.

    A process that is killed meanwhile leaves the old features or none, never parts of the new ones.

    Args:
      paths: layer -> `.npy` file; an existing file is replaced when the new one is complete.
      origins: layer -> what the features are computed from, for the JSON.
      rows: the output of `rows_of`.
      length: number of examples.
      say: called with the number of examples done, after each batch.

    Raises:
      Failure: features that are not finite, fewer or more examples than `length`, or files that cannot be written.
    """
    labels: list[np.ndarray] = []
    done, files = 0, {layer: _Part(path) for layer, path in paths.items()}
    try:
        for label, found in rows:
            labels.append(label)
            for layer, x in found.items():
                if not (finite := np.isfinite(x).all(axis=1)).all():
                    at = done + int(np.argmin(finite))
                    raise errors.Failure(f"the features {layer} of example {at} are not all finite numbers.")
                if jax.process_index() == 0:
                    files[layer].add(np.ascontiguousarray(x, np.float32), length)
            done += len(label)
            say(done)
        if done != length:
            raise errors.Failure(f"{done} examples were read, but {length} were expected.")
        for layer, path in paths.items() if jax.process_index() == 0 else ():
            _replace(path, files[layer], np.concatenate(labels), origins[layer])
    except OSError as e:
        where = errors.printable(e.filename or next(iter(paths.values())).parent)
        raise errors.Failure(f"cannot write features: {where}: {e.strerror or e}.") from e
    finally:
        for file in files.values():
            file.discard()
    processes.barrier("features")  # the other hosts read them next


def read(
    path: Path,
    origin: dict[str, Any],
    num_classes: int = 0,
    say: Progress = lambda done, total: None,
    note: Callable[[str], None] = print,
) -> Features | None:
    """Opens features, memory-mapped, after verifying the checksums of all their bytes; None if there are none.

    Features without checksums, as written by earlier versions, are ignored with a note.

    Args:
      path: the `.npy` file.
      origin: what they should have been computed from.
      num_classes: labels (n) are classes below it; 0 for targets that are not classes.
      say: called with (bytes checked, total bytes).
      note: prints a line for the user.

    Raises:
      BadRequest: they are damaged, or stale: computed from something else, and the message says what differs.
    """
    record, where = path.with_suffix(".json"), errors.printable(path)
    if not os.path.lexists(record):
        return None
    try:
        found = reading.read_json(record, "of features")
        if "checksum" not in found and "files" not in found and "layer" in found:
            note(f"note: {where} has no checksums, because an earlier version wrote it; it is computed again.")
            return None
        if found.pop("checksum", None) != _checksum(found):
            raise errors.BadRequest(f"{errors.printable(record)} is damaged: it differs from what was written.")
        about = found.pop("files")
        if differs := _differences(found, json.loads(json.dumps(origin))):
            raise errors.BadRequest(f"the features in {where} are stale ({'; '.join(differs[:4])}).")
        arrays = {name: _open(file, about[name]) for name, file in _both(path).items()}
        for name, file in _both(path).items():
            _verify(file, arrays[name], about[name]["checksum"], say)
        _check_labels(_both(path)["labels"], arrays["labels"], num_classes)
        if len(arrays["values"]) != len(arrays["labels"]):
            raise errors.BadRequest(f"{where} has {len(arrays['values'])} rows, but {len(arrays['labels'])} labels.")
    except errors.BadRequest as e:
        raise errors.BadRequest(f"{str(e).rstrip('.')}; {_REMEDY}.") from None
    return Features(arrays["values"], np.array(arrays["labels"]), found)


def _both(path: Path) -> dict[str, Path]:
    return {"values": path, "labels": path.with_suffix(".labels.npy")}


class _Part:
    """A partial `.npy` file beside the one that it will replace."""

    def __init__(self, path: Path):
        self.path, self.part = path, path.with_name(f".{path.name}.{os.getpid()}.part")
        self.about: dict[str, Any] = {}
        self._file: BinaryIO | None = None

    def add(self, rows: np.ndarray, length: int) -> None:
        """Appends rows of an array that will have `length` rows."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for old in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.part"):
                with contextlib.suppress(OSError):
                    if time.time() - old.stat().st_mtime > _LEFT:
                        old.unlink()
            shape = (length, *rows.shape[1:])
            self.about = {"dtype": rows.dtype.str, "shape": list(shape), "checksum": 0}
            self._file = self.part.open("wb")
            header = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._file, header)
        self._file.write(rows.data)
        self.about["checksum"] = zlib.crc32(rows.data, self.about["checksum"])

    def finish(self) -> None:
        """Flushes it to the disk, and replaces the old file."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.part.replace(self.path)

    def discard(self) -> None:
        """Removes an unfinished file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
                self.part.unlink(missing_ok=True)


def _replace(path: Path, values: _Part, labels: np.ndarray, origin: dict[str, Any]) -> None:
    """Replaces the three files of features in an order in which a new record never goes with old arrays."""
    for what in _both(path).values():
        if what.is_dir():
            raise errors.Failure(f"{errors.printable(what)} is a folder in the place of a features file; remove it.")
    record, part = path.with_suffix(".json"), _Part(path.with_suffix(".labels.npy"))
    try:
        part.add(np.ascontiguousarray(labels), len(labels))
        record.unlink(missing_ok=True)
        part.finish()
        values.finish()
    finally:
        part.discard()
    found = {**json.loads(json.dumps(origin)), "files": {"values": values.about, "labels": part.about}}
    text = json.dumps({**found, "checksum": _checksum(found)}, indent=2) + "\n"
    whole = record.with_name(f".{record.name}.{os.getpid()}.part")
    try:
        with whole.open("w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        whole.replace(record)
    finally:
        whole.unlink(missing_ok=True)


def _checksum(record: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def _open(path: Path, about: dict[str, Any]) -> np.ndarray:
    """Memory-maps a `.npy` file after checking it against `about`, before anything of its size is read or allocated."""
    size = reading.regular(path, "features bytes").st_size
    where, kind, wanted = errors.printable(path), np.dtype(about["dtype"]), tuple(about["shape"])
    try:
        with path.open("rb") as f:
            version = np.lib.format.read_magic(f)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(f) if version == (1, 0) else ((), True, None)
            start = f.tell()
    except OSError as e:
        raise errors.BadRequest(f"{where} cannot be read: {e.strerror or e}.") from None
    except Exception:  # numpy parses the header as Python literals, which may fail in many ways
        raise errors.BadRequest(f"{where} is damaged: it is not a .npy file.") from None
    if fortran or (dtype, shape) != (kind, wanted):
        found = f"{str(dtype)[:40]} of shape {str(shape)[:60]}"
        raise errors.BadRequest(f"{where} is damaged: it holds {found}, not {kind} of shape {wanted}.")
    expected = start + kind.itemsize * math.prod(shape)
    if size != expected:
        raise errors.BadRequest(f"{where} is damaged: it has {size:,} bytes, not {expected:,}.")
    return np.memmap(path, kind, "r", start, shape)


def _verify(path: Path, values: np.ndarray, checksum: int, say: Progress) -> None:
    """Verifies the checksum of the values, and refuses values that are not finite."""
    found, step = 0, max(1, _CHUNK // max(1, values[:1].nbytes))
    for start in range(0, len(values), step):
        part = np.ascontiguousarray(values[start : start + step])
        found = zlib.crc32(part.data, found)
        if np.issubdtype(part.dtype, np.floating) and not np.isfinite(part).all():
            raise errors.BadRequest(f"{errors.printable(path)} holds numbers that are not finite.")
        say(min(start + step, len(values)) * values[:1].nbytes, values.nbytes)
    if found != checksum:
        raise errors.BadRequest(f"{errors.printable(path)} is damaged: its checksum differs from the recorded one.")


def _check_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    if num_classes and labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        wrong = labels[(labels < 0) | (labels >= num_classes)]
    elif num_classes and labels.ndim == 2:
        wrong = labels[:0] if labels.shape[1] == num_classes else labels[:1]
    else:
        wrong = labels[:0] if not num_classes else labels[:1]
    if len(wrong):
        raise errors.BadRequest(
            f"{errors.printable(path)} holds the label {str(wrong[0])[:60]}, which is not one of {num_classes} classes."
        )


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    out: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            old_value, new_value = (errors.printable(repr(x))[:80] for x in (a, b))
            out.append(f"{errors.printable(prefix + str(key))[:80]}: {old_value} there, {new_value} now")
    return out
