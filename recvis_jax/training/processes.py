"""Many processes, one run: how they find each other, agree to stop, and notice that one has died.

JAX is imported only in functions: `start` must run before JAX's first computation.
"""

import atexit
import contextlib
import importlib.util
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from recvis_jax import errors, tried
from recvis_jax.training import lock

# Seconds without a sign of life after which a process counts as dead. JAX's own check must come later, because it ends
# the process without our message.
SILENCE = 15.0
_PERIOD = 2.0  # seconds between two signs of life
_DAY = 24 * 3600 * 1000  # ms; how long processes wait for each other if none dies
_RUNTIME = 40  # seconds after which JAX itself ends a process whose peer is silent

# Words in the errors that this process gets when another one dies.
_ECHO = re.compile(
    r"Gloo|NCCL|[Bb]arrier|coordination|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|Connection (reset|closed)"
)

_watch: "_Watch | None" = None


def detect(environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns what started this process together with others: 'Slurm', 'Open MPI', 'TPU' or None."""
    if int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))) > 1:
        return "Slurm" if "SLURM_STEP_ID" in environment else None  # the batch script itself is one process
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "Open MPI"
    if environment.get("JAX_PLATFORMS", "tpu") != "cpu" and importlib.util.find_spec("libtpu"):
        several = "," in environment.get("TPU_WORKER_HOSTNAMES", environment.get("TPU_PROCESS_ADDRESSES", ""))
        return "TPU" if several or os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0") else None
    return None


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Connects this process with the others, given or found by `detect`; does nothing for a single process.

    Args:
      coordinator: 'host:port' of process 0, to which all connect.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      BadRequest: only some of the three are given, or a value is impossible.
      Failure: the others were not found in time.
    """
    global _watch
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [k for k, v in given.items() if v is None]
    if 0 < len(missing) < 3:
        raise errors.BadRequest(f"--{missing[0]} is missing: give all of --{', --'.join(given)}, or none.")
    found = None if not missing else detect()
    if missing and not found:
        return
    if not missing:
        if ":" not in str(coordinator):
            raise errors.BadRequest(f"--coordinator={coordinator} is not HOST:PORT, such as 10.0.0.1:1234.")
        if not 0 <= (process_id or 0) < (num_processes or 0):
            raise errors.BadRequest(f"--process_id={process_id} is not in 0..{(num_processes or 0) - 1}.")
    import jax

    where: dict[str, Any] = {}
    if not missing:
        where = dict(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)
    try:
        jax.distributed.initialize(**where, heartbeat_timeout_seconds=_RUNTIME)
    except Exception as e:
        line = " ".join(str(e).split())[:300]
        if found == "TPU" and isinstance(e, (ValueError, RuntimeError)):
            return  # a single TPU host
        raise errors.Failure(f"the processes did not find each other ({found or coordinator}): {line}") from e
    if jax.process_count() > 1:
        _watch = _Watch(jax.process_index(), jax.process_count())
        atexit.register(_watch.close)  # runs before JAX's own shutdown


def several() -> bool:
    """Whether this run has more than one process."""
    return _watch is not None


def wait_on_cpus(x: Any) -> Any:
    """Returns `x`; with several CPU devices, waits until it is computed.

    There, programs that run at the same time may deadlock: each waits for a sum over devices whose threads the other
    program holds.
    """
    import jax

    if jax.default_backend() == "cpu" and any(len(leaf.sharding.device_set) > 1 for leaf in jax.tree.leaves(x)):
        jax.block_until_ready(x)
    return x


def agreed_to_stop(step: int) -> bool:
    """Whether all processes stop at this step because one of them got a SIGTERM; call it at every step."""
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def barrier(name: str) -> None:
    """Waits for all processes, as long as all are alive."""
    if _watch is not None:
        _watch.meet(name)


def compiled_together(fn: Any, copies: bool = False) -> Any:
    """Returns `fn`; on CPUs, wrapped so that no process runs it before all have compiled it.

    On CPUs a sum over devices waits only 30 s for the other processes (Gloo's limit). One process may compile for a
    minute while another reads the program from the compilation cache.

    Args:
      fn: compiled by `jit` or `pmap`, with sums over the devices of several processes.
      copies: whether to compile with copies of the arguments; `pmap` deletes the arguments it is compiled with.
    """
    import jax

    if not several() or jax.default_backend() != "cpu":
        return fn
    known = set()

    def call(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        key = tree, tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves)
        if key not in known:
            known.add(key)
            like = jax.tree.map(lambda x: x.copy(), args) if copies else args
            fn.lower(*like).compile()  # the call below finds the compiled program
            barrier("compiled")
        return fn(*args)

    return call


def end(error: BaseException, report: Callable[[BaseException], int]) -> None:
    """After an error, ends this process without waiting for the others; returns if it is the only process.

    A communication error is usually caused by the death of another process; then that death is reported.

    Args:
      error: what happened here.
      report: shows an error and returns the exit code.
    """
    if _watch is None:
        return None
    if _ECHO.search(str(error)):
        deadline = time.monotonic() + SILENCE + 4 * _PERIOD
        while _watch.verdict is None and time.monotonic() < deadline:
            time.sleep(0.1)
    if _watch.verdict:
        error = errors.Failure(_watch.verdict)
    else:
        why = " ".join(str(error).split())[:300]
        _watch.publish(f"process {_watch.index} of {_watch.count} ({_watch.name}) failed: {why}")
    code = report(error)
    lock.release_all()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a normal exit would wait for the others, which wait for this process


def _store() -> Any:
    """Returns the key-value store that the processes share; None with an untested version of JAX."""
    if not tried.usable("store"):
        return None
    from jax._src import distributed  # there is no public API

    return distributed.global_state.client


class _Watch:
    """Shows the others that this process is alive; process 0 watches all and tells everyone if one has died.

    The signs of life are numbers in the store of JAX's coordination service, which process 0 runs. With an untested
    version of JAX they are not used, and only JAX's own check finds dead processes.
    """

    def __init__(self, index: int, count: int):
        self.index, self.count = index, count
        self.verdict: str | None = None  # why the run ends
        self.name = f"{socket.gethostname()}, pid {os.getpid()}"
        self._meetings = 0
        self._client = _store()
        if self._client is None:
            return
        self._client.key_value_set(f"recvis/name/{index}", self.name, allow_overwrite=True)
        self._heard: dict[str, tuple[str, float]] = {}  # process -> its last sign of life, and when it was first seen
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="processes")
        self._thread.start()

    def publish(self, text: str) -> None:
        """Tells all processes why the run ends; the first message wins."""
        with contextlib.suppress(Exception):  # another process was faster, or process 0 is gone, which all notice
            self._client.key_value_set("recvis/verdict/why", text)

    def meet(self, name: str) -> None:
        """Waits for all processes, through the store: sums over CPUs would give up after 30 s."""
        self._meetings += 1
        if self._client is None:
            from jax.experimental import multihost_utils

            return multihost_utils.sync_global_devices(f"{self._meetings}/{name}")
        self._client.wait_at_barrier(f"recvis/{self._meetings}/{name}", _DAY)

    def close(self) -> None:
        """Ends the watch when this process exits normally."""
        if self._client is None:
            return
        self._closing.set()
        self._thread.join()

    def _watch(self) -> None:
        number = 0
        while self.verdict is None and not self._closing.wait(_PERIOD if number else 0):
            number += 1
            try:
                self._client.key_value_set(f"recvis/alive/{self.index}", str(number), allow_overwrite=True)
                if self.index == 0:
                    self._look()
                self.verdict = dict(self._client.key_value_dir_get("recvis/verdict/")).get("recvis/verdict/why")
            except Exception:
                if not self._closing.is_set():
                    self.verdict = f"process 0 of {self.count}, which coordinates the others, has died"
        # The main thread may be blocked in a collective, where no exception reaches it.
        if self.verdict and not self._closing.wait(5):
            print(f"error: {self.verdict}", file=sys.stderr, flush=True)
            lock.release_all()
            os._exit(1)

    def _look(self) -> None:
        now = time.monotonic()
        for key, number in dict(self._client.key_value_dir_get("recvis/alive/")).items():
            if self._heard.get(key, ("", 0.0))[0] != number:
                self._heard[key] = number, now
            elif now - self._heard[key][1] > SILENCE:
                who = key.rpartition("/")[2]
                name = dict(self._client.key_value_dir_get("recvis/name/")).get(f"recvis/name/{who}")
                silence = f"no sign of life for {SILENCE:.0f} s"
                self.publish(f"process {who} of {self.count} ({name}) has died: {silence}")
