"""Evaluation says what training said; and other kinds of runs: on other devices, in bfloat16, of several labels."""

import json
import shutil
import subprocess

import cv2
import numpy as np
import programs
import pytest
import small

from recvis_jax.data import sources, writing

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


def done(ended):
    assert ended.code == 0, ended.err
    return ended.out


@pytest.fixture(scope="module")
def trained(program, tmp_path_factory):
    """A finished run whose best checkpoint is not its last."""
    root = tmp_path_factory.mktemp("trained")
    # A rate far too high in the end: what was learnt by step 40 is lost by step 60.
    sections = small.sections(optim__schedule="step", optim__lr=0.1)
    sections["optim"]["schedule_args"] = dict(boundaries=(40,), factor=100.0)
    done(program("train", programs.write_config(root / "config.py", sections), f"--workdir={root / 'run'}"))
    summary = json.loads((root / "run/summary.json").read_text())
    assert summary["best"]["step"] < summary["final"]["step"] == 60
    assert summary["best"]["val"]["accuracy"] > 0.5
    return root / "run"


def evaluate(program, workdir, *flags):
    """What `evaluate` adds to the summary, and what it prints."""
    text = done(program("evaluate", f"--workdir={workdir}", *flags))
    return json.loads((workdir / "summary.json").read_text())["evaluations"], text


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("which", ["best", "last", "step"])
def test_same_numbers_as_in_the_report(split, which, program, trained):
    summary = json.loads((trained / "summary.json").read_text())
    report = summary["best" if which == "best" else "final"]
    name = which if which != "step" else str(report["step"])
    found, text = evaluate(program, trained, f"--split={split}", f"--checkpoint={name}")
    entry = found[split][name]
    assert entry.pop("step") == report["step"]
    assert entry == pytest.approx(report[split], rel=1e-6) and set(entry) >= {"loss", "accuracy", "top_5"}
    assert f"checkpoint {name} (step {report['step']})" in text and f"accuracy: {entry['accuracy']:.4f}" in text
    after = json.loads((trained / "summary.json").read_text())
    assert {k: v for k, v in after.items() if k != "evaluations"} == {
        k: v for k, v in summary.items() if k != "evaluations"
    }


@pytest.mark.full
def test_numbers_by_class_add_up(program, trained):
    flags = ("--metrics=per_class_accuracy,confusion_matrix,top_3", "--split=test", "--checkpoint=best")
    found, text = evaluate(program, trained, *flags)
    entry = found["test"]["best"]
    matrix = np.array(entry["confusion_matrix"])
    labels = np.bincount([e["label"] for e in sources.open_split("digits", "test").read(range(360))])
    np.testing.assert_array_equal(matrix.sum(1), labels)  # a row is a true class
    assert matrix.trace() / 360 == pytest.approx(entry["accuracy"])
    np.testing.assert_allclose(np.diag(matrix) / labels, entry["per_class_accuracy"], rtol=1e-6)
    assert entry["accuracy"] <= entry["top_3"] <= entry["top_5"]
    assert text.count("\n    ") >= 20, "a line for each class"


@pytest.mark.full
def test_the_batch_size_does_not_matter(program, trained):
    values = []
    for size in (7, 64, 1000):
        found, _ = evaluate(program, trained, f"--batch_size={size}", "--split=train[3:500]", "--checkpoint=last")
        values.append(found["train[3:500]"]["last"])
    for other in values[1:]:
        assert other == pytest.approx(values[0], rel=1e-6)


@pytest.mark.full
def test_what_is_not_there_is_said(program, trained):
    for flags, text in (
        (("--checkpoint=7",), "no checkpoint of step 7 in"),
        (("--checkpoint=bset",), "checkpoint 'bset' is neither 'best', 'last' nor a step"),
        (("--split=vall",), "digits has no split 'vall'; its splits: train, test"),
        (("--metrics=acuracy",), "unknown metric 'acuracy'. Did you mean 'accuracy'?"),
    ):
        ended = program("evaluate", f"--workdir={trained}", *flags)
        assert ended.code == 2 and ended.err.count("\n") == 1 and text in ended.err


@pytest.mark.full
def test_a_run_is_only_read(program, trained, tmp_path):
    """But for the summary; where that cannot be written, as on a read-only disk, the numbers are still printed."""

    def listing(folder):
        files = (p for p in folder.rglob("*") if p.is_file() and p.name != "summary.json")
        return {str(p): p.stat().st_mtime_ns for p in files}

    before = listing(trained)
    _, text = evaluate(program, trained)
    assert listing(trained) == before
    shutil.copytree(trained, tmp_path / "run")
    mount = ["mount", "--bind", "-o", "ro", str(tmp_path / "run"), str(tmp_path / "run")]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a read-only disk cannot be mounted here")
    try:
        printed = done(program("evaluate", f"--workdir={tmp_path / 'run'}"))
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "run")], check=True)
    assert [line for line in text.splitlines() if line.startswith("  ")] == [
        line for line in printed.splitlines() if line.startswith("  ")
    ]
    assert "summary.json" in printed


