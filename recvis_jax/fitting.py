"""The parts of every training, from a config or from `recvis_jax.fit`: step, batches, validation, and the loop."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from recvis_jax import build, checks, errors
from recvis_jax.evaluation import evaluator
from recvis_jax.evaluation.metrics import Metric
from recvis_jax.training import loop, processes
from recvis_jax.training.checkpoint import Checkpointer
from recvis_jax.training.log import Log
from recvis_jax.training.memory import Memory, Records
from recvis_jax.training.state import State
from recvis_jax.training.step import Step, fetch_state, make_train_step, place_state


class Training(NamedTuple):
    """A run that is ready to train: everything was checked, nothing has been written.

    Attributes:
      run: its parts.
      step: the compiled step.
      compile: "jit" or "pmap".
      batches: number of a step -> the batches from that step on.
      evaluate: `(params, model_state, batches) -> {metric: value}`.
      val: batches of the validation split; None if there is none.
    """

    run: build.Run
    step: Step
    compile: str
    batches: Callable[[int], Iterator[dict[str, Any]]]
    evaluate: Callable[..., dict[str, Any] | None]
    val: Any


def prepare(
    run: build.Run,
    *,
    accumulate: int = 1,
    compile: str = "jit",
    ema_decay: float | None = None,
    metrics: Mapping[str, Metric] | None = None,
    first: int = 0,
) -> Training:
    """Prepares the training of a run, reads its first batches and traces its step.

    Args:
      run: the run.
      accumulate, compile, ema_decay: see `training.step.make_train_step`.
      metrics: by name, measured in evaluation in addition to those of the task.
      first: the step at which training will begin.

    Raises:
      BadRequest: the run does not fit the data or the machine; the message names the part that does not.
    """
    if compile == "pmap" and run.mesh.shape["data"] != run.mesh.size:
        raise errors.BadRequest("compile='pmap' copies the state to every device; config.sharding needs compile='jit'.")
    checks.check_run(run, accumulate)
    step = make_train_step(
        run.task, run.optimizer, augment=run.data.augment, accumulate=accumulate, ema_decay=ema_decay,
        compile=compile, shardings=run.shardings,
    )  # fmt: skip
    val = build.eval_batches(run, run.data.val, keep=True) if run.data.val else None
    traceable = step if compile == "jit" and not processes.several() else None
    batches = _rehearse(run, traceable, accumulate, first, compile, val)
    measured = {**run.task.metrics, **(metrics or {})}
    evaluate = evaluator.make_evaluate(run.task.predict, measured, run.data.preprocess, run.mesh)
    return Training(run, step, compile, batches, evaluate, val)


def fit(
    training: Training,
    state: State,
    keeper: Checkpointer | Memory,
    log: Log | Records,
    *,
    every: Mapping[str, int],
    early_stop: int = 0,
    resumed: dict[str, Any] | None = None,
    after: Callable[[State], dict[str, float]] = lambda state: {},
    stop: Callable[[int | None], bool] = lambda step: False,
) -> loop.Finished:
    """Trains from `state` to the run's end; see `training.loop.run` for the rest.

    Args:
      training: from `prepare`.
      state: initial state, from `run.create()` or a checkpoint.
      keeper, log: where states and records go.
      every: `log_every`, `eval_every` and `checkpoint_every`, in steps.
      early_stop: evaluations without a new best after which training ends; 0 for never.
      resumed: the JSON beside the checkpoint that `state` came from.
      after: state -> further metrics, called after each evaluation.
      stop: whether to save and return, called before every step.
    """
    run, evaluate = training.run, training.evaluate

    def fetch(placed: State) -> State:
        return fetch_state(placed, run.shardings, training.compile)

    def validate(state: State, stop: Callable[[], bool]) -> dict[str, float] | None:
        found = evaluate(*state.evaluated, training.val, stop)
        return None if found is None else evaluator.scalars(found) | after(state)

    placed = place_state(state, run.shardings, training.compile)
    done = loop.run(
        placed, training.step, training.batches, total_steps=run.total_steps, batch_size=run.batch_size,
        checkpointer=keeper, log=log, resumed=resumed, evaluate=validate if training.val is not None else None,
        best=run.task.best, early_stop=early_stop, **every, fetch=fetch, stop=stop,
    )  # fmt: skip
    return done._replace(state=fetch(done.state))


def _rehearse(
    run: build.Run, step: Any, accumulate: int, first: int, compile: str, val: Any
) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Reads the first batches and traces the step, to find errors before the run begins.

    Returns:
      A function from the number of a step to the batches from that step on.
    """
    stream = build.train_batches(run, first, compile)
    batch = next(stream, None)
    if batch is not None:
        checks.check_step(run, accumulate, step, batch)
    if val is not None:
        next(iter(val))
    ready = {} if batch is None else {first: itertools.chain([batch], stream)}
    return lambda at: ready.pop(at, None) or build.train_batches(run, at, compile)
