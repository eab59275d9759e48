"""Dense SIFT against VLFeat's C library (Debian: libvlfeat1), images a CPU-second of all threads.

  python benchmarks/sift.py

Both sides take turns on the same grey crops of scikit-learn's photographs, with the flat window; VLFeat reuses its
memory from image to image, as its programs do. The results are compared before anything is timed. JAX is started as
our programs start it; in a notebook, without their settings of XLA, it is 1.6 to 2.5 times VLFeat instead of 3 to 7.
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sides
from absl import flags

from recvis_jax import cli

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/classical"))

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds of both sides.", 1)
_SECONDS = flags.DEFINE_float("seconds", 0.5, "Seconds of a measurement.", 0.01)

CASES = [  # images, h, w, step, bin size
    (256, 28, 28, 1, 4),
    (256, 28, 28, 2, 4),
    (1, 375, 500, 2, 4),
    (1, 375, 500, 4, 8),
    (4, 375, 500, 4, 8),
]


def crops(count: int, h: int, w: int) -> np.ndarray:
    """Returns grey crops of photographs (count h w) in [0, 1]."""
    import cv2
    from sklearn.datasets import load_sample_images

    rng, found = np.random.default_rng(0), []
    sources = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in load_sample_images().images]
    if h < 100:
        sources = [cv2.resize(x, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA) for x in sources]
    for i in range(count):
        source = sources[i % len(sources)]
        top, left = (int(rng.integers(0, s - n + 1)) for s, n in zip(source.shape, (h, w), strict=True))
        found.append(source[top : top + h, left : left + w])
    return np.stack(found).astype(np.float32) / 255


def works(count: int, h: int, w: int, step: int, bin_size: int) -> tuple[Callable[[], None], Callable[[], None], Any]:
    """Returns both sides' work on the same images, and the median and largest difference between descriptors."""
    import jax
    import jax.numpy as jnp
    import vlfeat_filters

    from recvis_jax.classical import sift

    images = crops(count, h, w)
    given, theirs = jnp.asarray(images), vlfeat_filters.Dense(h, w, step, bin_size)

    def ours() -> Any:
        return jax.block_until_ready(sift.dense(given, step=step, bin_size=bin_size))

    def vlfeat() -> None:
        for image in images:
            theirs.process(image)

    apart = np.abs(ours().descriptors[0] - theirs(images[0]).descriptors).max(axis=1)
    return ours, vlfeat, (float(np.median(apart)), float(apart.max()))


def main(argv: list[str]) -> None:
    del argv
    cli.start_jax()
    rows = []
    for count, h, w, step, bin_size in CASES:
        ours, vlfeat, difference = works(count, h, w, step, bin_size)
        # VLFeat's running sums over whole rows lose digits where there is little contrast, as in a photograph's sky.
        if difference[0] > 1e-5 or difference[1] > 1e-3:
            raise RuntimeError(f"descriptors of {h}x{w}, step {step} differ by {difference} from VLFeat's.")
        a, b = [], []
        for _ in range(_ROUNDS.value):
            a.append(sides.timed(ours, _SECONDS.value))
            b.append(sides.timed(vlfeat, _SECONDS.value))
        found = {
            "name": f"{f'{count} x ' if count > 1 else ''}{w}x{h}, step {step}, bins of {bin_size}",
            **sides.ratio([m["cpu"] for m in b], [m["cpu"] for m in a]),
            "target": 3.0,
            "ours": count / statistics.median(m["cpu"] for m in a),
            "theirs": count / statistics.median(m["cpu"] for m in b),
            "difference": difference,
            "load": sides.load(),
        }
        rows.append(found)
        print(f"{found['name']}: {found['ratio']:.2f}", flush=True)
    columns = {
        "dense SIFT": "{name}",
        "images per CPU-second / VLFeat's": "{ratio:.2f} ({spread[0]:.2f}-{spread[1]:.2f})",
        "target": "{target:.2f}",
        "ours": "{ours:,.0f}",
        "VLFeat's": "{theirs:,.0f}",
        "difference: median, largest": "{difference[0]:.0e}, {difference[1]:.0e}",
    }
    note = f"{sides.machine()}; brackets: interquartile range over {_ROUNDS.value} rounds."
    sides.save("sift", rows, columns, note)


if __name__ == "__main__":
    cli.run(main)
