"""Runs a program as several processes on this machine, each with simulated or real devices.

  python -m launch.local --processes=2 --devices=4 --config=configs/fashion_mnist/lenet5.py --workdir=runs/x [...]

Two processes with four CPU devices each train like a pod of two hosts: useful to try out and test multi-host runs.
Flags that are not listed below go to the program. The output of process 0 is shown; from the others only errors, with
the process number before each line. All output is kept in `<workdir>/logs/process_I.txt`. SIGTERM and Ctrl-C are passed
on to all processes; a second one kills them.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags

from launch import attempt, command
from recvis_jax import errors

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this launcher."""
    flags.DEFINE_integer("processes", 1, "Number of processes.", lower_bound=1)
    flags.DEFINE_integer(
        "devices", 0, "Simulated CPU devices of each process; 0 for the real devices of this machine.", lower_bound=0
    )
    flags.DEFINE_integer(
        "max_restarts", 0, "How often to restart all processes after one of them failed.", lower_bound=0
    )
    command.define_flags()
    flags.adopt_module_key_flags(command)


_GRACE = 40.0  # seconds for processes to notice that another one is gone, and to end by themselves
_OUTPUT = threading.Lock()


def main(passed: list[str]) -> int:
    env = _environment(FLAGS.devices)
    if FLAGS.dry_run:
        lines = [command.shown(words, env) for words in _commands(passed)]
        print(" &\n".join(lines), " &\nwait" if len(lines) > 1 else "", sep="")
        return 0
    stop = _Stop()
    for life in range(FLAGS.max_restarts + 1):
        group = _Group(_commands(passed), env, command.value(passed, "workdir"))
        stop.group = group
        code = group.wait(stop)
        if not code or stop.asked or code == command.BAD_REQUEST:
            return code
        if life < FLAGS.max_restarts:
            command.say(f"starting all processes again ({life + 1} of {FLAGS.max_restarts})")
    return code


def _environment(devices: int) -> dict[str, str]:
    """Returns the environment variables that set a process's number of simulated devices."""
    if not devices:
        return {}
    given = os.environ.get("XLA_FLAGS", "")
    flag = f"--xla_force_host_platform_device_count={devices}"
    return {"XLA_FLAGS": f"{given} {flag}".strip(), "JAX_PLATFORMS": "cpu"}


def _commands(passed: list[str]) -> list[list[str]]:
    """Returns the command of each process; they connect at a port that is free now."""
    count = FLAGS.processes
    if count == 1:
        return [command.python(FLAGS.program, [*passed, "--distributed=off"])]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    meet = [f"--coordinator={where}", f"--num_processes={count}"]
    return [command.python(FLAGS.program, [*passed, *meet, f"--process_id={i}"]) for i in range(count)]


class _Stop:
    """Passes SIGTERM and SIGINT on to the processes; a second one kills them."""

    def __init__(self) -> None:
        self.asked = 0
        self.group: _Group | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def _hear(self, number: int, _: Any) -> None:
        self.asked += 1
        if self.group:
            self.group.signal(signal.SIGKILL if self.asked > 1 else number)


class _Group:
    """The processes of one start of the run."""

    def __init__(self, commands: list[list[str]], env: dict[str, str], workdir: str | None) -> None:
        self._processes: list[subprocess.Popen] = []
        self._readers: list[threading.Thread] = []
        for i, words in enumerate(commands):
            log = _open_log(workdir, i, words)
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, **env}, process_group=0,  # Ctrl-C reaches them only through the launcher
            )  # fmt: skip
            self._processes.append(process)
            prefix = f"[{i}] ".encode() if i else b""
            for stream, shown in ((process.stdout, None if i else sys.stdout), (process.stderr, sys.stderr)):
                reader = threading.Thread(target=_pass_on, args=(stream, shown, prefix, log), daemon=True)
                reader.start()
                self._readers.append(reader)

    def signal(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)  # does nothing if it has ended

    def wait(self, stop: _Stop) -> int:
        """Waits for all processes; returns 0, or the code for a wrong request, or else that of the first failure."""
        failed: tuple[int, int] | None = None  # process, code
        deadline = float("inf")
        if stop.asked:  # while the processes were being started
            self.signal(signal.SIGTERM)
        while True:
            codes = [process.poll() for process in self._processes]
            bad = [(i, code) for i, code in enumerate(codes) if code]
            if bad and failed is None:
                failed = min(bad, key=lambda found: found[1])  # a signal tells more than an exit code
                deadline = time.monotonic() + _GRACE
                if not stop.asked:
                    command.say(f"process {failed[0]} of {len(codes)} {_death(failed[1])}")
            running = [i for i, code in enumerate(codes) if code is None]
            if not running:
                break
            if time.monotonic() > deadline:
                command.say(f"killing {', '.join(f'process {i}' for i in running)}: still running after {_GRACE:.0f} s")
                self.signal(signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.05)
        self._clear_up()
        if command.BAD_REQUEST in codes:
            return command.BAD_REQUEST
        return attempt.exit_code(failed[1]) if failed else 0

    def _clear_up(self) -> None:
        """Kills children of the processes, and passes on the rest of the output."""
        for process in self._processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for reader in self._readers:
            reader.join(timeout=5)


def _death(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"


def _open_log(workdir: str | None, index: int, words: list[str]) -> IO[bytes] | None:
    """Opens a process's log; restarts append to it."""
    if not workdir or "://" in workdir:
        return None
    folder = Path(workdir).expanduser() / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / f"process_{index}.txt").open("ab")
    except OSError as e:
        raise errors.BadRequest(f"cannot write to {folder}: {e.strerror or e}.") from e
    log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {command.shown(words)}\n".encode())
    log.flush()
    return log


def _pass_on(stream: IO[bytes], shown: Any, prefix: bytes, log: IO[bytes] | None) -> None:
    """Copies lines to the log, and to `shown` unless it is None."""
    for line in stream:
        with _OUTPUT:
            if log:
                log.write(line)
                log.flush()
            if shown:
                shown.buffer.write(prefix + line)
                shown.flush()


if __name__ == "__main__":
    command.run(main, define_flags)
