"""Devices and processes: the mesh, and how batches come onto it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recvis_jax import errors
from recvis_jax.data.pipeline import Arrays, Batch, Placement

DATA_AXIS = "data"  # the one name of the batch axis, in meshes and in mapped functions


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a one-dimensional mesh over all devices, or over those given, with the axis "data"."""
    return Mesh(np.asarray(devices or jax.devices()), (DATA_AXIS,))


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
    """Batches as global arrays, split over the mesh's "data" axis."""
    split = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    whole = NamedSharding(mesh, PartitionSpec())

    def put(batch: Batch) -> Batch:
        return {k: jax.make_array_from_process_local_data(split, v) for k, v in batch.items()}

    def keep(arrays: Arrays) -> Arrays:
        return jax.device_put(arrays, whole)

    @functools.partial(jax.jit, out_shardings=split)
    def gather(arrays: Arrays, rows: jax.Array, slots: jax.Array) -> Batch:
        return {**_rows(arrays, rows), "mask": jnp.ones(len(slots), bool), "slot": slots}

    def take(arrays: Arrays, rows: np.ndarray, slots: np.ndarray) -> Batch:
        if jax.process_count() > 1:
            rows, slots = (jax.make_array_from_process_local_data(split, x) for x in (rows, slots))
        return gather(arrays, rows, slots)

    return Placement((jax.process_index(), jax.process_count()), put, keep, take, put)


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


def _rows(arrays: Arrays, rows: jax.Array) -> Batch:
    return {"image": jnp.take(arrays.image, rows, axis=0), "label": jnp.take(arrays.label, rows, axis=0)}
