"""Devices and processes: moves batches and states to the devices of a mesh, and back."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from recvis_jax import errors
from recvis_jax.axes import DATA_AXIS
from recvis_jax.data.pipeline import Arrays, Batch, Placement
from recvis_jax.training import sharding


def is_main() -> bool:
    """Whether this process writes the logs."""
    return jax.process_index() == 0


def check_batch(batch_size: int, accumulate: int, devices: int, what: str = "batch_size") -> None:
    """Raises `BadRequest` if a batch cannot be cut into equal parts for the devices and micro-batches."""
    parts = devices * accumulate
    if batch_size < 1 or accumulate < 1 or batch_size % parts:
        by = f"{devices} device(s)" + (f" x accumulate={accumulate}" if accumulate > 1 else "")
        near = max(1, round(batch_size / parts)) * parts
        raise errors.BadRequest(f"{what}={batch_size} is not divisible by {by}; {near} would be.")


def jit_placement(mesh: Mesh) -> Placement:
    """Batches as global arrays, split over the mesh's axes "data" and "fsdp"."""
    split = NamedSharding(mesh, sharding.batch_spec())
    share = sharding.host_share(mesh)

    def put(batch: Batch) -> Batch:
        if jax.process_count() == 1:  # one call for all arrays takes a third of the time
            return jax.device_put(batch, split)

        def one(v: np.ndarray) -> jax.Array:
            return jax.make_array_from_process_local_data(split, v, (len(v) * share[1], *v.shape[1:]))

        return {k: one(v) for k, v in batch.items()}

    cut = jax.jit(_cut, in_shardings=NamedSharding(mesh, PartitionSpec(None, *split.spec)), out_shardings=split)

    def put_several(batches: Batch) -> list[Batch]:
        return cut(batches) if jax.process_count() == 1 else [put(batch) for batch in _cut(batches)]

    def keep(arrays: Arrays) -> Arrays:
        return onto_devices(arrays, NamedSharding(mesh, PartitionSpec()))

    gather = jax.jit(_gather, out_shardings=split)

    def take(arrays: Arrays, rows: np.ndarray, slots: np.ndarray) -> list[Batch]:
        if jax.process_count() > 1:
            return _batches(gather(arrays, [put({"": r})[""] for r in rows], put({"": slots})[""]))
        return _batches(gather(arrays, rows, slots))

    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        # Host and device memory are the same, and numpy copies a row at once where XLA copies byte by byte.
        return Placement(share, put, _cut, lambda arrays: arrays, take, put)
    return Placement(share, put, put_several, keep, take, put)


def pmap_placement(mesh: Mesh) -> Placement:
    """Batches with a leading axis over this process's devices."""
    local = jax.local_device_count()
    jitted = jit_placement(mesh)

    def put(batch: Batch) -> Batch:
        return {k: v.reshape(local, -1, *v.shape[1:]) for k, v in batch.items()}

    def put_several(batches: Batch) -> list[Batch]:
        return [put(batch) for batch in _cut(batches)]

    own = Mesh(np.asarray(jax.local_devices()), (DATA_AXIS,))

    def keep(arrays: Arrays) -> Arrays:
        return jax.device_put(arrays, NamedSharding(own, PartitionSpec()))

    @functools.partial(jax.jit, out_shardings=NamedSharding(own, PartitionSpec(DATA_AXIS)))
    def gather(arrays: Arrays, rows: jax.Array, slots: jax.Array) -> tuple[list[Batch], Batch]:
        return jax.tree.map(lambda v: v.reshape(local, -1, *v.shape[1:]), _gather(arrays, rows, slots))

    def take(arrays: Arrays, rows: np.ndarray, slots: np.ndarray) -> list[Batch]:
        return _batches(gather(arrays, rows, slots))

    return jitted._replace(put=put, put_several=put_several, keep=keep, take=take)


def onto_devices(tree: Any, shardings: Sharding | Any) -> Any:
    """Distributes arrays, which every process has in full, over the devices of all processes.

    Args:
      tree: numpy arrays, or arrays on devices of this process.
      shardings: one for all arrays, or a tree of them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(x: Any, where: Sharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

    if isinstance(shardings, Sharding):
        return jax.tree.map(lambda x: one(x, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def onto_host(tree: Any) -> Any:
    """Gathers arrays that are split over the devices of all processes; every process gets them whole, as numpy."""

    def one(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            x = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(one, tree)


def _cut(batches: Batch) -> list[Batch]:
    """Cuts arrays (k b ...) into k batches."""
    return [{name: v[i] for name, v in batches.items()} for i in range(len(next(iter(batches.values()))))]


def _gather(arrays: Arrays, rows: jax.Array, slots: jax.Array) -> tuple[list[Batch], Batch]:
    """Returns the fields that differ between the batches of `rows` (k b), and those that all batches share."""
    pick = functools.partial(jnp.take, axis=0, mode="clip")  # all rows exist; the default checks for rows that do not
    pieces = [{name: pick(v, r) for name, v in arrays.items()} for r in rows]
    return pieces, {"mask": jnp.ones(len(slots), bool), "slot": slots}


def _batches(gathered: tuple[list[Batch], Batch]) -> list[Batch]:
    pieces, same = gathered
    return [{**piece, **same} for piece in pieces]
