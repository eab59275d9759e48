"""Runs that are learnt without gradients: from the command to predictions, repeated, resumed, refused."""

import json
import shutil

import numpy as np
import programs
import pytest

from recvis_jax import errors, represent, trained
from recvis_jax.data import sources

SECTIONS = dict(
    seed=0, batch_size=64,
    data=dict(name="digits", train="train[:90%]", val="train[90%:]", test="test"),
    model=dict(name="bag_of_words", descriptor=dict(name="phow", sizes=[2], step=1, root=True), words=8, components=20,
               xy=2.0, encoder=dict(name="fisher")),
    learn=dict(images=300, per_image=10, passes=5),
)  # fmt: skip


def sections(**changes):
    """The config's sections, with changes by path, as `sections(model__words=3)`."""
    out = json.loads(json.dumps(SECTIONS))
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = out
        for key in parents:
            node = node[key]
        node[last] = value
    return out


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
    """A run of the digits, learnt by the command."""
    folder = tmp_path_factory.mktemp("learnt")
    config = programs.write_config(folder / "c.py", sections())
    done = program("features", config, "--split=train", f"--out={folder / 'run'}")
    assert done.code == 0, done.err
    assert "features: 1,293 x 352 in " in done.out
    return folder / "run"


def accuracy(program, run, split="test"):
    done = program("evaluate", f"--workdir={run}", f"--split={split}")
    assert done.code == 0, done.err
    return float(done.out.split("accuracy")[1].split()[0].strip(" =:%,"))


@pytest.mark.full
def test_the_run_is_like_any_other(run, program):
    model = trained.of_run(run, trained.read_config(run))
    values = np.load(run / "features/train-features-mean-step1.npy")
    assert values.shape == (1293, 352) and np.isfinite(values).all()
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, rtol=1e-5)  # all digits have contrast
    found = represent.library.open(run).evaluate("test")
    assert found["accuracy"] > 0.93 and found["loss"] < 0.5
    assert model.step == 1 and set(model.variables) == {"params", "vocabulary"}


@pytest.mark.full
def test_probe_features_and_predict_read_it(run, program, tmp_path):
    done = program("probe", f"--workdir={run}", "--protocols=linear,knn", "--baselines=random")
    assert done.code == 0, done.err
    rows = json.loads((run / "probe.json").read_text())["results"]
    by = {(r["weights"], r["name"]): r["accuracy"] for r in rows}
    assert min(by["best 1", "linear"], by["best 1", "knn"]) > 0.92
    assert by["best 1", "knn"] > by["random weights", "knn"]  # random words and components
    import cv2

    source = sources.open_split("digits", "test")
    for i, example in enumerate(source.read(range(3))):
        cv2.imwrite(str(tmp_path / f"{i}.png"), example["image"])
    done = program("predict", f"--weights={run}", tmp_path, "--top=1")
    assert done.code == 0, done.err
    labels = [int(e["label"]) for e in source.read(range(3))]
    named = [line.split() for line in done.out.splitlines() if line.startswith("  ")]
    assert [int(words[-1]) for words in named] == labels and all(words[0].endswith("%") for words in named)


@pytest.mark.full
def test_the_same_command_finds_what_is_there_and_another_config_is_refused(run, program, tmp_path):
    before = (run / "config.json").stat().st_mtime_ns
    config = programs.write_config(tmp_path / "c.py", sections())
    done = program("features", config, "--split=test", f"--out={run}")
    assert done.code == 0 and "features: 360 x 352" in done.out, done.err
    assert (run / "config.json").stat().st_mtime_ns == before
    config = programs.write_config(tmp_path / "d.py", sections(model__words=9))
    done = program("features", config, f"--out={run}")
    assert done.code == 2 and "model.words: 8 -> 9" in done.err


@pytest.mark.full
def test_an_interrupted_learning_goes_on(run, program, tmp_path):
    """Whatever of it is there already, the same command ends with the same bits."""
    whole = trained.of_run(run, trained.read_config(run)).variables
    (tmp_path / "run").mkdir()
    shutil.copytree(run / "vocabulary", tmp_path / "run/vocabulary")
    (tmp_path / "run/vocabulary/mixture.safetensors").unlink()
    done = program("features", programs.write_config(tmp_path / "c.py", sections()), f"--out={tmp_path / 'run'}")
    assert done.code == 0, done.err
    again = trained.of_run(tmp_path / "run", trained.read_config(tmp_path / "run")).variables
    for name, x in whole["vocabulary"].items():
        np.testing.assert_array_equal(np.asarray(again["vocabulary"][name]), np.asarray(x), err_msg=name)


def test_what_was_learnt_otherwise_is_not_taken(run, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copytree(run / "vocabulary", tmp_path / "run/vocabulary")
    with pytest.raises(errors.BadRequest, match="learnt from something else"):
        represent.open_learnt(sections(learn__per_image=11), tmp_path / "run")


BAD = {
    "fewer descriptors than words": (
        dict(learn__images=2, learn__per_image=3),
        "6 descriptors are too few for 8 words",
    ),
    "too many components": (dict(model__components=200), "from 1 to 128 components"),
    "an unknown descriptor": (dict(model__descriptor=dict(name="sfit")), "unknown model.descriptor.name 'sfit'"),
    "an unknown key": (dict(model__descriptor=dict(name="phow", stp=2)), "unknown key model.descriptor.stp"),
    "an unknown encoder": (dict(model__encoder=dict(name="fischer")), "Did you mean 'fisher'"),
    "images that are too small": (dict(model__descriptor=dict(name="phow", sizes=[4])), "smaller than a descriptor"),
    "a bad pyramid": (dict(model__pyramid="2x"), "pyramid"),
    "an unknown plan": (dict(learn__image=3), "unknown key config.learn.image"),
    "no bag of words": (dict(model=dict(name="mlp")), "it takes bag_of_words"),
    "a key of training": (dict(epochs=3), "unknown key config.epochs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_configs_are_one_line(name, tmp_path):
    changes, text = BAD[name]
    with pytest.raises(errors.BadRequest, match=text) as caught:
        represent.open_learnt(sections(**changes), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_train_says_which_program_learns(program, tmp_path):
    done = program("train", programs.write_config(tmp_path / "c.py", sections()), f"--workdir={tmp_path}/run")
    assert done.code == 2 and "python -m recvis_jax.features --config=" in done.err and "--out=" in done.err


def test_describe_says_dimensions_and_cost(program, tmp_path):
    done = program("describe", programs.write_config(tmp_path / "c.py", sections()))
    assert done.code == 0, done.err
    assert "descriptors an image" in done.out and "4 of 128 numbers" in done.out
    assert "dimensions of the representation" in done.out and "352" in done.out and "MACs an image" in done.out
