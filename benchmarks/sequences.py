"""Training tokens a second of the Transformer and of Image GPT, beside the same nets in PyTorch.

  python benchmarks/sequences.py --python=ENV/bin/python

The net of configs/libreoffice/transformer.py on 64 pairs of 28 and 28 tokens, and that of
configs/fashion_mnist/pixels.py on 64 images of 196 pixels; float32, Adam. PyTorch's forms are eager and torch.compile,
of which the faster counts. Rounds are interleaved; a round lasts about --seconds.
"""

import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sides
from absl import app, flags

import recvis_jax as rv

FLAGS = flags.FLAGS
flags.DEFINE_string("python", None, "Of an environment with torch.", required=True)
flags.DEFINE_list("forms", ["eager", "compile"], "Of PyTorch.")
flags.DEFINE_integer("rounds", 5, "Measured, after one that is not.")
flags.DEFINE_float("seconds", 4, "Of one measurement.")

BATCH = 64
NETS = {
    "Transformer": dict(
        kind="transformer", tokens=28, size=4000, width=256, heads=4, encoder=3, decoder=2, hidden=512, dropout=0.2
    ),
    "Image GPT": dict(kind="igpt", tokens=196, size=16, width=128, heads=4, decoder=6),
}


def step_of(kind, tokens, size, width, heads, decoder, encoder=0, hidden=0, dropout=0.0):
    """Returns a function that makes one update."""
    rng = np.random.default_rng(0)
    if kind == "transformer":
        data = rv.data.open("libreoffice_de", mock=BATCH, text={"kind": "bpe", "tokens": 300, "most": tokens})
        sizes = dict(width=width, heads=heads, encoder_depth=encoder, decoder_depth=decoder, hidden=hidden)
        model = rv.models.create("transformer_base", vocabulary=size, pre_norm=True, dropout=dropout, **sizes)
        task = rv.task(model, data, "translate", decode=False)
        batch = dict(next(data.batches(BATCH, steps=1)))
        for side in ("source", "target"):
            batch[side] = jnp.asarray(rng.integers(3, size, (BATCH, tokens)), jnp.int32)
            batch[f"{side}_mask"] = jnp.ones((BATCH, tokens), bool)
    else:
        side = int(tokens**0.5)
        images = rng.integers(0, 256, (BATCH, side, side), np.uint8)
        data = rv.data.from_arrays(images, np.zeros(BATCH, int), statistics=((0.0,), (1.0,)))
        model = rv.models.create("igpt_s", colours=size, pixels=tokens, width=width, depth=decoder, heads=heads)
        task = rv.task(model, data, "pixels")
        batch = next(data.batches(BATCH, steps=1))
    optimizer = optax.adam(1e-3)
    kept = {"state": rv.init(task, optimizer, data)}
    step = rv.make_step(task, optimizer)

    def one() -> None:
        kept["state"], metrics = step(kept["state"], batch)
        jax.block_until_ready(metrics)

    return one


def main(_) -> None:
    rows = []
    for name, net in NETS.items():
        one = step_of(**net)
        one(), one()

        def ours(one=one) -> float:
            began, count = time.perf_counter(), 0
            while (spent := time.perf_counter() - began) < FLAGS.seconds:
                one()
                count += 1
            return spent / count

        ways = {"ours": ours}
        for form in FLAGS.forms:
            other = sides.Side([FLAGS.python, str(Path(__file__).with_name("sequences_torch.py"))])
            other.call("prepare", form=form, batch=BATCH, **net)
            ways[form] = lambda other=other: other.call("measure", seconds=FLAGS.seconds)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(FLAGS.rounds + 1):
            for way, measure in ways.items():
                seconds[way].append(measure())
            print(".", end="", file=sys.stderr, flush=True)
        middle = {way: statistics.median(s[1:]) for way, s in seconds.items()}
        form = min(FLAGS.forms, key=middle.__getitem__)
        tokens = BATCH * net["tokens"]
        ratio = statistics.median(b / a for a, b in zip(seconds["ours"][1:], seconds[form][1:], strict=True))
        rows.append(
            f"| {name} | {tokens / middle['ours']:,.0f} | {tokens / middle[form]:,.0f} | {ratio:.2f} | {form} |"
        )
    print(f"\n{jax.devices()[0].device_kind}, {BATCH} sequences a batch; tokens of the target")
    print("| net | tokens a second | PyTorch's | speed / PyTorch's | its form |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    app.run(main)
