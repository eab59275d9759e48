"""Reads the text of a compiled program: its instructions, and how often each of its computations runs.

XLA's own cost analysis counts the body of a loop once. Here a computation runs as often as its callers, and a loop's
body once per iteration. The number of iterations is the compiler's `known_trip_count`, or else follows from the
condition and the counter's start and step.
"""

import math
import re
from typing import NamedTuple

# Bits per element of types whose name has no number; tokens and opaque types have none.
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Array(NamedTuple):
    """One array of an instruction: its type, shape and layout as text."""

    type: str
    shape: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        """Its size in bytes, without the padding of a layout."""
        bits = _BITS.get(self.type)
        if bits is None:
            bits = int(re.search(r"\d+", self.type)[0])  # type: ignore[index]  # f32, bf16, f8e4m3fn, s4
        return math.prod(self.shape) * bits // 8

    @property
    def in_main_memory(self) -> bool:
        """Whether it is in the device's main memory, not on the chip (S(1) and others on TPUs)."""
        return "S(" not in self.layout


class Instruction(NamedTuple):
    """One instruction: name, operation, result, names of its operands, the text inside and after its parentheses."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str
    is_root: bool

    @property
    def calls(self) -> list[tuple[str, str]]:
        """The computations it runs, as (how, name); how is "calls", "to_apply", "body", "condition" or "branch"."""
        found = [(m[1], m[2]) for m in _CALLED.finditer(self.attributes)]
        branches = _BRANCHES.search(self.attributes)
        if branches:
            found += [("branch", name.strip().lstrip("%")) for name in branches[1].split(",")]
        return [("branch" if "_computation" in how else how, name) for how, name in found]


class Program(NamedTuple):
    """A compiled program: its computations by name, each an ordered dict of instructions, and the entry computation."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


