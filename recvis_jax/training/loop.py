"""The loop: the only training `for`. All side effects of a run are here or called from here."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from recvis_jax import errors, trees
from recvis_jax.training import lock, memory, processes
from recvis_jax.training.checkpoint import Checkpointer
from recvis_jax.training.log import Log, plain_json
from recvis_jax.training.state import State

# Number of steps dispatched before the first of them must be done.
_AHEAD = 4

Evaluate = Callable[[State, Callable[[], bool]], dict[str, float] | None]


class Finished(NamedTuple):
    """How a run ended.

    Attributes:
      state: the last state.
      reason: "done", "early stop" or "interrupted" (saved after a SIGTERM or Ctrl-C; the same command continues).
      best: {"step", "value", "metrics"} of the best evaluation, or None.
      last: metrics of the last evaluation, or None.
      seconds: wall time of the run, over all its starts.
    """

    state: State
    reason: str
    best: dict[str, Any] | None
    last: dict[str, Any] | None
    seconds: float


class _Loop(dict):
    """State of the loop, saved as JSON with every checkpoint: best, last, patience, sums since last record, seconds."""


def run(
    state: State,
    step_fn: Callable[[State, dict], tuple[State, dict]],
    batches: Callable[[int], Iterator[dict]],
    *,
    total_steps: int,
    batch_size: int,
    checkpointer: Checkpointer | memory.Memory,
    log: Log | memory.Records,
    resumed: dict[str, Any] | None = None,
    data_state: Callable[[int], dict[str, Any]] = lambda step: {"next_batch": step},
    evaluate: Evaluate | None = None,
    best: tuple[str, str] = ("accuracy", "max"),
    log_every: int = 100,
    eval_every: int = 1000,
    checkpoint_every: int = 1000,
    early_stop: int = 0,
    fetch: Callable[[State], State] = lambda s: s,
    stop: Callable[[int | None], bool] = lambda step: False,
) -> Finished:
    """Trains from `state` to `total_steps`.

    Args:
      state: initial state, placed as `step_fn` wants it.
      step_fn: the compiled step; the state given to it is donated.
      batches: step -> iterator over device batches from that step on.
      total_steps: number of updates of the whole run.
      batch_size: images a step, for the throughput.
      checkpointer, log: where the run is saved and shown.
      resumed: the JSON beside the checkpoint that `state` came from.
      data_state: step -> JSON with the position in the data.
      evaluate: (state, stop) -> metrics on validation data; it returns None when `stop()` became true. None: never.
      best: the metric, and "max" or "min", by which the best checkpoint is chosen.
      log_every, eval_every, checkpoint_every: in steps. Every evaluation also saves.
      early_stop: number of evaluations without a new best after which the run ends; 0 for never.
      fetch: placed state -> state to evaluate and save.
      stop: whether to save and return, called with the number of every step before it; a `StopSignal`.

    Raises:
      Failure: a loss, a gradient, a parameter to be saved, or the final validation loss is not finite (the message
        names the step, and the last good checkpoint is kept); or a checkpoint cannot be written.
    """
    saved = dict((resumed or {}).get("loop", {}))
    own = _Loop(
        best=saved.get("best"),
        last=saved.get("last"),
        evaluated=saved.get("evaluated", 0),
        waited=saved.get("waited", 0),
        sums=saved.get("sums", {}),
        seconds=saved.get("seconds", 0.0),
    )
    step = begin = int(_first(state.step))
    clock = time.monotonic()
    pending: list[dict] = []  # metrics of steps not yet looked at, still on the device
    since = time.monotonic(), step
    saved_at = begin if resumed else -1
    stream = batches(step)

    def elapsed() -> float:
        return own["seconds"] + time.monotonic() - clock

    def give_up(what: str, value: float, at: int) -> None:
        kept = f"step {saved_at}" if saved_at >= 0 else "none"
        raise errors.Failure(
            f"{what} is {value} at step {at}; the run stops. Last good checkpoint: {kept}. "
            "A lower learning rate, warmup or optim.clip_norm may help."
        )

    def look() -> None:
        """Adds the pending metrics to the sums; stops the run if one is not finite."""
        checkpointer.check()
        values = jax.tree.map(_first, pending)
        first = step - len(pending)
        pending.clear()
        for i, metrics in enumerate(values):
            for name, (total, count) in metrics.items():
                total, count = float(total), float(count)
                if not math.isfinite(total):
                    give_up(name, total, first + i + 1)
                have = own["sums"].get(name, [0.0, 0.0])
                own["sums"][name] = [have[0] + total, have[1] + count]

    def save(is_best: bool) -> None:
        nonlocal saved_at
        look()
        if step == saved_at and not is_best:
            return
        whole = fetch(state)
        for name, x in trees.flatten({"params": whole.params, **whole.model_state}).items():
            if not _finite(x):  # because of the last update; its loss is not known yet
                give_up(name, math.nan, step)
        meta = {"data": data_state(step), "loop": plain_json({**own, "seconds": elapsed()})}
        checkpointer.save(whole, meta, best=is_best)
        saved_at = step

    def record_train() -> None:
        nonlocal since
        look()
        now = time.monotonic()
        speed = (step - since[1]) * batch_size / max(1e-9, now - since[0])
        means = {k: t / c for k, (t, c) in own["sums"].items() if c}
        own["sums"] = {}
        log.record(step, "train", {**means, "images_per_second": speed, "seconds": elapsed()})
        since = time.monotonic(), step

    def evaluated() -> bool:
        """Evaluates; returns whether this is the best so far. An interrupted evaluation is not recorded."""
        nonlocal since
        look()
        paused = time.monotonic()
        metrics = evaluate(fetch(state), lambda: stop(None)) if evaluate else None
        if metrics is None:
            return False
        log.record(step, "val", {**metrics, "seconds": elapsed()})
        since = since[0] + time.monotonic() - paused, since[1]
        own["evaluated"], own["last"] = step, {"step": step, "metrics": metrics}
        value, sign = metrics[best[0]], 1 if best[1] == "max" else -1
        is_best = math.isfinite(value) and (own["best"] is None or sign * value > sign * own["best"]["value"])
        own["waited"] = 0 if is_best else own["waited"] + 1
        if is_best:
            own["best"] = {"step": step, "value": value, "metrics": metrics}
        return is_best

    def finished(reason: str) -> Finished:
        checkpointer.wait()
        return Finished(state, reason, own["best"], own["last"], elapsed())

    # If the run was killed while writing its best checkpoint, write it again.
    if own["best"] and own["best"]["step"] == begin and checkpointer.best_step() != begin:
        save(is_best=True)
    while True:
        last = step >= total_steps
        due = evaluate is not None and step > 0 and (step % eval_every == 0 or last)
        is_best = evaluated() if due and own["evaluated"] != step else False
        early = bool(early_stop and own["waited"] >= early_stop)
        if (last or early) and own["last"] and own["last"]["step"] == step:
            loss = own["last"]["metrics"].get("loss", 0.0)
            if loss is None or not math.isfinite(loss):
                give_up("the validation loss", math.nan if loss is None else loss, step)
        if early and own["sums"] and step > begin:
            record_train()  # steps since the last record
        if is_best or (step > begin and (due or last or step % checkpoint_every == 0)):
            save(is_best)
        if stop(step):
            save(False)
            return finished("interrupted")
        if last:
            return finished("done")
        if early:
            return finished("early stop")
        state, metrics = processes.wait_on_cpus(step_fn(state, next(stream)))
        pending.append(metrics)
        if len(pending) > _AHEAD:  # else the batches of queued steps would fill the device's memory
            jax.block_until_ready(pending[-_AHEAD - 1]["loss"])
        step += 1
        log.advance(step)
        if step % log_every == 0 or step == total_steps:
            record_train()


def _first(x: Any) -> Any:
    """Returns the number in an array that is replicated, or holds one copy per device ("pmap")."""
    return np.ravel(x.addressable_data(0) if isinstance(x, jax.Array) else x)[0]


def _finite(x: Any) -> bool:
    """Whether all numbers of an array are finite."""
    if not jax.numpy.issubdtype(x.dtype, jax.numpy.floating):
        return True
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return bool(_first(_all_finite(x)))
    return bool(np.isfinite(np.asarray(x)).all())


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    return jax.numpy.isfinite(x).all()


class StopSignal:
    """Catches SIGTERM and Ctrl-C inside its `with` block; calling it tells whether one came. A second Ctrl-C exits.

    Outside the main thread it catches nothing. With several processes, each calls it with the number of every step, and
    all are told to stop at the same step.

    Attributes:
      name: what came: "SIGTERM", "Ctrl-C", or an empty string.
    """

    def __init__(self):
        self.name = ""
        self._came = threading.Event()
        self._before: dict[int, Any] = {}

    def __call__(self, step: int | None = None) -> bool:
        if processes.several() and step is not None and processes.agreed_to_stop(step):
            self.name = self.name or "SIGTERM"
            self._came.set()
        return self._came.is_set()

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        # With several processes, JAX's own handler catches SIGTERM and tells the others.
        numbers = [signal.SIGINT] if processes.several() else [signal.SIGINT, signal.SIGTERM]
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored for a program in the background
                self._before[number] = signal.signal(number, lambda number, _: self._note(number))
        # A thread listens too: the main thread may be in a long computation, which a second Ctrl-C must end.
        read, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._wakeup = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(read,), daemon=True, name="signals").start()
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before or hasattr(self, "_pipe"):
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._pipe)

    def _note(self, number: int) -> None:
        if not processes.several():  # else all processes agree on a step
            self.name = self.name or ("Ctrl-C" if number == signal.SIGINT else "SIGTERM")
            self._came.set()

    def _listen(self, pipe: int) -> None:
        interrupts = 0
        with os.fdopen(pipe, "rb", buffering=0) as file:
            while received := file.read(1):
                number = received[0]
                if number not in self._before:
                    continue
                interrupts += number == signal.SIGINT
                if interrupts > 1:
                    _end_at_once()
                self._note(number)
                if number == signal.SIGINT:
                    if processes.several():
                        self.name = "Ctrl-C"
                        os.kill(os.getpid(), signal.SIGTERM)  # caught by JAX
                    print("Ctrl-C: saving after this step; press again to exit at once.", file=sys.stderr, flush=True)


def _end_at_once() -> None:
    """Ends the process after a second Ctrl-C; complete checkpoints stay."""
    lock.release_all()
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")  # the cursor, which the progress bar hides
    print("interrupted: nothing more was saved; the same command continues from the last checkpoint", file=sys.stderr)
    sys.stderr.flush()
    os._exit(130)
