"""What a compiled program costs a device: arithmetic of its matrix products, and bytes moved from and to its memory.

Arithmetic counts matrix products and convolutions, two operations per multiplication: the work of matrix units.
Elementwise work is left out, as in the counts of `describe`. Bytes are those that instructions outside of fusions read
from and write to the device's main memory. This is an estimate, as caches and overlap are not known.
"""

import itertools
import math
import re
from typing import NamedTuple

from recvis_jax.planning.hlo import Counts, Instruction, Program

# Instructions that move nothing, or whose parts are counted by themselves.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id "
    "opt-barrier async-start async-update async-done add-dependency".split()
)
_PARTS = frozenset(("dynamic-slice", "slice", "gather"))
_SAME = frozenset(("bitcast", "reshape"))

Computation = dict[str, Instruction]


class Cost(NamedTuple):
    """What one run of a program costs one device.

    Attributes:
      flops: two for every multiplication of its products and convolutions.
      bytes: read from and written to the device's main memory.
    """

    flops: int
    bytes: int


def cost_of(program: Program, counts: Counts) -> Cost:
    """Adds up the cost of all instructions, each times the number of its runs."""
    flops = moved = 0
    for name, times in counts.runs.items():
        computation = program.computations.get(name, {})
        for i in computation.values():
            flops += times * flops_of(computation, i)
            if name not in counts.fused:
                moved += times * bytes_of(program, computation, i)
    return Cost(flops, moved)


def flops_of(computation: Computation, i: Instruction) -> int:
    """Returns the arithmetic of one instruction; 0 for all but products and convolutions."""
    if i.opcode not in ("convolution", "dot", "custom-call"):
        return 0
    given = [computation[o].arrays[0].shape for o in i.operands[:2]]
    result = i.arrays[0].shape
    if i.opcode == "convolution":
        return _convolution(i, given[0], given[1], result)
    if i.opcode == "dot":
        return _dot(given[0], result, _numbers(r"lhs_contracting_dims=\{([^}]*)\}", i))
    found = re.search(r'custom_call_target="([^"]*)"', i.attributes)
    target = found[1] if found else ""
    if target.startswith(("__cublas$", "__onednn$matmul")):
        return _dot(given[0], result, _numbers(r'"lhs_contracting_dimensions":\[([^\]]*)\]', i))
    if target.startswith("__cudnn$conv"):  # image, kernel and output keep their roles of the forward pass
        if "BackwardInput" in target:
            return _convolution(i, result, given[1], given[0])
        if "BackwardFilter" in target:
            return _convolution(i, given[0], result, given[1])
        return _convolution(i, given[0], given[1], result)
    return 0


def _dot(left: tuple, result: tuple, contracted: list[int]) -> int:
    return 2 * math.prod(result) * math.prod(left[d] for d in contracted)


def _numbers(pattern: str, i: Instruction) -> list[int]:
    found = re.search(pattern, i.attributes)
    return [int(n) for n in re.findall(r"\d+", found[1])] if found else []


