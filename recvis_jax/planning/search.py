"""Searches for strategies with which a training fits a machine, the cheapest first.

None of them changes what is learned, except in models with batch norm: each accumulated micro-batch has its own
statistics.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from recvis_jax import errors, models
from recvis_jax.planning import report
from recvis_jax.planning.planner import Plan
from recvis_jax.planning.topology import Topology


def search(
    config: dict[str, Any],
    machine: Topology,
    make: Callable[[dict[str, Any], Topology], Plan],
    say: Callable[[str], None] = lambda text: None,
    most: int = 16,
) -> list[Plan]:
    """Plans a config with all strategies, and returns those that fit, the cheapest first.

    The strategies are the config's own `sharding`, "replicate" and "fsdp", each with and without `remat` and scanned
    blocks. The number of micro-batches is doubled until the plan fits, up to `most`; more than needed would only cost
    time.

    Args:
      config: as plain dicts.
      machine: to plan for.
      make: (config, machine) -> plan, such as `planner.make_plan`.
      say: called with a line about every trial.
      most: largest number of micro-batches.

    Raises:
      BadRequest: no strategy can be run.
    """
    found = []
    refused, planned = None, 0
    for changed in variants(config):
        for accumulate in micro_batches(config, machine, most):
            tried = changed | {"accumulate": accumulate}
            try:
                plan = make(tried, machine)
            except errors.BadRequest as e:
                say(f"{_text(tried)}: {e}")
                refused = e
                break  # more micro-batches do not help
            planned += 1
            lacks = report.size(plan.memory.shortfall)
            say(f"{_text(tried)}: {'fits' if plan.fits else f'lacks {lacks} a device'} ({plan.seconds:.0f} s)")
            if plan.fits:
                found.append(plan)
                break
    if refused and not planned:
        raise refused
    return sorted(found, key=cost_of)


def cost_of(plan: Plan) -> tuple[float, ...]:
    """Sort key of plans: least time of a step, then the time without overlap, then memory."""
    times = (plan.bounds.best, plan.bounds.serial) if plan.bounds else (0.0, float(plan.cost.flops if plan.cost else 0))
    return *times, plan.memory.need


def variants(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields a config with all shardings, remat and scan that its model supports; those that compute least first."""
    model = config["model"]
    takes = errors.keywords(models.CONSTRUCTORS[model["name"]]) if model.get("name") in models.CONSTRUCTORS else {}
    shardings: list[Any] = [config.get("sharding", "replicate")]
    shardings += [s for s in ("replicate", "fsdp") if s not in (shardings[0], _strategy(shardings[0]))]
    remats = (False, True) if "remat" in takes else (None,)
    scans = (True, False) if "scan" in takes else (None,)
    for remat, sharding, scan in itertools.product(remats, shardings, scans):
        given = {k: v for k, v in (("remat", remat), ("scan", scan)) if v is not None}
        yield config | {"sharding": sharding, "model": model | given}


def micro_batches(config: dict[str, Any], machine: Topology, most: int) -> list[int]:
    """Returns the config's number of micro-batches, and its doublings that still divide the batch."""
    first, batch = config.get("accumulate", 1), config.get("batch_size", 128)
    found = [first * 2**k for k in range(most.bit_length()) if first * 2**k <= max(first, most)]
    return [n for n in found if n == first or batch % (n * machine.devices) == 0]


def _strategy(sharding: Any) -> Any:
    return sharding.get("strategy", "replicate") if isinstance(sharding, dict) and len(sharding) == 1 else None


def _text(config: dict[str, Any]) -> str:
    model, sharding = config["model"], config["sharding"]
    words = [sharding if isinstance(sharding, str) else sharding.get("strategy", "replicate")]
    words += [name for name in ("remat", "scan") if model.get(name)]
    return " + ".join([*words, *([f"accumulate {config['accumulate']}"] if config["accumulate"] > 1 else [])])
