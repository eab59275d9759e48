"""How a run was made: command, commit, versions and machine of each of its lives (from a start to the next stop)."""

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import recvis_jax
from recvis_jax import errors, reading
from recvis_jax.training import log

FILE = "environment.json"
_MOST = 50  # lives that are kept: the first one and the last ones


def note(folder: Path) -> None:
    """Adds this process to the lives of the run in `folder`; a damaged record is replaced by a new one.

    Raises:
      Failure: it cannot be written.
    """
    try:
        lives = read(folder)
    except errors.BadRequest:
        lives = []
    lives = [*lives, here()]
    log.write_json(folder / FILE, {"lives": lives if len(lives) <= _MOST else [lives[0], *lives[1 - _MOST :]]})


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns what `here` recorded in each life of a run, oldest first; nothing for runs of earlier versions.

    Raises:
      BadRequest: the record is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return []
    lives = reading.read_json(path, "how the run was made").get("lives")
    if not isinstance(lives, list) or not all(isinstance(life, dict) for life in lives):
        raise errors.BadRequest(f"{path} is damaged: 'lives' is {errors.shown(lives)}, not a list of objects.")
    return lives


def here() -> dict[str, Any]:
    """Returns the facts about this process; JAX must have been started."""
    import jax

    devices = jax.devices()
    return {
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "commit": _commit(),
        "recvis_jax": recvis_jax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "processes": jax.process_count(),
    }


def _command() -> str:
    """The command line of one of our programs; empty if another program, such as a notebook, calls us."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = getattr(spec, "name", "") or ""
    ours = name.startswith(("recvis_jax.", "launch."))
    return errors.command("python", "-m", name, *sys.argv[1:])[:4000] if ours else ""


def _commit() -> str:
    """The commit of the project's checkout, with a + if files differ from it; empty if there is no checkout."""
    root = Path(recvis_jax.__file__).resolve().parents[1]
    if not (root / ".git").exists():  # an installed package, possibly inside another repository
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
