"""Killed at any instant and started again with the same command, a run ends bit for bit as if nothing had happened."""

import json
import random
import signal
import time

import programs
import pytest

from recvis_jax.training import log

EVERY = 20  # steps between evaluations, each of which saves; there is one more save in between, and 3 steps a record
STEPS = 240

# All kinds of state: optimizer, batch statistics, dropout, averages, random numbers on the host and on the device.
CONFIG = f"""
import ml_collections
def get_config():
    c = ml_collections.ConfigDict(dict(seed=5, steps={STEPS}, batch_size=32, eval_batch_size=64, ema_decay=0.9))
    c.update(log_every=3, eval_every={EVERY}, checkpoint_every={EVERY // 2})
    c.data = dict(name="digits", train="train[:90%]", val="train[90%:]", statistics="digits", cache="host")
    c.data.update(transform="random_resized_crop(8, scale=(0.5, 1.0))", augment="flip|cutout(3)|mixup(0.2)")
    c.model = dict(name="mlp", hidden=(64, 32), norm="batch", dropout=0.3)
    c.optim = dict(name="momentum", lr=0.05, schedule="cosine", warmup=0.1, weight_decay=1e-4)
    return c
"""

# The program itself, noting what is in every batch that the loop is handed.
DRIVER = """
import hashlib, sys
import jax, numpy as np
from recvis_jax import build, cli, train
make, path = build.train_batches, sys.argv.pop(1)
def noting(run, first, compile="jit"):
    with open(path, "a") as file:
        for i, batch in enumerate(make(run, first, compile), first):
            digest = hashlib.sha256()
            for name in sorted(batch):
                digest.update(name.encode() + np.asarray(batch[name]).tobytes())
            print(i, digest.hexdigest(), file=file, flush=True)
            yield batch
build.train_batches = noting
cli.run(train.main, train.define_flags)
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a run by its name; twice the same name is the same command."""
    root = tmp_path_factory.mktemp("runs")
    (root / "config.py").write_text(CONFIG)
    (root / "driver.py").write_text(DRIVER)

    def begin(name):
        files = (root / "driver.py", root / f"{name}.batches")
        return programs.fork(*files, "--report=false", f"--config={root}/config.py", f"--workdir={root / name}")

    begin.root = root
    return begin


@pytest.fixture(scope="module")
def reference(start):
    programs.finish(start("reference"))
    return start.root / "reference"


def last_step(workdir):
    path = workdir / "metrics.jsonl"
    return max((r["step"] for r in log.read_records(path)), default=0)


def saving(workdir):
    folder = workdir / "checkpoints/last"
    return folder.exists() and any("tmp" in p.name for p in folder.iterdir())


def halt_in_a_save(process, workdir):
    """Stops the process with a half-written checkpoint on the disk, looking again once it cannot move."""
    for _ in range(50):
        programs.wait_for(lambda: saving(workdir), process, "save")
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.01)
        if saving(workdir):
            return
        process.send_signal(signal.SIGCONT)
    raise AssertionError("no save was caught half-way")


@pytest.mark.slow
def test_killed_runs_end_the_same(start, reference):
    workdir, rng = start.root / "killed", random.Random(0)

    def in_start_up(process):
        time.sleep(rng.uniform(0.1, 1))

    def in_a_save(process):
        halt_in_a_save(process, workdir)

    def at(step, later=0.0):
        def wait(process):
            programs.wait_for(lambda: last_step(workdir) >= step, process, f"step {step}")
            time.sleep(rng.uniform(0, later))

        return wait

    moments = [
        in_start_up,
        at(3),  # before there is any checkpoint
        at(rng.randrange(EVERY, 3 * EVERY), later=0.05),
        in_a_save,
        in_start_up,  # of a run that is resumed
        at(6 * EVERY),  # about to begin an evaluation, or in it
        at(rng.randrange(7 * EVERY, 11 * EVERY), later=0.05),
        at(STEPS),  # in the last evaluation, save or report
    ]
    reached = []
    for moment in moments:
        process = start("killed")
        moment(process)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
        process.stdout.close()
        assert not (workdir / "summary.json").exists()
        if moment is in_a_save:
            assert saving(workdir)
        reached.append(max(programs.steps(workdir, "last"), default=0))
    assert reached == sorted(reached), "a kill costs nothing that was saved before"
    assert reached[1] == 0 and EVERY // 2 <= reached[2] < STEPS // 2 < reached[-1]
    output = programs.finish(start("killed"))
    assert "resuming from step" in output

    assert programs.records(workdir) == programs.records(reference)
    for which in ("last", "best"):
        assert programs.steps(workdir, which) == programs.steps(reference, which)
        programs.assert_same_arrays(programs.arrays(workdir, which), programs.arrays(reference, which))
    summaries = [json.loads((d / "summary.json").read_text()) for d in (workdir, reference)]
    assert all(s.pop("seconds") > 0 for s in summaries)
    assert summaries[0] == summaries[1]

    expected = (start.root / "reference.batches").read_text().splitlines()
    assert [line.split()[0] for line in expected] == [str(i) for i in range(STEPS)]
    assert len(set(line.split()[1] for line in expected)) == STEPS
    seen = (start.root / "killed.batches").read_text().splitlines()
    assert set(seen) == set(expected), "in every life, batch i was batch i"
    assert len(seen) > STEPS
