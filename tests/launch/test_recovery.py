"""Real trainings by two processes: disturbed, they end bit for bit as one that nothing disturbed."""

import json
import os
import random
import signal
import time
from pathlib import Path

import programs
import pytest
from cluster import ROOT

from recvis_jax.training import log

CONFIG = f"--config={ROOT}/tests/small.py"
STEPS = 60

pytestmark = pytest.mark.slow


def start(workdir, *flags):
    """Starts a training by two processes of one device each."""
    command = ("-m", "launch.local", "--processes=2", "--devices=1", *flags, CONFIG, "--report=false")
    return programs.start(*command, f"--workdir={workdir}", XLA_FLAGS="")  # compiled as jobs of Slurm are


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("reference")
    text = programs.finish(start(workdir))
    assert "in 2 processes" in text and f"finished (done) at step {STEPS}" in text
    return workdir


def assert_same_run(workdir, reference):
    assert programs.records(workdir) == programs.records(reference)
    for which in ("last", "best"):
        # Of the last two, a run that was stopped keeps the one that it was stopped at.
        assert programs.steps(workdir, which)[-1] == programs.steps(reference, which)[-1]
        programs.assert_same_arrays(programs.arrays(workdir, which), programs.arrays(reference, which))
    summaries = [json.loads((d / "summary.json").read_text()) for d in (workdir, reference)]
    assert all(s.pop("seconds") > 0 for s in summaries)
    assert summaries[0] == summaries[1]


def reached(workdir, step):
    """Waits until the run has recorded that step."""
    end = time.monotonic() + 300
    while max((r["step"] for r in log.read_records(workdir / "metrics.jsonl")), default=0) < step:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_killed_at_any_step_is_made_good_by_a_restart(victim, reference, tmp_path):
    process = start(tmp_path, "--max_restarts=1")
    rng = random.Random()
    step, later = rng.randrange(5, STEPS - 20), rng.uniform(0, 0.1)
    reached(tmp_path, step)
    time.sleep(later)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[victim]), signal.SIGKILL)
    text = programs.finish(process)
    assert f"process {victim} of 2 was killed by SIGKILL" in text, f"{step=} {later=} {text}"
    assert "starting all processes again (1 of 1)" in text
    assert "still running after" not in text, f"the other did not end by itself: {text}"
    assert_same_run(tmp_path, reference)


def test_a_slurm_job_that_is_told_to_stop_goes_on_when_it_is_queued_again(slurm, reference, tmp_path):
    job = slurm.submit("--nodes=2", CONFIG, "--report=false", f"--workdir={tmp_path}")
    reached(tmp_path, random.Random().randrange(5, STEPS // 2))
    slurm.run("scancel", "--signal=TERM", job)
    state = slurm.end(job)
    text = (tmp_path / f"slurm/{job}.txt").read_text()
    assert state == "COMPLETED", text
    assert "in 2 processes" in text and "stopped by SIGTERM at step" in text and "resuming from step" in text
    assert text.count("launch: life") >= 2, text
    assert_same_run(tmp_path, reference)