@pytest.mark.slow
def test_a_run_may_go_on_with_other_devices_and_under_pmap(program, tmp_path):
    """The last ten steps again, from the checkpoint before the last: on 1 device, on 8, and on 8 under pmap."""
    flag = programs.write_config(tmp_path / "config.py", small.sections())
    done(program("train", flag, f"--workdir={tmp_path / 'jit'}"))
    expected = programs.arrays(tmp_path / "jit", "last")
    for name, changes, env in (("again", {}, {}), ("eight", {}, EIGHT), ("pmap", {"compile": "pmap"}, EIGHT)):
        workdir = tmp_path / name
        shutil.copytree(tmp_path / "jit", workdir)
        shutil.rmtree(workdir / "checkpoints/last/60")
        (workdir / "config.json").write_text(json.dumps(small.sections(**changes)))
        flag = programs.write_config(tmp_path / f"{name}.py", small.sections(**changes))
        text = done(program("train", flag, f"--workdir={workdir}", **env))
        assert f"on {8 if env else 1} x cpu" in text and "resuming from step 50" in text
        found = programs.arrays(workdir, "last")
        assert found.keys() == expected.keys()
        if not env:
            programs.assert_same_arrays(found, expected)
        for key, value in found.items():
            np.testing.assert_allclose(value, expected[key], atol=1e-5, err_msg=f"{name} {key}")


@pytest.mark.full
def test_bfloat16(program, tmp_path):
    accuracy = {}
    for dtype in ("float32", "bfloat16"):
        flag = programs.write_config(tmp_path / f"{dtype}.py", small.sections(dtype=dtype, steps=120))
        done(program("train", flag, f"--workdir={tmp_path / dtype}"))
        accuracy[dtype] = json.loads((tmp_path / dtype / "summary.json").read_text())["final"]["test"]["accuracy"]
    assert abs(accuracy["bfloat16"] - accuracy["float32"]) < 0.1 < 0.4 < accuracy["bfloat16"]
    kinds = {x.dtype for key, x in programs.arrays(tmp_path / "bfloat16", "last").items() if "params" in key}
    assert kinds == {np.dtype("float32")}, "only the computation is in bfloat16"


COUNT = 192
PICTURES = np.random.default_rng(0).integers(0, 2, (COUNT, 2, 2), np.uint8)


def write_data_set(root, label, feature):
    """A tfds data set of pictures whose quarters are dark or bright, with labels that follow from them."""

    def read(keys):
        for key in keys:
            picture = np.kron(PICTURES[key], np.full((4, 4), 200, np.uint8))
            yield {"image": cv2.imencode(".png", picture)[1].tobytes(), "label": label(PICTURES[key].ravel())}

    def features(tfds):
        return {"image": tfds.features.Image(shape=(8, 8, 1)), "label": feature(tfds.features)}

    with writing.staging(root, "quarters") as stage:
        made = writing.write(stage, "quarters", "1.0.0", {"train": writing.Split(range(COUNT), read)}, features, "")
        writing.move(made, root / "quarters/1.0.0", stage, {})


def train_on_quarters(program, folder, **changes):
    sections = small.sections(
        data=dict(name="quarters", data_dir=str(folder), train="train[:128]", val="train[128:160]", test="train[160:]"),
        task={}, ema_decay=small.GONE, model__norm="none", model__dropout=0.0, optim__lr=0.1, **changes,
    )  # fmt: skip
    done(program("train", programs.write_config(folder / "config.py", sections), f"--workdir={folder / 'run'}"))
    return json.loads((folder / "run/summary.json").read_text())


@pytest.mark.full
def test_several_labels(program, tmp_path):
    def feature(features):
        return features.Sequence(features.ClassLabel(names=["top left", "top right", "bottom left", "bottom right"]))

    write_data_set(tmp_path, lambda bright: np.flatnonzero(bright).tolist(), feature)
    summary = train_on_quarters(program, tmp_path, metrics=["accuracy"])
    assert summary["final"]["test"]["mean_average_precision"] > 0.95
    assert summary["best"]["val"]["mean_average_precision"] >= summary["final"]["val"]["mean_average_precision"]
    found, _ = evaluate(program, tmp_path / "run", "--checkpoint=last")
    assert found["test"]["last"]["mean_average_precision"] == pytest.approx(
        summary["final"]["test"]["mean_average_precision"]
    )


@pytest.mark.full
@pytest.mark.parametrize("loss", ["l2", "l1", "huber"])
def test_numbers(loss, program, tmp_path):
    write_data_set(tmp_path, lambda bright: np.float32(bright.mean()), lambda features: features.Scalar(np.float32))
    sections = {} if loss == "l2" else {"task__loss": loss}
    summary = train_on_quarters(program, tmp_path, steps=240, **sections)
    spread = np.abs(PICTURES.mean((1, 2)) - PICTURES.mean()).mean()
    assert summary["final"]["test"]["mean_absolute_error"] < spread / 3
    assert summary["best"]["val"]["loss"] == min(
        r["loss"] for r in programs.records(tmp_path / "run") if r["split"] == "val"
    )
    if loss == "l2":
        values = summary["final"]["test"]
        assert values["mean_squared_error"] < values["mean_absolute_error"]
