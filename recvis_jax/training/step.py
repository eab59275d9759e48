"""The train step: a pure function `(state, batch) -> (state, metrics)`, compiled by `jit` over a mesh or by `pmap`.

Both give the same numbers. Under `jit` arrays are global and XLA places the collectives; under `pmap` the same body
runs on each device's part and sums over the axis "data" by hand. Batch norm uses the statistics of the whole global
batch in both (see `models.layers.BatchNorm`); dropout and augmentation draw from (key, slot), not from the device.

With `accumulate=m` the batch is cut into m micro-batches, whose gradients are summed before the one update. That equals
the large batch, except that batch norm sees one micro-batch at a time: the statistics are then those of the m groups
{j : j mod m = g} of the batch, as with `bn_groups=m` and the large batch (ghost batch norm), to which it is equal.
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

from recvis_jax.tasks.task import Task
from recvis_jax.training import distributed, processes, sharding
from recvis_jax.training.distributed import DATA_AXIS
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
      task: objective with its model.
      optimizer: `init`, `update` and `schedule`, as `optim.make_optimizer` gives them.
      augment: (key, batch) -> batch with float images as the model takes them.
      accumulate: number of micro-batches; divides the batch on each device.
      ema_decay: decay of the moving average of parameters and model state; None for none.
      axis: name of the mapped axis where the batch is one device's part of the global one.
      split: gradients -> the same, split over the devices as the parameters are.
    """

    def total(x):
        return jax.lax.psum(x, axis) if axis else x

    def micro(params, model_state, batch, key):
        """Sum of the losses and sums of the metrics over the valid examples."""
        per_example, new, metrics = task.loss(params, model_state, batch, key)
        valid = batch["mask"]
        metrics = {"loss": per_example, **metrics}
        sums = {k: jnp.where(valid, v, 0).sum() for k, v in metrics.items()}
        return sums["loss"], (new, sums)

    def grad(params, model_state, batch, key):
        grads, aux = jax.grad(micro, has_aux=True)(params, model_state, batch, key)
        return split(grads), aux

    def gradients(params, model_state, batch, key):
        if accumulate == 1:
            return grad(params, model_state, batch, key)
        # Strided rather than contiguous micro-batches: each keeps its share on every device.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(sums, part):
            return jax.tree.map(jnp.add, sums, grad(params, model_state, part, key)), None

        one = jax.tree.map(lambda x: x[0], parts)
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, params, model_state, one, key))
        (grads, (new, sums)), _ = jax.lax.scan(add, zero, parts)
        new = jax.tree.map(lambda x: x / accumulate, new)
        if "constants" in model_state:  # a mean of equal numbers may be off by a rounding
            new = {**new, "constants": model_state["constants"]}
        return grads, (new, sums)

    def step(state: State, batch: dict) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        batch = augment(stream(key, "augment"), batch)
        count = total(batch["mask"].sum(dtype=jnp.float32))
        grads, (model_state, sums) = gradients(state.params, state.model_state, batch, stream(key, "dropout"))
        grads, sums = total((grads, sums))
        safe = jnp.maximum(count, 1)
        grads = jax.tree.map(lambda g: g / safe, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = ema_update(ema, {"params": params, "model_state": model_state}, ema_decay, state.step)
        one = jnp.ones(())
        metrics = {k: (v, count) for k, v in sums.items()}
        metrics["grad_norm"] = (optax.global_norm(grads), one)
        metrics["learning_rate"] = (jnp.asarray(optimizer.schedule(state.step), jnp.float32), one)
        new = State(state.step + 1, params, model_state, opt_state, state.key, ema)
        return new, metrics

    return step


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
      shardings: how the state lies on the mesh, for "jit"; see `training.sharding`.
    """
    body = functools.partial(step_body, task, optimizer, augment=augment, accumulate=accumulate, ema_decay=ema_decay)
    if compile == "pmap":
        mapped = jax.pmap(body(axis=DATA_AXIS), axis_name=DATA_AXIS, donate_argnums=0)
        return processes.compiled_together(mapped, copies=True)
    mesh = shardings.step.mesh
    inner = body(split=lambda grads: jax.lax.with_sharding_constraint(grads, shardings.params))

    def step(state: State, batch: dict) -> tuple[State, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # in which models constrain their activations
            return inner(state, batch)

    batch = NamedSharding(mesh, sharding.batch_spec())
    whole = NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(step, in_shardings=(shardings, batch), out_shardings=(shardings, whole), donate_argnums=0)
    return processes.compiled_together(compiled)


def place_state(state: State, shardings: State, compile: str) -> State:
    """Puts a state where the compiled step wants it: as `shardings` say; with a leading device axis for "pmap"."""
    if compile == "pmap":
        devices = jax.local_devices()
        host = distributed.onto_host(state)
        stacked = jax.tree.map(lambda x: np.broadcast_to(x, (len(devices), *x.shape)), host)
        return jax.device_put(stacked, NamedSharding(Mesh(devices, (DATA_AXIS,)), PartitionSpec(DATA_AXIS)))
    if all(x.sharding == s for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)):
        return state
    return jax.tree.map(jnp.copy, distributed.onto_devices(state, shardings))  # a step may be given only what JAX owns


def fetch_state(state: State, shardings: State, compile: str) -> State:
    """Undoes `place_state`: one state over all devices, from one that "pmap" keeps once a device."""
    if compile != "pmap":
        return state
    one = jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], state)
    return distributed.onto_devices(one, shardings)
