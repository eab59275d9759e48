"""Tries malformed inputs one after the other in this process, and says which did not end as they should.

An input ends well in one printable line that names the file or key, as a bad request or a failure (exit codes 2 and
1), after at most `SECONDS` of processor time and `BYTES` of memory, with no program started and nothing unpickled.
"""

import contextlib
import faulthandler
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recvis_jax import cli, errors

SECONDS = 10
PATIENCE = 20  # seconds of the clock without a second of the processor: it waits for ever
BYTES = 2 * 2**30
LINE = 2_500  # characters; a list of all models is the longest there should be

# What a pickle or a stand-in for a program leaves behind if it runs.
CANARY = Path(tempfile.gettempdir()) / f"recvis_canary_{os.getpid()}"
# Programs that readers of images, archives and fonts are known to start.
STAND_INS = ("gs", "gswin64c", "ghostscript", "convert", "magick", "inkscape", "rsvg-convert", "ffmpeg", "djpeg")
_STARTS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")


class Case(NamedTuple):
    """One malformed input.

    Attributes:
      name: says what is wrong with it.
      run: folder of its own -> anything; does what a program would do, and raises what it raises.
      names: the line must hold one of these: the file's name, or the key.
      survives: whether it may end without an error; what makes that right, `run` asserts itself.
    """

    name: str
    run: Callable[[Path], Any]
    names: tuple[str, ...]
    survives: bool = False


class TooLong(BaseException):
    """No `Exception`, so that nobody handles it."""


def hold(cases: Sequence[Case], folder: Path) -> None:
    """Tries all cases and fails with a line for each that did not end well."""
    cases, found = list({c.name: c for c in cases}.values()), []  # the same bit may be drawn twice
    for i, case in enumerate(cases):
        own = folder / f"{i:04}"
        own.mkdir(parents=True)
        lines = [f"{case.name}: {fault}" for fault in faults(case, own)]
        note(lines)
        found += lines
        shutil.rmtree(own)
    assert not found, f"{len(found)} of {len(cases)}:\n" + "\n".join(found[:40])


def note(lines: Sequence[str]) -> None:
    """Adds lines to the file that BAD_INPUT_REPORT names, for looking on while tests run."""
    if (report := os.environ.get("BAD_INPUT_REPORT")) and lines:
        with open(report, "a") as f:
            f.writelines(f"{line}\n" for line in lines)


def faults(case: Case, folder: Path) -> list[str]:
    """Returns what was wrong with how a case ended; nothing where it ended well."""
    caught, used = _measured(lambda: case.run(folder))
    out = [f"started {', '.join(used.started)}"] if used.started else []
    if CANARY.exists():
        CANARY.unlink()
        out.append("executed")
    if used.seconds > SECONDS:
        out.append(f"took {used.seconds:.1f} s")
    if used.bytes > BYTES:
        out.append(f"took {used.bytes / 2**30:.1f} GB")
    if caught is None:
        return out if case.survives else [*out, "accepted"]
    if isinstance(caught, TooLong):
        return [*out, "did not end"]
    if used.noise:
        out.append(f"wrote to the error stream besides: {used.noise[:80]!r}")
    line = printed(caught)
    if not isinstance(caught, errors.BadRequest | errors.Failure):
        out.append(f"bare {type(caught).__name__}")
    if len(line.splitlines()) != 1 or not line.rstrip("\n").isprintable() or len(line) > LINE:
        out.append(f"no line of printable characters, {len(line):,} of them")
    if not any(name in line for name in case.names):
        out.append(f"does not name {' or '.join(case.names)}")
    return [f"{o} [{line.strip()[:300]}]" for o in out]


def printed(error: BaseException) -> str:
    """Returns what a program prints about an error."""
    with contextlib.redirect_stderr(io.StringIO()) as text:
        cli._report(error, 2 if isinstance(error, errors.BadRequest) else 1)
    return text.getvalue()


class Used(NamedTuple):
    """What a call took: processor time of all threads, memory above what was there, what it started and wrote.

    `noise` is what libraries wrote to the error stream itself: a user sees it beside the one line.
    """

    seconds: float
    bytes: int
    started: list[str]
    noise: bytes


