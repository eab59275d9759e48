"""What jaxlib's oneDNN brings to models on this machine: steps and inference with it and without.

  python benchmarks/onednn.py [--rows=ResNet-20]

Both sides are ours, in turn; one leaves all products to XLA, and all convolutions to XLA, Winograd and sums of shifted
images, as RECVIS_JAX_ONEDNN=0 does. `ratio` is its time over that of the programs as they are: the median of the
rounds, with quartiles. Rows that are not measured keep what was found last.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

import sides
from absl import app, flags

_ROWS = flags.DEFINE_list("rows", [], "Only the rows whose name starts so.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds of both sides.", 1)

HERE = Path(__file__).parent
SPEEDNET = dict(name="speednet", widths=(64, 128, 128, 256), blocks=(0, 1, 0))

# name -> model, batch, size of the images
ROWS: dict[str, tuple[dict[str, Any], int, int]] = {
    "LeNet": (dict(name="lenet5"), 256, 28),
    "ResNet-20": (dict(name="resnet20"), 128, 32),
    "the speedrun's net": (SPEEDNET, 500, 28),
    "ResNet-18": (dict(name="resnet18"), 16, 224),
    "ViT-S/16": (dict(name="vit_s16"), 16, 224),
    "Mixer-S/16": (dict(name="mixer_s16"), 16, 224),
}


def title(name: str, train: bool) -> str:
    return f"{name}, batch {ROWS[name][1]}, {'train' if train else 'inference'}"


def compare(name: str, train: bool) -> dict[str, Any]:
    model, batch, size = ROWS[name]
    command = [sys.executable, str(HERE / "jax_side.py")]
    env = {"PYTHONPATH": f"{HERE}:{HERE.parent}"}
    off = {"RECVIS_JAX_ONEDNN": "0"}
    work = dict(model=model, task="classify", optim="sgd", batch=batch, size=size, train=train)
    with sides.Side(command, **env) as ours, sides.Side(command, **env, **off) as without:
        if not ours.call("onednn"):
            raise SystemExit("error: this jaxlib has no oneDNN that we know; see recvis_jax/kernels/onednn.py.")
        ours.call("prepare", **work)
        without.call("prepare", **work)
        a, b = ([m["wall"] for m in found] for found in sides.interleave([ours, without], _ROUNDS.value, 1.0))
    return {
        "name": title(name, train),
        **sides.ratio(b, a),
        "images_per_s": batch / statistics.median(a),
        "without": batch / statistics.median(b),
        "machine": sides.machine(),
    }


def main(argv: list[str]) -> None:
    del argv
    kept = {row["name"]: row for row in sides.load_rows("onednn")}
    kinds = [(name, train) for train in (True, False) for name in ROWS]
    for name, train in kinds:
        if not _ROWS.value or any(name.startswith(r) for r in _ROWS.value):
            kept[title(name, train)] = compare(name, train)
    rows = [kept[title(*kind)] for kind in kinds if title(*kind) in kept]
    columns = {
        "float32": "{name}",
        "speed with oneDNN / without": "{ratio:.2f} ({spread[0]:.2f}-{spread[1]:.2f})",
        "images/s": "{images_per_s:,.0f}",
        "without": "{without:,.0f}",
        "on": "{machine}",
    }
    sides.save("onednn", rows, columns)


if __name__ == "__main__":
    app.run(main)
