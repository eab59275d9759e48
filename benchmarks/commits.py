"""Training steps and inference of this code against those of another commit, both sides in turn.

  python benchmarks/commits.py --commit=HEAD~20 [--rows=LeNet,ViT] [--kinds=train,inference]

Rows are those of `models.py`. `ratio` is the other commit's time over ours, above 1 where we are faster: the median of
the rounds, with quartiles. Each commit runs its own `jax_side.py`, from its files as git has them.
"""

import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import models
import sides
from absl import app, flags

_COMMIT = flags.DEFINE_string("commit", "HEAD", "What is compared with, as git names it.")

HERE = Path(__file__).parent
COLUMNS = {
    "float32": "{name}",
    "speed / the commit's": "{ratio:.3f} ({spread[0]:.3f}-{spread[1]:.3f})",
    "commit": "{commit}",
    "JAX": "{jax}",
    "images/s": "{images_per_s:,.0f}",
    "load": "{load}",
    "on": "{machine}",
}


def unpack(commit: str, folder: str) -> str:
    """Writes the files of a commit to a folder; returns its short name."""
    name = subprocess.run(
        ["git", "rev-parse", "--short", commit], cwd=HERE, check=True, capture_output=True, text=True
    ).stdout.strip()
    files = subprocess.run(["git", "archive", name], cwd=HERE.parent, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(files)) as packed:
        packed.extractall(folder, filter="data")
    return name


def start(root: Path) -> sides.Side:
    """Starts a side from the files of a folder."""
    path = os.pathsep.join([str(root / "benchmarks"), str(root)])
    return sides.Side([sys.executable, str(root / "benchmarks/jax_side.py")], PYTHONPATH=path)


def compare(root: Path, name: str, kind: str) -> dict[str, Any]:
    """Measures a row of both."""
    model, _, task, optim, batch, size, *_ = models.ROWS[name]
    work = dict(model=model, task=task, optim=optim, batch=batch, size=size, train=kind == "train")
    with start(HERE.parent) as ours, start(root) as other:
        ours.call("prepare", **work)
        other.call("prepare", **work)
        a, b = sides.interleave([ours, other], flags.FLAGS.rounds, flags.FLAGS.seconds)
        version = ours.call("version")
    seconds = [m["wall"] for m in a]
    return {
        "name": models.title(name, kind),
        "jax": version,
        **sides.ratio([m["wall"] for m in b], seconds),
        "images_per_s": batch / statistics.median(seconds),
        "load": sides.load(),
        "machine": sides.machine(),
    }


def main(argv: list[str]) -> None:
    del argv
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        commit = unpack(_COMMIT.value, folder)
        for kind in flags.FLAGS.kinds:
            for name in models.ROWS:
                if not flags.FLAGS.rows or any(name.startswith(r) for r in flags.FLAGS.rows):
                    rows.append({**compare(Path(folder), name, kind), "commit": commit})
                    sides.save("commits", rows, COLUMNS)


if __name__ == "__main__":
    app.run(main)
