"""Features and probes of trained models: what is written, reused and refused; and that a probe changes nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
import small
from sklearn.linear_model import LogisticRegression

from recvis_jax import build, errors, trained, trees
from recvis_jax.evaluation import features, probes
from recvis_jax.models.layer_head import POOLS, pooled

MODEL = small.SECTIONS["model"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, program):
    """A short run of a small net with batch norm and dropout, on digits."""
    folder = tmp_path_factory.mktemp("run")
    config = programs.write_config(folder / "config.py", small.sections())
    done = program("train", config, f"--workdir={folder}/run")
    assert done.code == 0, done.err
    return folder / "run"


@pytest.mark.full
def test_features_are_what_the_model_computes_one_image_at_a_time(run, program):
    done = program("features", f"--workdir={run}", "--split=val", "--layers=features,stage1/block1")
    assert done.code == 0, done.err
    model = trained.of_run(run, trained.read_config(run))
    source = trained.open_named(model.run.data, "validation")
    for layer in ("features", "stage1/block1"):
        path = features.path_of(run, "val", layer, "mean", f"step{model.step}")
        found, labels = np.load(path, mmap_mode="r"), np.load(path.with_suffix(".labels.npy"))
        assert isinstance(found, np.memmap) and found.dtype == np.float32 and len(found) == source.length
        for i in (0, 1, source.length - 1):
            example = source.read([i])[0]
            image = model.run.data.preprocess({"image": jnp.asarray(example["image"][None])})["image"]
            act = model.run.model.apply(model.variables, image, train=False)[1][layer]
            expected = np.asarray(act[0])
            np.testing.assert_allclose(found[i], expected, rtol=2e-4, atol=2e-5)
            assert labels[i] == example["label"]
    origin = json.loads(path.with_suffix(".json").read_text())
    assert origin["weights"]["step"] == model.step and origin["data"]["examples"] == source.length


@pytest.mark.full
def test_what_is_there_is_not_overwritten_and_what_is_stale_is_refused(run, program):
    args = ("features", f"--workdir={run}", "--split=train[:40]", "--layers=stem")
    assert program(*args).code == 0
    again = program(*args)
    assert again.code == 2 and "--overwrite" in again.err
    assert program(*args, "--overwrite").code == 0
    model = trained.of_run(run, trained.read_config(run))
    source = trained.open_named(model.run.data, "train[:40]")
    kept = trained.write_features(model, run, source, "train[:40]", ["stem"], "mean", reuse=True)
    assert kept["stem"].values.shape == (40, 64)
    other = model._replace(params=jax.tree.map(lambda x: x + 1e-6, model.params))
    with pytest.raises(errors.BadRequest, match=r"stale \(weights.checksum"):
        trained.write_features(other, run, source, "train[:40]", ["stem"], "mean", reuse=True)
    changed = source._replace(digest="other")
    with pytest.raises(errors.BadRequest, match=r"stale \(data.hash"):
        trained.write_features(model, run, changed, "train[:40]", ["stem"], "mean", reuse=True)


@pytest.mark.full
def test_the_table_of_probes_is_right(run, program):
    done = program(
        "probe", f"--workdir={run}", "--protocols=linear,knn", "--baselines=random,pixels", "--per_class=0,10"
    )
    assert done.code == 0, done.err
    assert "| features (random weights)" in done.out and "| pixels" in done.out
    assert "100 labels" in done.out and "±" in done.out
    results = json.loads((run / "probe.json").read_text())["results"]
    linear = next(r for r in results if r["layer"] == "pixels" and r["name"] == "linear" and not r["per_class"])
    model = trained.of_run(run, trained.read_config(run))
    sets = {}
    for split in ("train", "val", "test"):
        source = trained.open_named(model.run.data, split)
        examples = source.read(np.arange(source.length))
        sets[split] = np.stack([e["image"].reshape(-1) for e in examples]) / 255.0, [e["label"] for e in examples]
    x, y = (np.concatenate([sets["train"][i], sets["val"][i]]) for i in (0, 1))
    std = x.std(0)
    x, test = ((v - x.mean(0)) / np.where(std > 0, std, np.inf) for v in (x, sets["test"][0]))
    reference = LogisticRegression(C=1 / (linear["details"]["l2"] * len(x)), max_iter=5000, tol=1e-6).fit(x, y)
    assert linear["accuracy"] == pytest.approx(reference.score(test, sets["test"][1]), abs=0.006)
    few = [r for r in results if r["per_class"] == 10 and r["layer"] == "pixels" and r["name"] == "knn"]
    assert [r["seed"] for r in few] == [0, 1, 2] and len({r["accuracy"] for r in few}) > 1


@pytest.mark.full
def test_what_is_reported_is_unseen_and_named_by_one_flag(run, program, tmp_path):
    """The validation split, when it is reported on, chooses nothing; nor do training examples report."""
    args = ("probe", f"--workdir={run}", "--protocols=knn")
    done = program(*args, "--split=validation")
    assert done.code == 0, done.err
    assert "validation accuracy" in done.out and "a tenth of the training examples" in done.out
    found = json.loads((run / "probe-val.json").read_text())
    assert found["split"] == "val" and found["splits"].keys() == {"train", "val"}
    done = program(*args, "--splits=train[:30%],train[30%:40%]", f"--out={tmp_path}", "--protocols=linear")
    assert done.code == 0 and "there is no test split: the validation split is taken." in done.out, done.err
    for flag, text in (
        ("--split=train", "shares 1,293 examples with the training split"),
        ("--split=tset", "digits has no split 'tset'; its splits: train, test"),
        ("--per_class=5,5000", "training examples; 5000 of each class cannot be drawn"),
        ("--protocols=kmm", "unknown protocol 'kmm'"),
        ("--protocols=", "--protocols is empty"),
        ("--layers=features,", "--layers is empty"),
        ("--splits=train", "--splits takes two or three"),
        ("--classes=3", "probes need at least two classes"),
    ):
        ended = program(*args, flag)
        assert ended.code == 2 and text in ended.err and ended.err.count("\n") == 1, ended


def test_splits_are_named_alike_everywhere():
    data = dict(name="digits", train="train[:90%]", val="train[90%:]", test="test", eval_transform="", cache="none")
    said = []
    both, val, alone = (build.open_data(**{**data, **c}) for c in ({}, {"test": None}, {"test": None, "val": None}))
    assert trained.default_split(both, said.append) == "test" and not said
    assert trained.default_split(val, said.append) == "val" and "validation split is taken" in said[0]
    with pytest.raises(errors.BadRequest, match="neither a test nor a validation split"):
        trained.default_split(alone)
    assert trained.open_named(val, "validation").name == trained.open_named(val, "val").name == "digits/train[90%:]"
    assert trained.open_named(val, "train[:7]").length == 7
    with pytest.raises(errors.BadRequest, match=r"the run has no test split, only train, val; --split also takes"):
        trained.open_named(val, "test")
    assert trained.canonical("validation") == "val" and trained.canonical("validation[:9]") == "validation[:9]"


def test_a_tenth_of_each_class_is_held_out():
    labels = np.repeat(np.arange(4), (40, 15, 9, 0))  # in the order of their classes
    x = np.arange(len(labels), dtype=np.float32)[:, None]
    fit, chosen_on = probes.hold_out(probes.Set(x, labels), 4)
    np.testing.assert_array_equal(np.bincount(chosen_on.labels, minlength=4), [4, 1, 0, 0])
    np.testing.assert_array_equal(np.sort(np.concatenate([fit.values, chosen_on.values]), axis=0), x)
    assert (labels[chosen_on.values[:, 0].astype(int)] == chosen_on.labels).all()
    again = probes.hold_out(probes.Set(x, labels), 4)[1]
    np.testing.assert_array_equal(again.values, chosen_on.values)
    few = np.array([0, 0, 1, 1, 2])
    np.testing.assert_array_equal(probes.hold_out(probes.Set(x[:5], few), 3)[1].labels, [0, 1])
    with pytest.raises(errors.BadRequest, match="no class has two"):
        probes.hold_out(probes.Set(x[:3], np.arange(3)), 3)


def test_too_few_examples_are_said_by_the_name_of_the_class():
    labels = np.array([0, 0, 1, 1, 1])
    for protocols, per_class, text in (
        (["linear"], 3, "class 'ä' has 2 training examples; 3 of each class cannot be drawn"),
        (["knn", "nope"], 0, "unknown protocol 'nope'"),
    ):
        with pytest.raises(errors.BadRequest, match=text):
            probes.check(protocols, labels, ("ä", "b"), 2, per_class)
    without = r"class 'c\\\\x1b' has no training example, .*; linear,knn,svm,kernel_svm,forest do not"
    with pytest.raises(errors.BadRequest, match=without):
        probes.check(["fewshot"], labels, ("a", "b", "c\x1b"), 3)
    probes.check(["linear", "knn"], labels, ("a", "b", "c"), 3)
    with pytest.raises(errors.BadRequest, match="need at least two classes"):
        probes.check(["knn"], labels.astype(float), (), 2)


@pytest.mark.full
@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_probes_of_constant_features_and_absent_classes(protocol):
    told = []
    sets = [probes.Set(np.ones((6, 3), np.float32), np.array([0, 1] * 3))] * 3
    (found,) = probes.run([protocol, protocol], *sets, num_classes=3, say=lambda *how_far: told.append(how_far))
    assert found.score == 0.5
    assert told[0][:2] == (protocol, 0) and told[-1][1] == told[-1][2]


def test_pooling_by_hand():
    acts = {"tokens": jnp.arange(24.0).reshape(2, 3, 4), "maps": jnp.arange(16.0).reshape(1, 2, 2, 4)}
    x = np.arange(24.0).reshape(2, 3, 4)
    expected = {
        "mean": x.mean(1), "max": x.max(1), "first": x[:, 0], "rest": x[:, 1:].mean(1), "flatten": x.reshape(2, 12),
        "first_rest": np.concatenate([x[:, 0], x[:, 1:].mean(1)], 1),
    }  # fmt: skip
    assert expected.keys() == POOLS.keys()
    for pool, value in expected.items():
        np.testing.assert_allclose(pooled(acts, "tokens", pool), value)
    np.testing.assert_allclose(pooled(acts, "maps"), [[6, 7, 8, 9]])
    np.testing.assert_allclose(pooled({"x": jnp.ones((2, 3))}, "x", "flatten"), np.ones((2, 3)))
    np.testing.assert_allclose(pooled({"x": jnp.arange(2)}, "x"), [[0], [1]])  # integers, one an image
    with pytest.raises(errors.BadRequest, match="Did you mean 'first_rest'"):
        pooled(acts, "tokens", "firstrest")


def test_a_wrong_layer_is_answered_with_all(run, program):
    done = program("probe", f"--workdir={run}", "--layers=stage1/blok2")
    assert done.code == 2
    assert "Did you mean 'stage1/block2'?" in done.err and "logits" in done.err


@pytest.mark.full
@pytest.mark.parametrize("ema", [None, 0.9])
def test_training_a_probe_leaves_every_byte_of_the_backbone(run, tmp_path, ema):
    config = small.sections(
        steps=5, ema_decay=ema, init_from=str(run), model=dict(name="probe", backbone=MODEL),
        optim=dict(name="adamw", lr=0.1, weight_decay=0.5, decay=None, schedule="constant"),
    )  # fmt: skip
    from recvis_jax.train import train

    train(workdir=str(tmp_path / "probe"), config=config, **config)
    before = trained.of_run(run, trained.read_config(run)).variables
    probe = trained.of_run(tmp_path / "probe", config, "last")
    assert probe.step == 5
    after = {kind: tree["backbone"] for kind, tree in probe.variables.items()}
    flat = trees.flatten(before)
    for name, x in trees.flatten(after).items():
        np.testing.assert_array_equal(np.asarray(x), np.asarray(flat[name]), err_msg=name)
    assert set(flat) - set(trees.flatten(after)) == {"params/head/kernel", "params/head/bias"}
    fresh = trained.of_run(tmp_path / "probe", config, "random").variables
    for name in ("params/head/kernel", "batch_stats/norm/mean"):  # and trains what is its own
        assert (np.asarray(trees.flatten(probe.variables)[name]) != np.asarray(trees.flatten(fresh)[name])).any()


def test_a_probe_on_the_whole_layer_is_the_head_of_the_model(run):
    """With the identity as norm and the run's own head, a probe computes the run's logits."""
    model = trained.of_run(run, trained.read_config(run))
    image = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    logits, _ = model.run.model.apply(model.variables, image, train=False)
    section = dict(name="probe", backbone=MODEL, norm=False)
    probe = build.make_model(model.run.data, **section)
    params = dict(model.params)
    head = params.pop("head")
    variables = {
        "params": {"backbone": params, "head": head},
        "batch_stats": {"backbone": model.model_state["batch_stats"]},
    }
    for train in (False, True):
        out, _ = probe.apply(variables, image, train=train)
        np.testing.assert_allclose(out, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_probes_during_training_and_on_published_weights(run, program, tmp_path):
    sections = small.sections(steps=20, eval_every=10, probe=dict(every=20, protocols=["knn"], layer="stage1/block1"))
    done = program("train", programs.write_config(tmp_path / "a.py", sections), f"--workdir={tmp_path}/run")
    assert done.code == 0, done.err
    found = [r for r in programs.records(tmp_path / "run") if r["split"] == "val"]
    assert {r["step"]: "probe_knn" in r for r in found} == {10: False, 20: True}
    assert 0.5 < found[-1]["probe_knn"] <= 1

    sections = small.sections(init_from=str(run))
    config = programs.write_config(tmp_path / "b.py", sections)
    assert program("probe", config, f"--out={tmp_path}/out", "--protocols=knn").code == 0
    assert program("probe", f"--workdir={run}", f"--out={tmp_path}/out2", "--protocols=knn").code == 0
    a, b = (json.loads((tmp_path / d / "probe.json").read_text())["results"][0]["accuracy"] for d in ("out", "out2"))
    assert a == b


@pytest.mark.full
def test_images_of_several_classes_get_a_mean_average_precision(program, tmp_path):
    """Of pixels, which no run is needed for: --checkpoint=random."""
    data = dict(name="fashion_scenes", mock=60, train="train[:80%]", val="train[80%:]", test="test")
    sections = dict(data=data, model=dict(name="linear"), task=dict(name="classify"), steps=1, eval_batch_size=30)
    sections |= dict(optim=dict(name="sgd", lr=0.1))
    config = programs.write_config(tmp_path / "config.py", sections)
    args = ("probe", config, "--checkpoint=random", "--layers=pixels", f"--out={tmp_path}/out")
    done = program(*args, "--protocols=linear,svm")
    assert done.code == 0, done.err
    assert "| test mean average precision, 48 images | linear" in done.out, done.out
    results = json.loads((tmp_path / "out/probe.json").read_text())["results"]
    assert [r["name"] for r in results] == ["linear", "svm"]
    assert all(0 < r["mean_average_precision"] <= 1 and "accuracy" not in r for r in results)
    for flags, text in (
        (("--protocols=knn,svm",), "knn needs one class per image; linear, svm allow several"),
        (("--protocols=svm", "--per_class=5"), "examples per class can only be drawn if an image has one class"),
    ):
        ended = program(*args, *flags)
        assert ended.code == 2 and text in ended.err and ended.err.count("\n") == 1, ended
