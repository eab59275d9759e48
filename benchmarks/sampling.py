"""Images of 28x28 pixels drawn with a cache of keys and values, without it, and by Hugging Face's transformers.

  python benchmarks/sampling.py [--python=ENV/bin/python] [--number=4]

The net is Image GPT's, small (width 128, 6 blocks, 16 greys). Without the cache every pixel needs a pass over the whole
sequence, of which a few are timed. transformers' `generate`, with its cache, has the same net in an environment that
has torch and transformers, --python. Rounds are interleaved; seconds an image are the median.
"""

import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import sides
from absl import app, flags

from recvis_jax import generation, models

FLAGS = flags.FLAGS
flags.DEFINE_string("python", None, "Of an environment with torch and transformers; None leaves that row out.")
flags.DEFINE_integer("number", 4, "Images drawn at a time.")
flags.DEFINE_integer("rounds", 3, "Measured, after one that is not.")
flags.DEFINE_integer("passes", 8, "Of the whole sequence that are timed without a cache.")

COLOURS, PIXELS = 16, 784
SIZES = dict(width=128, depth=6, heads=4)


def main(_) -> None:
    model = models.create("igpt_s", colours=COLOURS, pixels=PIXELS, **SIZES)
    variables = model.init(jax.random.key(0), jnp.zeros((1, PIXELS), jnp.int32), train=False)
    keys = generation.keys(0, jnp.arange(FLAGS.number))

    @jax.jit
    def cached(variables):
        step, cache = generation.decoder(model, variables, FLAGS.number, PIXELS)
        return generation.sample(step, cache, keys, COLOURS, PIXELS)[0]

    @jax.jit
    def one_pass(variables, tokens, at):
        logits = model.apply(variables, tokens, train=False)[0][:, at]
        drawn = jax.random.categorical(jax.random.key(at), logits)
        return jax.lax.dynamic_update_slice(tokens, drawn[:, None].astype(jnp.int32), (0, at))

    def with_cache() -> float:
        began = time.perf_counter()
        cached(variables).block_until_ready()
        return time.perf_counter() - began

    def without() -> float:
        tokens = jnp.full((FLAGS.number, PIXELS), COLOURS)
        began = time.perf_counter()
        for at in range(FLAGS.passes):
            tokens = one_pass(variables, tokens, at)
        tokens.block_until_ready()
        return (time.perf_counter() - began) * PIXELS / FLAGS.passes

    ways = {"with a cache": with_cache, f"without, of {FLAGS.passes} passes": without}
    if FLAGS.python:
        other = sides.Side([FLAGS.python, str(Path(__file__).with_name("sampling_torch.py"))])
        other.call("prepare", colours=COLOURS, pixels=PIXELS, number=FLAGS.number, **SIZES)
        ways["transformers' generate, with its cache"] = lambda: other.call("draw")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(FLAGS.rounds + 1):
        for name, way in ways.items():
            seconds[name].append(way())
        print(".", end="", file=sys.stderr, flush=True)
    middle = {name: statistics.median(s[1:]) / FLAGS.number for name, s in seconds.items()}
    print(f"\n{FLAGS.number} images of {PIXELS} pixels at a time, {jax.devices()[0].device_kind}")
    print("| drawn | seconds an image | times as long |\n|---|---|---|")
    for name, s in middle.items():
        print(f"| {name} | {s:.2f} | {s / middle['with a cache']:.1f} |")


if __name__ == "__main__":
    app.run(main)
