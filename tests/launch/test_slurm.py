"""launch.slurm under a real Slurm: what it submits runs, stops, is queued again and ends as it should."""

import itertools
import json
import subprocess
import time

import pytest
from cluster import HERE, ROOT

NASTY = ['--text=it\'s "a" $HOME `date` \\ * %j', "--other=", "--lines=a\nb"]

pytestmark = pytest.mark.slow


def submit(slurm, workdir, *flags):
    """Submits the program that counts on both nodes, and returns the job's number."""
    program = ("--program=counting", "--finished=summary.json", "--nodes=2", f"--workdir={workdir}")
    return slurm.submit(*program, *flags)


def begun(workdir, count):
    """Waits until the process that was started last has counted that far."""
    end = time.monotonic() + 120
    kept = workdir / "count_1"
    while not (kept.exists() and int(kept.read_text()) >= count):
        assert time.monotonic() < end
        time.sleep(0.05)


def output(workdir, job):
    return (workdir / "slurm" / f"{job}.txt").read_text()


def lives(workdir):
    """The counts at which process 0 began its lives."""
    return [int(line.split()[1]) for line in (workdir / "lives").read_text().splitlines() if line.startswith("0 ")]


def test_a_job_runs_with_its_arguments_as_they_were_given(slurm, tmp_path):
    workdir = tmp_path / 'it\'s "a" folder; %j'
    job = submit(slurm, workdir, "--steps=5", *NASTY)
    assert slurm.end(job) == "COMPLETED"
    for process in (0, 1):
        given = json.loads((workdir / f"argv_{process}.json").read_text())
        assert given == [f"--workdir={workdir}", "--steps=5", *NASTY]
    assert "finished" in output(workdir, job)


def test_a_stopped_job_is_queued_again_and_a_cancelled_one_is_not(slurm, tmp_path):
    """SIGTERM to the tasks, to the script, from a requeue by hand, and from scancel, which is meant to be final."""
    ways = {
        "tasks": ["scancel", "--signal=TERM"],
        "script": ["scancel", "--batch", "--signal=TERM"],
        "requeue": ["scontrol", "requeue"],
        "cancel": ["scancel"],
    }
    jobs = {way: submit(slurm, tmp_path / way, "--steps=100", "--held=1") for way in ways}
    for way, command in ways.items():
        begun(tmp_path / way, 5)
        slurm.run(*command, jobs[way])
    for way, job in jobs.items():
        stopped = way == "cancel"
        assert slurm.end(job) == ("CANCELLED" if stopped else "COMPLETED"), output(tmp_path / way, job)
        assert len(lives(tmp_path / way)) == (1 if stopped else 2), output(tmp_path / way, job)
        assert (tmp_path / way / "summary.json").exists() != stopped
        assert "stopped, saved" in output(tmp_path / way, job)
        assert lives(tmp_path / way)[-1] > 4 or stopped


def test_failures_are_tried_again_so_often_and_wrong_requests_are_not(slurm, tmp_path):
    ways = {
        "once": ["--fail=1:5:kill", "--max_restarts=1"],
        "always": ["--fail=1:5:3", "--always=1", "--max_restarts=1"],
        "request": ["--fail=0:1:2"],
        "none": ["--fail=1:5:kill", "--max_restarts=0"],
    }
    jobs = {way: submit(slurm, tmp_path / way, *flags) for way, flags in ways.items()}
    ends = {way: (slurm.end(job), len(lives(tmp_path / way))) for way, job in jobs.items()}
    said = {way: output(tmp_path / way, job) for way, job in jobs.items()}
    assert ends["once"] == ("COMPLETED", 2), said["once"]
    assert ends["request"] == ("FAILED", 1) and "a wrong request" in said["request"], said["request"]
    assert ends["none"] == ("FAILED", 1) and "--max_restarts=0 is used up" in said["none"], said["none"]
    assert ends["always"] == ("FAILED", 2) and "--max_restarts=1 is used up" in said["always"], said["always"]


def test_a_job_saves_before_its_time_limit_and_goes_on_after_preemption(slurm, tmp_path):
    timed = submit(slurm, tmp_path / "time", "--steps=480", "--held=1", "--time=1", "--signal=40")
    yielding = submit(slurm, tmp_path / "yielding", "--steps=100", "--held=1", "--cpus_per_task=8")
    begun(tmp_path / "yielding", 5)
    slurm.run("srun", "--partition=urgent", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=12", "true")
    for name, job in (("yielding", yielding), ("time", timed)):
        assert slurm.end(job) == "COMPLETED"
        said, began = output(tmp_path / name, job), lives(tmp_path / name)
        assert "stopped, saved" in said
        assert len(began) > 1 and all(a < b for a, b in itertools.pairwise(began)), said
    assert "Killed" not in output(tmp_path / "time", timed)


def test_what_cannot_run_is_refused_before_it_is_queued(slurm, tmp_path):
    flags = ("--config=configs/fashion_mnist/lenet5.py", f"--workdir={tmp_path / 'x'}")
    text = slurm.launch(*flags, "--node=2", code=2)
    assert "unknown flag --node: " in text and "Did you mean 'nodes'?" in text
    text = slurm.launch(*flags, "--program=recvis_jax.trian", code=2)
    assert "--program=recvis_jax.trian: there is no such module" in text
    assert "error: sbatch refused" in slurm.launch(*flags, "--partition=nowhere", code=1)
    assert "--workdir is missing" in slurm.launch(code=2)
    assert not slurm.run("squeue", "--noheader")


def test_a_dry_run_prints_what_a_shell_can_run(slurm, tmp_path):
    """The printed commands do what the launcher would have done."""
    flags = ("--program=counting", "--finished=summary.json", f"--workdir={tmp_path / 'a b'}", "--steps=5", *NASTY)
    text = slurm.launch(*flags, "--dry_run")
    assert not (tmp_path / "a b").exists()
    env = {**slurm.env, "PYTHONPATH": str(HERE)}
    done = subprocess.run(["bash", "-ec", text], capture_output=True, text=True, env=env, cwd=ROOT, timeout=60)
    assert slurm.end(done.stdout.strip()) == "COMPLETED"
    assert json.loads((tmp_path / "a b/argv_0.json").read_text())[1:] == ["--steps=5", *NASTY]
