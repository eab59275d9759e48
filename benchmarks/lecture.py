"""The lecture's table: pixels, bags of words and nets on Fashion-MNIST, with few labels and with many.

  python benchmarks/lecture.py                          # writes the table of what is known, lists commands of the rest
  python benchmarks/lecture.py --run --rows=pixels_svm  # measures cells that are missing, one after the other
  python benchmarks/lecture.py --run --labels=600,6000

A cell is one command of the package, shown by --commands. With all labels classifiers on features are refitted on all
60,000 once their penalty is chosen on the last 6,000; nets learn from 54,000. With few these are drawn three times from
the 54,000, as many of each class. Seconds are those of the processor, of its cores together, for the cell with all
labels: features, vocabulary and classifier, or training and evaluation.
"""

import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from recvis_jax import columns

FLAGS = flags.FLAGS

LABELS = {"600": 60, "6000": 600, "all": 0}
RESULTS = Path(__file__).parent / "results" / "lecture.json"
SPLITS = "--config.data.train=train[:54000] --config.data.val=train[54000:]"
PROBE = "python -m recvis_jax.probe --config=configs/fashion_mnist/{config}.py {splits} --out={out} --per_class={n}"


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      title: what it is called.
      dimensions: of what the classifier is given, empty where measuring a cell tells them; of nets the parameters.
      command: with fields {n} (labels of each class), {seed}, {steps} and {out}.
      seeds: of a net one run each; of a probe the one command draws three times.
      steps: of a net, by labels of each class.
    """

    title: str
    dimensions: str
    command: str
    seeds: int = 0
    steps: dict[int, int] | None = None


def _pixels(protocol: str) -> str:
    layer = "--checkpoint=random --layers=pixels --protocols="
    return f"{PROBE.format(config='linear', splits=SPLITS, out='{out}', n='{n}')} {layer}{protocol}"


def _net(config: str) -> str:
    few = "--config.epochs=None --config.steps={steps} --config.eval_every={steps} --config.log_every=100"
    return (
        f"python -m recvis_jax.train --config=configs/fashion_mnist/{config}.py --workdir={{out}} {SPLITS} {few} "
        "--config.data.per_class={n} --config.data.subset_seed={seed} --config.seed={seed}"
    )


def _words(config: str) -> str:
    return (
        PROBE.format(config=config, splits=SPLITS, out="{out}", n="{n}")
        + " --protocols=svm --config.learn.classifier=none"
    )


_WORDS = {
    "hog": "HOG, linear SVM",
    "bovw": "bag of 256 words, linear SVM",
    "bovw_pyramid": "the same in a spatial pyramid",
    "vlad": "VLAD, linear SVM",
    "fisher": "Fisher vectors, linear SVM",
}
_MAE = (
    "python -m recvis_jax.probe --workdir=runs/mae --out={out} --layers=latent --pool=first_rest --protocols=linear "
    "--per_class={n}"
)
_MAE_TUNED = (
    "python -m recvis_jax.train --config=configs/fashion_mnist/mae_finetune.py:per_class={n},seed={seed} "
    "--workdir={out}"
)

ROWS = {
    "pixels_linear": Row("pixels, logistic regression", "784", _pixels("linear")),
    "pixels_svm": Row("pixels, linear SVM", "784", _pixels("svm")),
    "pixels_knn": Row("pixels, nearest neighbours", "784", _pixels("knn")),
    "pixels_forest": Row("pixels, random forest", "784", _pixels("forest")),
    "pixels_kernel_svm": Row("pixels, kernel SVM", "784", _pixels("kernel_svm")),
    **{name: Row(title, "", _words(name)) for name, title in _WORDS.items()},
    "mlp": Row("MLP 512-256", "535,818 parameters", _net("mlp"), 3, {60: 300, 600: 1000, 0: 3165}),
    "lenet5": Row("LeNet-5", "61,706 parameters", _net("lenet5"), 3, {60: 300, 600: 1000, 0: 2110}),
    "resnet20": Row("ResNet-20", "269,434 parameters", _net("resnet20"), 1, {60: 200, 600: 500, 0: 5064}),
    "mae_linear": Row("masked autoencoder, linear probe", "256", _MAE),
    "mae_finetuned": Row("masked autoencoder, fine-tuned", "1.2 M parameters", _MAE_TUNED, 3),
}

# Cells that headers of configs state, with their commands; measured as here, but for the nets' 57,000 or 58,000 labels.
STATED = {
    "configs/fashion_mnist/mae_pretrain.py": {
        "pixels_linear": {"600": "78.28 ± 0.80", "6000": "82.90 ± 0.25", "all": "84.77"},
        "pixels_knn": {"600": "76.13 ± 0.38", "6000": "81.90 ± 0.21", "all": "86.21"},
        "mae_linear": {"600": "80.67 ± 0.33", "6000": "85.89 ± 0.38", "all": "88.22"},
    },
    "configs/fashion_mnist/mae_finetune.py": {
        "mae_finetuned": {"600": "82.27 ± 0.94", "6000": "86.98 ± 0.54", "all": "89.01"},
    },
    "configs/fashion_mnist/mlp.py": {"mlp": {"all": "89.63"}},
    "configs/fashion_mnist/lenet5.py": {"lenet5": {"all": "91.32"}},
    "configs/fashion_mnist/resnet20.py": {"resnet20": {"all": "93.57"}},
}


def stated(name: str, labels: str) -> str:
    """Returns what a config's header says of a cell, or nothing."""
    return next((rows[name][labels] for rows in STATED.values() if labels in rows.get(name, {})), "")


