"""Fisher vectors against VLFeat's C code, in turns: images a CPU-second.

  python benchmarks/fisher.py [--pairs=7]

VLFeat is Debian's libvlfeat1 by ctypes, one image after the other as its API has it; ours takes batches. Both get the
same descriptors and mixture, time is that of all their processors together, and the results are compared.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax.classical import encoding, fisher, gmm

# Name, images a batch, descriptors an image, numbers of one, components.
SHAPES = (
    ("28x28: 202 descriptors of 64, 32 components", 100, 202, 64, 32),
    ("500x375: 5,000 descriptors of 80, 64 components", 4, 5000, 80, 64),
    ("500x375: 5,000 descriptors of 80, 256 components", 2, 5000, 80, 256),
)
RESULT = Path(__file__).parent / "results/fisher.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/classical"))
    import vlfeat

    lines = [
        "|  | speed / VLFeat's | target | images per CPU-second | VLFeat's |",
        "|---|---|---|---|---|",
    ]
    for name, b, n, d, k in SHAPES:
        rng = np.random.default_rng(0)
        centers = rng.normal(size=(k, d))
        x = (centers[rng.integers(k, size=(b, n))] + 0.7 * rng.normal(size=(b, n, d))).astype(np.float32)
        mixture = gmm.fit(x.reshape(-1, d), k, passes=3)
        encode = jax.jit(encoding.make(fisher.fisher()))
        given = mixture, jnp.asarray(x), jnp.zeros((b, n, 2)), jnp.ones((b, n), bool)
        parameters = [np.asarray(a) for a in mixture[:3]]

        def ours(encode=encode, given=given) -> np.ndarray:
            return np.asarray(encode(*given))

        def theirs(parameters=parameters, x=x) -> np.ndarray:
            return np.stack([vlfeat.fisher(*parameters, image, improved=True) for image in x])

        apart = np.abs(ours() - theirs()).max()
        assert apart < 1e-3, apart
        seconds: list[tuple[float, float]] = []
        for _ in range(pairs):
            found = []
            for run in (ours, theirs):
                began, times = time.process_time(), 0
                while times < 1 or time.process_time() - began < 0.5:
                    run()
                    times += 1
                found.append((time.process_time() - began) / times)
            seconds.append((found[0], found[1]))
        ratios = sorted(t / o for o, t in seconds)
        low, _, high = statistics.quantiles(ratios, n=4)
        ours_s, theirs_s = (statistics.median(s[i] for s in seconds) for i in (0, 1))
        lines.append(
            f"| {name} | {statistics.median(ratios):.2f} ({low:.2f}-{high:.2f}) | 1 | {b / ours_s:,.0f} "
            f"| {b / theirs_s:,.0f} |"
        )
        print(lines[-1], flush=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
