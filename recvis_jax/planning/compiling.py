"""Compiles a config's train step for devices that are not here, and reports how much memory it needs."""

import math
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from recvis_jax import build, errors
from recvis_jax.data import pipeline
from recvis_jax.planning import hlo, topology
from recvis_jax.planning.devices import GiB
from recvis_jax.planning.topology import Topology
from recvis_jax.training import sharding
from recvis_jax.training.step import make_train_step

AHEAD = 2  # batches that `data.pipeline` keeps on the devices besides that of the step

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = r"([\d.]+)([KMGT]?)"
_TOO_LARGE = (  # libtpu's messages: memory needed, memory available
    re.compile(rf"\({_SIZE}B?\) exceeds available HBM \({_SIZE}B?\)"),
    re.compile(rf"Used {_SIZE}B? of {_SIZE}B? hbm"),
)


class Memory(NamedTuple):
    """Memory of a device, in bytes.

    Attributes:
      parameters, optimizer, statistics, average: its part of the state: parameters, optimizer state, running statistics
        and constants of the model, the moving average.
      batch: its part of a batch.
      ahead: waiting batches, and a data set that is cached on devices.
      temporaries: peak of activations, gradients and workspace; None if the program does not fit.
      program: the compiled program itself.
      padding: memory that arrays take beyond their own size, because of the compiler's layouts.
      need: the total; if the program does not fit, the compiler's own number.
      available: what a program may use; None if unknown.
    """

    parameters: int
    optimizer: int
    statistics: int
    average: int
    batch: int
    ahead: int
    temporaries: int | None
    program: int
    padding: int
    need: int
    available: int | None

    @property
    def shortfall(self) -> int:
        """Missing memory, in bytes; 0 if the program fits."""
        return 0 if self.available is None else max(0, self.need - self.available)


class Compiled(NamedTuple):
    """A compiled train step.

    Attributes:
      traced: the step before compilation.
      batch: shapes of the batch that it takes.
      memory: see `Memory`.
      program: the compiled program; None if it does not fit.
      once_flops: XLA's own count of operations, which counts loops once; None if XLA gives none.
      seconds: time for tracing and compiling.
    """

    traced: Any
    batch: dict[str, Any]
    memory: Memory
    program: hlo.Program | None
    once_flops: float | None
    seconds: float


def batch_of(run: build.Run) -> dict[str, Any]:
    """Returns the shapes, types and shardings of a global batch, from what the pipeline makes of one example."""

    def same(x: Any) -> Any:
        return x

    placement = pipeline.Placement((0, 1), same, lambda batches: [batches], same, lambda *x: [x], same)
    one = next(
        pipeline.train_batches(
            run.data.train, run.data.train, batch_size=1, seed=0, start=0, stop=1, placement=placement,
            transform=run.data.transform, threads=1,
        )
    )  # fmt: skip
    where = NamedSharding(run.mesh, sharding.batch_spec())

    def shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            (run.batch_size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype), sharding=where
        )

    return {k: shape(v) for k, v in one.items()}


def compile_step(
    run: build.Run, machine: Topology, *, accumulate: int = 1, ema_decay: float | None = None, cached: int = 0
) -> Compiled:
    """Compiles the train step of a run whose mesh consists of a machine's devices.

    Args:
      run: from `build.make_run(devices=...)`.
      machine: the machine of these devices.
      accumulate, ema_decay: see `training.step.make_train_step`.
      cached: bytes of a data set that every device keeps.

    Raises:
      Failure: the compiler fails for a reason other than too little memory.
    """
    began = time.monotonic()
    batch = batch_of(run)
    step: Any = make_train_step(
        run.task, run.optimizer, augment=run.data.augment, accumulate=accumulate, ema_decay=ema_decay,
        shardings=run.shardings,
    )  # fmt: skip
    traced = step.trace(run.template, batch)
    available = machine.device.memory
    known = _known(run, batch, cached)
    state = sum(known.values())
    try:
        with topology.quiet():
            compiled = traced.lower(lowering_platforms=(machine.device.platform,)).compile()
    except jax.errors.JaxRuntimeError as e:
        found = parse_too_large(str(e))
        if found is None:
            raise errors.Failure(f"compiling for {machine.name} failed: {e}") from e
        need = max(found[0] + known["ahead"], state)
        there = min(found[1], available or found[1])
        memory = Memory(**known, temporaries=None, program=0, padding=0, need=need, available=there)
        return Compiled(traced, batch, memory, None, None, time.monotonic() - began)
    m = compiled.memory_analysis()
    arguments = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    memory = Memory(
        **known,
        temporaries=m.temp_size_in_bytes,
        program=m.generated_code_size_in_bytes,
        padding=max(0, arguments - (state - known["ahead"])),
        need=arguments + m.temp_size_in_bytes + m.generated_code_size_in_bytes + known["ahead"],
        available=available,
    )
    once = compiled.cost_analysis()  # None on GPUs
    program = hlo.parse(compiled.as_text())
    return Compiled(traced, batch, memory, program, once and once.get("flops"), time.monotonic() - began)


def _known(run: build.Run, batch: dict[str, Any], cached: int) -> dict[str, int]:
    """Returns the memory of a device for state and data, by attribute of `Memory`."""
    state = run.template
    own = local_bytes(batch)
    return {
        "parameters": local_bytes(state.params),
        "optimizer": local_bytes(state.opt_state),
        "statistics": local_bytes((state.model_state, state.key, state.step)),
        "average": local_bytes(state.ema),
        "batch": own,
        "ahead": AHEAD * own + cached,
    }


def local_bytes(tree: Any) -> int:
    """Returns the bytes of a tree of shaped and sharded arrays on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def parse_too_large(message: str) -> tuple[int, int] | None:
    """Reads (memory needed, memory available), in bytes, from a compiler's error message; None if it has neither."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for pattern in _TOO_LARGE:
        if found := pattern.search(message):
            sizes = [float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3)]
            # The message rounds to hundredths; the need must come out above what is available.
            return max(int(sizes[0]), int(sizes[1]) + GiB // 100), int(sizes[1])
    return None
