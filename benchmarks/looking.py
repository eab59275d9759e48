"""What attributions are worth on a trained network, and what looking for patches and images costs and finds.

  python -m recvis_jax.train --config=configs/fashion_mnist/lenet5.py --workdir=runs/lenet5
  python benchmarks/looking.py --workdir=runs/lenet5

Writes results/looking.json and results/looking.md. Integrated gradients' completeness on the first 100 test images;
each method's rank correlation between the network's maps and those of the network with scrambled weights, on the
first 20 (Adebayo et al. 2018); for 50 units drawn by seed, whether an image made for a unit excites it more than any
test image; and the time of the best patches against that of computing the layer alone.
"""

import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import recvis_jax as rv
from recvis_jax import trained, vis
from recvis_jax.vis import layers, top_patches

flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
flags.DEFINE_list("parts", ["completeness", "sanity", "maximise", "cost"], "What is measured.")
RESULTS = Path(__file__).parent / "results"
LAYERS = ("stage1/block1", "stage2/block1", "features")  # whose units are drawn
UNITS = 50
DEAF = 0.5  # rank correlation from which on a method is named as one that ignores the weights


def images_of(run, count):
    source = trained.open_named(run.run.data, "test")
    found = [e["image"] for e in source.read(range(count))]
    return np.stack(found).astype(np.float32) / 255, np.array([e["label"] for e in source.read(range(count))])


def completeness(run):
    images, labels = images_of(run, 100)
    found = {}
    for points in (10, 25, 50, 200):
        maps = vis.integrated_gradients(run.forward, run.variables, images, labels, points=points)
        missed = vis.completeness(run.forward, run.variables, images, maps, labels)
        found[str(points)] = {
            "mean": float(missed.mean()),
            "median": float(jnp.median(missed)),
            "max": float(missed.max()),
        }
    return found


def sanity(run):
    images, _ = images_of(run, 20)
    methods = dict(vis.ATTRIBUTIONS)
    methods["occlusion"] = functools.partial(vis.occlusion, window=5, stride=2)
    methods["rise"] = functools.partial(vis.rise, masks=1000)
    return vis.sanity(methods, run.forward, run.variables, images)


def maximise(run):
    images, _ = images_of(run, 10_000)
    shapes = layers.names(run.forward, run.variables, images[:1])
    units = [(name, c) for name in LAYERS for c in range(shapes[name][-1])]
    drawn = [units[i] for i in sorted(np.random.default_rng(0).choice(len(units), UNITS, replace=False))]
    rows = []
    for name in LAYERS:
        channels = [c for layer, c in drawn if layer == name]
        top = vis.top_patches(run.forward, run.variables, [images], name, k=1)
        target = vis.Unit(name, jnp.array(channels))
        made = vis.maximise(run.forward, run.variables, target, images.shape[1:], count=len(channels))
        values = np.asarray(vis.scores(run.forward, run.variables, made, target))
        rows += [(name, c, float(v), float(top.values[c, 0])) for c, v in zip(channels, values, strict=True)]
    return {"above": sum(v > best for *_, v, best in rows), "of": len(rows), "units": rows}


def cost(run):
    images, _ = images_of(run, 10_000)
    name = LAYERS[0]
    compute = jax.jit(lambda v, x: vis.activations(run.forward, v, x, name))
    chunks = [images[i : i + top_patches.CHUNK] for i in range(0, 9984, top_patches.CHUNK)]

    def alone():
        jax.block_until_ready([compute(run.variables, jnp.asarray(c)) for c in chunks])

    def best():
        vis.top_patches(run.forward, run.variables, chunks, name)

    seconds = {"activations": [], "top_patches": []}
    alone(), best()
    for _ in range(5):
        for what, function in (("activations", alone), ("top_patches", best)):
            start = time.perf_counter()
            function()
            seconds[what].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return {"ratio": float(np.median(ratios)), "ratios": ratios}


def table(found):
    lines = []
    if "completeness" in found:
        lines += ["| points | mean | median | largest |", "|---|---|---|---|"]
        lines += [
            f"| {p} | {v['mean']:.1e} | {v['median']:.1e} | {v['max']:.1e} |" for p, v in found["completeness"].items()
        ]
    if "sanity" in found:
        lines += ["", "| method | rank correlation with scrambled weights |", "|---|---|"]
        lines += [
            f"| {k.replace('_', ' ')} | {v:.2f} |" for k, v in sorted(found["sanity"].items(), key=lambda i: -i[1])
        ]
        deaf = [k.replace("_", " ") for k, v in found["sanity"].items() if v > DEAF]
        lines += ["", f"Hardly depend on the weights (above {DEAF}): {', '.join(deaf) or 'none'}."]
    if "maximise" in found:
        lines += ["", f"{found['maximise']['above']} of {found['maximise']['of']} units above their best test image."]
    if "cost" in found:
        lines += ["", f"Best patches take {found['cost']['ratio']:.2f} times the layer alone."]
    return "\n".join(lines) + "\n"


def main(_):
    run = rv.open(flags.FLAGS.workdir)
    path = RESULTS / "looking.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in flags.FLAGS.parts:
        found[name] = {"completeness": completeness, "sanity": sanity, "maximise": maximise, "cost": cost}[name](run)
        print(name, {k: v for k, v in found[name].items() if k != "units"}, flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "looking.md").write_text(table(found))


if __name__ == "__main__":
    app.run(main)
