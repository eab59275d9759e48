"""How a training step grows with depth, width, image size and tokens, against what theory says; one plot.

  python benchmarks/growth.py

Each line varies one number of one model. All points of a line are compiled first and then measured in turn, round
after round, so that the machine's moods reach all alike. `ratio` is the exponent of a power law through the largest
half of the points (time ~ number^ratio); `theory` is that of the model's arithmetic over the same points: 2 for the
attention of many tokens, 1 for what is linear.
"""

import statistics
from typing import Any

import jax_side
import sides
from absl import flags

from recvis_jax import cli

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds over the points of a line.", 1)
_SECONDS = flags.DEFINE_float("seconds", 0.5, "Least seconds of a measurement.")

SMALL = dict(width=128, depth=4)
# line -> (what varies, its values, value -> (model, image size))
LINES: dict[str, tuple[str, tuple[int, ...], Any]] = {
    "ViT": ("depth", (2, 4, 8, 16), lambda n: (dict(name="vit_s16", **{**SMALL, "depth": n}, heads=4), 112)),
    "ViT ": ("width", (64, 128, 256, 512), lambda n: (dict(name="vit_s16", **{**SMALL, "width": n}, heads=4), 112)),
    "ViT, patches of 8": (
        "tokens", (64, 256, 1024, 2304), lambda n: (dict(name="vit_s8", **SMALL, heads=4), 8 * round(n**0.5))
    ),
    "Mixer, patches of 8": (
        "tokens", (64, 256, 1024, 2304),
        lambda n: (dict(name="mixer_s16", patch_size=8, tokens_dim=64, channels_dim=512, **SMALL), 8 * round(n**0.5)),
    ),
    "ResNet-18 of width 16": (
        "pixels", (64**2, 128**2, 256**2), lambda n: (dict(name="resnet18", width=16), round(n**0.5))
    ),
    "ConvMixer": (
        "pixels", (64**2, 128**2, 256**2),
        lambda n: (dict(name="convmixer_768_32", kernel_size=5, activation="gelu", **SMALL), round(n**0.5)),
    ),
}  # fmt: skip
BATCH = 4


def exponent(x: Any, y: Any) -> float:
    """Returns the slope of log y over log x by least squares, over the larger half of the points."""
    import numpy as np

    half = len(x) // 2
    return float(np.polyfit(np.log(x[-half - 1 :]), np.log(y[-half - 1 :]), 1)[0])


def main(argv: list[str]) -> None:
    del argv
    cli.start_jax()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.8), layout="constrained")
    rows, panels = [], dict(zip(("depth", "width", "tokens", "pixels"), axes, strict=True))
    for name, (what, values, make) in LINES.items():
        points = [make(n) for n in values]
        made = [jax_side.make_work(model, "classify", "sgd", BATCH, size, train=True) for model, size in points]
        works, flops = [work for work, _ in made], [found["flops"] for _, found in made]
        rounds = [[sides.timed(w, _SECONDS.value)["wall"] for w in works] for _ in range(_ROUNDS.value)]
        seconds = [statistics.median(t) for t in zip(*rounds, strict=True)]
        slopes = sorted(exponent(values, t) for t in rounds)
        rows.append(
            {
                "name": f"{name.strip()}: {what} {values[0]:,}-{values[-1]:,}",
                "ratio": exponent(values, seconds),
                "spread": [slopes[0], slopes[-1]],
                "theory": exponent(values, flops),
                "ms": ", ".join(f"{1000 * t:.3g}" if t < 0.1 else f"{1000 * t:,.0f}" for t in seconds),
                "load": sides.load(),
            }
        )
        axis = panels[what]
        (line,) = axis.loglog(values, [1000 * t for t in seconds], "o-", label=f"{name.strip()}, measured")
        scaled = [f * 1000 * seconds[-1] / flops[-1] for f in flops]
        axis.loglog(values, scaled, "--", color=line.get_color(), alpha=0.6, label="its arithmetic")
    ticks = {what: sorted({n for w, values, _ in LINES.values() if w == what for n in values}) for what in panels}
    for what, axis in panels.items():
        axis.set(xlabel=what, ylabel="ms a training step" if what == "depth" else "")
        axis.set_xticks(ticks[what], [f"{n:,}" for n in ticks[what]], minor=False)
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        for one in (axis.xaxis, axis.yaxis):
            one.set_minor_locator(ticker.NullLocator())
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    sides.RESULTS.mkdir(exist_ok=True)
    figure.savefig(sides.RESULTS / "growth.png", dpi=110)
    columns = {"": "{name}", "time grows as n to the": "{ratio:.2f}", "arithmetic": "{theory:.2f}", "ms a step": "{ms}"}
    sides.save("growth", rows, columns)


if __name__ == "__main__":
    cli.run(main)
