"""How well a classifier recognises images that a model of pixels completed or enlarged, beside simpler ways.

  python benchmarks/drawn.py --classifier=runs/lenet5 --workdir=runs/upscale [--number=500]
  python benchmarks/drawn.py --classifier=runs/lenet5 --workdir=runs/pixels

The classifier is a run on whole images (configs/fashion_mnist/lenet5.py); images of another size are resized to its
own, originals as well. Enlarging is compared with nearest neighbour and bicubic of the same small images, completions
with a grey lower half and with the upper half mirrored.
"""

import time

import cv2
import numpy as np
from absl import app, flags

import recvis_jax as rv

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Run of a model of pixels.", required=True)
flags.DEFINE_string("classifier", None, "Run of a classifier of the same data.", required=True)
flags.DEFINE_string("split", "test", "Whose first images are drawn.")
flags.DEFINE_integer("number", 500, "Of images.")
flags.DEFINE_integer("seed", 0, "Of what is drawn.")
flags.DEFINE_float("temperature", 1.0, "Of the draws.")


def resized(images: np.ndarray, h: int, w: int, way: int) -> np.ndarray:
    """Images (n h w 1) of another size."""
    return np.stack([cv2.resize(x[..., 0], (w, h), interpolation=way) for x in images])[..., None].clip(0, 1)


def main(_) -> None:
    run, judge = rv.open(FLAGS.workdir), rv.open(FLAGS.classifier)
    source = run.run.data.named(FLAGS.split)
    labels = np.array([e["label"] for e in source.read(np.arange(FLAGS.number))])
    began = time.perf_counter()
    found = run.generate(FLAGS.number, FLAGS.seed, split=FLAGS.split, temperature=FLAGS.temperature)
    seconds = time.perf_counter() - began
    originals = found["originals"]
    h, w = originals.shape[1:3]
    ways = {"originals": originals, "drawn": found["images"]}
    if factor := getattr(run.run.model, "encoder_depth", 0) and run.run.model.factor:
        small = found["given"][:, ::factor, ::factor]
        ways["nearest neighbour"] = found["given"]
        ways["bicubic"] = resized(small, h, w, cv2.INTER_CUBIC)
    else:
        upper = originals[:, : h // 2]
        ways["lower half grey"] = found["given"]
        ways["mirrored"] = np.concatenate([upper, upper[:, ::-1][:, : h - h // 2]], 1)
    size = judge.run.data.image_shape[:2]
    print(f"{FLAGS.number:,} images of {FLAGS.split}, {h}x{w}, drawn in {seconds:.0f} s")
    print("| images | accuracy |\n|---|---|")
    for name, images in ways.items():
        seen = np.float32(images if size == (h, w) else resized(np.float32(images), *size, cv2.INTER_CUBIC))
        print(f"| {name} | {100 * (judge.predict(seen).argmax(1) == labels).mean():.1f} % |")


if __name__ == "__main__":
    app.run(main)
