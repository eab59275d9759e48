"""Ends that a run survives, as processes: SIGTERM and Ctrl-C at any time, failed saves, full disks, second programs."""

import json
import shutil
import signal
import subprocess
import time

import programs
import pytest

COMMAND = ("-m", "recvis_jax.train", f"--config={programs.ROOT}/tests/small.py", "--report=false")


def run(*command, code=0):
    """Runs a program to its end and returns what it printed."""
    return programs.finish(programs.fork(*command), code)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("reference")
    text = run(*COMMAND, f"--workdir={workdir}")
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


def terminate(workdir, line, *numbers, code=0, flags=()):
    """Runs until a line that holds `line` is printed, sends signals, and returns the whole output of the exit."""
    process = programs.fork(*COMMAND, *flags, f"--workdir={workdir}")
    seen = ""
    while line not in seen:
        read = process.stdout.readline()
        assert read, seen
        seen += read
    for number in numbers or (signal.SIGTERM,):
        process.send_signal(number)
        time.sleep(0.05)  # two that come together are one
    return seen + programs.finish(process, code)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_finishes(reference, tmp_path):
    """Before the first step, amid the steps and as evaluations go on; each time with exit code 0."""
    for line in ("starting in", "resuming from step", "step 20/60 train", "step 40/60 val"):
        text = terminate(tmp_path / "run", line)
        assert "stopped by SIGTERM at step" in text and "saved; the same command continues" in text
        step = int(text.rpartition("stopped by SIGTERM at step ")[2].split(",")[0])
        assert programs.steps(tmp_path / "run", "last")[-1] == step < 60
        assert not (tmp_path / "run/summary.json").exists()
    assert f"resuming from step {step}" in run(*COMMAND, f"--workdir={tmp_path / 'run'}")
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.slow
def test_sigterm_after_the_last_step_does_not_cost_the_report(reference, tmp_path):
    text = terminate(tmp_path / "run", "step 60/60 val", flags=("--report",))
    if "stopped by SIGTERM" in text:  # it came before the loop was left
        run(*COMMAND, "--report", f"--workdir={tmp_path / 'run'}")
    assert (tmp_path / "run/report.html").exists()
    assert_same_run(tmp_path / "run", reference)


# The program, whose second life of checkpoints has no folder to be in: a library's threads wait for it for minutes.
NO_FOLDER = """
import sys, shutil
from pathlib import Path
from recvis_jax import cli, train
from recvis_jax.training import checkpoint
save, folder = checkpoint.Checkpointer.save, Path(sys.argv[-1].partition("=")[2]) / "checkpoints/last"
def failing(self, state, meta, *, best):
    if int(state.step) == 20:
        self.wait()
        folder.rename(folder.with_name("kept"))
        folder.write_text("")
    save(self, state, meta, best=best)
checkpoint.Checkpointer.save = failing
cli.run(train.main, train.define_flags)
"""


@pytest.mark.slow
def test_a_failed_save_ends_the_program(tmp_path):
    (tmp_path / "program.py").write_text(NO_FOLDER)
    process = programs.fork(tmp_path / "program.py", *COMMAND[2:], f"--workdir={tmp_path / 'run'}")
    text = ""
    while "error: " not in text:
        line = process.stdout.readline()
        assert line, text
        text += line
    text += process.communicate(timeout=200)[0]  # the threads would wait for 300 s
    assert process.returncode == 1, text
    last = text.splitlines()[-1]
    assert last.startswith("error: saving a checkpoint in") and "Not a directory" in last and "room" not in last, text
    assert not (tmp_path / "run/.lock").exists()
    (tmp_path / "run/checkpoints/last").unlink()
    (tmp_path / "run/checkpoints/kept").rename(tmp_path / "run/checkpoints/last")
    assert "resuming from step 10" in run(*COMMAND, f"--workdir={tmp_path / 'run'}")


@pytest.mark.slow
def test_ctrl_c_saves_and_a_second_one_ends_at_once(reference, tmp_path):
    workdir = tmp_path / "run"
    text = terminate(workdir, "step 20/60 train", signal.SIGINT, code=130)
    assert "Ctrl-C: saving after this step; press again to exit at once." in text
    assert "stopped by Ctrl-C at step" in text and "saved; the same command continues. Kept in" in text
    saved = programs.steps(workdir, "last")[-1]
    text = terminate(workdir, f"resuming from step {saved}", signal.SIGINT, signal.SIGINT, code=130)
    assert "interrupted" in text and "stopped by" not in text
    assert programs.steps(workdir, "last")[-1] == saved and not (workdir / ".lock").exists()
    assert f"resuming from step {saved}" in run(*COMMAND, f"--workdir={workdir}")
    assert_same_run(workdir, reference)


@pytest.mark.slow
def test_a_second_program_is_refused_and_a_killed_one_leaves_no_obstacle(reference, tmp_path):
    workdir = tmp_path / "run"
    process = programs.fork(*COMMAND, f"--workdir={workdir}")
    programs.wait_for(lambda: programs.steps(workdir, "last"), process, "save")
    process.send_signal(signal.SIGSTOP)  # it lives, and does not end meanwhile
    text = run(*COMMAND, f"--workdir={workdir}", code=2)
    assert len(text.splitlines()) == 1 and f"is being written by process {process.pid} on " in text
    process.kill()
    process.wait()
    process.stdout.close()
    text = run(*COMMAND, f"--workdir={workdir}")
    assert f"taking over from process {process.pid} on" in text and "resuming from step" in text
    assert_same_run(workdir, reference)


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
    text = run(*COMMAND, f"--workdir={workdir}", code=1)
    message = next(line for line in text.splitlines() if line.startswith("error: "))
    assert "the disk is full" in message and f"{saved}] are intact" in message, text
    assert "Traceback" not in text and message == text.splitlines()[-1]
    assert programs.steps(workdir, "last")[-1] == saved
    (small_disk / "filler").unlink()
    assert f"resuming from step {saved}" in run(*COMMAND, f"--workdir={workdir}")
    assert_same_run(workdir, reference)