def parse(text: str) -> Program:
    """Parses the text of an HLO module, from `compiled.as_text()`."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif " = " in line:
            found = _instruction(line)
            current[found.name] = found
    return Program(computations, entry)


def _instruction(line: str) -> Instruction:
    left, right = line.strip().split(" = ", 1)
    shape, rest = _split(right) if right.startswith("(") else right.split(" ", 1)
    opcode, rest = rest.strip().split("(", 1)
    inside, attributes = _split("(" + rest)
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        opcode=opcode,
        arrays=arrays(shape),
        operands=tuple(_NAME.findall(inside)),
        inside=inside[1:-1],
        attributes=attributes,
        is_root=left.startswith("ROOT "),
    )


def _split(text: str) -> tuple[str, str]:
    """Splits the text after the parenthesis that closes its first one."""
    depth = 0
    for m in re.finditer(r"[()]", text):
        depth += 1 if m[0] == "(" else -1
        if not depth:
            return text[: m.end()], text[m.end() :]
    return text, ""


def arrays(shape: str) -> tuple[Array, ...]:
    """Parses a shape, `bf16[8,128]{1,0:T(8,128)}` or a tuple of shapes."""
    return tuple(
        Array(m[1], tuple(int(d.lstrip("<=")) for d in m[2].split(",") if d), m[3] or "")
        for m in _ARRAY.finditer(shape)
    )


class Counts(NamedTuple):
    """How often computations run.

    Attributes:
      runs: number of runs by name of the computation.
      fused: names of computations inside fusions, whose instructions keep nothing in memory.
      loops: number of loops.
      unknown: names of loops whose number of iterations is unknown and assumed to be 1.
    """

    runs: dict[str, int]
    fused: set[str]
    loops: int
    unknown: tuple[str, ...]


def count_runs(program: Program) -> Counts:
    """Returns how often every computation of a program runs, as if every branch of a conditional were taken."""
    runs: dict[str, int] = {}
    fused: set[str] = set()
    loops: dict[str, int | None] = {}

    def visit(name: str, times: int, inside: bool) -> None:
        runs[name] = runs.get(name, 0) + times
        if inside:
            fused.add(name)
        for i in program.computations.get(name, {}).values():
            rounds = 1
            if i.opcode == "while":
                found = loops[i.name] = trip_count(program, name, i)
                rounds = 1 if found is None else found
            for how, called in i.calls:
                if how == "to_apply" and i.opcode != "call":
                    continue  # a reduction's operator: negligible
                visit(called, times * (rounds if how in ("body", "condition") else 1), inside or i.opcode == "fusion")

    visit(program.entry, 1, False)
    return Counts(runs, fused, len(loops), tuple(name for name, found in loops.items() if found is None))


def trip_count(program: Program, within: str, loop: Instruction) -> int | None:
    """Returns the number of iterations of a loop, or None if it cannot be found.

    Args:
      program: the loop's program.
      within: name of the computation with the loop.
      loop: the instruction `while`.
    """
    known = re.search(r'known_trip_count[\\"]*:\{[\\"]*n[\\"]*:[\\"]*(\d+)', loop.attributes)
    if known:
        return int(known[1])
    called = dict(loop.calls)
    condition, body = program.computations[called["condition"]], program.computations[called["body"]]
    compare = _root(condition)
    if compare.opcode == "fusion":  # the compiler wrapped the condition: its parameters are the fusion's operands
        inner = program.computations[dict(compare.calls)["calls"]]
        given = compare.operands
        compare = _root(inner)
        renamed = {i.name: given[int(i.inside)] for i in inner.values() if i.opcode == "parameter"}
        condition = {**inner, **condition}
    else:
        renamed = {}
    if compare.opcode != "compare":
        return None
    sides = [_through(condition, renamed.get(o, o), renamed) for o in compare.operands]
    limits = [_constant(s) for s in sides]
    direction = re.search(r"direction=(\w+)", compare.attributes)
    if limits[1] is None and limits[0] is not None:
        sides, limits = sides[::-1], limits[::-1]
        flipped = {"GT": "LT", "GE": "LE", "LT": "GT", "LE": "GE", "NE": "NE"}
        how = flipped.get(direction[1], "") if direction else ""
    else:
        how = direction[1] if direction else ""
    counter, limit = sides[0], limits[1]
    if limit is None or counter is None or counter.opcode != "get-tuple-element":
        return None
    index = int(re.search(r"index=(\d+)", counter.attributes)[1])  # type: ignore[index]
    start = _start(program, within, loop, index)
    step = _step(body, index)
    if start is None or not step:
        return None
    distance = limit - start + (how in ("LE", "GE")) * (1 if step > 0 else -1)
    return max(0, math.ceil(distance / step)) if how in ("LT", "LE", "GT", "GE", "NE") else None


def _root(computation: dict[str, Instruction]) -> Instruction:
    return next(i for i in computation.values() if i.is_root)


def _through(
    computation: dict[str, Instruction], name: str, renamed: dict[str, str] | None = None
) -> Instruction | None:
    """Follows a name back through instructions that do not change values."""
    i = computation.get(name)
    while i is not None and i.opcode in ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"):
        name = (renamed or {}).get(i.operands[0], i.operands[0])
        i = computation.get(name)
    return i


def _constant(i: Instruction | None) -> int | None:
    if i is None or i.opcode != "constant" or not re.fullmatch(r"-?\d+", i.inside.strip("{} ")):
        return None
    return int(i.inside.strip("{} "))


def _start(program: Program, within: str, loop: Instruction, index: int) -> int | None:
    """The initial value of element `index` of a loop's state."""
    computation = program.computations[within]
    init = _through(computation, loop.operands[0])
    if init is None or init.opcode != "tuple":
        return None
    return _constant(_through(computation, init.operands[index]))


def _step(body: dict[str, Instruction], index: int) -> int | None:
    """What one iteration of a loop adds to element `index`."""
    root = _root(body)
    if root.opcode != "tuple":
        return None
    add = _through(body, root.operands[index])
    if add is None or add.opcode not in ("add", "subtract"):
        return None
    values = [_constant(_through(body, o)) for o in add.operands]
    found = next((v for v in values if v is not None), None)
    return found if add.opcode == "add" or found is None else -found
