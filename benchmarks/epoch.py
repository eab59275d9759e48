"""An epoch of Fashion-MNIST, input included: crop, flip, LeNet-5, batches of 256; against a PyTorch DataLoader.

  make bench-setup && python -m recvis_jax.prepare --dataset=fashion_mnist && python benchmarks/epoch.py

`ratio` is PyTorch's time over ours. PyTorch's side is torchvision's transforms on PIL images, as its MNIST is
used, the same augmentation, in a DataLoader with the number of workers (0, 1 or 2) that is fastest here.
"""

import os
import statistics
import sys
from pathlib import Path
from typing import Any

import sides
from absl import app, flags

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of both sides.", 1)
_IMAGES = flags.DEFINE_integer("images", 60000, "Images of an epoch.", 1000)
_TORCH = flags.DEFINE_string("torch", ".venv-bench/bin/python", "Python that has PyTorch and torchvision.")
HERE = Path(__file__).parent


def main(argv: list[str]) -> None:
    del argv
    env = {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    with (
        sides.Side([sys.executable, str(HERE / "jax_side.py")], **env) as ours,
        sides.Side([_TORCH.value, str(HERE / "torch_side.py")], **env) as theirs,
    ):
        # The same images for both: PyTorch's side reads what ours has read.
        file = ours.call("prepare_epoch", images=_IMAGES.value)
        theirs.call("about", threads=os.cpu_count())
        trial = {}
        for workers in (0, 1, 2):
            theirs.call("prepare_epoch", file=file, workers=workers)
            trial[workers] = theirs.call("measure", least=0)["wall"]
        best = min(trial, key=trial.__getitem__)
        theirs.call("prepare_epoch", file=file, workers=best)
        a, b = sides.interleave([ours, theirs], _ROUNDS.value, 0)
    row: dict[str, Any] = {
        "name": f"LeNet-5, {_IMAGES.value:,} images, crop and flip",
        **sides.ratio([m["wall"] for m in b], [m["wall"] for m in a]),
        "target": 1.5,
        "seconds": statistics.median(m["wall"] for m in a),
        "torch_seconds": statistics.median(m["wall"] for m in b),
        "workers": best,
        "load": sides.load(),
    }
    columns = {
        "an epoch": "{name}",
        "speed / PyTorch's": "{ratio:.2f} ({spread[0]:.2f}-{spread[1]:.2f})",
        "target": "{target:.2f}",
        "seconds": "{seconds:.1f}",
        "PyTorch's": "{torch_seconds:.1f} ({workers} workers)",
    }
    sides.save("epoch", [row], columns)


if __name__ == "__main__":
    app.run(main)
