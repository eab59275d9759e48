"""Time and memory of attention whose pattern is restricted, beside full attention over the same tokens.

  python benchmarks/sparse_attention.py [--tokens=4096] [--heads=4] [--width=64]

A layer's attention and its gradient, one sequence, float32. Rounds are interleaved; seconds are the median. Memory is
what XLA allots for temporaries and results.
"""

import math
import statistics
import time

import jax
import jax.numpy as jnp
from absl import app, flags

from recvis_jax.models import attention_patterns, sparse_attention
from recvis_jax.operations import attention

FLAGS = flags.FLAGS
flags.DEFINE_integer("tokens", 4096, "Of the sequence.")
flags.DEFINE_integer("heads", 4, "Of the attention.")
flags.DEFINE_integer("width", 64, "Of a head.")
flags.DEFINE_integer("rounds", 5, "Measured, after one that is not.")


def main(_) -> None:
    n, side = FLAGS.tokens, math.isqrt(FLAGS.tokens)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, n, FLAGS.heads, FLAGS.width))
    patterns = {
        "local 1-D": dict(kind="local_1d", block=side, memory=side),
        "local 2-D": dict(kind="local_2d", h=side, w=side, block=(side // 8, side // 8), memory=(side // 8, side // 8)),
        "strided, per head": dict(kind="strided", stride=side),
        "strided, merged": dict(kind="strided", stride=side, merged=True),
        "fixed, per head": dict(kind="fixed", stride=side),
        "fixed, merged": dict(kind="fixed", stride=side, merged=True),
    }
    causal = jnp.asarray(attention_patterns.causal(n))
    ways = {"full": lambda q, k, v: attention(q, k, v, causal)[0]}
    for name, pattern in patterns.items():
        kinds = sparse_attention.of_sequence(pattern, n)

        def attend(q, k, v, kinds=kinds):
            parts = zip(*(jnp.split(x, len(kinds), axis=2) for x in (q, k, v)), kinds, strict=True)
            return jnp.concatenate([sparse_attention.attend(*part) for part in parts], axis=2)

        ways[name] = attend
    compiled, memory = {}, {}
    for name, way in ways.items():
        step = jax.jit(jax.value_and_grad(lambda q, k, v, way=way: (way(q, k, v) ** 2).sum(), (0, 1, 2)))
        compiled[name] = step.lower(q, k, v).compile()
        found = compiled[name].memory_analysis()
        memory[name] = found.temp_size_in_bytes + found.output_size_in_bytes
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(FLAGS.rounds + 1):
        for name, step in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(step(q, k, v))
            seconds[name].append(time.perf_counter() - began)
    middle = {name: statistics.median(s[1:]) for name, s in seconds.items()}
    print(f"{n:,} tokens, {FLAGS.heads} heads of {FLAGS.width}, forward and gradient, {jax.devices()[0].device_kind}")
    print("| attention | ms | times as fast | MB | of full |\n|---|---|---|---|---|")
    for name in ways:
        speed, share = middle["full"] / middle[name], memory[name] / memory["full"]
        print(f"| {name} | {1e3 * middle[name]:.0f} | {speed:.1f} | {memory[name] / 1e6:.0f} | {share:.2f} |")


if __name__ == "__main__":
    app.run(main)
