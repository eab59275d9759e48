"""Bits a pixel of counts: what a model of pixels must beat.

  python benchmarks/context_model.py --config=configs/digits/pixels.py

A pixel's grey is predicted from nothing, from its left neighbour, and from its left and upper neighbours. Probabilities
are counts over the training split plus a constant, which is chosen on the validation split. No neural network.
"""

import numpy as np
from absl import app, flags

from recvis_jax import build, config
from recvis_jax.data import pipeline

config.define_flag("The run's config, of task 'pixels'.")


def tokens(data, source, levels: int) -> np.ndarray:
    """Greys (n h w) of a split, as the run's model is given them; `levels` stands beyond the border."""
    images = np.asarray(data.preprocess({"image": pipeline.materialise(source)["image"]})["image"])[..., 0]
    return np.pad(np.clip(np.round(images * (levels - 1)), 0, levels - 1).astype(int), ((0, 0), (1, 0), (1, 0)),
                  constant_values=levels)  # fmt: skip


def bits(train: np.ndarray, other: np.ndarray, levels: int, neighbours: int, more: float) -> float:
    """Bits a pixel of `other` by the counts of `train`, each plus `more`."""

    def context(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        left, up, here = x[:, 1:, :-1], x[:, :-1, 1:], x[:, 1:, 1:]
        parts = [left, up][:neighbours]
        return sum((p * (levels + 1) ** i for i, p in enumerate(parts)), np.zeros_like(here)), here

    counts = np.full(((levels + 1) ** neighbours, levels), more)
    np.add.at(counts, context(train), 1)
    p = counts / counts.sum(1, keepdims=True)
    return float(-np.log2(p[context(other)]).mean())


def main(_) -> None:
    c = config.read(flags.FLAGS["config"], "")
    levels, data = c["model"]["colours"], build.open_data(**c["data"])
    train, val, test = (tokens(data, s, levels) for s in (data.train, data.val, data.test))
    for neighbours in range(3):
        tried = [(bits(train, val, levels, neighbours, m), m) for m in (1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)]
        more = min(tried)[1]
        print(f"{neighbours} neighbours: {bits(train, test, levels, neighbours, more):.3f} bits a pixel (+{more})")


if __name__ == "__main__":
    app.run(main)
