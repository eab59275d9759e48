"""Plans as text."""

import textwrap
from collections import Counter
from collections.abc import Sequence

from recvis_jax import columns
from recvis_jax.planning.planner import Plan

# Both levels compiled: ViT-S/16 on v5e:2x4 1 % and 1.2 times, ResNet-50 on v4:2x2x2 0 and 1.0, MAE ViT-L/16 on
# v5e:16x16 12 % and 1.7, ViT-H/14 on v5e:4x4 with fsdp, remat and scan 4 % and 1.2, and other collectives.
_NOTE = (
    "O0 takes up to 12 % less memory than the level used for training, moves up to 1.7 times the bytes and, with split "
    "parameters, uses other collectives; --level=default compiles at that level"
)


def verdict(plan: Plan) -> str:
    """Returns one line: whether a plan fits, and by how much."""
    memory, name = plan.memory, plan.machine.name
    if memory.available is None:
        return f"{name}: needs {size(memory.need)} a device; no limit is known"
    told = f"{size(memory.need)} of {size(memory.available)} a device"
    if memory.shortfall:
        return f"{name}: does not fit, needs {told}: lacks {size(memory.shortfall)}"
    return f"{name}: fits, needs {told}: leaves {size(memory.available - memory.need)}"


def describe(plan: Plan, level: str) -> str:
    """Returns everything in a plan, as lines."""
    m, mesh = plan.machine, " x ".join(f"{axis} {n}" for axis, n in plan.mesh.items())
    each = f", {m.device.per_chip} devices each" if m.device.per_chip > 1 else ""
    s = plan.settings
    lines = [
        verdict(plan),
        f"  machine      {m.chips} x {m.device.name}{each}; mesh {mesh}",
        f"  program      {s['model']}, {plan.parameters:,} parameters, batch {plan.batch_size:,}; {s['sharding']}, "
        f"remat {_switch(s['remat'])}, scan {_switch(s['scan'])}, accumulate {s['accumulate']}, {s['dtype']}; "
        f"compiled at {level} in {plan.seconds:.0f} s",
        f"  memory       {_memory(plan)}",
        f"  arithmetic   {_arithmetic(plan)}",
    ]
    if plan.cost is not None:
        lines += [f"  network      {line}" for line in _network(plan)]
        lines += [f"  {line}" for line in _times(plan)]
        if level == "O0" and m.device.platform == "tpu":
            lines.append(f"  note         {_NOTE}{_narrow(plan)}")
    wrap = textwrap.TextWrapper(120, subsequent_indent=" " * 15, break_on_hyphens=False, break_long_words=False)
    return "\n".join(map(wrap.fill, lines))


def _narrow(plan: Plan) -> str:
    """Returns a warning if the memory that a plan leaves free may be too little."""
    m = plan.memory
    if m.available is None or m.shortfall or m.available - m.need > 0.15 * m.need:
        return ""
    return f". Here only {size(m.available - m.need)} are left: too little to be sure"


def table(plans: Sequence[Plan]) -> str:
    """Returns plans as a table, one per line, in the order given."""
    head = ["sharding", "remat", "scan", "accumulate", "memory", "arithmetic", "step at best", "images/s", "chip-hours"]
    rows = [head]
    for p in plans:
        s, b = p.settings, p.bounds
        flops = p.cost.flops if p.cost else 0
        rows.append(
            [s["sharding"], _switch(s["remat"]), _switch(s["scan"]), str(s["accumulate"]), size(p.memory.need)]
            + [f"{flops * p.machine.devices / p.model_flops:.2f} x model"]
            + (
                [seconds(b.best), f"{p.batch_size / b.best:,.0f}", f"{p.hours(b.best) * p.machine.chips:,.1f}"]
                if b
                else ["", "", ""]
            )
        )
    return "\n".join(f"  {line}" for line in columns.aligned(rows))


def _memory(plan: Plan) -> str:
    m = plan.memory
    parts = {
        "parameters": m.parameters,
        "optimizer": m.optimizer,
        "moving average": m.average,
        "statistics": m.statistics,
        "batch": m.batch,
        "waiting batches and cached data": m.ahead,
        "padding": m.padding,
        "program": m.program,
    }
    shown = [f"{name} {size(n)}" for name, n in parts.items() if n >= 1 << 20 or name in ("parameters", "optimizer")]
    rest = "activations, gradients, workspace"
    shown.append(f"{rest} {size(m.temporaries)}" if m.temporaries is not None else f"{rest} the rest")
    return ", ".join(shown)


