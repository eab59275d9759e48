"""Fashion-MNIST with its input pipeline: an epoch of LeNet-5 (crop, flip, batches of 256), and its evaluation.

  make bench-setup && python -m recvis_jax.prepare --dataset=fashion_mnist && python benchmarks/epoch.py

`ratio` is PyTorch's time over ours. PyTorch's side is torchvision's transforms on PIL images, as its MNIST is
used, the same augmentation, in a DataLoader with the number of workers (0, 1 or 2) that is fastest here. Ours decodes
once and augments on the device; both give the model the same batches.
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


def compare(name: str, target: float | None, prepare: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Any:
    """Measures a row: what `prepare` makes on either side with these arguments."""
    env = {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    with (
        sides.Side([sys.executable, str(HERE / "jax_side.py")], **env) as here,
        sides.Side([_TORCH.value, str(HERE / "torch_side.py")], **env) as there,
    ):
        # The same images for both: PyTorch's side reads what ours has read.
        file = here.call(prepare, **ours)
        there.call("about", threads=os.cpu_count())
        trial = {}
        for workers in (0, 1, 2):
            there.call(prepare, file=file, workers=workers, **theirs)
            trial[workers] = there.call("measure", least=0)["wall"]
        best = min(trial, key=trial.__getitem__)
        there.call(prepare, file=file, workers=best, **theirs)
        a, b = sides.interleave([here, there], _ROUNDS.value, 0)
    Path(file).unlink()
    return {
        "name": name,
        **sides.ratio([m["wall"] for m in b], [m["wall"] for m in a]),
        "target": target,
        "seconds": statistics.median(m["wall"] for m in a),
        "torch_seconds": statistics.median(m["wall"] for m in b),
        "workers": best,
        "load": sides.load(),
    }


def main(argv: list[str]) -> None:
    del argv
    n = _IMAGES.value
    rows = [compare(f"LeNet-5, an epoch of {n:,} images, crop and flip", 1.5, "prepare_epoch", {"images": n}, {})]
    model = {"model": {"name": "lenet5"}}, {"model": "LeNet5"}
    rows.append(compare("LeNet-5, evaluation on 10,000 images", None, "prepare_evaluation", *model))
    columns = {
        "Fashion-MNIST, input included": "{name}",
        "speed / PyTorch's": "{ratio:.2f} ({spread[0]:.2f}-{spread[1]:.2f})",
        "target": "{target:.2f}",
        "seconds": "{seconds:.1f}",
        "PyTorch's": "{torch_seconds:.1f} ({workers} workers)",
    }
    sides.save("epoch", rows, columns)


if __name__ == "__main__":
    app.run(main)
