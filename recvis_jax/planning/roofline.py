"""Bounds on the time of a step, from what it costs and what a machine can do at best.

Three things take time: arithmetic, memory and the network. Each is bounded from below at the published peak. If all
three overlap the step takes the longest of them ("at best"), if nothing overlaps their sum. What a program reaches lies
above the first and, as no peak is reached for long, often above the second.

Reference: Williams et al. 2009, "Roofline: an insightful visual performance model for multicore architectures".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from recvis_jax.planning.collectives import Collective
from recvis_jax.planning.cost import Cost
from recvis_jax.planning.topology import Topology


class Place(NamedTuple):
    """Where a device is: its chip's place on the torus (or its machine and number), which machine, which chip."""

    at: tuple[int, ...]
    machine: int
    chip: Any


class Bounds(NamedTuple):
    """Seconds that a step takes at least: for arithmetic, for memory, and on the network."""

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
      exchanged: its collectives.
      topology: the machine.
      where: places of the devices, in the order of the mesh.
      dtype: of the computation, "bfloat16" or "float32".
    """
    device = topology.device
    peak = (device.flops if dtype == "bfloat16" else device.flops32) / device.per_chip
    network = sum(c.times * exchange_time(c, topology, where) for c in exchanged)
    return Bounds(cost.flops / peak, cost.bytes * device.per_chip / device.bandwidth, network)


def exchange_time(c: Collective, topology: Topology, where: Sequence[Place]) -> float:
    """Returns the seconds that one collective takes at least: of the group that takes longest.

    On a torus a chip takes part with the links along the axes on which its group extends: two where the axis is a ring
    that the group goes all the way round, else one, as a corner has. Devices of one chip exchange within it, and those
    of other groups share its links. Where all chips of a machine reach each other, they do so at `link`, and machines
    at `network` a chip.
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
                # A pair of a permutation is one step of a longer ring: it may use what the whole machine has.
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
            cards = len(chips) / len(machines)  # of one machine that take part, each with its own port
            slowest = max(slowest, among / (cards * device.network))
    return slowest