_watched: list[str] | None = None


def _audit(event: str, arguments: tuple) -> None:
    if _watched is not None and event in _STARTS:
        _watched.append(f"{event} {str(arguments)[:80]}")


sys.addaudithook(_audit)


def _measured(call: Callable[[], Any]) -> tuple[BaseException | None, Used]:
    global _watched

    seen = 0.0

    def too_long(*_: Any) -> None:
        nonlocal seen
        spent = time.process_time() - start
        if spent - seen < 1 or spent > 2 * SECONDS:
            raise TooLong
        seen = spent  # a busy machine gives us little
        signal.alarm(PATIENCE)

    caught: BaseException | None = None
    _watched = []
    before = signal.signal(signal.SIGALRM, too_long)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    _forget_peak()
    resident, start = _status("VmRSS"), time.process_time()
    # Whatever goes wrong, the machine is not to run out of memory. Threads reserve much more than they use.
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + 4 * BYTES, limits[1]))
    signal.alarm(PATIENCE)
    sys.stderr.flush()
    stream, noise = os.dup(2), tempfile.TemporaryFile()
    faulthandler.dump_traceback_later(6 * PATIENCE, exit=True, file=stream)  # for what does not hear the alarm
    os.dup2(noise.fileno(), 2)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            call()
    except (Exception, TooLong) as e:
        caught = e
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        os.dup2(stream, 2)
        os.close(stream)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)
        started, _watched = _watched, None
    with noise:
        noise.seek(0)
        return caught, Used(time.process_time() - start, _status("VmHWM") - resident, started, noise.read())


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


@contextlib.contextmanager
def stand_ins(folder: Path) -> Iterator[None]:
    """Puts programs first on PATH that leave the canary behind when they are started."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in STAND_INS:
        (folder / name).write_text(f"#!/bin/sh\n: > {CANARY}\n")
        (folder / name).chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}:{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before
        CANARY.unlink(missing_ok=True)


# --- what is wrong with files of any kind ---


def write(name: str, data: bytes) -> Callable[[Path], Path]:
    """Returns folder -> path of a file there with these bytes."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return make


def irregular(name: str) -> dict[str, Callable[[Path], Path]]:
    """Returns what is no regular file -> how to put it at folder / name."""

    def at(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path

    def pipe(folder: Path) -> Path:
        os.mkfifo(at(folder))
        return folder / name

    def link_to(target: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            at(folder).symlink_to(target)
            return folder / name

        return make

    def link_to_pipe(folder: Path) -> Path:
        path = at(folder)
        os.mkfifo(folder / "pipe")
        path.symlink_to(folder / "pipe")
        return path

    def empty_folder(folder: Path) -> Path:
        at(folder).mkdir()
        return folder / name

    def socket(folder: Path) -> Path:
        import socket

        path = at(folder)
        with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as s:
            s.bind(f"{short}/s")  # such names have 108 characters at most
            shutil.move(f"{short}/s", path)
        return path

    return {
        "a pipe": pipe,
        "a link to a pipe": link_to_pipe,
        "a link to /dev/zero": link_to("/dev/zero"),
        "a link to /dev/full": link_to("/dev/full"),
        "a link to nothing": link_to("nowhere"),
        "a link to itself": link_to(Path(name).name),
        "a link to /proc/self/mem": link_to("/proc/self/mem"),
        "a folder": empty_folder,
        "a socket": socket,
    }


def cuts(data: bytes, count: int) -> dict[str, bytes]:
    """Returns `count` beginnings of `data`, from nothing to all but a byte."""
    ends = sorted({round(i * (len(data) - 1) / (count - 1)) for i in range(count)})
    return {f"{end} of {len(data)} bytes": data[:end] for end in ends}


def flips(data: bytes, rng: Any, first: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yields `data` with one bit flipped, at random, without end."""
    while True:
        at, bit = int(rng.integers(first, len(data))), int(rng.integers(8))
        yield f"bit {bit} of byte {at}", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