def _convolution(i: Instruction, image: tuple, kernel: tuple, output: tuple) -> int:
    """Arithmetic of a convolution, without products with padding or with the holes of a dilated image.

    On TPUs matrix products are written as convolutions, and a batch as a dilated image with one pixel in n.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    if not labels:
        return 0
    of_image, of_kernel, of_output = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", i.attributes)
    fields = dict(f.split("=") for f in window[1].split()) if window else {}
    spatial = sorted(c for c in of_kernel if c.isdigit())

    def field(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * len(spatial)

    taps = 1
    rows = zip(
        field("pad", "0_0"), field("stride", "1"), field("lhs_dilate", "1"), field("rhs_dilate", "1"), strict=True
    )
    for axis, (pad, stride, holes, spread) in zip(spatial, rows, strict=True):
        taps *= valid_taps(
            image[of_image.index(axis)], kernel[of_kernel.index(axis)], output[of_output.index(axis)],
            int(pad.split("_")[0]), int(stride), int(holes), int(spread),
        )  # fmt: skip
    groups = [(_numbers(rf"{side}_group_count=(\d+)", i) or [1])[0] for side in ("feature", "batch")]
    channels, batch = image[of_image.index("f")] // groups[0], image[of_image.index("b")] // groups[1]
    return 2 * taps * channels * kernel[of_kernel.index("o")] * batch


def valid_taps(image: int, kernel: int, output: int, pad: int, stride: int, holes: int, spread: int) -> int:
    """Returns how many (output, tap) pairs along an axis hit a pixel of the image.

    Args:
      image, kernel, output: sizes.
      pad: pixels before the first.
      stride: from one output to the next.
      holes: distance between the image's pixels (its dilation).
      spread: distance between the kernel's taps.
    """
    end = (image - 1) * holes
    if holes == 1 and stride == 1 and spread == 1:
        return sum(max(0, min(output, end + pad - k + 1) - max(0, pad - k)) for k in range(kernel))
    places = itertools.product(range(output), range(kernel))
    met = (o * stride + k * spread - pad for o, k in places)
    return sum(0 <= at <= end and at % holes == 0 for at in met)


def bytes_of(program: Program, computation: Computation, i: Instruction) -> int:
    """Returns the bytes of main memory that one instruction outside of fusions reads and writes."""
    if i.opcode in _FREE or i.opcode.endswith("-done"):
        return 0
    written = [a for a in i.arrays if a.in_main_memory]
    if i.opcode.endswith("-start"):  # its result is a tuple of operand, result and more
        written = written[1:2]
    if i.opcode in _PARTS:
        return 2 * sum(a.bytes for a in written)
    if i.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * sum(_size(computation, o) for o in i.operands[1:])
    if i.opcode == "fusion":
        inner = program.computations[dict(i.calls)["calls"]]
        names = {int(p.inside): p.name for p in inner.values() if p.opcode == "parameter"}
        read = sum(
            min(_size(computation, o), _read(program, inner, names[k])) for k, o in enumerate(i.operands) if k in names
        )
        return read + _written(inner, i)
    return sum(_size(computation, o) for o in i.operands) + sum(a.bytes for a in written)


def _size(computation: Computation, name: str) -> int:
    i = computation.get(name)
    if i is None or i.opcode == "constant":
        return 0
    return sum(a.bytes for a in i.arrays if a.in_main_memory)


def _read(program: Program, inner: Computation, name: str) -> int:
    """The bytes that a fusion reads of one of its parameters; if it slices the parameter, only the slices."""
    total = 0
    for user in inner.values():
        if name not in user.operands:
            continue
        if user.opcode in _PARTS and user.operands[0] == name:
            total += sum(a.bytes for a in user.arrays)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue
        elif user.opcode in _SAME:
            total += _read(program, inner, user.name)
        elif user.opcode == "fusion":
            nested = program.computations[dict(user.calls)["calls"]]
            names = {int(p.inside): p.name for p in nested.values() if p.opcode == "parameter"}
            total += sum(_read(program, nested, names[k]) for k, o in enumerate(user.operands) if o == name)
        else:
            return sum(a.bytes for a in inner[name].arrays)
    return total


def _written(inner: Computation, fusion: Instruction) -> int:
    """The bytes that a fusion writes; for a result that is updated in place, only the update."""
    root = next(i for i in inner.values() if i.is_root)
    roots = [inner[o] for o in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for k, array in enumerate(fusion.arrays):
        at: Instruction | None = roots[k] if k < len(roots) else None
        while at is not None and at.opcode in _SAME and at.operands:
            at = inner.get(at.operands[0])
        if at is not None and at.opcode == "dynamic-update-slice":
            total += sum(a.bytes for a in inner[at.operands[1]].arrays)
        elif array.in_main_memory:
            total += array.bytes
    return total
