"""A run's folder: names as people write them, whose it is, and that what is refused leaves nothing behind."""

import json
import os

import pytest

from recvis_jax import config, errors
from recvis_jax.training import optim, schedules, workdir


def test_names_of_folders_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    expected = {
        "runs/a": f"{tmp_path}/runs/a",
        "./runs/../b/": f"{tmp_path}/b",
        "~/runs/a": "/home/me/runs/a",
        "/x/y": "/x/y",
        "file:///x/y z": "/x/y z",
    }
    assert {name: workdir.resolve(name, "--workdir") for name in expected} == expected
    given = {"checkpoint_dir": "ck", "data": {"name": "mnist", "data_dir": "~/d"}, "init_from": "w.npz", "seed": 1}
    (tmp_path / "w.npz").write_text("")
    assert workdir.absolute(given) == {
        "checkpoint_dir": f"{tmp_path}/ck", "data": {"name": "mnist", "data_dir": "/home/me/d"},
        "init_from": f"{tmp_path}/w.npz", "seed": 1,
    }  # fmt: skip
    assert given["checkpoint_dir"] == "ck"
    (tmp_path / "run").mkdir()
    for source, found in {
        "run@best": f"{tmp_path}/run@best", "hf://timm/x": "hf://timm/x", "nowhere@last": "nowhere@last",
    }.items():  # fmt: skip
        assert workdir.absolute({"init_from": {"source": source}}) == {"init_from": {"source": found}}


@pytest.mark.parametrize(
    "name, expected",
    {
        "s3://bucket/x": r"s3:// is not taken here, but a folder on a disk",
        "gs://bucket/x": r"gs:// is not taken here, but a folder on a disk; mount the bucket",
        "file://host/x": r"file:// is not taken here",
        "~nobody-of-this-name/x": r"--workdir=~nobody-of-this-name/x: Could not determine home",
        "": "is not the name of a folder",
        "a\0b": "is not the name of a folder",
    }.items(),
)
def test_other_names_are_refused(name, expected):
    with pytest.raises(errors.BadRequest, match=expected):
        workdir.resolve(name, "--workdir")


def test_a_bucket_that_cannot_be_reached_is_refused(monkeypatch):
    from etils import epath

    def missing(self):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(type(epath.Path("gs://bucket/x")), "exists", missing)
    with pytest.raises(errors.BadRequest, match=r"checkpoint_dir=gs://bucket/x needs a package: .*pip install gcs"):
        workdir.absolute({"checkpoint_dir": "gs://bucket/x"})
    monkeypatch.setattr(type(epath.Path("gs://bucket/x")), "exists", lambda self: False)
    assert workdir.absolute({"checkpoint_dir": "gs://bucket/x/"}) == {"checkpoint_dir": "gs://bucket/x"}


def opened(path, sections, write=True):
    there = workdir.Workdir(str(path), sections, config.differences)
    if write:
        with there.taken():
            there.write(length_changes=False)
    return there


def test_a_folder_belongs_to_one_config(tmp_path):
    one = {"seed": 0, "epochs": 1.0, "optim": {"lr": 0.1, "name": "sgd"}, "data": {"train": ["a", "b"]}}
    folder = opened(tmp_path / "new/run", one).folder
    assert os.listdir(folder) == ["config.json"] and json.loads((folder / "config.json").read_text()) == one
    same = {**one, "data": {"train": ("a", "b")}}  # tuples of kwargs are the lists of JSON
    assert opened(folder, same).old == one
    assert opened(folder, {**one, "epochs": None, "steps": 3}, write=False).old == one, "a length is a wish"
    other = {"seed": 0, "optim": {"lr": 0.2, "name": "sgd"}, "data": {"train": ["a", "b"], "val": "c"}, "dtype": 7}
    with pytest.raises(errors.BadRequest) as caught:
        opened(folder, other)
    assert "holds a run with another config" in str(caught.value)
    assert "Differing: data.val: None -> 'c'; dtype: None -> 7; optim.lr: 0.1 -> 0.2" in str(caught.value)
    assert json.loads((folder / "config.json").read_text()) == one


def test_paths_of_the_same_place_are_the_same_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps({"checkpoint_dir": "ck"}))  # of an earlier version
    assert opened("run", workdir.absolute({"checkpoint_dir": "./ck"})).old == {"checkpoint_dir": "ck"}
    monkeypatch.chdir("/")
    assert opened(tmp_path / "run", {"checkpoint_dir": f"{tmp_path}/ck"}).folder == tmp_path / "run"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadRequest, match=r"cannot write to the workdir .*/file/run: Not a directory"):
        opened(tmp_path / "file/run", {})
    with pytest.raises(errors.BadRequest, match=r"cannot write to the workdir .*: File name too long"):
        opened(tmp_path / ("x" * 300), {})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(errors.BadRequest, match=r"config.json is not valid JSON"):
        opened(tmp_path, {})
    assert sorted(os.listdir(tmp_path)) == ["config.json", "file"]


def rates(name, warmup=0, **kw):
    return lambda total: schedules.make_schedule(name, lr=0.1, total_steps=total, warmup_steps=warmup, **kw)


@pytest.mark.parametrize(
    "schedule, old, new, done, allowed",
    [
        (rates("constant"), 100, 200, 100, True),
        (rates("constant", warmup=10), 100, 200, 60, True),
        (rates("constant", warmup=0.1), 100, 200, 60, False),
        (rates("constant", warmup=0.1), 100, 200, 0, True),
        (rates("constant", cooldown=20), 100, 200, 80, True),  # the cool-down was about to begin
        (rates("constant", cooldown=20), 100, 200, 90, False),
        (rates("step", boundaries=(30, 90)), 100, 200, 100, True),
        (rates("step"), 100, 200, 60, False),
        (rates("rsqrt"), 100, 200, 100, True),
        (rates("cosine"), 100, 200, 60, False),
        (rates("cosine"), 100, 200, 0, True),
        (rates("constant"), 100, 80, 60, True),
    ],
)
def test_a_run_may_be_longer_where_its_steps_so_far_are_the_same(schedule, old, new, done, allowed, tmp_path):
    def ask():
        return workdir.check_length(tmp_path, old, new, done, schedule, "x")

    if allowed:
        assert ask() == f"note: the run's length changes from {old} to {new} steps; {done} are done."
    else:
        with pytest.raises(errors.BadRequest, match=rf"schedule 'x'.*--config.init_from={tmp_path}@last and another"):
            ask()


def test_a_run_does_not_end_before_what_it_has_done(tmp_path):
    with pytest.raises(errors.BadRequest, match=r"of 100 steps has done 60; it cannot end at 50"):
        workdir.check_length(tmp_path, 100, 50, 60, rates("constant"), "constant")
    assert workdir.check_length(tmp_path, 100, 100, 60, rates("cosine"), "cosine") is None


def test_the_schedule_is_the_optimizers_own():
    section = dict(name="sgd", lr=0.2, base_batch=64, schedule="linear", warmup_epochs=1, weight_decay=0.1)
    rest = dict(total_steps=50, batch_size=32, steps_per_epoch=10)
    own = optim.make_optimizer(**section, **rest, params={"kernel": 1.0}).schedule
    assert [float(own(t)) for t in range(50)] == [float(optim.schedule_of(**section, **rest)(t)) for t in range(50)]
