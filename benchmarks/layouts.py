"""The same three training steps on other devices, processes and layouts: how far parameters end from one device's.

  python benchmarks/layouts.py

Every row is `recvis_jax.train` itself, on simulated CPU devices: processes x devices of each, strategy, and what else
is asked for. The number is the largest difference of any parameter after 3 steps of momentum, float32; parameters are
of the order of 0.1 to 1. All start from the same weights, those of a run of one step. With accumulation, batch norm
sees micro-batches, so that row has its own reference: one device with as many groups of batch-norm statistics.
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from recvis_jax import cli

_STEPS = flags.DEFINE_integer("steps", 3, "Steps of training.", 1)
_ROWS = flags.DEFINE_string("rows", "", "Only the rows whose name has this in it.")

MODELS: dict[str, dict[str, Any]] = {
    "ViT": dict(name="vit_s16", patch_size=7, width=64, depth=3, heads=8, drop_path=0.1),
    "ResNet": dict(name="resnet18", width=16, blocks=(2, 2)),
}
GRID = dict(strategy="tensor", data=2, fsdp=2, model=2)

# name -> (processes, devices of each, changes of the config, changes of the model)
ROWS: dict[str, tuple[int, int, dict[str, Any], dict[str, Any]]] = {
    "replicate, 8": (1, 8, {}, {}),
    "pmap, 8": (1, 8, dict(compile="pmap"), {}),
    "fsdp, 8": (1, 8, dict(sharding="fsdp"), {}),
    "tensor, 8": (1, 8, dict(sharding="tensor"), {}),
    "tensor 2 x fsdp 2 x data 2": (1, 8, dict(sharding=GRID), {}),
    "accumulate 2, fsdp, 8": (1, 8, dict(accumulate=2, sharding="fsdp"), {}),
    "remat, fsdp, 8": (1, 8, dict(sharding="fsdp"), dict(remat=True)),
    "scan, 1": (1, 1, {}, dict(scan=True)),
    "scan, remat, accumulate 2, grid of 8": (1, 8, dict(accumulate=2, sharding=GRID), dict(scan=True, remat=True)),
    "replicate, 2 x 4": (2, 4, {}, {}),
    "fsdp, 2 x 4": (2, 4, dict(sharding="fsdp"), {}),
    "grid, 2 x 4": (2, 4, dict(sharding=GRID), {}),
    "fsdp, 4 x 1": (4, 1, dict(sharding="fsdp"), {}),
    "pmap, 4 x 1": (4, 1, dict(compile="pmap"), {}),
}


def train(
    folder: Path, model: dict[str, Any], processes: int = 1, devices: int = 1, steps: int = 1, **changes: Any
) -> dict[str, Any]:
    """Trains in processes of their own; returns the parameters by name, those of scanned blocks unstacked."""
    from recvis_jax.models import scan
    from recvis_jax.pretrained import run
    from recvis_jax.trees import flatten, unflatten

    data = dict(name="fashion_mnist", mock=128, train="train[:75%]", statistics="fashion_mnist", augment="flip")
    optim = dict(name="momentum", lr=0.03, schedule="constant")
    sections = dict(data=data, model=model, optim=optim, steps=steps, batch_size=32, log_every=100, **changes)
    folder.mkdir()
    config = folder / "config.py"
    config.write_text(f"import ml_collections\ndef get_config():\n  return ml_collections.ConfigDict({sections!r})\n")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "recvis_jax.train", f"--config={config}", f"--workdir={folder / 'run'}"]
    together = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"] if processes > 1 else []
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    with (folder / "out.txt").open("w") as out:
        started = [
            subprocess.Popen(
                [*command, *together, *([f"--process_id={i}"] if together else [])], env=env, stdout=out, stderr=out
            )
            for i in range(processes)
        ]
        codes = [p.wait() for p in started]
    if any(codes):
        raise RuntimeError(f"{folder.name}: {(folder / 'out.txt').read_text()[-2000:]}")
    params = unflatten(run.read(folder / "run"))["params"]
    return flatten(scan.unstack(params))


def main(argv: list[str]) -> None:
    del argv
    cli.start_jax(None)
    with tempfile.TemporaryDirectory() as temporary:
        found: dict[str, dict[str, float]] = {}
        for kind, model in MODELS.items():
            begin = Path(temporary) / kind
            first = train(begin, model)
            start = dict(init_from=str(begin / "run"), steps=_STEPS.value)
            references: dict[int, dict[str, Any]] = {}
            for i, (name, (processes, devices, changes, own)) in enumerate(ROWS.items()):
                if _ROWS.value not in name or (kind == "ResNet" and "scan" in own):
                    continue
                groups = changes.get("accumulate", 1) if kind == "ResNet" else 1
                if groups not in references:
                    extra = {"bn_groups": groups} if groups > 1 else {}
                    references[groups] = train(Path(temporary) / f"{kind}-{groups}", {**model, **extra}, **start)
                    if groups == 1:
                        moved = max(float(np.abs(references[1][k] - first[k]).max()) for k in first)
                        found.setdefault("(what the steps moved)", {})[kind] = moved
                params = train(Path(temporary) / f"{kind}{i}", {**model, **own}, processes, devices, **start, **changes)
                expected = references[groups]
                worst = max(float(np.abs(params[k] - expected[k]).max()) for k in expected)
                found.setdefault(name, {})[kind] = worst
                print(f"{kind:7} {name:40} {worst:.1e}", file=sys.stderr, flush=True)
    print(f"| after {_STEPS.value} steps, against one device | {' | '.join(MODELS)} |\n|---|{'---|' * len(MODELS)}")
    for name, row in found.items():
        print(f"| {name} | {' | '.join(f'{row[k]:.0e}' if k in row else '' for k in MODELS)} |")


if __name__ == "__main__":
    cli.run(main)
