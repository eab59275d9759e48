"""The middle level of the library, for your own loop: the task, the state, and the compiled step."""

from collections.abc import Callable
from typing import Any

from recvis_jax import build
from recvis_jax.data.opened import Data
from recvis_jax.tasks import Task
from recvis_jax.training import distributed, optim, processes, sharding
from recvis_jax.training.state import State, create_state
from recvis_jax.training.step import make_train_step, place_state


def task(model: Any, data: Data, name: str | None = None, **kw: Any) -> Task:
    """Pairs a model with the objective for the data: cross entropy for classes, squared error for numbers.

    Args:
      model: `__call__(image, *, train) -> (output, acts)`, one of `recvis_jax.models` or your own.
      data: from `recvis_jax.data.open` or `from_arrays`.
      name: of `recvis_jax.tasks.TASKS`; None for the one that fits.
      **kw: arguments of that task, such as `label_smoothing=0.1`.

    Raises:
      BadRequest: an unknown name or argument, or a model that does not fit.

    Example:
      >>> objective = task(models.create("linear", num_classes=10), data, label_smoothing=0.1)
      >>> objective.best, objective.gives
      (('accuracy', 'max'), 'classes')
    """
    return build.make_task(data, model, name, **kw)


def init(task: Task, optimizer: Any, data: Data | None = None, *, seed: int = 0, ema: bool = False) -> State:
    """Returns the state at step 0, on all devices: parameters, the model's other variables, the optimizer's state.

    Args:
      task: see `task`.
      optimizer: any transformation of optax.
      data: not used; accepted so that the three functions look alike.
      seed: of the parameters and of all random numbers in steps.
      ema: whether to keep a moving average, for `make_step(..., ema_decay=...)`.

    Example:
      >>> objective = task(models.create("linear", num_classes=10), data)
      >>> state = init(objective, optax.adam(1e-3), data)
      >>> int(state.step), jax.tree.map(jnp.shape, state.params)
      (0, {'head': {'bias': (10,), 'kernel': (64, 10)}})
    """
    del data
    optimizer = optim.of_optax(optimizer)
    begin = create_state(task, optimizer, seed, ema=ema)
    mesh = build.open_mesh("replicate")[0]
    return place_state(begin, sharding.make_layout(begin, mesh, "replicate").shardings, "jit")


def make_step(
    task: Task, optimizer: Any, *, accumulate: int = 1, ema_decay: float | None = None
) -> Callable[[State, dict], tuple[State, dict[str, float]]]:
    """Returns the compiled training step `(state, batch) -> (state, metrics)` over all devices; the state is donated.

    Args:
      task, optimizer: as given to `init`.
      accumulate: micro-batches per step, whose gradients are summed before the update.
      ema_decay: of the moving average of parameters; needs `init(..., ema=True)`.

    Returns:
      The step. Its metrics are pairs (sum, count) on the devices: a loss is sum / count.

    Example:
      >>> objective, tx = task(models.create("linear", num_classes=10), data), optax.adam(1e-3)
      >>> state, step = init(objective, tx, data), make_step(objective, tx)
      >>> for batch in data.batches(64, steps=5):
      ...     state, metrics = step(state, batch)
      >>> int(state.step), float(metrics["loss"][1])
      (5, 64.0)
    """
    optimizer = optim.of_optax(optimizer)
    compiled: list[Any] = []

    def step(state: State, batch: dict) -> tuple[State, dict]:
        if not compiled:
            mesh = build.open_mesh("replicate")[0]
            shardings = sharding.make_layout(state, mesh, "replicate").shardings
            distributed.check_batch(len(batch["mask"]), accumulate, mesh.size, "the batch")
            compiled.append(
                make_train_step(
                    task,
                    optimizer,
                    augment=lambda key, b: b,
                    accumulate=accumulate,
                    ema_decay=ema_decay,
                    shardings=shardings,
                )
            )
        return processes.wait_on_cpus(compiled[0](state, batch))

    return step