def _arithmetic(plan: Plan) -> str:
    devices = plan.machine.devices
    model = plan.model_flops / devices
    text = f"{number(model)}FLOP a step and device for 3 forward passes of the model"
    text += f"; the step asks for {plan.step_flops / plan.model_flops:.3f} x that"
    if plan.cost is not None:
        text += f", compiled {plan.cost.flops / model:.3f} x"
        if plan.cost.flops * devices > 1.02 * plan.step_flops:
            text += ", as the compiler computes some of it again to save memory,"
        loops, unknown = plan.loops
        text += f" ({loops} loops counted as often as they go round" if loops else " (no loops"
        if unknown:
            text += f", but {len(unknown)} once, as their number is not known: {', '.join(unknown[:3])}"
        text += f"; XLA counts {plan.once_flops / model:.3f} x, loops once)" if plan.once_flops else ")"
    return text


def _network(plan: Plan, most: int = 6) -> list[str]:
    if not plan.exchanged:
        return ["nothing is exchanged"]
    times: Counter[tuple[str, int]] = Counter()
    volume: Counter[tuple[str, int]] = Counter()
    for c in plan.exchanged:
        times[c.kind, c.size] += c.times
        volume[c.kind, c.size] += c.times * c.bytes
    received = sum(c.times * c.received() for c in plan.exchanged)
    lines = [
        f"{times[key]:,} x {key[0]}" + (f" among {key[1]}" if key[0] != "collective-permute" else "")
        + f", {decimal(volume[key])} in all"
        for key, _ in volume.most_common()
    ]  # fmt: skip
    big = [f"{c.times:,} x {c.kind} of {decimal(c.bytes)}" for c in plan.exchanged[:most]]
    more = f" and {len(plan.exchanged) - most} smaller kinds" if len(plan.exchanged) > most else ""
    lines.append(f"a device receives {decimal(received)} a step; the largest: {', '.join(big)}{more}")
    return lines


def _times(plan: Plan) -> list[str]:
    assert plan.cost is not None
    b = plan.bounds
    length = f"{plan.steps:,} steps of {plan.batch_size:,}; {plan.examples.number:,} images an epoch"
    length += f" ({plan.examples.source})"
    if b is None:
        return [f"bounds       no peaks are published of a {plan.machine.device.name}", f"whole run    {length}"]
    chips = plan.machine.chips
    device = plan.machine.device
    peak = device.flops if plan.settings["dtype"] == "bfloat16" else device.flops32
    useful = plan.model_flops / chips / peak
    hours = " to ".join(f"{plan.hours(t):,.2f}" for t in (b.best, b.serial))
    chip_hours = " to ".join(f"{plan.hours(t) * chips:,.1f}" for t in (b.best, b.serial))
    return [
        f"bounds       arithmetic {seconds(b.compute)}, memory {seconds(b.memory)} ({decimal(plan.cost.bytes)} as "
        f"compiled), network {seconds(b.network)} at published peaks",
        f"step         {seconds(b.best)} if all three overlap ({b.limit} bound), {seconds(b.serial)} if nothing does: "
        f"{plan.batch_size / b.best:,.0f} to {plan.batch_size / b.serial:,.0f} images/s, of the peak "
        f"{useful / b.best:.0%} to {useful / b.serial:.0%} used for the model",
        f"whole run    {length}: {hours} hours, {chip_hours} chip-hours, without evaluation and reading",
    ]


def size(n: float) -> str:
    """Returns bytes of memory in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if n >= 100 or unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.2f} GiB"


def decimal(n: float) -> str:
    """Returns bytes that are moved, in decimal units like bandwidths."""
    return f"{number(n)}B"


def number(n: float) -> str:
    """Returns a number with a decimal prefix, such as `4.09 G`."""
    for unit in ("", "k", "M", "G", "T"):
        if n < 999.5 or unit == "T":
            return f"{n:.3g} {unit}" if n < 999.5 else f"{n:,.0f} {unit}"
        n /= 1000
    raise AssertionError


def seconds(t: float) -> str:
    """Returns a short time."""
    return f"{t * 1e6:.0f} us" if t < 1e-3 else f"{t * 1e3:.3g} ms" if t < 1 else f"{t:.3g} s"


def _switch(on: bool) -> str:
    return "on" if on else "off"
