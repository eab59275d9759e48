"""launch.sweep: which runs it starts, which it leaves alone, what it says of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from cluster import HERE, ROOT

ENV = {**{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}, "PYTHONPATH": f"{HERE}:{ROOT}"}
COUNTING = ("--program=counting", "--steps=2")
GRID = ("--grid", "config.score=0.25,0.5", "--grid=config.seed=0,1")
NAMES = [f"score={a},seed={b}" for a in ("0.25", "0.5") for b in (0, 1)]


def start(*flags):
    command = [sys.executable, "-m", "launch.sweep", *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, cwd=ROOT)


def finish(process, code=0):
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, out[-3000:] + err[-3000:]
    return out, err


def sweep(*flags, code=0):
    return finish(start(*flags), code)


def rows(out):
    """The table: the cells of its rows, by run."""
    lines = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("|")]
    head, rule, *found = lines
    assert set(rule) == {"---"}
    return {line[0]: dict(zip(head, line, strict=False)) for line in found}


@pytest.mark.full
def test_all_combinations_run_once_and_end_in_one_table(tmp_path):
    out, err = sweep(*COUNTING, *GRID, "--workdir", tmp_path, '--text=it\'s "a" b')
    found = rows(out)
    assert list(found) == NAMES and err.count("launch: run ") == 4
    assert found[NAMES[0]] == {
        "run": NAMES[0], "state": "done", "step": "2", "best val accuracy": "0.2500", "final val accuracy": "0.2500",
        "seconds": "8",
    }  # fmt: skip
    given = json.loads((tmp_path / NAMES[3] / "argv_0.json").read_text())
    own = ["--config.score=0.5", "--config.seed=1", f"--workdir={tmp_path}/{NAMES[3]}"]
    assert given == ["--steps=2", '--text=it\'s "a" b', *own]
    again, err = sweep(*COUNTING, *GRID, f"--workdir={tmp_path}")
    assert err.count("has finished already") == 4 and rows(again) == found
    for flags in (GRID, ()):
        assert rows(sweep("--collect", *flags, f"--workdir={tmp_path}")[0]) == found
    assert (tmp_path / "table.md").read_text() in again
    table = rows(sweep("--collect", f"--workdir={tmp_path}", "--metrics=loss")[0])
    assert table[NAMES[0]]["final val loss"] == "1.5000" and "final val accuracy" not in table[NAMES[0]]


def test_a_failed_run_stops_no_other_and_is_told(tmp_path):
    grid = ("--grid=fail=0:1:3,9:9:9,0:1:kill", f"--workdir={tmp_path}")
    out, err = sweep(*COUNTING, *grid, code=1)
    assert [row["state"] for row in rows(out).values()] == [
        "failed with exit code 3",
        "done",
        "failed with exit code 137",
    ]
    assert "2 of 3 runs have not finished" in err
    out, err = sweep("--collect", *grid, code=1)
    assert [row["state"] for row in rows(out).values()] == ["not finished", "done", "not finished"]
    out, err = sweep(*COUNTING, *grid)  # they fail once only
    assert all(row["state"] == "done" for row in rows(out).values()) and err.count("finished already") == 1


def test_a_list_names_runs_and_combines_with_a_grid(tmp_path):
    (tmp_path / "list").write_text("config.a=1 --config.b='x y'  # first\n\n# none\nconfig.a=2 config.b=(3,4)\n")
    flags = (f"--list={tmp_path / 'list'}", "--grid=config.c=[1,2],3", f"--workdir={tmp_path / 'runs'}", "--dry_run")
    words = [line.split(" --", 1)[1] for line in sweep(*COUNTING, *flags)[0].splitlines()]
    settings = [re.findall(r"config\.(\w=(?:\(.*?\)|\[.*?\]|x y|\w+))", line) for line in words]
    assert settings == [
        ["c=[1,2]", "a=1", "b=x y"], ["c=[1,2]", "a=2", "b=(3,4)"], ["c=3", "a=1", "b=x y"], ["c=3", "a=2", "b=(3,4)"]
    ]  # fmt: skip
    folders = [line.rpartition("--workdir=")[2] for line in words]
    assert len(set(folders)) == 4 and folders[3].strip("'") == f"{tmp_path}/runs/c=3,a=2,b=(3,4)"
    assert not (tmp_path / "runs").exists()


@pytest.mark.full
def test_a_signal_stops_the_run_and_the_sweep(tmp_path):
    flags = ("--program=counting", "--steps=100", "--grid=config.seed=0,1", f"--workdir={tmp_path}")
    process = start(*flags)
    while not (tmp_path / "seed=0/count_0").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = finish(process)
    assert "stopped, saved" in out and not (tmp_path / "seed=1").exists()
    assert [row["state"] for row in rows(out).values()] == ["not finished"] * 2
    out, _ = sweep(*flags)
    assert all(row["state"] == "done" for row in rows(out).values()) and "process 0 starts at 0\nstopped" not in out


def test_each_run_goes_to_the_launcher(tmp_path):
    flags = (*COUNTING, "--launcher=local", "--processes=2", "--grid=config.seed=0,1", f"--workdir={tmp_path}")
    out, _ = sweep(*flags)
    assert all(row["state"] == "done" for row in rows(out).values())
    assert json.loads((tmp_path / "seed=1/argv_1.json").read_text())[-2:] == ["--num_processes=2", "--process_id=1"]


@pytest.mark.slow
def test_jobs_are_submitted_together_and_collected_later(slurm, tmp_path):
    flags = (*COUNTING, "--finished=summary.json", "--grid=config.seed=0,1", f"--workdir={tmp_path}")
    command = [sys.executable, "-m", "launch.sweep", "--launcher=slurm", *flags]
    env = {**ENV, **slurm.env, "PYTHONPATH": ENV["PYTHONPATH"]}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"submitted job (\d+)", done.stdout)
    assert [row["state"] for row in rows(done.stdout).values()] == ["submitted"] * 2 and len(jobs) == 2
    assert [slurm.end(job) for job in jobs] == ["COMPLETED"] * 2
    assert [row["state"] for row in rows(sweep("--collect", f"--workdir={tmp_path}")[0]).values()] == ["done"] * 2


@pytest.mark.slow
def test_real_runs_and_one_that_is_refused(tmp_path):
    config = ("--config=tests/small.py", "--config.steps=10", f"--workdir={tmp_path}")
    found = rows(sweep("--grid=config.model.dropout=0.0,none", *config, code=1)[0])
    assert [row["state"] for row in found.values()] == ["done", "failed with exit code 2"]
    first = found["model.dropout=0.0"]
    summary = json.loads((tmp_path / "model.dropout=0.0/summary.json").read_text())
    for which in ("best", "final"):
        for split in ("val", "test"):
            assert first[f"{which} {split} accuracy"] == f"{summary[which][split]['accuracy']:.4f}"


@pytest.mark.full
def test_what_cannot_run_is_refused(tmp_path):
    for flags, message in (
        ((f"--workdir={tmp_path}",), "there is nothing to vary"),
        (("--grid=config.seed=0",), "--workdir is missing"),
        ((f"--workdir={tmp_path}", "--grid=seed"), "is not KEY=VALUE,VALUE"),
        ((f"--workdir={tmp_path}", "--grid=seed=1,1"), "two runs have the same settings: seed=1"),
        ((f"--workdir={tmp_path}", "--list=/nowhere"), "cannot be read"),
        ((f"--workdir={tmp_path}", "--grid=config.seed=0", "--girds=x"), "unknown flag --girds"),
        ((f"--workdir={tmp_path / 'x'}", "--collect"), "there are no runs in"),
    ):
        assert message in sweep(*flags, code=2)[1]
