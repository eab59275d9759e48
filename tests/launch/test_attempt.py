"""launch.attempt: the exit code tells a finished run from one that only stopped."""

import signal
import subprocess
import sys
import time

import pytest
from cluster import HERE, ROOT


def start(workdir, *flags):
    command = [
        sys.executable,
        "-m",
        "launch.attempt",
        "--finished=summary.json",
        "counting",
        f"--workdir={workdir}",
        *flags,
    ]
    return subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(HERE)}, stdout=subprocess.PIPE)


def begun(workdir):
    while not (workdir / "count_0").exists():
        time.sleep(0.02)


def test_done_stopped_failed_and_killed(tmp_path):
    process = start(tmp_path, "--steps=1000")
    begun(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75
    reached = int((tmp_path / "count_0").read_text())
    assert start(tmp_path, f"--steps={reached + 3}").wait(20) == 0
    assert start(tmp_path, f"--steps={reached + 3}").wait(20) == 0, "finished once more"
    assert start(tmp_path / "failed", "--fail=0:2:3").wait(20) == 3
    assert start(tmp_path / "killed", "--fail=0:2:kill").wait(20) == 137


def test_a_summary_of_an_earlier_end_does_not_count(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    process = start(tmp_path, "--steps=1000")
    begun(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75


@pytest.mark.full
def test_what_dies_of_being_told_to_stop_has_stopped(tmp_path):
    """The signal may find a program that has set no handler yet, or that has saved and whose interpreter is ending."""
    (tmp_path / "deaf.py").write_text("import sys, time\nprint('here', flush=True)\ntime.sleep(30)\n")
    command = [sys.executable, "-m", "launch.attempt", "--finished=summary.json", "deaf", f"--workdir={tmp_path}"]
    with subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)}, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 75
