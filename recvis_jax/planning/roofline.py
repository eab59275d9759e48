"""Bounds on the time of a step, from its cost and the peaks of a machine.

Three things take time: arithmetic, memory and the network. The published peak gives a lower bound for each. If all
three overlap, the step takes the longest of them ("at best"); if nothing overlaps, their sum. Real programs take longer
than the first, and often longer than the second, as no peak is sustained.

Reference: Williams et al. 2009, "Roofline: an insightful visual performance model for multicore architectures".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from recvis_jax.planning.collectives import Collective
from recvis_jax.planning.cost import Cost
from recvis_jax.planning.topology import Topology


class Place(NamedTuple):
    """Where a device is: its chip's coordinates on the torus (or its number), its machine, its chip."""

    at: tuple[int, ...]
    machine: int
    chip: Any


class Bounds(NamedTuple):
    """Least seconds of a step, for arithmetic, for memory, and for the network."""

    compute: float
    memory: float
    network: float

    @property
    def best(self) -> float:
        """If all three overlap."""
        return max(self)

    @property
    def serial(self) -> float:
        """If none overlap."""
        return sum(self)

    @property
    def limit(self) -> str:
        """Which of the three is the longest."""
        return max(self._fields, key=lambda f: getattr(self, f))


def places(topology: Topology, devices: Sequence[Any]) -> list[Place]:
    """Returns where the devices of a mesh are, in its order."""
    if topology.device.axes:
        return [Place(tuple(d.coords)[: topology.device.axes], 0, tuple(d.coords)) for d in devices]
    machine = topology.device.machine or len(devices)
    return [Place((d.id,), d.id // machine, d.id) for d in devices]


def bounds(
    cost: Cost, exchanged: Sequence[Collective], topology: Topology, where: Sequence[Place], dtype: str
) -> Bounds:
    """Returns the least times of a step.

    Args:
      cost: of the step, on one device.
      exchanged: collectives of the step.
      topology: the machine.
      where: places of the devices, in the order of the mesh.
      dtype: of the computation, "bfloat16" or "float32".
    """
    device = topology.device
    peak = (device.flops if dtype == "bfloat16" else device.flops32) / device.per_chip
    network = sum(c.times * exchange_time(c, topology, where) for c in exchanged)
    return Bounds(cost.flops / peak, cost.bytes * device.per_chip / device.bandwidth, network)


def exchange_time(c: Collective, topology: Topology, where: Sequence[Place]) -> float:
    """Returns the least seconds of one collective: those of its slowest group.

    On a torus, a chip uses the links along the axes over which its group extends: two links if the axis is a ring and
    the group fills it, else one, as at a corner. Devices of one chip communicate inside it, and groups that share a
    chip share its links. If all chips of a machine are connected directly, each sends at `link` inside the machine and
    at `network` between machines.
    """
    device = topology.device
    slowest = 0.0
    pairs = c.kind == "collective-permute"
    for group in [g for g in c.groups if len(set(g)) > 1]:
        chips = {where[d].chip for d in group}
        if len(chips) < 2:
            continue
        received = c.received(2 if pairs else len(chips))
        if device.axes:
            links = 0
            for axis in range(device.axes):
                spread = {where[d].at[axis] for d in group}
                # A pair of a permutation is one step of a longer ring, which may extend over the whole machine.
                whole = len(spread) == topology.shape[axis] or pairs
                if len(spread) > 1:
                    links += 2 if topology.rings[axis] and whole and not pairs else 1
            sharing = 1 if pairs else device.per_chip * len(chips) / len(group)
            slowest = max(slowest, received * sharing / (links * device.link))
            continue
        machines = {where[d].machine for d in group}
        slowest = max(slowest, received / device.link)
        if len(machines) > 1:
            among = c.received(2 if pairs else len(machines))
            cards = len(chips) / len(machines)  # participating chips of one machine, each with its own port
            slowest = max(slowest, among / (cards * device.network))
    return slowest
