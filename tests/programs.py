"""Starts the programs as a user does, and reads what they leave behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent
ENV = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}  # one device
DIGITS = f"--config={ROOT}/configs/digits/lenet.py"


def start(*command: str | Path, **env: str) -> subprocess.Popen:
    """Starts `python *command`; both streams go to one text pipe."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**ENV, **env},
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Waits for a program, checks its exit code and returns what it printed."""
    text, _ = process.communicate(timeout=300)
    assert process.returncode == code, text[-3000:]
    return text


def run(*command: str | Path, code: int = 0, **env: str) -> str:
    """Runs `python *command` to its end and returns what it printed."""
    return finish(start(*command, **env), code)


def wait_for(condition, process: subprocess.Popen, what: str, timeout: float = 120) -> None:
    """Returns as soon as `condition()` holds; fails where the program ends before."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"no {what} in {timeout} s"
        if process.poll() is not None:
            raise AssertionError(f"ended before {what}: {process.communicate()[0][-3000:]}")
        time.sleep(0.001)


def records(workdir: Path) -> list[dict]:
    """Reads metrics.jsonl without what differs from life to life."""
    lines = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in lines]


def steps(workdir: Path, which: str) -> list[int]:
    """The steps of the checkpoints that are whole by their names."""
    folder = workdir / "checkpoints" / which
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []


def arrays(workdir: Path, which: str) -> dict[str, np.ndarray]:
    """Reads the newest checkpoint of `which` with orbax alone, whatever it was saved from."""
    folder = workdir / "checkpoints" / which / str(steps(workdir, which)[-1]) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        found = reader.restore(folder, restore_args=_as_numpy(reader.metadata(folder)))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(found)}


def _as_numpy(metadata):
    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.item_metadata.tree)


def assert_same_arrays(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """The same names and the same bits."""
    assert a.keys() == b.keys() and len(a) > 0
    differing = [k for k in a if a[k].dtype != b[k].dtype or a[k].tobytes() != b[k].tobytes()]
    assert not differing
