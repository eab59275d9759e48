"""From a config and a machine to a plan: compile the step, count its cost, bound the time of the whole run."""

import math
from typing import Any, NamedTuple

import jax

from recvis_jax import build, errors
from recvis_jax.data import pipeline
from recvis_jax.planning import collectives, compiling, cost, flops, hlo, roofline, topology
from recvis_jax.planning.compiling import Memory
from recvis_jax.planning.sizes import Examples, examples_of
from recvis_jax.planning.topology import Topology

# Keys of a config that `train` takes and that do not change its step; tested.
_OTHER = frozenset(
    "compile metrics log_every eval_every checkpoint_every keep_checkpoints checkpoint_dir early_stop init_from "
    "probe".split()
)


class Plan(NamedTuple):
    """What is known about a config on a machine.

    Attributes:
      machine: the machine.
      settings: those of the config that affect memory and time, as text.
      mesh: sizes of its axes.
      memory: of a device.
      parameters: number of parameters of the model.
      batch_size: images per step.
      model_flops, step_flops: of a step over all devices: three forward passes, and the traced step.
      cost: of the compiled step on a device; None if it does not fit.
      once_flops: XLA's own count on a device, which counts loops once.
      exchanged: collectives of a step.
      loops: number of loops, and names of those with an unknown number of iterations.
      bounds: of the time of a step; None if it does not fit or no peaks are published.
      examples: of an epoch.
      steps: of the whole run.
      seconds: time for compiling.
    """

    machine: Topology
    settings: dict[str, Any]
    mesh: dict[str, int]
    memory: Memory
    parameters: int
    batch_size: int
    model_flops: int
    step_flops: int
    cost: cost.Cost | None
    once_flops: float | None
    exchanged: list[collectives.Collective]
    loops: tuple[int, tuple[str, ...]]
    bounds: roofline.Bounds | None
    examples: Examples
    steps: int
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the step fits a device's memory."""
        return self.cost is not None and not self.memory.shortfall

    def hours(self, seconds: float) -> float:
        """Hours of the whole run, given the seconds of a step."""
        return seconds * self.steps / 3600


def check_config(config: dict[str, Any]) -> None:
    """Refuses configs that `train` would refuse, or that cannot be planned."""
    errors.check_kwargs(build.make_run, config, "config", extra=_OTHER, given=("devices", "recorded", "built"))
    if config.get("compile", "jit") != "jit":
        raise errors.BadRequest("plan supports only compile='jit'; add --config.compile=jit.")


def make_plan(config: dict[str, Any], machine: Topology) -> Plan:
    """Compiles a config's train step for a machine and counts what it costs.

    Args:
      config: as plain dicts, with the keys that `train` takes.
      machine: what to compile for.

    Raises:
      BadRequest: the config cannot be run, or not on this number of devices.
      Failure: the compiler fails for a reason other than too little memory.
    """
    check_config(config)
    batch_size, accumulate = config.get("batch_size", 128), config.get("accumulate", 1)
    examples, data = examples_of(config["data"])
    steps = config.get("steps") or round((config.get("epochs") or 0) * examples.number / batch_size)
    known = {k: v for k, v in config.items() if k not in (*_OTHER, "data", "epochs", "steps")}
    if config.get("epochs") is not None and config.get("steps") is not None:
        known["epochs"] = config["epochs"]  # for the message of `make_run`
    run = build.make_run(**known, data=data, steps=steps, devices=topology.open_devices(machine))
    compiled = compiling.compile_step(
        run, machine, accumulate=accumulate, ema_decay=config.get("ema_decay"), cached=_cached(run, data, examples)
    )
    plain = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in compiled.batch.items()}
    augmented = jax.eval_shape(run.data.augment, jax.random.key(0), plain)
    found: dict[str, Any] = {"cost": None, "exchanged": [], "loops": (0, ()), "bounds": None}
    if compiled.program is not None:
        counts = hlo.count_runs(compiled.program)
        found["cost"] = cost.cost_of(compiled.program, counts)
        found["exchanged"] = collectives.collectives_of(compiled.program, counts, machine.devices)
        found["loops"] = (counts.loops, counts.unknown)
        if machine.device.flops:
            where = roofline.places(machine, list(run.mesh.devices.flat))
            dtype = config.get("dtype", "float32")
            found["bounds"] = roofline.bounds(found["cost"], found["exchanged"], machine, where, dtype)
    return Plan(
        machine=machine,
        settings=settings_of(config),
        mesh=dict(run.mesh.shape),
        memory=compiled.memory,
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(run.template.params)),
        batch_size=batch_size,
        model_flops=flops.model_flops(run.task, run.template, augmented),
        step_flops=flops.step_flops(compiled.traced),
        once_flops=compiled.once_flops,
        examples=examples,
        steps=steps,
        seconds=compiled.seconds,
        **found,
    )


def _cached(run: build.Run, data: dict[str, Any], examples: Examples) -> int:
    """Returns the bytes of examples on every device if the data set is cached on devices, else 0."""
    assert run.data.train is not None
    source = run.data.train._replace(length=examples.number)
    if pipeline.choose_cache(data.get("cache", "auto"), source, run.data.random, bool(run.data.edges)) != "device":
        return 0
    batch = compiling.batch_of(run)
    sizes = (math.prod(x.shape[1:]) * x.dtype.itemsize for name, x in batch.items() if name not in ("mask", "slot"))
    return examples.number * sum(sizes)


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a config that affect memory and time, besides the batch size."""
    model, layout = config["model"], config.get("sharding", "replicate")
    name = layout if isinstance(layout, str) else layout.get("strategy", "replicate")
    return {
        "model": model["name"],
        "sharding": name,
        "remat": model.get("remat", False),
        "scan": model.get("scan", False),
        "accumulate": config.get("accumulate", 1),
        "dtype": config.get("dtype", "float32"),
    }
