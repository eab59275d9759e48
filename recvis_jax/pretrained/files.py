"""Reads checkpoints from others. Nothing in them is executed."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recvis_jax import reading
from recvis_jax.errors import BadRequest, brief
from recvis_jax.pretrained import archive, hdf5, pickled, pth, published, safetensors

HUB = "hf://"
PTH = (".pth", ".pt", ".bin")
HDF5 = (".h5", ".hdf5")
SUFFIXES = (".safetensors", ".npz", ".pkl", *PTH, *HDF5)


class Checkpoint(NamedTuple):
    """The content of a source of weights.

    Attributes:
      tensors: name -> array, read when accessed.
      ours: whether the names are ours.
      tables: names of the tables that the tensors are in, '' for the outermost; see `parts`.
      part: the requested part of the source; empty takes the one that fits best.
      image_size: rows and columns of the images that the weights were trained on, if the source has them.
    """

    tensors: Mapping[str, Any]
    ours: bool = False
    tables: tuple[str, ...] = ("",)
    part: str = ""
    image_size: tuple[int, int] | None = None


def read(source: str) -> Checkpoint:
    """Opens a checkpoint; its name tells its kind.

    Args:
      source: a file `.safetensors`, `.npz`, `.pkl` of arrays, `.pth` (`.pt`, `.bin`) if torch is installed, or `.h5`
        (`.hdf5`) if h5py is; `hf://owner/repo` or `hf://owner/repo/file`; or the folder of a run of ours, with `@best`,
        `@last` or `@1000` to choose a checkpoint. For a file with several sets of weights, `#name` chooses one:
        `x.pth#model_ema`.

    Raises:
      BadRequest: there is no such file, it has an unknown type, is damaged, or needs a package that is not installed.
    """
    if "\0" in source:
        raise BadRequest(f"{brief(source)} is not a valid file name.")
    if source.startswith(HUB):
        place, _, part = source.partition("#")
        found = read(str(_download(place)))
        return found._replace(part=part)
    for place, which in ((source, ""), source.rpartition("@")[::2]):
        folder = Path(place).expanduser()
        if place and (_is("is_dir", folder / "checkpoints") or _is("is_file", folder / "config.json")):
            from recvis_jax.pretrained import run  # loads orbax, which files do not need

            if not which and published.there(folder):
                return Checkpoint(published.read(folder).tensors, ours=True, image_size=run.image_size(folder))
            return Checkpoint(run.read(folder, which), ours=True, image_size=run.image_size(folder))
    path, part = Path(source).expanduser(), ""
    if not _is("exists", path) and "#" in source:
        place, _, part = source.rpartition("#")
        path = Path(place).expanduser()
    name = brief(path, 200)
    if _is("is_dir", path):
        raise BadRequest(f"{name} is a folder without checkpoints/, so it is not a run; give a run, or a file in it.")
    if not _is("exists", path):
        raise BadRequest(f"there is no file {name}.")
    if path.suffix not in SUFFIXES:
        raise BadRequest(f"{name} has an unknown file type; {', '.join(SUFFIXES)} can be read.")
    try:
        tables: tuple[str, ...] = ("",)
        tensors: Mapping[str, Any]
        if path.suffix in PTH:
            tensors, tables = pth.read(path)
        elif path.suffix == ".pkl":
            tensors = pickled.read(path)
        elif path.suffix in HDF5:
            tensors = hdf5.File(path)
        else:
            tensors = (safetensors.File if path.suffix == ".safetensors" else archive.Npz)(path)
    except OSError as e:
        raise BadRequest(f"{name} cannot be read ({archive.line(e)}).") from None
    return Checkpoint(tensors, published.ours(tensors), tables, part, _beside(path))


def _is(what: str, path: Path) -> bool:
    """Asks a path; False if the system refuses to look at it, for instance because the name is too long."""
    try:
        return getattr(path, what)()
    except OSError:
        return False


def _beside(path: Path) -> tuple[int, int] | None:
    """Returns rows and columns of images from the JSON beside a file of weights, if there is one.

    transformers writes `image_size` into `config.json`, timm `pretrained_cfg.input_size` (c, h, w); runs of ours
    `image_shape` (h, w, c) into `data.json`. It is only a hint: any other file is ignored.
    """
    found: dict[str, Any] = {}
    for name in ("config.json", "data.json"):
        with contextlib.suppress(BadRequest, OSError):
            found |= reading.read_json(path.with_name(name))
    size = found.get("image_size")
    if isinstance(found.get("image_shape"), list):
        size = found["image_shape"][:2]
    if isinstance(found.get("pretrained_cfg"), dict):
        size = found["pretrained_cfg"].get("input_size", size)
    numbers = [size, size] if isinstance(size, int) else size[-2:] if isinstance(size, list) else []
    if len(numbers) != 2 or not all(type(n) is int and 0 < n < 10**6 for n in numbers):
        return None
    return numbers[0], numbers[1]


def _download(source: str) -> Path:
    """Downloads hf://owner/repo[/file] to the hub's cache; without a file, the repository's only file of weights."""
    try:
        import huggingface_hub as hub
    except ImportError:
        raise BadRequest(
            f"{brief(source)} needs the package huggingface_hub: pip install huggingface_hub, or download the file."
        ) from None
    owner, _, rest = source.removeprefix(HUB).partition("/")
    repo, _, name = rest.partition("/")
    if not owner or not repo:
        raise BadRequest(f"{brief(source)!r} is not of the form hf://owner/repo or hf://owner/repo/file.")
    try:
        if not name:
            found = hub.list_repo_files(f"{owner}/{repo}")
            name = _weights(found, source)
            for beside in {"config.json", "data.json"} & {*found}:  # have the image size that the positions are for
                hub.hf_hub_download(f"{owner}/{repo}", beside)
        return Path(hub.hf_hub_download(f"{owner}/{repo}", name))
    except (OSError, ValueError) as e:  # base classes of the hub's errors
        if isinstance(e, BadRequest):
            raise
        raise BadRequest(f"{brief(source)} cannot be fetched ({archive.line(e)}).") from None


def _weights(files: list[str], source: str) -> str:
    for suffix in SUFFIXES:
        found = [f for f in files if f.endswith(suffix)]
        if "model.safetensors" in found:
            return "model.safetensors"
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(brief(f) for f in found[:4])
            raise BadRequest(f"{source} has several files of weights: {shown}. Choose one: {source}/FILE.")
    raise BadRequest(f"{brief(source)} has no file of weights ({', '.join(SUFFIXES)}).")
