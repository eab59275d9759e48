"""Twenty-four small trainings, each with one thing wrong with it or none: what a diagnosis must find.

    python tests/staged.py [--data=digits|fashion_mnist] [--seeds=0,1,2] [--only=NAME]

trains them, a second or two each, and prints what the diagnosis of each says. `STAGES` says what is right.
"""

import argparse
import contextlib
import gzip
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
import small

import recvis_jax as rv
from recvis_jax import errors, evidence, trained
from recvis_jax import train as program
from recvis_jax.evaluation import diagnosis, symptoms

FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist
MOST = 1400, 350  # examples for training and validation


class Images(NamedTuple):
    """Real images, shuffled: of training (n h w) and of validation."""

    train: np.ndarray
    train_labels: np.ndarray
    val: np.ndarray
    val_labels: np.ndarray


class Staged(NamedTuple):
    """A training: its data, its model, and how it is trained."""

    data: Any
    model: Any
    optimizer: Any
    epochs: float = 30
    batch_size: int = 64
    task: Any = None


def images(name: str = "digits", seed: int = 0) -> Images:
    """Returns `MOST` images of scikit-learn's digits or of Fashion-MNIST."""
    if name == "digits":
        from sklearn.datasets import load_digits

        raw = load_digits()
        x, y = (raw.images * (255 / 16)).astype(np.uint8), raw.target
    else:
        x, y = (_idx(FASHION / f"train-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
    order = np.random.default_rng(seed).permutation(len(x))[: sum(MOST)]
    x, y = x[order], y[order].astype(int)
    return Images(x[: MOST[0]], y[: MOST[0]], x[MOST[0] :], y[MOST[0] :])


def _idx(path: Path) -> np.ndarray:
    data = gzip.decompress(path.read_bytes())
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(np.frombuffer(data, ">i4", data[3], 4))


def arrays(d: Images, **kw: Any) -> Any:
    return rv.data.from_arrays(d.train, d.train_labels, val=(d.val, d.val_labels), name="staged", **kw)


def mlp(*hidden: int, **kw: Any) -> Any:
    return rv.models.create("mlp", num_classes=10, hidden=hidden, **kw)


def linear() -> Any:
    return rv.models.create("linear", num_classes=10)


def fewer(d: Images, n: int) -> Images:
    return d._replace(train=d.train[:n], train_labels=d.train_labels[:n])


def tested(d: Images, n: int) -> Images:
    return d._replace(val=d.val[:n], val_labels=d.val_labels[:n])


def by_class(d: Images, count: int) -> Images:
    """Validation of the first classes alone, as of a data set that is sorted and cut."""
    keep = d.val_labels < count
    return d._replace(val=d.val[keep], val_labels=d.val_labels[keep])


def shuffled(d: Images, seed: int) -> Images:
    rng = np.random.default_rng(seed)
    return d._replace(train_labels=rng.permutation(d.train_labels), val_labels=rng.permutation(d.val_labels))


def shared(d: Images, share: float, change: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Images:
    """Replaces a share of the validation images by training images, perhaps a little changed."""
    n = round(share * len(d.val))
    val, labels = d.val.copy(), d.val_labels.copy()
    val[:n], labels[:n] = change(d.train[:n]), d.train_labels[:n]
    return d._replace(val=val, val_labels=labels)


def disturbed(x: np.ndarray) -> np.ndarray:
    """Images as another camera or encoder would give them: a little darker, and noisy."""
    noise = np.random.default_rng(0).normal(0, 6, x.shape)
    return (0.8 * x + 12 + noise).clip(0, 255).astype(np.uint8)


def noisy(x: np.ndarray) -> np.ndarray:
    return (x + np.random.default_rng(0).normal(0, 80, x.shape)).clip(0, 255).astype(np.uint8)


# Name -> (what is right, images and seed -> the training).
STAGES: dict[str, tuple[str, Callable[[Images, int], Staged]]] = {
    "an MLP": ("fine", lambda d, s: Staged(arrays(d), mlp(128), optax.adam(2e-3))),
    "a linear model": ("fine", lambda d, s: Staged(arrays(d), linear(), optax.adam(3e-3), 40)),
    "dropout and augmentation": (
        "fine", lambda d, s: Staged(arrays(d, augment="pad_crop(1)"), mlp(256, dropout=0.2), optax.adam(3e-3), 80),
    ),
    "two hidden units": ("underfitting", lambda d, s: Staged(arrays(d), mlp(2), optax.adam(5e-3), 120)),
    "three hidden units": ("underfitting", lambda d, s: Staged(arrays(d), mlp(3), optax.adam(1e-2), 80)),
    "weight decay far too strong": (
        "underfitting", lambda d, s: Staged(arrays(d), mlp(64), optax.adamw(3e-3, weight_decay=30.0), 60),
    ),
    "40 images": ("overfitting", lambda d, s: Staged(arrays(fewer(d, 40)), mlp(256), optax.adam(3e-3), 200, 20)),
    "100 images": ("overfitting", lambda d, s: Staged(arrays(fewer(d, 100)), mlp(256, 128), optax.adam(3e-3), 150, 50)),
    "60 images, another optimizer": (
        "overfitting", lambda d, s: Staged(arrays(fewer(d, 60)), mlp(512), optax.sgd(0.1, momentum=0.9), 200, 20),
    ),
    "three epochs": ("stopped too early", lambda d, s: Staged(arrays(d), mlp(64), optax.adam(1e-3), 3)),
    "a rate far too low": ("stopped too early", lambda d, s: Staged(arrays(d), mlp(128), optax.sgd(3e-3), 15)),
    "two epochs of a deep one": (
        "stopped too early", lambda d, s: Staged(arrays(d), mlp(64, 64, 64), optax.adam(5e-4), 4),
    ),
    "Adam at 0.3": ("rate too high", lambda d, s: Staged(arrays(d), mlp(128), optax.adam(0.3), 20)),
    "SGD at 3": ("rate too high", lambda d, s: Staged(arrays(d), mlp(128, 64), optax.sgd(3.0, momentum=0.9), 20)),
    "a linear model at 100": ("rate too high", lambda d, s: Staged(arrays(d), linear(), optax.sgd(100.0), 20)),
    "20 validation images": (
        "validation too small",
        lambda d, s: Staged(arrays(tested(d, 20)), mlp(128), optax.adam(2e-3)),
    ),
    "validation of three classes": (
        "validation unrepresentative", lambda d, s: Staged(arrays(by_class(d, 3)), mlp(128), optax.adam(2e-3)),
    ),
    "noisy validation images": (
        "validation unrepresentative",
        lambda d, s: Staged(arrays(d._replace(val=noisy(d.val))), mlp(128), optax.adam(2e-3)),
    ),
    "30 % shared images": ("shared images", lambda d, s: Staged(arrays(shared(d, 0.3)), mlp(128), optax.adam(2e-3))),
    "15 % near copies": (
        "shared images", lambda d, s: Staged(arrays(shared(d, 0.15, disturbed)), mlp(128), optax.adam(2e-3)),
    ),
    "shuffled labels, learnt by heart": (
        "labels shuffled", lambda d, s: Staged(arrays(shuffled(d, s)), mlp(512), optax.adam(5e-3), 100),
    ),
    "shuffled labels": ("labels shuffled", lambda d, s: Staged(arrays(shuffled(d, s)), mlp(16), optax.adam(3e-3), 20)),
}  # fmt: skip

# The same of the program `train`, whose folder says how it failed: changes of `small.sections`.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "least squares at 10": ("diverged", dict(task=dict(name="classify", loss="l2"), optim__lr=10.0)),
    "a rate that grows": (
        "diverged", dict(task=dict(name="classify", loss="l2"), optim=dict(
            name="sgd", lr=1e-3, schedule="step", schedule_args=dict(boundaries=(20, 30), factor=1000.0),
        ), log_every=2, model__norm="none"),
    ),
}  # fmt: skip


def names() -> list[str]:
    return [*STAGES, *CONFIGS]


def right(name: str) -> str:
    """Returns what the headline of the stage's diagnosis must be."""
    return (STAGES | CONFIGS)[name][0]


def train(name: str, folder: Path, d: Images, seed: int = 0) -> Any:
    """Trains a stage to a run in `folder`; returns its data, None where the run's config opens them."""
    how: dict[str, Any] = dict(seed=seed)
    if name in CONFIGS:
        sections = small.sections(**how, **CONFIGS[name][1])
        with contextlib.suppress(errors.Failure), contextlib.redirect_stdout(io.StringIO()):
            program.train(workdir=str(folder), config=sections, **sections)
        return None
    staged = STAGES[name][1](d, seed)
    task = None if staged.task is None else rv.task(staged.model, staged.data, **staged.task)
    how |= dict(epochs=staged.epochs, batch_size=staged.batch_size, progress=False)
    rv.fit(staged.model, staged.data, staged.optimizer, task=task, **how).save(folder)
    return staged.data


def diagnose(folder: Path, data: Any) -> tuple[list[diagnosis.Finding], symptoms.Evidence]:
    """Returns what the report of a run says is wrong with it, and the evidence."""
    records = evidence.read(folder)
    seen = evidence.Seen()
    with contextlib.suppress(errors.BadRequest):  # of a run that failed before it saved anything
        model = trained.of_run(folder, records.config)
        seen = evidence.look(model, data or model.run.data)
    found = evidence.of_run(records, seen)
    return diagnosis.diagnose(found), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=("digits", "fashion_mnist"))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default="")
    flags = parser.parse_args()
    hits = total = 0
    for seed in map(int, flags.seeds.split(",")):
        d = images(flags.data, seed)
        for name in names():
            if flags.only not in name:
                continue
            with tempfile.TemporaryDirectory() as root:
                began = time.monotonic()
                data = train(name, Path(root) / "run", d, seed)
                middle = time.monotonic()
                found, known = diagnose(Path(root) / "run", data)
                times = f"{middle - began:.1f} + {time.monotonic() - middle:.1f} s"
            hit = found[0].name == right(name)
            hits, total = hits + hit, total + 1
            said = ", ".join(f"{f.name} ({f.level})" for f in found)
            print(f"{'right' if hit else 'WRONG'}  seed {seed}  {name}: {said}; {times}", flush=True)
            if not hit:
                print(f"       wanted {right(name)}; {found[0].title} {found[0].why}\n       {known}", flush=True)
    print(f"{hits} of {total} right")


if __name__ == "__main__":
    main()
