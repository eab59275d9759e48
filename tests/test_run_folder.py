"""What is refused leaves nothing behind; a run may be made longer; what fails at the very end is a failure."""

import json
import os

import numpy as np
import programs
import pytest
import small

from recvis_jax import build, errors, ranges, train
from recvis_jax.training import log

GONE = small.GONE


def tiny(**changes):
    """A run of a few steps that compiles fast."""
    changes = {"steps": 6, "eval_every": 3, "checkpoint_every": 2, "log_every": 2, **changes}
    changes |= {"model__hidden": (8,), "model__norm": GONE, "model__dropout": 0.0, "ema_decay": None}
    changes.setdefault("optim__warmup", 0)
    return small.sections(**changes)


def run(workdir, **changes):
    """Trains as the program does, with the config beside its sections."""
    sections = tiny(**changes)
    return train.train(workdir=str(workdir), config=json.loads(json.dumps(sections)), **sections)


BAD = {
    "model__name": "mpl",
    "optim__lr": -1.0,
    "optim__schedule": "cosinus",
    "data__name": "no_such_data",
    "data__test": "test[:1%",
    "data__val": "train[80%:]",
    "metrics": ("no_such_metric",),
    "probe": {"protocols": ("no_such_protocol",)},
    "log_every": 0,
    "steps": 0,
    "init_from": "/no/such/file.npz",
    "checkpoint_dir": "s3://bucket/x",
    "compile": "pmap",
}


@pytest.mark.parametrize("key", BAD)
def test_a_refused_command_leaves_nothing_and_the_corrected_one_runs(key, tmp_path):
    extra = {"sharding": {"fsdp": 2}} if key == "compile" else {}
    with pytest.raises(errors.BadRequest):
        run(tmp_path / "a/run", **{key: BAD[key]}, **extra)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_dir_that_cannot_be_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadRequest, match=r"cannot write to config.checkpoint_dir .*/file/x: Not a directory"):
        run(tmp_path / "run", checkpoint_dir=str(tmp_path / "file/x"))
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.full
def test_a_relative_checkpoint_dir_holds_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("run", checkpoint_dir="ck", steps=2)
    assert json.loads((tmp_path / "run/config.json").read_text())["checkpoint_dir"] == f"{tmp_path}/ck"
    assert sorted(os.listdir(tmp_path)) == ["ck", "run"] and "checkpoints" not in os.listdir("run")
    monkeypatch.chdir("/")
    assert run(tmp_path / "run", checkpoint_dir=str(tmp_path / "ck"), steps=2)["reason"] == "done"


def assert_same_state(a, b):
    programs.assert_same_arrays(programs.arrays(a, "last"), programs.arrays(b, "last"))
    programs.assert_same_arrays(programs.arrays(a, "best"), programs.arrays(b, "best"))


@pytest.mark.full
def test_a_run_is_made_longer_where_its_schedule_permits(tmp_path, capsys):
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    run(whole, optim__schedule="constant", steps=12)
    run(longer, optim__schedule="constant", steps=6)
    log.update_json(longer / "summary.json", lambda found: found.update(evaluations={"test": {}}))
    first = json.loads((longer / "summary.json").read_text())
    capsys.readouterr()
    summary = run(longer, optim__schedule="constant", steps=12)
    assert "the run's length changes from 6 to 12 steps; 6 are done." in capsys.readouterr().out
    assert summary["step"] == 12 and json.loads((longer / "config.json").read_text())["steps"] == 12
    assert json.loads((longer / "summary_step_6.json").read_text()) == first
    assert_same_state(whole, longer)
    assert programs.records(whole) == programs.records(longer)
    with pytest.raises(errors.BadRequest, match="has done 12; it cannot end at 6"):
        run(longer, optim__schedule="constant", steps=6)
    log.update_json(longer / "summary.json", lambda found: found.update(evaluations={"test": {"best": {"step": 3}}}))
    run(longer, optim__schedule="constant", steps=12)  # a finished run, once more
    assert json.loads((longer / "summary.json").read_text())["evaluations"] == {"test": {"best": {"step": 3}}}


@pytest.mark.full
def test_where_it_does_not_permit_the_way_is_said_and_nothing_changes(tmp_path):
    run(tmp_path / "run", steps=4)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    with pytest.raises(errors.BadRequest, match=r"schedule 'cosine'\). Continue in .*--config.init_from=.*/run@"):
        run(tmp_path / "run", steps=8)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before
    summary = run(tmp_path / "next", steps=4, init_from=f"{tmp_path / 'run'}@last")
    assert summary["step"] == 4


@pytest.mark.full
def test_another_model_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    """As where the code changed: the config is the same, the state is not."""
    run(tmp_path / "run", steps=4)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    create = build.create_state
    monkeypatch.setattr(build, "create_state", lambda *parts, ema: create(*parts, ema=True))
    with pytest.raises(errors.BadRequest, match=r"is intact, but its model .* missing there \(ema/"):
        run(tmp_path / "run", steps=4)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before
    monkeypatch.undo()
    assert run(tmp_path / "run", steps=4)["step"] == 4


@pytest.mark.full
@pytest.mark.parametrize("lr, steps", [(1e30, 1), (1e38, 1), (1e30, 5)])
def test_a_run_that_ends_with_no_number_is_no_run_that_is_done(lr, steps, tmp_path, monkeypatch):
    monkeypatch.setitem(ranges.RANGES, "lr", ranges.Range(0, 1e39))  # else such a rate is refused at once
    with pytest.raises(
        errors.Failure, match=rf" is (nan|inf) at step {min(steps, 2)}; the run stops. Last good .*: none"
    ):
        run(tmp_path / "run", optim__lr=lr, optim__schedule="constant", steps=steps)
    assert programs.steps(tmp_path / "run", "last") == [] and not (tmp_path / "run/summary.json").exists()


@pytest.mark.full
def test_a_run_shorter_than_log_every_has_a_curve(tmp_path):
    run(tmp_path / "run", steps=5, log_every=100)
    steps = [r["step"] for r in log.read_records(tmp_path / "run/metrics.jsonl") if r["split"] == "train"]
    assert steps == [1, 2, 3, 4, 5]


@pytest.mark.full
def test_a_damaged_summary_is_set_aside(tmp_path, capsys):
    run(tmp_path / "run", steps=2)
    (tmp_path / "run/summary.json").write_text('{"loss": NaN}')
    run(tmp_path / "run", steps=2)
    assert "The file is now" in capsys.readouterr().out
    assert (tmp_path / "run/summary.json.damaged").read_text() == '{"loss": NaN}'
    found = json.loads((tmp_path / "run/summary.json").read_text())
    assert found["step"] == 2 and np.isfinite(found["final"]["val"]["loss"])
