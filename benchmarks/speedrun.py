"""Time to 94 % on Fashion-MNIST against the same recipe in PyTorch: `configs/fashion_mnist/speedrun.py`, whole runs.

  make bench-setup && python -m recvis_jax.prepare --dataset=fashion_mnist && python benchmarks/speedrun.py

The trainings alternate epoch by epoch, so that all see the same machine. PyTorch's are in channels-last (compiled, the
net is slower here): one reads its images as PyTorch's programs do, with torchvision's transforms in a DataLoader with
the number of workers (0, 1 or 2) that is fastest here; for the other one we wrote the augmentation of whole batches of
tensors in memory, the least that input can cost there. `ratio` is PyTorch's time over ours, from the first step to the
test accuracy, our compilation included; it counts where both accuracies reach 94 %, and they are beside it.
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
    there = [_TORCH.value, str(HERE / "torch_side.py")]
    with (
        sides.Side([sys.executable, str(HERE / "jax_side.py")], **env) as ours,
        sides.Side(there, **env) as loading,
        sides.Side(there, **env) as augmenting,
    ):
        found = ours.call("prepare_speedrun", seed=_SEED.value)
        for side in (loading, augmenting):
            side.call("about", threads=os.cpu_count())
        trial = {}
        for workers in (0, 1, 2):
            loading.call("prepare_speedrun", **found, seed=_SEED.value, workers=workers)
            loading.call("epoch", steps=5)  # the first ones are slower
            trial[workers] = loading.call("epoch", steps=25)
        best = min(trial, key=trial.__getitem__)
        loading.call("prepare_speedrun", **found, seed=_SEED.value, workers=best)
        augmenting.call("prepare_speedrun", **found, seed=_SEED.value)
        for name in ("train", "test"):
            Path(found[name]).unlink()
        all_sides = {"ours": ours, f"a DataLoader, {best} workers": loading, "batches augmented in memory": augmenting}
        times: dict[str, list[float]] = {name: [] for name in all_sides}
        for i in range(_EPOCHS.value or found["epochs"]):
            for name, side in all_sides.items():
                times[name].append(side.call("epoch"))
            last = ", ".join(f"{name} {own[-1]:.1f} s" for name, own in times.items())
            print(f"epoch {i + 1}: {last}", file=sys.stderr, flush=True)
        ends = {name: side.call("accuracy") for name, side in all_sides.items()}
    seconds = {name: sum(own) + ends[name][1] for name, own in times.items()}
    rows: list[dict[str, Any]] = [
        {
            "name": f"Fashion-MNIST to 94 %, speedrun.py; PyTorch's input: {name}",
            "ratio": seconds[name] / seconds["ours"],
            "spread": sides.ratio(times[name][1:] or times[name], times["ours"][1:] or times["ours"])["spread"],
            "target": 1.5,
            "seconds": seconds["ours"],
            "torch_seconds": seconds[name],
            "accuracy": ends["ours"][0],
            "torch_accuracy": ends[name][0],
            "load": sides.load(),
            "machine": sides.machine(),
        }
        for name in list(all_sides)[1:]
    ]
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
    sides.save("speedrun", rows, columns)


if __name__ == "__main__":
    app.run(main)
