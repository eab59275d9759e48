"""Adaptation layers end to end: trained on a frozen trunk's features of windows, they rank scenes by windows."""

import json

import jax.numpy as jnp
import numpy as np
import programs
import pytest
from sklearn.metrics import precision_recall_curve

from recvis_jax import trained
from recvis_jax.data import sources, windows

TRUNK = dict(name="lenet5", activation="relu")
OPTIM = dict(name="adamw", lr=3e-3, schedule="cosine", schedule_args={}, optimizer_args={})
SHARED = dict(batch_size=64, eval_batch_size=96, task={}, optim=OPTIM)
WINDOWS = dict(size=16, scales=(1.0, 2.0, 4.0), background=0.1)


def train(program, folder, name, **sections):
    config = {**SHARED, **sections}
    ended = program("train", programs.write_config(folder / f"{name}.py", config), f"--workdir={folder / name}")
    assert ended.code == 0, ended.err
    return folder / name


@pytest.fixture(scope="module")
def runs(program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaptation")
    data = dict(name="fashion_mnist", train="train[:75%]", val="train[75%:]", mock=200, transform="resize(16)")
    source = train(program, folder, "source", steps=2, data=data | {"eval_transform": "resize(16)"}, model=TRUNK)
    data = dict(name="fashion_scenes", train="train[:75%]", val="train[75%:]", mock=80, windows=WINDOWS)
    model = dict(name="probe", backbone=TRUNK, hidden=(32,))
    adapted = train(program, folder, "adapted", steps=250, data=data, model=model, init_from=str(source))
    return source, adapted


@pytest.mark.full
def test_only_the_new_layers_are_trained(runs):
    source, adapted = (programs.arrays(run, "last") for run in runs)
    trunk = {k.replace("['backbone']", ""): v for k, v in adapted.items() if "['params']['backbone']" in k}
    assert len(trunk) == 8, "weights and biases of conv1, conv2, fc1, fc2"
    for name, value in trunk.items():
        np.testing.assert_array_equal(value, source[name], err_msg=name)
    assert {k for k in adapted if "['params']['hidden0']" in k or "['params']['head']" in k}


@pytest.mark.full
def test_scenes_are_ranked_by_their_windows(runs, program):
    """The printed precisions are scikit-learn's of Σ_i y(C|P_i)^5 / M over the windows, each through the model."""
    _, adapted = runs
    ended = program("evaluate", f"--workdir={adapted}", "--windows=fashion_scenes", "--split=test", "--checkpoint=last")
    assert ended.code == 0, ended.err
    assert "80 images by 4,720 windows" in ended.out  # 1 + 3 * 3 + 7 * 7 of each
    found = json.loads((adapted / "summary.json").read_text())["evaluations"]["windows of fashion_scenes/test"]["last"]

    model = trained.of_run(adapted, trained.read_config(adapted), "last")
    images = sources.open_split("fashion_scenes", "test", mock=80).read(range(80))
    places = windows.grid(96, 96, WINDOWS["scales"])
    cut = np.stack([w for e in images for w in windows.cut(e["image"], places, 16)])
    batch = model.run.data.preprocess({"image": jnp.asarray(cut)})
    logits = np.asarray(model.run.task.predict(model.params, model.model_state, batch)["logits"], float)
    y = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = (y[:, :10] ** 5).reshape(80, -1, 10).mean(1)
    labels = np.stack([e["label"] for e in images])
    for k in range(10):
        if not labels[:, k].any():
            assert np.isnan(found["mean_average_precision_per_class"][k])
            continue
        # The 11 points of VOC on scikit-learn's curve: the best precision at a recall or beyond.
        precision, recall, _ = precision_recall_curve(labels[:, k], scores[:, k])
        precision, recall = precision[:-1], recall[:-1]  # the last point is none of the ranking's
        expected = np.mean([precision[recall >= r - 1e-9].max() for r in np.linspace(0, 1, 11)])
        assert found["mean_average_precision_per_class"][k] == pytest.approx(expected, abs=1e-5)
    assert found["mean_average_precision"] > 0.25, "one class an image in ten: chance is little above 0.1"


@pytest.mark.full
def test_what_does_not_fit_is_refused(runs, program, tmp_path):
    _, adapted = runs
    for flags, text in (
        (("--windows=fashion_scenes", "--metrics=accuracy"), "takes no --metrics"),
        (("--windows=digits",), "digits/test has one class per image"),
        (("--windows=fashion_scenes", "--split=vall"), "has no split 'vall'"),
        (("--windows=fashion_mnist", f"--data_dir={tmp_path}"), f"no data set 'fashion_mnist' in {tmp_path}"),
    ):
        ended = program("evaluate", f"--workdir={adapted}", *flags)
        assert ended.code == 2 and text in ended.err, ended.err
