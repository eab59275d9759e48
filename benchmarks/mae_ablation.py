"""What masking saves: compiled FLOPs and step time of masked autoencoders on 28x28 images, against the default.

  python benchmarks/mae_ablation.py [--repeats=5] [--batch=256]

Rows are the ablations of He et al. 2022, table 1: mask ratio, decoder depth, mask tokens in the encoder. FLOPs are
those that XLA counts in the compiled program, of the encoder's forward pass alone and of the whole training step. Step
times are measured in turn, default and row; the ratio is the median of the pairs', its spread from least to largest.
"""

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from absl import flags

from recvis_jax import cli

_REPEATS = flags.DEFINE_integer("repeats", 5, "Interleaved pairs of measurements.", 1)
_BATCH = flags.DEFINE_integer("batch", 256, "Images a step.", 1)
_STEPS = flags.DEFINE_integer("steps", 4, "Steps a measurement.", 1)
_OUT = flags.DEFINE_string("out", "benchmarks/results/mae_ablation.json", "Where the rows go.")

ROWS: dict[str, dict[str, Any]] = {
    "mask 75 %, decoder of 2 (default)": {},
    "mask 25 %": {"mask_ratio": 0.25},
    "mask 50 %": {"mask_ratio": 0.5},
    "mask 90 %": {"mask_ratio": 0.9},
    "decoder of 1": {"decoder_depth": 1},
    "decoder of 4": {"decoder_depth": 4},
    "mask tokens in the encoder": {"encoder_mask_tokens": True},
}


class Side:
    """A compiled training step with what it works on."""

    def __init__(self, changes: dict[str, Any]):
        import jax
        import jax.numpy as jnp

        from recvis_jax import build
        from recvis_jax.training.step import make_train_step

        model = dict(name="mae_b16", patch_size=4, width=128, depth=6, heads=4)
        model |= dict(decoder_width=64, decoder_depth=2, decoder_heads=4) | changes
        data = dict(name="fashion_mnist", mock=2 * _BATCH.value, statistics="fashion_mnist")
        data["augment"] = "random_resized_crop(28, scale=(0.4, 1.0))|flip"
        optim = dict(name="adamw", lr=1e-4, schedule="constant")
        run = build.make_run(
            data=data, model=model, optim=optim, task={"name": "mae"}, steps=10**6, batch_size=_BATCH.value
        )
        state, batch = run.create(), next(build.train_batches(run, 0))

        def encode(params: Any, constants: Any, image: Any, noise: Any) -> Any:
            return run.model.apply({"params": params, **constants}, image, train=False, noise=noise)[1]["latent"]

        image, noise = jnp.zeros((_BATCH.value, 28, 28, 1)), jnp.zeros((_BATCH.value, 49))
        encoder = jax.jit(encode).lower(state.params, state.model_state, image, noise).compile()
        step = make_train_step(run.task, run.optimizer, augment=run.data.augment, shardings=run.shardings)
        self.step = step.lower(state, batch).compile()
        self.state, self.batch = state, batch
        self.encoder_flops, self.flops = (f.cost_analysis()["flops"] / _BATCH.value for f in (encoder, self.step))

    def measure(self) -> float:
        """Returns the seconds of a step."""
        import jax

        start = time.perf_counter()
        for _ in range(_STEPS.value):
            self.state, _ = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / _STEPS.value


def main(argv: list[str]) -> None:
    del argv
    cli.start_jax()
    print(cli.about_jax(settings=True), f"load {os.getloadavg()[0]:.1f}", flush=True)
    default, results = None, []
    for name, changes in ROWS.items():
        side = Side(changes)
        default = default or side
        default.measure(), side.measure()
        ratios = [side.measure() / default.measure() for _ in range(_REPEATS.value)] if changes else [1.0]
        results.append(
            {
                "name": name,
                "encoder_mflops": side.encoder_flops / 1e6,
                "encoder_ratio": side.encoder_flops / default.encoder_flops,
                "step_mflops": side.flops / 1e6,
                "step_flops_ratio": side.flops / default.flops,
                "ratio": statistics.median(ratios),
                "spread": [min(ratios), max(ratios)],
            }
        )
        r = results[-1]
        print(
            f"{name:36} encoder {r['encoder_mflops']:7.1f} MFLOPs an image ({r['encoder_ratio']:.2f}x), step "
            f"{r['step_mflops']:7.1f} ({r['step_flops_ratio']:.2f}x), step time {r['ratio']:.2f}x "
            f"({min(ratios):.2f}-{max(ratios):.2f})",
            flush=True,
        )
    out = Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"rows: {out}")


if __name__ == "__main__":
    cli.run(main)
