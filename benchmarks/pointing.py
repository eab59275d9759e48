"""The pointing game on fashion_scenes: whether what speaks most for a garment lies on it, by every attribution method.

  python -m recvis_jax.train --config=configs/fashion_mnist/scenes.py --workdir=runs/scenes
  python benchmarks/pointing.py --workdir=runs/scenes

Writes results/pointing.json and results/pointing.md. Every class that is in a scene is asked for once; the point is
the largest value of the method's map (of magnitudes, where a map has a sign and no rectifier of its own), and it hits
where it lies in a box of the class. Hits are averaged over classes. The second column counts scenes of several classes
alone, in which a method must tell them apart; the third blurs the maps by a Gaussian of 3 pixels first, as maps of
single pixels are noisy. The baselines are the middle of the scene, and a point drawn at random (exactly: the share of
the scene that the boxes cover).
"""

import functools
import json
import time
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import recvis_jax as rv
from recvis_jax import trained, vis
from recvis_jax.vis import pointing

flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
flags.DEFINE_integer("scenes", 200, "Test scenes, the first ones.")
flags.DEFINE_list("methods", list(vis.ATTRIBUTIONS), "Of vis.ATTRIBUTIONS.")
RESULTS = Path(__file__).parent / "results"
BLUR = 3.0  # pixels
CHUNK = 25  # images and classes at a time
SIGNED = ("occlusion", "gradcam", "rise")  # of which only what speaks for the class counts


def pairs(run, count):
    """Returns images (b h w c), classes (b), boxes of these in pixels, and whether the scene has other classes."""
    source = trained.open_named(run.run.data, "test")
    images, classes, boxes, several = [], [], [], []
    for example in source.read(range(min(count, source.length))):
        image = example["image"].astype(np.float32) / 255
        labels, size = example["objects"]["label"], np.tile(image.shape[:2], 2)
        for k in np.unique(labels):
            images.append(image)
            classes.append(int(k))
            boxes.append(np.asarray(example["objects"]["bbox"])[labels == k] * size)
            several.append(len(np.unique(labels)) > 1)
    return np.stack(images), np.array(classes), boxes, np.array(several)


def probable(apply):
    """Returns the network with the classes' probabilities among its layers, for RISE, which weighs masks by them."""

    def with_probabilities(variables, images):
        output, acts = apply(variables, images)
        return output, {**acts, "probability": jax.nn.sigmoid(output)}

    return with_probabilities


def maps_of(run, name, images, classes):
    """Returns the maps of a method (b h w), in chunks of one shape."""
    method, forward = vis.ATTRIBUTIONS[name], run.forward
    if name == "occlusion":
        method = functools.partial(method, window=16, stride=8, fill=float(images.mean()))
    if name == "rise":
        method, forward = functools.partial(method, masks=1000), probable(run.forward)
    out = []
    for start in range(0, len(images), CHUNK):
        index = np.minimum(np.arange(start, start + CHUNK), len(images) - 1)
        target = vis.Unit("probability", jnp.asarray(classes[index])) if name == "rise" else classes[index]
        found = method(forward, run.variables, images[index], target)
        found = vis.enlarged(found, images.shape[1:3]) if name == "gradcam" else found
        found = np.asarray(found)
        found = np.abs(found).max(-1) if found.ndim == 4 else found if name in SIGNED else np.abs(found)
        out.append(found)
    return np.concatenate(out)[: len(images)]


def row(hit, classes, several, blurred):
    mean = pointing.mean_over_classes
    return {
        "all": mean(hit, classes), "several": mean(hit[several], classes[several]), "blurred": mean(blurred, classes)
    }  # fmt: skip


def table(found):
    lines = ["| method | hits | scenes of several classes | blurred |", "|---|---|---|---|"]
    for name, v in sorted(found["methods"].items(), key=lambda i: -i[1]["all"]):
        lines.append(f"| {name.replace('_', ' ')} | {v['all']:.1%} | {v['several']:.1%} | {v['blurred']:.1%} |")
    return "\n".join(lines) + "\n"


def main(_):
    run = rv.open(flags.FLAGS.workdir)
    images, classes, boxes, several = pairs(run, flags.FLAGS.scenes)
    size = images.shape[1:3]
    objects = pointing.covered(boxes, size)
    middle = objects[:, (size[0] - 1) // 2, (size[1] - 1) // 2]
    chance = objects.mean((1, 2))
    path = RESULTS / "pointing.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("pairs") != len(images):
        found = {"scenes": flags.FLAGS.scenes, "pairs": len(images), "several": int(several.sum()), "methods": {}}
    found["methods"] |= {
        "the middle": row(middle, classes, several, middle), "at random": row(chance, classes, several, chance)
    }  # fmt: skip
    for name in flags.FLAGS.methods:
        begun = time.monotonic()
        maps = maps_of(run, name, images, classes)
        blurred = np.stack([cv2.GaussianBlur(m.astype(np.float32), (0, 0), BLUR) for m in maps])
        hit = pointing.hits(maps, objects)
        found["methods"][name] = row(hit, classes, several, pointing.hits(blurred, objects))
        print(name, found["methods"][name], f"{time.monotonic() - begun:.0f} s", flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "pointing.md").write_text(table(found))


if __name__ == "__main__":
    app.run(main)