def command(name: str, labels: str, seed: int) -> list[str]:
    """Returns the words of a cell's command."""
    row, n = ROWS[name], LABELS[labels]
    out = f"runs/lecture/{name}" + (f"-{labels}-{seed}" if row.seeds else "")
    return shlex.split(row.command.format(n=n, seed=seed, out=out, steps=(row.steps or {}).get(n)))


def measure(name: str, labels: str) -> dict[str, Any]:
    """Runs the commands of a cell and returns accuracies (percent), seconds of the processor, and of the clock."""
    row = ROWS[name]
    accuracies, seconds, clock = [], [], []
    for seed in range((row.seeds if labels != "all" else 1) or 1):
        words = command(name, labels, seed)
        print(shlex.join(words), flush=True)
        before, start = _processor(), time.time()
        subprocess.run([sys.executable, *words[1:]], check=True)
        seconds.append(_processor() - before)
        clock.append(time.time() - start)
        out = Path(next(w.partition("=")[2] for w in words if w.startswith(("--out=", "--workdir="))))
        if row.seeds:
            accuracies.append(json.loads((out / "summary.json").read_text())["final"]["test"]["accuracy"])
        else:
            accuracies += [r["accuracy"] for r in json.loads((out / "probe.json").read_text())["results"]]
    found = {"accuracy": [round(100 * a, 3) for a in accuracies], "cpu_seconds": round(statistics.mean(seconds), 1)}
    if features := sorted(out.glob("features/test-*.npy")):
        wide = [f for f in features if not f.name.endswith(".labels.npy")]
        found["dimensions"] = int(np.load(wide[0], mmap_mode="r").shape[1])
    return found | {"seconds": round(statistics.mean(clock), 1), "load": round(os.getloadavg()[2], 1)}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the table in Markdown, rows in the order of `ROWS`; cells that are not known are empty."""
    head = ["test accuracy (%)", "600 labels", "6,000 labels", "all labels", "CPU-seconds", "dimensions"]
    lines = []
    for name, row in ROWS.items():
        cells = results.get(name, {})
        known = [c["dimensions"] for c in cells.values() if "dimensions" in c]
        wide = row.dimensions or (f"{known[0]:,}" if known else "")
        seconds = cells.get("all", {}).get("cpu_seconds")
        shown = [_accuracy(cells.get(k, {}).get("accuracy", ())) or stated(name, k) for k in LABELS]
        if any(shown):
            lines.append([row.title, *shown, "" if seconds is None else f"{seconds:,.0f}", wide])
    return columns.markdown([head, *lines])


def _accuracy(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: list[str]) -> None:
    del argv
    os.chdir(Path(__file__).parents[1])
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in FLAGS.rows:
        for labels in FLAGS.labels:
            if (labels in results.get(name, {}) or stated(name, labels)) and not FLAGS.commands:
                continue
            if FLAGS.run:
                results.setdefault(name, {})[labels] = measure(name, labels)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            else:
                print(shlex.join(command(name, labels, 0)))
    if not FLAGS.commands:
        RESULTS.with_suffix(".md").write_text(table(results) + "\n")
        print(table(results))


if __name__ == "__main__":
    flags.DEFINE_bool("run", False, "Measures what is missing.")
    flags.DEFINE_bool("commands", False, "Prints the commands of all cells.")
    flags.DEFINE_list("rows", list(ROWS), "Names of rows.")
    flags.DEFINE_list("labels", list(LABELS), "600, 6000, all.")
    app.run(main)
