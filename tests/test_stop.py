"""Ends that a run survives, as processes: SIGTERM at any time, and a full disk."""

import json
import shutil
import signal
import subprocess
import time

import programs
import pytest

COMMAND = ("-m", "recvis_jax.train", f"--config={programs.ROOT}/tests/small.py")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("reference")
    text = programs.run(*COMMAND, f"--workdir={workdir}")
    assert "finished (done) at step 60" in text
    return workdir


def assert_same_run(workdir, reference):
    assert programs.records(workdir) == programs.records(reference)
    for which in ("last", "best"):
        assert programs.steps(workdir, which) == programs.steps(reference, which)
        programs.assert_same_arrays(programs.arrays(workdir, which), programs.arrays(reference, which))
    summaries = [json.loads((d / "summary.json").read_text()) for d in (workdir, reference)]
    assert all(s.pop("seconds") > 0 for s in summaries)
    assert summaries[0] == summaries[1]


def terminate(workdir, line):
    """Runs until a line that holds `line` is printed, sends SIGTERM, and returns the whole output of the exit."""
    process = programs.start(*COMMAND, f"--workdir={workdir}")
    seen = ""
    while line not in seen:
        read = process.stdout.readline()
        assert read, seen
        seen += read
    process.send_signal(signal.SIGTERM)
    return seen + programs.finish(process)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_finishes(reference, tmp_path):
    """Before the first step, amid the steps and as evaluations go on; each time with exit code 0."""
    for line in ("starting in", "resuming from step", "step 20/60 train", "step 40/60 val"):
        text = terminate(tmp_path / "run", line)
        assert "stopped by SIGTERM at step" in text and "saved; the same command goes on" in text
        step = int(text.rpartition("stopped by SIGTERM at step ")[2].split(",")[0])
        assert programs.steps(tmp_path / "run", "last")[-1] == step < 60
        assert not (tmp_path / "run/summary.json").exists()
    assert f"resuming from step {step}" in programs.run(*COMMAND, f"--workdir={tmp_path / 'run'}")
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.slow
def test_sigterm_after_the_last_step_does_not_cost_the_report(reference, tmp_path):
    text = terminate(tmp_path / "run", "step 60/60 val")
    if "stopped by SIGTERM" in text:  # it came before the loop was left
        programs.run(*COMMAND, f"--workdir={tmp_path / 'run'}")
    assert_same_run(tmp_path / "run", reference)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_that_goes_on_once_there_is_room(reference, small_disk):
    workdir = small_disk / "run"
    terminate(workdir, "step 20/60 val")
    saved = programs.steps(workdir, "last")[-1]
    time.sleep(0.1)
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 60_000))
    text = programs.run(*COMMAND, f"--workdir={workdir}", code=1)
    message = next(line for line in text.splitlines() if line.startswith("error: "))
    assert "the disk is full" in message and f"{saved}] are intact" in message, text
    assert "Traceback" not in text and message == text.splitlines()[-1]
    assert programs.steps(workdir, "last")[-1] == saved
    (small_disk / "filler").unlink()
    assert f"resuming from step {saved}" in programs.run(*COMMAND, f"--workdir={workdir}")
    assert_same_run(workdir, reference)
