"""Programs that run at once, each as if started anew, but without the wait for imports: forks of one process."""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading

# It never starts JAX, whose threads no fork has. Of each life it forks a keeper, which tells how the life has ended.
# A life leaves this script as a program ends, so that threads are waited for and what was registered for the end runs.
_SERVER = """
import json, os, runpy, signal, socket, sys
import jax, flax, optax, orbax.checkpoint, grain, cv2, tensorflow_datasets, sklearn.datasets, tensorboardX
from recvis_jax import cli, errors

def begin(case, out):
    for stream in (1, 2):
        os.dup2(out, stream)
    os.close(out)
    os.environ.clear()
    os.environ.update(case["env"])
    if "JAX_PLATFORMS" in os.environ:  # read when JAX was imported
        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    first, *words = case["command"]
    sys.argv = ["-c", *words[1:]] if first == "-c" else words if first == "-m" else [first, *words]
    if first == "-m":
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        exec(words[0], {"__name__": "__main__"})
    else:
        runpy.run_path(first, run_name="__main__")
    sys.exit(0)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for keepers
with socket.socket(fileno=int(sys.argv[1])) as server:
    while True:
        text, fds, _, _ = socket.recv_fds(server, 1 << 20, 2)
        if not text:
            os._exit(0)
        if os.fork():
            for fd in fds:
                os.close(fd)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        server.close()
        out, status = fds
        life = os.fork()
        if not life:
            os.close(status)
            begin(json.loads(text), out)
        os.close(out)
        os.write(status, b"%d " % life)
        os.write(status, b"%d " % os.waitstatus_to_exitcode(os.waitpid(life, 0)[1]))
        os._exit(0)
"""


class Life:
    """A program that runs, with what tests use of `subprocess.Popen`; both streams go to `stdout`."""

    def __init__(self, out: int, status: int):
        self.stdout = open(out, errors="replace")
        self.returncode: int | None = None
        self._status = status
        self.pid = self._told()

    def _told(self) -> int:
        text = b""
        while not text.endswith(b" "):
            read = os.read(self._status, 1)
            assert read, "the process that forks has ended"
            text += read
        return int(text)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = self._told()
            os.close(self._status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a life", timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float) -> tuple[str, None]:
        """Reads to the end; a life that takes longer is killed."""
        late = threading.Timer(timeout, self.kill)
        late.start()
        text = self.stdout.read()
        late.cancel()
        self.stdout.close()
        self.wait(timeout)
        return text, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that forks."""

    def __init__(self, env: dict[str, str]):
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVER, str(theirs.fileno())], env=env, pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,  # pipes, as those of lives
            )  # fmt: skip
        atexit.register(self.close)

    def __call__(self, command: list[str], env: dict[str, str]) -> Life:
        out, status = os.pipe(), os.pipe()
        text = json.dumps({"command": command, "env": env}).encode()
        socket.send_fds(self._socket, [text], [out[1], status[1]])
        for fd in (out[1], status[1]):
            os.close(fd)
        return Life(out[0], status[0])

    def close(self) -> None:
        self._socket.close()
        self._process.wait()
