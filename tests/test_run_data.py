"""A run knows its data: it is opened without them, and notices that they changed."""

import json
import shutil

import cv2
import numpy as np
import programs
import pytest
import small
from safetensors.numpy import load_file

from recvis_jax import errors
from recvis_jax.data import data_info, opened


def paint(folder, classes, count=12):
    """Images of one colour a class."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            image = np.full((10, 10, 3), (40 + 150 * i, 120, 200 - 150 * i)) + rng.integers(-30, 30, (10, 10, 3))
            assert cv2.imwrite(str(folder / name / f"{k}.png"), image.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def fruit(program, tmp_path_factory):
    """A prepared folder of two classes, and a run on it: (root, flags of training)."""
    root = tmp_path_factory.mktemp("fruit")
    paint(root / "fruit", ("apple", "banana"))
    prepare(program, root)
    data = dict(
        name="fruit", train="train[:75%]", val="train[75%:]", test=None, transform="resize(8)",
        eval_transform="resize(8)", data_dir=str(root / "data"),
    )  # fmt: skip
    optim = dict(name="adam", lr=3e-3)
    model = dict(name="vit_ti16", patch_size=4, width=16, depth=1, heads=2)
    sections = small.sections(data=data, model=model, optim=optim, steps=40, batch_size=8, eval_batch_size=8)
    flags = (programs.write_config(root / "config.py", sections), f"--workdir={root / 'run'}")
    got = program("train", *flags)
    assert got.code == 0, got.err
    return root, flags


def prepare(program, root):
    got = program(
        "prepare", "--dataset=folder", f"--source={root / 'fruit'}", f"--data_dir={root / 'data'}", "--overwrite"
    )
    assert got.code == 0, got.err


@pytest.fixture
def changed(program, fruit):
    """Paints and prepares another data set of the same name; the first one is back afterwards."""
    root, _ = fruit
    (root / "data").rename(root / "first")
    (root / "fruit").rename(root / "pictures")
    (root / "data").mkdir()

    def make(classes, count=12):
        paint(root / "fruit", classes, count)
        prepare(program, root)

    yield make
    shutil.rmtree(root / "data")
    shutil.rmtree(root / "fruit", ignore_errors=True)
    (root / "first").rename(root / "data")
    (root / "pictures").rename(root / "fruit")


@pytest.mark.full
def test_a_run_predicts_without_its_data(program, fruit, changed):
    root, _ = fruit
    for name in ("apple", "banana"):
        got = program("predict", f"--weights={root / 'run'}", root / "pictures" / name / "0.png")
        assert got.code == 0, got.err
        assert got.out.splitlines()[2].split()[1] == name, got.out
    got = program("evaluate", f"--workdir={root / 'run'}", "--split=val")
    assert got.code == 2 and "no data set 'fruit'" in got.err, "what reads a split needs the data"


@pytest.mark.full
def test_features_of_images_need_no_data(program, fruit, changed, tmp_path):
    root, _ = fruit
    pictures = [root / "pictures" / "banana" / "3.png", root / "pictures" / "apple"]
    flags = (f"--workdir={root / 'run'}", "--layers=features,pixels", f"--out={tmp_path / 'x.npz'}")
    got = program("features", *flags, *pictures)
    assert got.code == 0, got.err
    found = np.load(tmp_path / "x.npz")
    assert found["features"].shape == (13, 16) and found["pixels"].shape == (13, 8 * 8 * 3)
    paths = [str(pictures[0]), *sorted(str(p) for p in pictures[1].iterdir())]
    assert found["paths"].tolist() == paths
    image = cv2.resize(cv2.imread(paths[0])[..., ::-1], (8, 8), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(found["pixels"][0], image.ravel() / 255.0, atol=1e-6)
    got = program("features", *flags, *pictures)
    assert got.code == 2 and "--overwrite" in got.err


@pytest.mark.full
def test_a_run_is_exported_without_its_data(program, fruit, changed):
    root, _ = fruit
    flags = (f"--weights={root / 'run'}@last", f"--out={root / 'vit.safetensors'}")
    got = program("export", *flags)
    assert got.code == 2 and "name one of timm" in got.err
    assert program("export", *flags, "--library=timm").code == 0
    found = load_file(root / "vit.safetensors")
    kept = programs.arrays(root / "run", "last")
    average = next(x for name, x in kept.items() if "ema" in name and "['head']['kernel']" in name)
    np.testing.assert_array_equal(found["head.weight"], average.T)
    got = program("export", *flags, "--library=timm")
    assert got.code == 2 and "--overwrite" in got.err


@pytest.mark.full
def test_names_of_the_time_of_training_count(program, fruit, changed):
    root, _ = fruit
    changed(("cherry", "banana"))  # sorted, banana is now the first
    got = program("predict", f"--weights={root / 'run'}", root / "pictures" / "apple" / "0.png")
    assert got.out.splitlines()[2].split()[1] == "apple"
    got = program("evaluate", f"--workdir={root / 'run'}", "--split=val")
    assert got.code == 2 and "no longer there: apple; new: cherry" in got.err


@pytest.mark.full
def test_data_that_grew_are_not_taken_in_silence(program, fruit, changed):
    root, flags = fruit
    changed(("apple", "banana"), count=16)
    got = program("train", *flags)
    assert got.code == 2 and "train (train[:75%]) had 18 examples, now 24" in got.err
    got = program("features", f"--workdir={root / 'run'}", "--split=train", "--layers=features")
    assert got.code == 2 and "had 18 examples, now 24" in got.err
    assert programs.steps(root / "run", "last"), "nothing is lost"


def test_the_same_pictures_prepared_elsewhere_are_the_same_data(program, fruit, changed):
    root, _ = fruit
    changed(("apple", "banana"))
    got = program("evaluate", f"--workdir={root / 'run'}", "--split=val")
    assert got.code == 0, got.err


DAMAGE = {
    "class_names": (["apple"], "1 names for 2 classes"),
    "num_classes": (-2, "2 names for -2 classes"),
    "image_shape": ([8, 8], "image_shape"),
    "multi_label": (0, "multi_label"),
    "statistics": (None, "statistics"),
    "fields": ([{"name": "image"}], "fields"),
    "splits": ({"train": {"split": "train", "examples": 0, "digest": ""}}, "splits.train.examples is 0"),
}


@pytest.mark.parametrize("key", DAMAGE)
def test_a_damaged_record_names_file_and_key(key, tmp_path):
    splits = {"train": data_info.Split("train", 5, "x")}
    good = data_info.DataInfo("fruit", 2, ("apple", "banana"), False, (8, 8, 3), "", "none", splits)
    path = tmp_path / data_info.FILE
    path.write_text(json.dumps(data_info.as_json(good)))
    assert data_info.read(tmp_path) == (good, tmp_path)
    value, says = DAMAGE[key]
    path.write_text(json.dumps(data_info.as_json(good) | {key: value}))
    with pytest.raises(errors.BadRequest) as e:
        data_info.read(tmp_path)
    assert str(path) in str(e.value) and says in str(e.value)
    path.write_text(json.dumps({k: v for k, v in data_info.as_json(good).items() if k != key}))
    if key == "fields":  # runs of earlier versions have none
        assert data_info.read(tmp_path).info.fields == ()
        return
    with pytest.raises(errors.BadRequest, match=f"has no '{key}'"):
        data_info.read(tmp_path)


WRONG = (
    ("statistics", [1]), ("statistics", "no such"), ("statistics", [[0.5, 0.5], [1, 1]]),
    ("statistics", [[0.5], ["a"]]), ("buckets", {"words": [8]}), ("buckets", {"words": [[8]]}),
)  # fmt: skip


def test_a_damaged_config_is_refused_though_the_record_is_used(tmp_path):
    splits = {"train": data_info.Split("train", 5, "x")}
    info = data_info.DataInfo("fruit", 2, ("apple", "banana"), False, (8, 8, 3), "", "none", splits)
    recorded = data_info.Recorded(info, tmp_path)
    for key, value in WRONG:
        with pytest.raises(errors.BadRequest, match=key):
            opened.open_data(name="fruit", recorded=recorded, **{key: value})
