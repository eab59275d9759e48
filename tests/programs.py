"""Starts the programs as a user does, and reads what they leave behind."""

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import lives
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent
ENV = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}  # one device
DIGITS = f"--config={ROOT}/configs/digits/lenet.py"
QUICK = "--xla_backend_optimization_level=1"  # to compile; see conftest.py


def start(*command: str | Path, **env: str) -> subprocess.Popen:
    """Starts `python *command`, which compiles quickly unless `env` says otherwise; both streams go to one pipe."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**ENV, "XLA_FLAGS": QUICK, **env},
    )


@functools.cache
def _server() -> lives.Server:
    return lives.Server(ENV)


def fork(*command: str | Path, **env: str) -> lives.Life:
    """The same, without the seconds that imports take: for tests of what a program does once it runs."""
    return _server()([*map(str, command)], {**ENV, "XLA_FLAGS": QUICK, **env})


def finish(process: subprocess.Popen | lives.Life, code: int = 0) -> str:
    """Waits for a program, checks its exit code and returns what it printed."""
    text, _ = process.communicate(timeout=900)
    assert process.returncode == code, text[-3000:]
    return text


def start_together(processes: int, devices: int, *command: str | Path) -> list[lives.Life]:
    """Forks processes that make one run, each with so many simulated devices."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    together = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"] if processes > 1 else []
    flags = {"XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    own = [[*together, f"--process_id={i}"] if together else [] for i in range(processes)]
    return [fork(*command, *flag, **flags) for flag in own]


def run(*command: str | Path, code: int = 0, **env: str) -> str:
    """Runs `python *command` to its end and returns what it printed."""
    return finish(start(*command, **env), code)


# Starting a program takes seconds, most of them for imports: one process imports, and runs each program in a fork.
_SERVER = """
import json, os, runpy, sys
import jax, flax, optax, orbax.checkpoint, grain, cv2, tensorflow_datasets, sklearn.datasets
from recvis_jax import cli, errors
for line in sys.stdin:
    case = json.loads(line)
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(f"{case['to']}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        os.environ.update(case["env"])
        if case["cwd"]:
            os.chdir(case["cwd"])
        sys.argv = [case["program"], *case["flags"]]
        code = 1
        try:
            runpy.run_module("recvis_jax." + case["program"], run_name="__main__", alter_sys=True)
        except SystemExit as e:
            code = e.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    out: str
    err: str


class Server:
    """Runs programs one after the other, each as if started anew, but without the wait for imports."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV
        )

    def __call__(self, program: str, *flags: str | Path, cwd: str | Path = "", **env: str) -> Ended:
        self._count += 1
        to = Path(self._folder.name) / str(self._count)
        if program in ("train", "prepare") and not any(str(f).startswith("--report") for f in flags):
            flags = (*flags, "--report=false")  # most tests look at other things; test_reporting.py asks for one
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {QUICK}"
        case = {"program": program, "flags": [str(f) for f in flags], "env": env, "to": str(to), "cwd": str(cwd)}
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Ended(code, *(to.with_suffix(f".{stream}").read_text() for stream in (1, 2)))

    def close(self) -> None:
        self._process.communicate()
        self._folder.cleanup()


def write_config(path: Path, sections: dict) -> str:
    """Writes a config file of plain values, and returns the flag that names it."""
    path.write_text(f"import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({sections!r})\n")
    return f"--config={path}"


def wait_for(condition, process: subprocess.Popen | lives.Life, what: str, timeout: float = 600) -> None:
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
