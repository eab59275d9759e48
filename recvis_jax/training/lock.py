"""One process at a time writes a run: a lock file in its folder names it and shows that it is alive.

The file `.lock` holds host, process id and start time. It is created and replaced atomically, touched every few
seconds, and removed at the end, even when the program fails. A lock left by a killed process is recognised: on the
same machine, its process id no longer exists or belongs to a process with another start time. For other machines,
whose processes cannot be seen from here, the file's modification time has stopped changing. Clocks need not agree.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recvis_jax import errors, reading

NAME = ".lock"
PERIOD = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which a process on another machine counts as dead

_held: "set[Lock]" = set()


class Lock:
    """The right to write a run's folder.

    Args:
      folder: of the run.
      say: prints a line for the user.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print):
        self.path = folder / NAME
        self._say = say
        self._dead: tuple[int, int] | None = None  # the file whose process is known to have ended
        self._own = _self()
        self._file: int | None = None  # descriptor of the lock file, kept open to touch it
        self._closing = threading.Event()

    def refuse_if_held(self) -> None:
        """Returns when no living process holds the lock. Takes and changes nothing.

        If a process on another machine may hold it, this waits up to `SILENCE` seconds for a sign of life.

        Raises:
          BadRequest: another process holds it; the message says which one, where, and since when.
        """
        began, seen = time.monotonic(), None
        while (found := self._read()) is not None:
            status, owner = found
            now = (status.st_ino, status.st_mtime_ns)
            alive = _alive(owner) if owner else None
            if now == self._dead or alive is False:
                self._dead = now
                return
            if alive or (seen and now != seen):
                self._refuse(owner)
            if seen is None:
                seen = now
                if time.time() - status.st_mtime > 60 * SILENCE:  # more than clocks can differ
                    self._dead = now
                    return
                self._say(f"{self.path}: {_name(owner)} may still be running; waiting {SILENCE:.0f} s for a sign of it")
            if time.monotonic() - began > SILENCE:
                self._dead = now
                return
            time.sleep(min(1.0, SILENCE / 20))

    def take(self) -> "Lock":
        """Takes the lock, also from a dead process; it is held until `release` or the end of this process.

        Raises:
          BadRequest: another process holds it, or the folder cannot be written.
        """
        for _ in range(100):
            self.refuse_if_held()
            if self._put():
                break
        else:
            raise errors.BadRequest(f"{self.path} keeps changing; are many programs being started on this run?")
        _held.add(self)
        threading.Thread(target=self._beat, daemon=True, name="lock").start()
        return self

    def check(self) -> None:
        """Raises `Failure` if the lock was lost: this process was stopped for so long that another took it for dead."""
        if self._file is None:
            return
        found = self._read()
        if found is None:  # removed by hand
            self._dead = None
            if self._put():
                return
            found = self._read()
        if found is None or found[1] != self._own:
            raise errors.Failure(
                f"{self.path} now belongs to {_name(found[1] if found else None)}; this process writes nothing "
                "more here. Is another program working on the same run?"
            )

    def release(self) -> None:
        """Releases the lock; does nothing if it is not held."""
        if self._file is None:
            return
        self._closing.set()
        with contextlib.suppress(OSError, errors.Failure):
            self.check()
            self.path.unlink()
        with contextlib.suppress(OSError):
            os.close(self._file)
        self._file = None
        _held.discard(self)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _read(self) -> tuple[os.stat_result, dict[str, Any] | None] | None:
        """Returns the status and the content of the lock file; None if there is no file."""
        try:
            with self.path.open("rb") as f:  # opening makes a network disk report the current status, not a cached one
                status, text = os.fstat(f.fileno()), f.read(4096)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise errors.BadRequest(f"cannot read {self.path}: {e.strerror or e}.") from None
        try:
            owner = reading.parse_json(text, str(self.path))
        except errors.BadRequest:
            owner = None  # being written, or damaged
        return status, owner if isinstance(owner, dict) else None

    def _put(self) -> bool:
        """Creates our file, or replaces that of a dead process; False if another process was faster."""
        part = self.path.with_name(f"{NAME}.{os.getpid()}.{threading.get_ident()}")
        try:
            part.write_text(json.dumps(self._own, allow_nan=False) + "\n")
            if not (self._replace(part) if self._dead else self._create(part)):
                return False
            if self._file is not None:
                os.close(self._file)
            self._file = os.open(self.path, os.O_RDWR)
            return True
        except OSError as e:
            raise errors.BadRequest(f"cannot write {self.path}: {e.strerror or e}.") from e
        finally:
            with contextlib.suppress(OSError):
                part.unlink()

    def _create(self, part: Path) -> bool:
        try:
            os.link(part, self.path)  # succeeds for only one process, also on NFS
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                return False
            with os.fdopen(file, "wb") as f:
                f.write(part.read_bytes())
        return True

    def _replace(self, part: Path) -> bool:
        dead, self._dead = self._dead, None
        try:
            old = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            with contextlib.suppress(OSError):  # a file system without flock
                fcntl.flock(old, fcntl.LOCK_EX)  # several processes may have found it dead: one at a time
            found = self._read()
            if not found or (found[0].st_ino, found[0].st_mtime_ns) != dead:
                return False
            self._say(f"note: taking over from {_name(found[1])}, which ended without removing {self.path}.")
            os.replace(part, self.path)
            return True
        finally:
            os.close(old)

    def _refuse(self, owner: dict[str, Any] | None) -> None:
        raise errors.BadRequest(
            f"{errors.printable(self.path.parent)} is being written by {_name(owner)}; only one process can train a "
            f"run. Wait for it or stop it (Ctrl-C or kill -TERM: it saves). Only if it no longer runs: rm {self.path}"
        )

    def _beat(self) -> None:
        while not self._closing.wait(PERIOD):
            file = self._file
            with contextlib.suppress(OSError, TypeError):  # a failing disk, or the lock was just released
                os.utime(file)  # type: ignore[arg-type]


def release_all() -> None:
    """Releases all locks of this process; call it before an exit that skips all other clean-up."""
    for lock in list(_held):
        lock.release()


def _self() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "process_started": _started(os.getpid()),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _machine() -> str:
    """Identifies this machine, its last boot and its process-id namespace."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(path) if path.endswith("ns/pid") else Path(path).read_text().strip())
    return " ".join(parts)


def _alive(owner: dict[str, Any]) -> bool | None:
    """Whether the process is running; None if that cannot be seen from here."""
    pid = owner.get("pid")
    if owner.get("machine") != _machine() or not isinstance(pid, int) or isinstance(pid, bool) or pid < 1:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process
        pass
    return _started(pid) == owner.get("process_started")


def _started(pid: int) -> str | None:
    """Returns the start time of a process, in its system's own units; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie has ended
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)  # macOS
    return done.stdout.strip() or None


def _name(owner: dict[str, Any] | None) -> str:
    """Returns "process 12 on HOST (since TIME)"."""
    if owner is None:
        return "an unknown process"
    pid, host, since = (errors.printable(owner.get(k, "?"))[:80] for k in ("pid", "host", "since"))
    return f"process {pid} on {host} (since {since})"
