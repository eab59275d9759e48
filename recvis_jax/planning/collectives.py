"""Communication in a compiled program: every collective, how often it runs, how much it sends, and between whom."""

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
    """One kind of communication.

    Attributes:
      kind: of `KINDS`.
      bytes: size of the whole array: the summed one, the gathered one, or the one to scatter or send.
      groups: devices that communicate with each other, by their index in the mesh; for permutations, pairs (from, to).
      times: how often it runs per run of the program.
    """

    kind: str
    bytes: int
    groups: Groups
    times: int

    @property
    def size(self) -> int:
        """Number of devices in a group."""
        return len(self.groups[0]) if self.groups else 1

    def received(self, members: int | None = None) -> float:
        """Returns the least bytes that each of `members` (by default the devices of a group) must receive in one run.

        A sum over n is a scatter and a gather of (n - 1) / n of the array each; no algorithm needs less (Patarasuk &
        Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations").
        """
        n = members or self.size
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.bytes
        return self.bytes * (n - 1) / n * (2 if self.kind == "all-reduce" else 1)


def collectives_of(program: Program, counts: Counts, devices: int) -> list[Collective]:
    """Lists the collectives of a program on `devices`; equal ones are merged, those that send most come first."""
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
            # A fusion of this name sums and keeps a part; the compiler runs it as one reduce-scatter.
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            found[kind, inputs * size if kind == "all-gather" else inputs, groups] += times
    listed = [Collective(*key, times=times) for key, times in found.items()]
    return sorted(listed, key=lambda c: -c.times * c.received())


def groups_of(i: Instruction, devices: int) -> Groups:
    """Returns the groups of devices of a collective; one group of all devices if it names none.

    There are four notations: pairs, lists `{{0,1},{2,3}}`, a reshaped row `[2,4]<=[4,2]T(1,0)`, and a mesh with the
    names of the communicating axes, `mesh['x'=4,'y'=2] {'x'}`.
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
    """Groups along axes of a mesh, or along a factor of an axis: `'x':(2)4` is the 4 in an axis of 2 x 4 x rest."""
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
