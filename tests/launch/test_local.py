"""launch.local: several processes on this machine, what is seen of them, and their ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENV = {**{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}, "PYTHONPATH": f"{HERE}:{ROOT}"}
NASTY = ['--text=it\'s "a" $HOME `date` \\ * %j', "--other=", "--lines=a\nb"]
COUNTING = ("-m", "launch.local", "--program=counting")


def start(*words):
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, cwd=ROOT)


def finish(process, code=0):
    """Waits for a launcher, and returns what it printed on stdout and stderr."""
    out, err = process.communicate(timeout=900)
    assert process.returncode == code, out[-3000:] + err[-3000:]
    return out, err


def run(*words, code=0):
    return finish(start(*words), code)


def wait_for(condition, timeout=300):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def counted(workdir, process=1):
    kept = workdir / f"count_{process}"
    return int(kept.read_text()) if kept.exists() else 0


@pytest.mark.parametrize("launcher", [("-m", "launch.local"), ("launch/local.py",)])
def test_every_process_gets_the_command_as_it_was_given(launcher, tmp_path):
    workdir = tmp_path / "it's a run"
    flags = ("--program", "counting", "--processes=3", f"--workdir={workdir}", "--steps=2", *NASTY)
    out, err = run(*launcher, *flags)
    given = [json.loads((workdir / f"argv_{i}.json").read_text()) for i in range(3)]
    for i, words in enumerate(given):
        assert words[:-3] == [f"--workdir={workdir}", "--steps=2", *NASTY]
        assert words[-3].startswith("--coordinator=127.0.0.1:") and words[-3] == given[0][-3]
        assert words[-2:] == ["--num_processes=3", f"--process_id={i}"]
        assert f"process {i} starts at 0" in (workdir / f"logs/process_{i}.txt").read_text()
    assert out == "process 0 starts at 0\nfinished\n" and err == ""


def test_devices_are_simulated_only_if_asked_for(tmp_path):
    (tmp_path / "printing.py").write_text(
        "import os, sys; print(os.environ.get('XLA_FLAGS'), os.environ.get('JAX_PLATFORMS'), sys.argv[1:])"
    )
    flags = ("-m", "launch.local", "--program=printing", "--x")
    env = {**ENV, "PYTHONPATH": f"{tmp_path}:{ROOT}", "XLA_FLAGS": "--xla_a=1", "JAX_PLATFORMS": "gpu"}
    for devices, seen in ((0, "--xla_a=1 gpu"), (4, "--xla_a=1 --xla_force_host_platform_device_count=4 cpu")):
        words = [sys.executable, *flags, f"--devices={devices}"]
        done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=ROOT, timeout=60, check=True)
        assert done.stdout == f"{seen} ['--x', '--distributed=off']\n"


def test_a_dry_run_prints_what_a_shell_can_run(tmp_path):
    text, _ = run(
        *COUNTING, "--processes=2", "--devices=4", f"--workdir={tmp_path / 'a b'}", "--steps=2", *NASTY, "--dry_run"
    )
    assert not (tmp_path / "a b").exists()
    subprocess.run(["sh", "-ec", text], check=True, env=ENV, cwd=ROOT, timeout=60, capture_output=True)
    for i in range(2):
        assert json.loads((tmp_path / f"a b/argv_{i}.json").read_text())[1:-3] == ["--steps=2", *NASTY]


@pytest.mark.full
def test_a_killed_process_ends_the_run_or_restarts_it(tmp_path):
    flags = (*COUNTING, "--processes=2", f"--workdir={tmp_path}", "--steps=40", "--fail=1:10:kill")
    _, err = run(*flags, code=137)
    assert "process 1 of 2 was killed by SIGKILL" in err and "again" not in err
    assert not (tmp_path / "summary.json").exists()
    (tmp_path / "failed").unlink()
    out, err = run(*flags, "--max_restarts=1")
    assert "starting all processes again (1 of 1)" in err
    assert out.splitlines()[-1] == "finished" and (tmp_path / "summary.json").exists()


def test_restarts_are_counted_and_errors_shown_with_the_process(tmp_path):
    flags = (f"--workdir={tmp_path}", "--fail=1:1:3", "--always=1", "--max_restarts=2")
    _, err = run(*COUNTING, "--processes=2", *flags, code=3)
    assert err.count("process 1 of 2 failed with exit code 3") == 3 and "(2 of 2)" in err
    assert "[1] error: process 1 fails\n" in err and "\nerror: process 0 lost another\n" in f"\n{err}"


def test_a_wrong_request_is_not_tried_again(tmp_path):
    flags = (f"--workdir={tmp_path}", "--fail=0:1:2", "--always=1", "--max_restarts=2")
    _, err = run(*COUNTING, "--processes=2", *flags, code=2)
    assert "again" not in err
    _, err = run("-m", "launch.local", "--procesess=2", f"--workdir={tmp_path}", code=2)
    assert "error: unknown flag --procesess." in err


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_on_to_all_processes_and_nothing_is_restarted(number, tmp_path):
    flags = (*COUNTING, "--processes=2", f"--workdir={tmp_path}", "--steps=60", "--held=1", "--max_restarts=3")
    process = start(*flags)
    wait_for(lambda: counted(tmp_path) > 3)
    process.send_signal(number)
    out, err = finish(process, 0 if number == signal.SIGTERM else 130)
    assert "again" not in err and (number == signal.SIGINT or "stopped, saved" in out)
    reached = counted(tmp_path, 0)
    assert 0 < reached < 60
    out, _ = run(*flags)
    assert f"process 0 starts at {reached}" in out and out.endswith("finished\n")


@pytest.mark.slow
def test_processes_that_do_not_notice_are_killed_in_the_end(tmp_path):
    began = time.monotonic()
    flags = (*COUNTING, "--processes=2", f"--workdir={tmp_path}", "--steps=100000", "--fail=1:2:3", "--hang=1")
    _, err = run(*flags, code=3)
    assert "killing process 0: still running after 40 s" in err and time.monotonic() - began < 60
