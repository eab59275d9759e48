"""The loop: the only training `for`. All side effects of a run are here or called from here."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from recvis_jax import errors, trees
from recvis_jax.training import memory, processes
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
    now = _Progress(state, resumed or {}, checkpointer, log, batch_size, best, data_state, fetch)
    stream = batches(now.step)
    now.complete_best()
    while True:
        last = now.step >= total_steps
        due = evaluate is not None and now.step > 0 and (now.step % eval_every == 0 or last)
        is_best = now.evaluate(evaluate, stop) if evaluate and due and not now.is_evaluated() else False
        early = bool(early_stop and now.kept["waited"] >= early_stop)
        if (last or early) and now.is_evaluated():
            now.check_validation_loss()
        if early:
            now.record_rest()
        if is_best or (now.step > now.begin and (due or last or now.step % checkpoint_every == 0)):
            now.save(is_best)
        if stop(now.step):
            now.save(False)
            return now.finished("interrupted")
        if last or early:
            return now.finished("done" if last else "early stop")
        now.train(step_fn, next(stream))
        if now.step % log_every == 0 or now.step == total_steps:
            now.record_train()


class _Progress:
    """A run in progress: its state, and the metrics so far.

    Attributes:
      state: the current state.
      step: number of updates made.
      begin: the step at which this process began.
      kept: JSON saved with every checkpoint: best and last evaluation, the step evaluated last, the number of
        evaluations since the best, sums since the last record, seconds of earlier processes.
    """

    def __init__(
        self,
        state: State,
        resumed: dict[str, Any],
        checkpointer: Checkpointer | memory.Memory,
        log: Log | memory.Records,
        batch_size: int,
        best: tuple[str, str],
        data_state: Callable[[int], dict[str, Any]],
        fetch: Callable[[State], State],
    ):
        self.state = state
        self.step = self.begin = int(_first(state.step))
        none: dict[str, Any] = {"best": None, "last": None, "evaluated": 0, "waited": 0, "sums": {}, "seconds": 0.0}
        self.kept: dict[str, Any] = none | {k: v for k, v in resumed.get("loop", {}).items() if k in none}
        self._checkpointer, self._log, self._fetch, self._data_state = checkpointer, log, fetch, data_state
        self._batch_size, self._best = batch_size, best
        self._began = time.monotonic()
        self._since = self._began, self.step  # of the throughput
        self._pending: list[dict] = []  # metrics of steps not yet looked at, still on the device
        self._saved_at = self.begin if resumed else -1

    def train(self, step_fn: Callable[[State, dict], tuple[State, dict]], batch: dict) -> None:
        """Makes one update."""
        self.state, metrics = processes.wait_on_cpus(step_fn(self.state, batch))
        self._pending.append(metrics)
        if len(self._pending) > _AHEAD:  # else the batches of queued steps would fill the device's memory
            jax.block_until_ready(self._pending[-_AHEAD - 1]["loss"])
        self.step += 1
        self._log.advance(self.step)

    def record_train(self) -> None:
        """Records the means since the last record, and the throughput."""
        self._look()
        now = time.monotonic()
        speed = (self.step - self._since[1]) * self._batch_size / max(1e-9, now - self._since[0])
        means = {k: t / c for k, (t, c) in self.kept["sums"].items() if c}
        self.kept["sums"] = {}
        record = {**means, "images_per_second": speed, "seconds": self._seconds()}
        self._log.record(self.step, "train", record)
        self._since = time.monotonic(), self.step

    def record_rest(self) -> None:
        """Records the steps since the last record, if there are any."""
        if self.kept["sums"] and self.step > self.begin:
            self.record_train()

    def is_evaluated(self) -> bool:
        """Whether this step's state has been evaluated."""
        return self.kept["evaluated"] == self.step and self.kept["last"] is not None

    def evaluate(self, evaluate: Evaluate, stop: Callable[[int | None], bool]) -> bool:
        """Evaluates; returns whether this is the best so far. An interrupted evaluation is not recorded."""
        self._look()
        paused = time.monotonic()
        metrics = evaluate(self._fetch(self.state), lambda: stop(None))
        if metrics is None:
            return False
        self._log.record(self.step, "val", {**metrics, "seconds": self._seconds()})
        self._since = self._since[0] + time.monotonic() - paused, self._since[1]
        kept = self.kept
        kept["evaluated"], kept["last"] = self.step, {"step": self.step, "metrics": metrics}
        value, sign = metrics[self._best[0]], 1 if self._best[1] == "max" else -1
        is_best = math.isfinite(value) and (kept["best"] is None or sign * value > sign * kept["best"]["value"])
        kept["waited"] = 0 if is_best else kept["waited"] + 1
        if is_best:
            kept["best"] = {"step": self.step, "value": value, "metrics": metrics}
        return is_best

    def check_validation_loss(self) -> None:
        """Ends the run if the loss of the last evaluation is not finite."""
        loss = self.kept["last"]["metrics"].get("loss", 0.0)
        if loss is None or not math.isfinite(loss):
            self._give_up("the validation loss", math.nan if loss is None else loss, self.step)

    def save(self, is_best: bool) -> None:
        """Saves the state unless it is already saved; a state that is not finite ends the run instead."""
        self._look()
        if self.step == self._saved_at and not is_best:
            return
        whole = self._fetch(self.state)
        for name, x in trees.flatten({"params": whole.params, **whole.model_state}).items():
            if not _finite(x):  # because of the last update; its loss is not known yet
                self._give_up(name, math.nan, self.step)
        kept = plain_json({**self.kept, "seconds": self._seconds()})
        self._checkpointer.save(whole, {"data": self._data_state(self.step), "loop": kept}, best=is_best)
        self._saved_at = self.step

    def complete_best(self) -> None:
        """Writes the best checkpoint again if the run was killed while writing it."""
        best = self.kept["best"]
        if best and best["step"] == self.begin and self._checkpointer.best_step() != self.begin:
            self.save(is_best=True)

    def finished(self, reason: str) -> Finished:
        """Returns how the run ended, after everything is on disk."""
        self._checkpointer.wait()
        return Finished(self.state, reason, self.kept["best"], self.kept["last"], self._seconds())

    def _seconds(self) -> float:
        return self.kept["seconds"] + time.monotonic() - self._began

    def _look(self) -> None:
        """Adds the pending metrics to the sums; stops the run if one is not finite."""
        self._checkpointer.check()
        values = jax.tree.map(_first, self._pending)
        first = self.step - len(self._pending)
        self._pending.clear()
        for i, metrics in enumerate(values):
            for name, (total, count) in metrics.items():
                total, count = float(total), float(count)
                if not math.isfinite(total):
                    self._give_up(name, total, first + i + 1)
                have = self.kept["sums"].get(name, [0.0, 0.0])
                self.kept["sums"][name] = [have[0] + total, have[1] + count]

    def _give_up(self, what: str, value: float, at: int) -> None:
        good = f"step {self._saved_at}" if self._saved_at >= 0 else "none"
        self._log.failed(at, f"{what} is {value} at step {at}")
        raise errors.Failure(
            f"{what} is {value} at step {at}; the run stops. Last good checkpoint: {good}. "
            "A lower learning rate, warmup or optim.clip_norm may help."
        )


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
