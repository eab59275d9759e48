"""Devices and processes: how batches and states come onto the devices of a mesh, and back."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from recvis_jax import errors
from recvis_jax.data.pipeline import Arrays, Batch, Placement
from recvis_jax.training import sharding

DATA_AXIS = "data"  # the batch axis of functions mapped by pmap


def is_main() -> bool:
    """Whether this process writes the logs."""
    return jax.process_index() == 0


def check_batch(batch_size: int, accumulate: int, devices: int, what: str = "batch_size") -> None:
    """Raises BadRequest where a batch cannot be cut into equal parts for the devices and micro-batches."""
    parts = devices * accumulate
    if batch_size < 1 or accumulate < 1 or batch_size % parts:
        by = f"{devices} device(s)" + (f" x accumulate={accumulate}" if accumulate > 1 else "")
        near = max(1, round(batch_size / parts)) * parts
        raise errors.BadRequest(f"{what}={batch_size} does not divide by {by}; {near} would.")


def jit_placement(mesh: Mesh) -> Placement:
    """Batches as global arrays, split over the mesh's axes "data" and "fsdp"."""
    split = NamedSharding(mesh, sharding.batch_spec())
    share = sharding.host_share(mesh)

    def put(batch: Batch) -> Batch:
        if jax.process_count() == 1:  # in one call, a third of the time
            return jax.device_put(batch, split)

        def one(v: np.ndarray) -> jax.Array:
            return jax.make_array_from_process_local_data(split, v, (len(v) * share[1], *v.shape[1:]))

        return {k: one(v) for k, v in batch.items()}

    def keep(arrays: Arrays) -> Arrays:
        return onto_devices(arrays, NamedSharding(mesh, PartitionSpec()))

    @functools.partial(jax.jit, out_shardings=split)
    def gather(arrays: Arrays, rows: jax.Array, slots: jax.Array) -> Batch:
        return {**_rows(arrays, rows), "mask": jnp.ones(len(slots), bool), "slot": slots}

    def take(arrays: Arrays, rows: np.ndarray, slots: np.ndarray) -> Batch:
        if jax.process_count() > 1:
            placed = put({"rows": rows, "slots": slots})
            return gather(arrays, placed["rows"], placed["slots"])
        return gather(arrays, rows, slots)

    return Placement(share, put, keep, take, put)


def pmap_placement(mesh: Mesh) -> Placement:
    """Batches with a leading axis over this process's devices."""
    local = jax.local_device_count()
    jitted = jit_placement(mesh)

    def put(batch: Batch) -> Batch:
        return {k: v.reshape(local, -1, *v.shape[1:]) for k, v in batch.items()}

    own = Mesh(np.asarray(jax.local_devices()), (DATA_AXIS,))

    def keep(arrays: Arrays) -> Arrays:
        return jax.device_put(arrays, NamedSharding(own, PartitionSpec()))

    @functools.partial(jax.jit, out_shardings=NamedSharding(own, PartitionSpec(DATA_AXIS)))
    def gather(arrays: Arrays, rows: jax.Array, slots: jax.Array) -> Batch:
        batch = {**_rows(arrays, rows), "mask": jnp.ones(len(slots), bool), "slot": slots}
        return {k: v.reshape(local, -1, *v.shape[1:]) for k, v in batch.items()}

    return jitted._replace(put=put, keep=keep, take=gather)


def onto_devices(tree: Any, shardings: Sharding | Any) -> Any:
    """Puts arrays that every process has in full onto the devices of all, each its part.

    Args:
      tree: of arrays in numpy, or on devices of this process.
      shardings: one for all, or a tree of them.
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
    """Returns arrays that are split over the devices of all processes as numpy, in full, on every process."""

    def one(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            x = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(one, tree)


def _rows(arrays: Arrays, rows: jax.Array) -> Batch:
    return {"image": jnp.take(arrays.image, rows, axis=0), "label": jnp.take(arrays.label, rows, axis=0)}
