"""Reading checkpoints that others wrote. Nothing in them is executed."""

import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recvis_jax.errors import BadRequest
from recvis_jax.pretrained import safetensors

HUB = "hf://"
PTH = (".pth", ".pt", ".bin")
# From here on `weights_only` keeps its promise: CVE-2025-32434 went with 2.6, CVE-2026-24747 with 2.10.
SAFE_TORCH = (2, 10)


class Checkpoint(NamedTuple):
    """Name -> array, read when asked for, and whether the names are already ours."""

    tensors: Mapping[str, Any]
    ours: bool = False


def read(source: str) -> Checkpoint:
    """Opens a checkpoint by what its name says it is.

    Args:
      source: a file `.safetensors`, `.npz`, or `.pth` (`.pt`, `.bin`) where torch is installed; `hf://owner/repo` or
        `hf://owner/repo/file`; or the folder of a run of our own, with `@best`, `@last` or `@1000` to say which
        checkpoint.

    Raises:
      BadRequest: there is no such file, it is of another kind, damaged, or needs a package that is not installed.
    """
    if source.startswith(HUB):
        return read(str(_download(source)))
    for place, which in ((source, ""), source.rpartition("@")[::2]):
        folder = Path(place).expanduser()
        if place and ((folder / "checkpoints").is_dir() or (folder / "config.json").is_file()):
            from recvis_jax.pretrained import run  # loads orbax, which no file needs

            return Checkpoint(run.read(folder, which), ours=True)
    path = Path(source).expanduser()
    if path.is_dir():
        raise BadRequest(f"{path} is a folder without checkpoints/: a run of ours has one; or give a file in it.")
    if not path.is_file():
        raise BadRequest(f"there is no file {path}.")
    readers = {".safetensors": safetensors.File, ".npz": Npz, **dict.fromkeys(PTH, _read_pth)}
    if path.suffix not in readers:
        raise BadRequest(f"{path} is of no known kind: {', '.join(readers)} are read.")
    try:
        return Checkpoint(readers[path.suffix](path))
    except OSError as e:
        raise BadRequest(f"{path} cannot be read ({_line(e)}).") from None


class Npz(Mapping[str, np.ndarray]):
    """An .npz archive as a mapping, with every header checked against its size first; pickled objects are refused."""

    def __init__(self, path: Path):
        self._path = path
        self._entries: dict[str, str] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    name = safetensors.plain(info.filename.removesuffix(".npy"))
                    if name in self._entries:
                        raise ValueError(f"{name} occurs twice")
                    self._entries[name] = self._check(archive, info)
        except Exception as e:  # unpacking and parsing raise whatever the file's contents lead them to
            raise BadRequest(f"{path} is damaged or no .npz archive: {_line(e)}.") from None

    @staticmethod
    def _check(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
        with archive.open(info) as f:
            version = np.lib.format.read_magic(f)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read_header is None:
                raise ValueError(f"{info.filename} is of an unknown version {version}")
            shape, _, dtype = read_header(f)
            if dtype.hasobject:
                raise ValueError(f"{info.filename} holds pickled objects, which could execute code")
            if min(shape, default=0) < 0 or f.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
                raise ValueError(f"{info.filename} claims shape {shape}, and has {info.file_size} bytes")
        return info.filename

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(entry) as f:
                return np.lib.format.read_array(f, allow_pickle=False)
        except Exception as e:  # as above
            raise BadRequest(f"{name} in {self._path} is damaged: {_line(e)}.") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _read_pth(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict with torch, which is told to build tensors and nothing else."""
    try:
        import torch
    except ImportError:
        raise BadRequest(
            f"{path} is a pickle, which only torch reads safely, and torch is not installed: "
            "pip install torch, or convert the file to .safetensors."
        ) from None
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < SAFE_TORCH:
        raise BadRequest(
            f"{path} is a pickle, which can execute code in torch {torch.__version__} in spite of weights_only "
            "(CVE-2025-32434, CVE-2026-24747): pip install 'torch>=2.10', or convert the file to .safetensors."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises whatever the file's contents lead it to
        asked = re.search(r"GLOBAL (\S+)", str(e))  # the rest of what it says is how to load it all the same
        reason = f"it asks for {asked[1]}" if asked else _line(e)
        raise BadRequest(f"{path} is no file of weights alone, and is refused ({reason}).") from None
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(
        isinstance(n, str) and isinstance(x, torch.Tensor) for n, x in state.items()
    ):
        raise BadRequest(f"{path} holds no state dict: a table of tensors, bare or under 'model' or 'state_dict'.")
    try:
        return {
            safetensors.plain(n): (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy()
            for n, x in state.items()
        }
    except (TypeError, ValueError, RuntimeError) as e:  # sparse, quantised, of a kind that numpy does not have
        raise BadRequest(f"{path} holds a tensor that is no plain array ({_line(e)}).") from None


def _download(source: str) -> Path:
    """Fetches hf://owner/repo[/file] into the hub's cache; without a file, the repository's one file of weights."""
    try:
        import huggingface_hub as hub
    except ImportError:
        raise BadRequest(
            f"{source} needs the package huggingface_hub: pip install huggingface_hub, or download the file."
        ) from None
    owner, _, rest = source.removeprefix(HUB).partition("/")
    repo, _, name = rest.partition("/")
    if not owner or not repo:
        raise BadRequest(f"{source!r} is not of the form hf://owner/repo or hf://owner/repo/file.")
    try:
        if not name:
            files = hub.list_repo_files(f"{owner}/{repo}")
            name = _weights(files, source)
        return Path(hub.hf_hub_download(f"{owner}/{repo}", name))
    except (OSError, ValueError) as e:  # what the hub's errors derive from
        raise BadRequest(f"{source} cannot be fetched ({_line(e)}).") from None


def _weights(files: list[str], source: str) -> str:
    for suffix in (".safetensors", ".npz", *PTH):
        found = [f for f in files if f.endswith(suffix)]
        if "model.safetensors" in found:
            return "model.safetensors"
        if len(found) == 1:
            return found[0]
        if found:
            raise BadRequest(f"{source} has several files of weights: {', '.join(found[:8])}. Name one: {source}/FILE.")
    raise BadRequest(f"{source} has no file of weights (.safetensors, .npz, {', '.join(PTH)}).")


def _line(e: BaseException) -> str:
    text = "".join(c for c in " ".join(str(e).split()) if c.isprintable())  # torch writes in bold
    return text[:200] or type(e).__name__
