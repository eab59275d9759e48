"""The train step: a pure function `(state, batch) -> (state, metrics)`, compiled by `jit` over a mesh or by `pmap`.

Both give the same numbers. Under `jit`, arrays are global and XLA places the collectives; under `pmap`, the same body
runs on each device's part and sums over the axis "data" by hand. In both, batch norm uses the statistics of the whole
global batch (see `models.norms.BatchNorm`); dropout and augmentation draw from (key, slot), not from the device.

With `accumulate=m` the batch is cut into m micro-batches, whose gradients are summed before one update. That equals one
update on the large batch, except for batch norm, which sees one micro-batch at a time: its statistics are those of the
m groups {j : j mod m = g} of the batch. This equals the large batch with `bn_groups=m` (ghost batch norm).
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recvis_jax import errors
from recvis_jax.axes import DATA_AXIS
from recvis_jax.tasks.task import Task, refuse_cutting
from recvis_jax.training import distributed, processes, sharding
from recvis_jax.training.optim import ema_update
from recvis_jax.training.state import State

Metrics = dict[str, tuple[jax.Array, jax.Array]]
Step = Callable[[State, dict], tuple[State, Metrics]]


def stream(key: jax.Array, name: str) -> jax.Array:
    """Returns the key of a named stream ("augment", "dropout", ...) of a step."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def step_body(
    task: Task,
    optimizer: Any,
    *,
    augment: Callable[[jax.Array, dict], dict],
    accumulate: int = 1,
    ema_decay: float | None = None,
    axis: str | None = None,
    split: Callable[[Any], Any] = lambda grads: grads,
) -> Step:
    """Returns the uncompiled step.

    Args:
      task: the objective with its model.
      optimizer: `init`, `update` and `schedule`, as `optim.make_optimizer` gives them.
      augment: (key, batch) -> batch with float images as the model takes them.
      accumulate: number of micro-batches; divides the batch on each device.
      ema_decay: decay of the moving average of parameters and model state; None for none.
      axis: name of the mapped axis, if the batch is one device's part of the global one.
      split: gradients -> the same gradients, split over the devices like the parameters.
    """

    def total(x):
        return jax.lax.psum(x, axis) if axis else x

    def micro(params, model_state, batch, key, scale):
        """The scaled sum of one micro-batch's terms; with it the new model state and the sums of terms and metrics."""
        terms, new, metrics = task.loss(params, model_state, batch, key)
        _check_terms(terms, scale)
        valid = batch["mask"]
        sums = {name: _sum(valid, term) for name, term in terms.items()}
        measured = {
            k: tuple(_sum(valid, x) for x in v) if isinstance(v, tuple) else _sum(valid, v) for k, v in metrics.items()
        }
        return _weighted(sums, scale), (new, (sums, measured))

    def grad(params, model_state, batch, key, scale):
        grads, aux = jax.grad(micro, has_aux=True)(params, model_state, batch, key, scale)
        return split(grads), aux

    def gradients(params, model_state, batch, key, scale):
        if accumulate == 1:
            return grad(params, model_state, batch, key, scale)
        # Strided rather than contiguous micro-batches: each has an equal share on every device.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        def one(part):
            grads, (new, sums) = grad(params, model_state, part, key, scale)
            return grads, (jax.tree.map(jnp.subtract, new, model_state), sums)

        def add(sums, part):
            return jax.tree.map(jnp.add, sums, one(part)), None

        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (grads, (changes, sums)), _ = jax.lax.scan(add, zero, parts)
        # Means of changes: the mean of equal numbers, constants or frozen statistics, may differ from them by rounding.
        new = jax.tree.map(lambda old, change: old + change / accumulate, model_state, changes)
        return grads, (new, sums)

    def step(state: State, batch: dict) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        batch = augment(stream(key, "augment"), batch)
        examples = total(batch["mask"].sum(dtype=jnp.float32))
        counts = total(counted(task, batch)) or {"loss": examples}
        first, scale = scales(task, counts)
        grads, (model_state, sums) = gradients(state.params, state.model_state, batch, stream(key, "dropout"), scale)
        grads, (terms, measured) = total((grads, sums))
        grads = jax.tree.map(lambda g: g / first, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = ema_update(ema, {"params": params, "model_state": model_state}, ema_decay, state.step)
        one = jnp.ones(())
        metrics = {k: (v, counts[k]) for k, v in terms.items()}
        if "loss" not in terms:
            metrics["loss"] = (_weighted(terms, scale) / first, one)
        metrics |= {k: v if isinstance(v, tuple) else (v, examples) for k, v in measured.items()}
        metrics["grad_norm"] = (optax.global_norm(grads), one)
        if optimizer.schedule is not None:
            metrics["learning_rate"] = (jnp.asarray(optimizer.schedule(state.step), jnp.float32), one)
        new = State(state.step + 1, params, model_state, opt_state, state.key, ema)
        return new, metrics

    return step


def counted(task: Task, batch: dict) -> dict[str, jax.Array]:
    """Returns {term: its divisor, summed over this part of the batch}; {} if terms are means over examples.

    Example:
      >>> tokens = Task(None, None, None, {}, ("loss", "min"), counts=lambda b: {"words": b["words_mask"].sum(1)})
      >>> mask = jnp.array([[True, True], [True, False], [False, False]])
      >>> float(counted(tokens, {"words_mask": mask, "mask": jnp.ones(3, bool)})["words"])
      3.0
    """
    found = task.counts(batch) if task.counts else {}
    return {name: _sum(batch["mask"], jnp.asarray(n, jnp.float32)) for name, n in found.items()}


def scales(task: Task, counts: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, Any]]:
    """Returns the divisor of the gradient, and the factor of each term's sum before that division.

    The loss is sum_t weight_t S_t / N_t over the global batch. It is computed as (sum_t scale_t S_t) / N_1, where N_1
    is the first term's count: with a single term only this division remains.

    Args:
      task: has the weights.
      counts: {term: N_t over the global batch}.
    """
    if unknown := set(task.weights) - set(counts):
        raise errors.BadRequest(
            f"weights of unknown terms {', '.join(sorted(unknown))}; there are: {', '.join(counts)}."
        )
    # Sorted, as `jax.tree.map` returns them. For a batch without any box, 0 / 0 counts as 0.
    safe = {name: jnp.where(counts[name] > 0, counts[name], 1) for name in sorted(counts)}
    first = next(iter(safe.values()))
    factors: dict[str, Any] = {}
    for i, (name, n) in enumerate(safe.items()):
        weight = task.weights.get(name, 1.0)
        factors[name] = weight if i == 0 else weight * first / n
    return first, factors


