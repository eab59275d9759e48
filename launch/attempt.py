"""Runs a program once; the exit code tells whether the run is done or only stopped.

  python -m launch.attempt [--finished=summary.json] recvis_jax.train --config=... --workdir=...

A training exits with 0 both when it has finished and when it was told to stop and has saved. Whoever restarts it must
tell these apart. Here the exit code is 75 if the program exits with 0 but `<workdir>/summary.json` is not new, else the
program's own (128 + the signal if a signal killed it, unless that was a requested stop). SIGTERM and SIGINT are passed
on to the program. Other launchers run this in pods and on workers.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags

from launch import command

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this launcher."""
    flags.DEFINE_string(
        "finished", None, "File in the workdir that a run writes when it finishes; empty if exit code 0 is enough. "
        "Default: summary.json for recvis_jax.train, else empty."
    )  # fmt: skip


# Seconds until a file written by another host is visible here (attribute caches of network file systems).
_SEEN_WITHIN = 15.0


def finished_file() -> str:
    """Returns the name of the file that marks a finished run, or an empty string if there is none."""
    if FLAGS.finished is not None:
        return FLAGS.finished
    return "summary.json" if FLAGS.program == "recvis_jax.train" else ""


def stamp(path: str) -> Any:
    """Returns a value that changes whenever the file at `path` is rewritten; None if there is no file."""
    try:
        status = Path(path).expanduser().stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def exit_code(returncode: int) -> int:
    """Returns a child's exit code as in shells: 128 + the signal if a signal killed it."""
    return 128 - returncode if returncode < 0 else returncode


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else command.BAD_REQUEST
    finished = argv.pop(0).partition("=")[2] if argv[0].startswith("--finished=") else ""
    program, passed = argv[0], argv[1:]
    path = f"{command.workdir(passed).rstrip('/')}/{finished}" if finished else ""
    before = stamp(path) if path else None
    child = subprocess.Popen(command.python(program, passed))
    told = False

    def hand_on(number: int, _: Any) -> None:
        nonlocal told
        told = True
        child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    ended = child.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # too late to matter, but it could still kill the exiting interpreter
    # A child killed by our stop signal has stopped: the signal came before it began, or after it had saved.
    # A training that saved after Ctrl-C has an exit code of its own.
    stopped = -ended in (signal.SIGTERM, signal.SIGINT) or ended == 128 + signal.SIGINT
    code = 0 if told and stopped else exit_code(ended)
    if code or not path:
        return code
    end = time.monotonic() + (0 if told else _SEEN_WITHIN)  # if told to stop, it most likely stopped
    while stamp(path) in (None, before):
        if time.monotonic() > end:
            command.say(f"the run stopped before its end ({finished} is not new): exit code {command.STOPPED}")
            return command.STOPPED
        time.sleep(0.5)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
