"""Folders of checkpoints in orbax's format: how they are written and listed, and what errors of writing mean."""

import errno
import json
import logging
import zlib
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import LatestN

from recvis_jax import errors
from recvis_jax.training.state import State


def listed(folder: epath.Path) -> list[epath.Path]:
    """Lists a folder, which need not exist; `Failure` if it is not a folder or cannot be read."""
    try:
        return list(folder.iterdir()) if folder.exists() else []
    except OSError as e:
        raise errors.Failure(f"the checkpoints in {folder} cannot be read: {e.strerror or e}.") from e


def is_step(name: str) -> bool:
    """Whether a file name is that of a checkpoint."""
    return name.isascii() and name.isdecimal()


def is_full(e: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that the disk is full."""
    full = (errno.ENOSPC, errno.EDQUOT)
    signs = ("No space left", "ENOSPC", "quota exceeded", *(f"os_error_code='{n}'" for n in full))
    for _ in range(20):
        if e is None:
            return False
        if getattr(e, "errno", None) in full or any(sign in str(e) for sign in signs):
            return True
        e = e.__cause__ or e.__context__
    return False


def open_manager(folder: epath.Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    """Opens a folder of checkpoints, of which the `keep` newest are kept; `Failure` if it holds special files."""
    if "://" not in str(folder):
        for path in sorted(Path(folder).rglob("*")):  # orbax would wait for ever for data from a named pipe
            if path.exists() and not (path.is_dir() or path.is_file()):
                raise errors.Failure(f"the checkpoints in {folder} cannot be read: {path} is not a regular file.")
    # No compression: it saves only a twelfth of float32 parameters, and competes with training for the CPUs.
    handlers = {"state": ocp.PyTreeCheckpointHandler(use_compression=False), "meta": ocp.JsonCheckpointHandler()}
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)  # silences a warning that the folder is read-only, which is intended
    try:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestN(keep),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
    finally:
        absl.setLevel(level)


def save(manager: ocp.CheckpointManager, step: int, state: State, meta: dict[str, Any]) -> None:
    """Starts writing a state and the JSON beside it."""
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta))
    if not manager.save(step, args=args):  # for instance if there are later steps
        raise RuntimeError(f"orbax did not save step {step} beside {manager.all_steps()}")


def digest(meta: dict[str, Any]) -> int:
    """Returns the checksum of the JSON beside a state, without the checksum itself."""
    return zlib.crc32(json.dumps({k: v for k, v in meta.items() if k != "digest"}, sort_keys=True).encode())


def line(e: BaseException) -> str:
    """Returns an error's message in one line."""
    return " ".join(str(e).split())[:200] or type(e).__name__
