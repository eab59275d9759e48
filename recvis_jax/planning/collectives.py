"""What the devices of a compiled program exchange: every collective, how often, how much, and among whom."""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from recvis_jax.planning.hlo import Counts, Instruction, Program

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

Groups = tuple[tuple[int, ...], ...]


class Collective(NamedTuple):
    """One kind of exchange.

    Attributes:
      kind: of `KINDS`.
      bytes: the whole array, on each device: what is summed, what has been gathered, what is to be scattered or sent.
      groups: devices that exchange among each other, by their place in the mesh; pairs (from, to) of permutations.
      times: how often in a run of the program.
    """

    kind: str
    bytes: int
    groups: Groups
    times: int

    @property
    def size(self) -> int:
        """How many devices exchange among each other."""
        return len(self.groups[0]) if self.groups else 1

    def received(self, members: int | None = None) -> float:
        """Returns the bytes that each of `members` (by default the devices) must receive, at least, in one exchange.

        A sum over n is scattered and gathered, each (n - 1) / n of the array; no algorithm does with less (Patarasuk &
        Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations").
        """
        n = members or self.size
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.bytes
        return self.bytes * (n - 1) / n * (2 if self.kind == "all-reduce" else 1)


def collectives_of(program: Program, counts: Counts, devices: int) -> list[Collective]:
    """Lists the collectives of a program on `devices`, equal ones together, those that exchange most first."""
    found: Counter[tuple[str, int, Groups]] = Counter()
    for name, times in counts.runs.items():
        computation = program.computations.get(name, {})
        for i in computation.values():
            kind = i.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            inputs = sum(a.bytes for o in i.operands if o in computation for a in computation[o].arrays)
            groups = groups_of(i, devices)
            size = len(groups[0]) if groups else 1
            if size < 2:
                continue
            # A fusion of this name sums and keeps a part: the compiler runs it as the one operation that does that.
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            found[kind, inputs * size if kind == "all-gather" else inputs, groups] += times
    listed = [Collective(*key, times=times) for key, times in found.items()]
    return sorted(listed, key=lambda c: -c.times * c.received())


def groups_of(i: Instruction, devices: int) -> Groups:
    """Returns the groups of devices of a collective; all devices in one where it names none.

    Four notations: pairs, lists `{{0,1},{2,3}}`, a reshaped row `[2,4]<=[4,2]T(1,0)`, and a mesh with the names of the
    axes that exchange, `mesh['x'=4,'y'=2] {'x'}`.
    """
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", i.attributes)
    if pairs:
        return _lists(pairs[1])
    lists = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", i.attributes)
    if lists:
        return _lists(lists[1])
    row = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", i.attributes)
    if row:
        shape, source = _ints(row[1]), _ints(row[2])
        order = np.arange(np.prod(source)).reshape(source)
        return _rows(order.transpose(_ints(row[3]) if row[3] else None).reshape(shape))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*(?:\[[^\]]*\][^\]]*)*)\] \{([^}]*)\}", i.attributes)
    if mesh:
        return _of_mesh(mesh[1], re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", mesh[2]))
    return (tuple(range(devices)),)


def _of_mesh(axes: str, over: list[tuple[str, str, str]]) -> Groups:
    """Groups along axes of a mesh, or along a factor of one: `'x':(2)4` is the 4 of an axis of size 2 x 4 x rest."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    listed = re.search(r"device_ids=\(?\[([\d,]+)\]", axes)
    order = np.asarray(_ints(listed[1])) if listed else np.arange(np.prod(list(sizes.values()), dtype=int))
    shape: list[int] = []
    moving: list[int] = []
    for name, size in sizes.items():
        named = [(int(before or 1), int(part or size)) for axis, before, part in over if axis == name]
        done = 1
        for before, part in sorted(named):
            shape += [before // done, part]
            moving.append(len(shape) - 1)
            done = before * part
        shape.append(size // done)
    still = [k for k in range(len(shape)) if k not in moving]
    members = int(np.prod([shape[k] for k in moving]))
    return _rows(order.reshape(shape).transpose([*still, *moving]).reshape(-1, members))


def _lists(text: str) -> Groups:
    return tuple(tuple(_ints(g)) for g in re.findall(r"\{([\d,]*)\}", text))


def _ints(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _rows(groups: np.ndarray) -> Groups:
    return tuple(tuple(int(d) for d in row) for row in groups)
