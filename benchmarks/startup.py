"""Start-up: imports, the first training step of ViT-S/16 with and without the compilation cache, unrolled and scanned.

  make bench-setup && python benchmarks/startup.py

All times are of whole processes, from their start to the end of their first step on 4 images, as `first_step.py` says
them. Unrolled and scanned take turns, each cold (an empty cache) and then warm (the cache that it left). The import of
PyTorch is beside ours.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sides
from absl import app, flags

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds over all.", 1)
_TORCH = flags.DEFINE_string("torch", ".venv-bench/bin/python", "Python that has PyTorch and torchvision.")
HERE = Path(__file__).parent


def first_step(scan: bool, cache: str) -> tuple[float, float]:
    """Returns the seconds until everything was imported and JAX had started, and until the first step was done."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), "JAX_COMPILATION_CACHE_DIR": cache}
    command = [sys.executable, str(HERE / "first_step.py"), f"--scan={scan}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    imported, first = map(float, done.stdout.split())
    return imported, first


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(HERE.parent)}, capture_output=True)
    return time.perf_counter() - start


def main(argv: list[str]) -> None:
    del argv
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(_ROUNDS.value):
        note("import", seconds(sys.executable, "-c", "import recvis_jax.build, jax; jax.devices()"))
        note("torch import", seconds(_TORCH.value, "-c", "import torch, torchvision, timm"))
        for scan in (False, True):
            form = "scanned" if scan else "unrolled"
            with tempfile.TemporaryDirectory() as cache:
                note(f"{form} cold", first_step(scan, cache)[1])
                note(f"{form} warm", first_step(scan, cache)[1])

    middle = {name: statistics.median(values) for name, values in found.items()}
    rows: list[dict[str, Any]] = [
        {
            "name": "import, against torch with torchvision and timm",
            **sides.ratio(found["torch import"], found["import"]),
            "seconds": middle["import"],
        }
    ]
    for form in ("unrolled", "scanned"):
        rows += [
            {"name": f"first step of ViT-S/16, {form}, cold", "ratio": 1.0, "seconds": middle[f"{form} cold"]},
            {
                "name": f"first step of ViT-S/16, {form}, warm; of 5 s",
                **sides.ratio([5.0] * len(found[f"{form} warm"]), found[f"{form} warm"]),
                "target": 1.0,
                "seconds": middle[f"{form} warm"],
            },
        ]
    rows.append(
        {
            "name": "first step cold, unrolled over scanned",
            **sides.ratio(found["unrolled cold"], found["scanned cold"]),
            "target": 3.0,
        }
    )
    for row in rows:
        row["load"] = sides.load()
    sides.save(
        "startup", rows, {"": "{name}", "seconds": "{seconds:.1f}", "ratio": "{ratio:.2f}", "target": "{target}"}
    )


if __name__ == "__main__":
    app.run(main)
