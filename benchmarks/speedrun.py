"""Time to 94 % on Fashion-MNIST against the same recipe in PyTorch: `configs/fashion_mnist/speedrun.py`, whole runs.

  make bench-setup && python -m recvis_jax.prepare --dataset=fashion_mnist && python benchmarks/speedrun.py

The two trainings alternate epoch by epoch, so that both see the same machine. Both have their images in memory;
PyTorch's side augments whole batches of tensors (faster than a DataLoader here), in channels-last. `ratio` is
PyTorch's time over ours, from the first step to the test accuracy, our compilation included; it counts where both
accuracies reach 94 %, and they are beside it.
"""

import os
import sys
from pathlib import Path
from typing import Any

import sides
from absl import app, flags

_SEED = flags.DEFINE_integer("seed", 0, "Of both trainings.", 0)
_EPOCHS = flags.DEFINE_integer("epochs", None, "Fewer, for a trial.", 1)
_TORCH = flags.DEFINE_string("torch", ".venv-bench/bin/python", "Python that has PyTorch.")
HERE = Path(__file__).parent


def main(argv: list[str]) -> None:
    del argv
    env = {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    with (
        sides.Side([sys.executable, str(HERE / "jax_side.py")], **env) as ours,
        sides.Side([_TORCH.value, str(HERE / "torch_side.py")], **env) as theirs,
    ):
        found = ours.call("prepare_speedrun", seed=_SEED.value)
        theirs.call("about", threads=os.cpu_count())
        theirs.call("prepare_speedrun", **found, seed=_SEED.value)
        for name in ("train", "test"):
            Path(found[name]).unlink()
        times: tuple[list[float], list[float]] = ([], [])
        for i in range(_EPOCHS.value or found["epochs"]):
            for side, own in zip((ours, theirs), times, strict=True):
                own.append(side.call("epoch"))
            print(f"epoch {i + 1}: {times[0][-1]:.1f} s, PyTorch {times[1][-1]:.1f} s", file=sys.stderr, flush=True)
        (accuracy, last), (their_accuracy, their_last) = ours.call("accuracy"), theirs.call("accuracy")
    seconds, others = sum(times[0]) + last, sum(times[1]) + their_last
    row: dict[str, Any] = {
        "name": "Fashion-MNIST to 94 %, speedrun.py",
        "ratio": others / seconds,
        "spread": sides.ratio(times[1][1:] or times[1], times[0][1:] or times[0])["spread"],
        "target": 1.5,
        "seconds": seconds,
        "torch_seconds": others,
        "accuracy": accuracy,
        "torch_accuracy": their_accuracy,
        "load": sides.load(),
        "machine": sides.machine(),
    }
    columns = {
        "": "{name}",
        "speed / PyTorch's": "{ratio:.2f} (epochs {spread[0]:.2f}-{spread[1]:.2f})",
        "target": "{target:.1f}",
        "seconds": "{seconds:.0f}",
        "PyTorch's": "{torch_seconds:.0f}",
        "test accuracy": "{accuracy:.2%}",
        "PyTorch's ": "{torch_accuracy:.2%}",
        "on": "{machine}",
    }
    sides.save("speedrun", [row], columns)


if __name__ == "__main__":
    app.run(main)
