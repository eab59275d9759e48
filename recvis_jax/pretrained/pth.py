"""Files of torch.save: checked before torch gets them, and read by torch only as tensors and plain values."""

import argparse
import io
import pickletools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recvis_jax import reading
from recvis_jax.errors import BadRequest, brief, printable, shown
from recvis_jax.pretrained import archive, safetensors

# From this version on `weights_only` is safe: CVE-2025-32434 was fixed in 2.6, CVE-2026-24747 in 2.10.
SAFE_TORCH = (2, 10)

# Names that a pickle may use besides torch's own, which torch checks itself. All are data: torch sets the attributes of
# a Namespace (the arguments that many training programs save) and calls none of its code.
_NAMES = {
    *(("collections", name) for name in ("OrderedDict", "Counter", "defaultdict")),
    ("argparse", "Namespace"),
    ("_codecs", "encode"),  # bytes in protocol 2
    ("builtins", "set"),
    ("builtins", "complex"),
    ("__builtin__", "set"),
    ("__builtin__", "complex"),
}
# In the old format: a magic number, a version, system information, the tensors, the names of their storages.
_PICKLES = 5


class _Refused(ValueError):
    """A file asks for something other than tensors; the message is the reason."""


def read(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns the tensors of a file of torch.save, and the names of the tables that hold them.

    Nested tables are written with dots, 'model.conv1.weight'; values that are not tensors are left out.

    Returns:
      name -> array; names of the tables that hold tensors themselves, '' for the outermost.

    Raises:
      BadRequest: torch is missing or too old; the file is damaged, or asks for more than tensors and plain values.
    """
    name = printable(path)
    size = reading.regular(path, "weights bytes").st_size
    try:
        import torch
    except ImportError:
        raise BadRequest(
            f"{name} is a pickle, which only torch can read safely, but torch is not installed: "
            "pip install torch, or convert the file to .safetensors."
        ) from None
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < SAFE_TORCH:
        raise BadRequest(
            f"{name} is a pickle, which can execute code in torch {torch.__version__} despite weights_only "
            "(CVE-2025-32434, CVE-2026-24747): pip install 'torch>=2.10', or convert the file to .safetensors."
        )
    try:
        if size:
            _look(path, size)
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
        return _tensors(state, torch)
    except _Refused as e:
        raise BadRequest(f"{name} is not a file of weights only, and is refused ({e}).") from None
    except Exception as e:  # damaged content can raise anything
        asked = re.search(r"GLOBAL (\S+)", str(e))  # the rest of the message tells how to load it anyway
        reason = f"it asks for {brief(asked[1])}" if asked else archive.line(e)
        raise BadRequest(f"{name} is not a file of weights only, and is refused ({reason}).") from None


def _look(path: Path, size: int) -> None:
    """Raises `_Refused`, or an error of the zip reader, if the pickles in a file ask for anything not allowed."""
    most = reading.LIMITS["pickle bytes"]
    with path.open("rb") as f:
        head = f.read(most)
    if not head.startswith(b"PK"):
        if b"ustar" in head[257:263]:
            raise _Refused("it is a tar archive, as torch wrote before 2017: load it and save it again")
        _check_pickles(io.BytesIO(head), _PICKLES)
        return
    with archive.opened(path) as entries:
        unpacked = sum(info.file_size for info in entries.infolist())
        if unpacked > size + most:
            raise _Refused(f"it unpacks to {unpacked:,} bytes, but has {size:,}; torch does not compress")
        pickles = [info for info in entries.infolist() if info.filename.endswith(".pkl")]
        if not pickles:
            raise _Refused("it is a zip archive without data.pkl")
        for info in pickles:
            if info.file_size > most:
                raise _Refused(f"{brief(info.filename)} has {info.file_size:,} bytes; at most {most:,} are read")
            _check_pickles(io.BytesIO(entries.read(info)), 1)


def _check_pickles(stream: io.BytesIO, count: int) -> None:
    """Raises `_Refused` if one of up to `count` consecutive pickles uses a name that is not in `_NAMES`.

    Nothing is unpickled: the pickle's steps are only listed.
    """
    names: dict[tuple[str, ...], None] = {}  # in order
    steps, words = 0, ["", ""]
    end = len(stream.getbuffer())
    for _ in range(count):
        if stream.tell() >= end:
            break
        for step, argument, _ in pickletools.genops(stream):
            steps += 1
            if steps > reading.LIMITS["pickle steps"]:
                raise _Refused(f"its pickle has more than {reading.LIMITS['pickle steps']:,} steps")
            if isinstance(argument, str) and step.name not in ("GLOBAL", "INST"):
                words = [words[1], argument]
            elif step.name in ("GLOBAL", "INST"):
                names[tuple(str(argument).split(" ", 1))] = None
            elif step.name == "STACK_GLOBAL":
                names[tuple(words)] = None
            elif step.name in ("EXT1", "EXT2", "EXT4", "BYTEARRAY8", "NEXT_BUFFER"):
                raise _Refused(f"its pickle has a step {step.name}")
    wrong = [n for n in names if n not in _NAMES and n[0].split(".")[0] != "torch"]
    if wrong:
        asked = ", ".join(brief(".".join(n), 60) for n in wrong[:3]) + (" and more" if len(wrong) > 3 else "")
        raise _Refused(f"it asks for {asked}; in torch, save only the state_dict, or convert it to .safetensors")


def _tensors(state: Any, torch: Any) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns the tensors in nested tables as arrays, and the names of the tables that hold them."""
    out: dict[str, np.ndarray] = {}
    tables: dict[str, None] = {}
    for name, table, x in _walk(state, torch.Tensor):
        full = f"{table}.{name}" if table else name
        if full in out:
            raise _Refused(f"the name {brief(full)} occurs twice")
        storage = x.untyped_storage().nbytes() if hasattr(x, "untyped_storage") and x.layout == torch.strided else None
        if storage is not None and x.numel() * x.element_size() > storage:
            raise _Refused(f"{brief(full)} of shape {brief(tuple(x.shape))} has {storage:,} bytes, fewer than it needs")
        try:
            array = (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy()
        except (TypeError, ValueError, RuntimeError) as e:  # sparse, quantised, or a type that numpy does not have
            raise _Refused(f"{brief(full)} is not a plain array: {archive.line(e)}") from None
        out[safetensors.plain(full)] = array
        tables[table] = None
    if not out:
        kind = f"a table of {shown(list(state), 60)}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise _Refused(f"it holds no state dict, a table of tensors, but {kind}")
    return out, tuple(tables)


def _walk(state: Any, tensor: type, table: str = "", depth: int = 0, seen: list[int] | None = None) -> Iterator:
    """Yields (name, name of the table, tensor) of all tensors in nested tables; tensors in lists have no names."""
    seen = [0] if seen is None else seen
    if not isinstance(state, Mapping):
        return
    if depth > reading.LIMITS["axes"]:
        raise _Refused("its tables are nested too deeply")
    for key, value in state.items():
        seen[0] += 1
        if seen[0] > 5 * reading.LIMITS["tensors"]:
            raise _Refused(f"it has more than {5 * reading.LIMITS['tensors']:,} entries")
        if isinstance(value, tensor) and isinstance(key, str):
            yield str(key), table, value
        elif isinstance(value, Mapping):
            yield from _walk(value, tensor, f"{table}.{key}" if table else str(key), depth + 1, seen)