def _weighted(sums: dict[str, jax.Array], scale: dict[str, Any]) -> jax.Array:
    parts = [
        s if isinstance(scale[name], float) and scale[name] == 1 else scale[name] * s
        for name, s in sorted(sums.items())
    ]
    return functools.reduce(jnp.add, parts)


def _sum(valid: jax.Array, x: jax.Array) -> jax.Array:
    """Sums over the valid examples; never multiplies by the mask, as 0 * NaN is NaN."""
    return jnp.where(valid, x, 0).sum()


def _check_terms(terms: dict[str, jax.Array], scale: dict[str, Any]) -> None:
    if set(terms) != set(scale):
        raise errors.BadRequest(
            f"the loss has the terms {', '.join(terms)}, but counts for {', '.join(scale)}; give one for each."
        )


def make_train_step(
    task: Task,
    optimizer: Any,
    *,
    augment: Callable[[jax.Array, dict], dict],
    accumulate: int = 1,
    ema_decay: float | None = None,
    compile: str = "jit",
    shardings: State,
) -> Step:
    """Returns the compiled step; the state given to it is donated.

    Args:
      task, optimizer, augment, accumulate, ema_decay: see `step_body`.
      compile: "jit" (batch: global arrays split over the mesh) or "pmap" (state and batch: a leading device axis).
      shardings: how the state is split over the mesh, for "jit"; see `training.sharding`.
    """
    refuse_cutting(task, accumulate, compile)
    body = functools.partial(step_body, task, optimizer, augment=augment, accumulate=accumulate, ema_decay=ema_decay)
    if compile == "pmap":
        mapped = jax.pmap(body(axis=DATA_AXIS), axis_name=DATA_AXIS, donate_argnums=0)
        return processes.compiled_together(mapped, copies=True)
    mesh = shardings.step.mesh
    inner = body(split=lambda grads: jax.lax.with_sharding_constraint(grads, shardings.params))

    def step(state: State, batch: dict) -> tuple[State, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # lets models constrain their activations
            return inner(state, batch)

    batch = NamedSharding(mesh, sharding.batch_spec())
    whole = NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(step, in_shardings=(shardings, batch), out_shardings=(shardings, whole), donate_argnums=0)
    return processes.compiled_together(compiled)


def place_state(state: State, shardings: State, compile: str) -> State:
    """Places a state as the compiled step needs it: by `shardings`, or with a leading device axis for "pmap"."""
    if compile == "pmap":
        devices = jax.local_devices()
        host = distributed.onto_host(state)
        stacked = jax.tree.map(lambda x: np.broadcast_to(x, (len(devices), *x.shape)), host)
        return jax.device_put(stacked, NamedSharding(Mesh(devices, (DATA_AXIS,)), PartitionSpec(DATA_AXIS)))
    if all(x.sharding == s for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)):
        return state
    return jax.tree.map(jnp.copy, distributed.onto_devices(state, shardings))  # the step donates: JAX must own it


def fetch_state(state: State, shardings: State, compile: str) -> State:
    """Undoes `place_state`: from the copies of "pmap", one per device, to one state over all devices."""
    if compile != "pmap":
        return state
    one = jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], state)
    return distributed.onto_devices(one, shardings)
