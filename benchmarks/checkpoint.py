"""What a checkpoint costs a training: ViT-S/16 with AdamW, float32, saved while training goes on, against torch.save.

  make bench-setup && python benchmarks/checkpoint.py

Steps without a save and steps with one take turns; the stall is what the latter take longer, with everything that the
save costs them: fingerprints, the copy, and the writer's share of the processors. `ratio` is the time of PyTorch's
`torch.save` of the same numbers (model and optimizer), for which training stands still, over our stall; beside it
what ours takes when training waits for it. All write to the same disk.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax_side
import sides
from absl import flags

from recvis_jax import cli

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds over all.", 1)
_STEPS = flags.DEFINE_integer("steps", 4, "Steps of a measurement.", 1)
_BATCH = flags.DEFINE_integer("batch", 4, "Images of 224x224 a step.", 1)
_TORCH = flags.DEFINE_string("torch", ".venv-bench/bin/python", "Python that has PyTorch, torchvision and timm.")
HERE = Path(__file__).parent


def main(argv: list[str]) -> None:
    del argv
    cli.start_jax()
    import jax

    from recvis_jax.training import checkpoint
    from recvis_jax.training.step import make_train_step

    run, batch = jax_side.make_training({"name": "vit_s16"}, "classify", "adamw", _BATCH.value, 224)
    step = make_train_step(run.task, run.optimizer, augment=run.data.augment, shardings=run.shardings)
    state, _ = step(run.create(), batch)
    with (
        tempfile.TemporaryDirectory() as folder,
        sides.Side([_TORCH.value, str(HERE / "torch_side.py")], PYTHONPATH=str(HERE)) as theirs,
    ):
        theirs.call("about", threads=os.cpu_count())
        theirs.call("prepare_checkpoint", model="vit_small_patch16_224", file=f"{folder}/torch.pt")
        keeper = checkpoint.Checkpointer(folder, run.template)

        def steps(save: bool) -> float:
            nonlocal state
            start = time.perf_counter()
            if save:
                keeper.save(state, {}, best=False)
            for _ in range(_STEPS.value):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
            return time.perf_counter() - start

        found: dict[str, list[float]] = {}
        steps(save=True)
        keeper.wait()
        for _ in range(_ROUNDS.value):
            without = steps(save=False)
            found.setdefault("stall", []).append(max(steps(save=True) - without, 1e-3))
            keeper.wait()
            steps(save=False)
            start = time.perf_counter()
            keeper.save(state, {}, best=False)
            keeper.wait()
            found.setdefault("whole", []).append(time.perf_counter() - start)
            found.setdefault("torch", []).append(theirs.call("measure", least=0)["wall"])
        keeper.close()
    megabytes = sum(x.nbytes for x in jax.tree.leaves(state) if hasattr(x, "nbytes")) / 1e6
    row: dict[str, Any] = {
        "name": f"ViT-S/16 with AdamW, {megabytes:.0f} MB",
        **sides.ratio(found["torch"], found["stall"]),
        "seconds": statistics.median(found["stall"]),
        "whole": statistics.median(found["whole"]),
        "torch_seconds": statistics.median(found["torch"]),
        "load": sides.load(),
    }
    columns = {
        "a checkpoint of": "{name}",
        "torch.save / our stall": "{ratio:.1f} ({spread[0]:.1f}-{spread[1]:.1f})",
        "stall, s": "{seconds:.2f}",
        "until it is on disk, training waiting, s": "{whole:.2f}",
        "torch.save, s": "{torch_seconds:.2f}",
    }
    sides.save("checkpoint", [row], columns)


if __name__ == "__main__":
    cli.run(main)
