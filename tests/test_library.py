"""The library's door: `docs/library.md` runs, its levels are the programs' code, messages say what would be right."""

import ast
import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import programs
import pytest

import recvis_jax as rv
from recvis_jax import build, errors
from recvis_jax.training.step import make_train_step, place_state

TEXT = (programs.ROOT / "docs/library.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def digits():
    """Images uint8 (1797 8 8), and labels."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    return (raw.images * (255 / 16)).astype(np.uint8), raw.target


@pytest.fixture(scope="module")
def data(digits):
    return rv.data.from_arrays(*digits, val=0.1, test=0.1)


def model(**kw):
    return rv.models.create("mlp", num_classes=10, hidden=(32,), **kw)


@pytest.fixture(scope="module")
def run(data):
    return rv.fit(model(), data, optax.adam(5e-3), steps=120, batch_size=64, progress=False)


def test_the_page_runs():
    names = {}
    for block in BLOCKS:
        exec(compile(block, "docs/library.md", "exec"), names)
    assert names["found"]["accuracy"] > 0.97
    assert names["gradient"].shape == (1, 8, 8, 1) and float(jnp.abs(names["gradient"]).max()) > 0
    assert names["batch"]["boxes"].shape == (8, 1, 4) and names["drawn"].shape[2] == 3
    assert names["boxed"].info.class_names == ("square",)
    assert len(BLOCKS) == 7


def test_the_example_is_short():
    statements = [s for s in ast.parse(BLOCKS[0]).body if not isinstance(s, ast.Import | ast.ImportFrom)]
    assert len(statements) <= 12
    assert not re.search(r"mesh|config|workdir|flags", BLOCKS[0])


def test_importing_is_light():
    """Under 0.3 s, which is no time for JAX; nothing but the package itself is loaded."""
    script = (
        "import sys, recvis_jax; print(sorted(m for m in sys.modules if m.split('.')[0] in ('jax', 'numpy', 'flax')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert {"fit", "open", "data", "models"} <= set(dir(rv))
    with pytest.raises(AttributeError, match=r"no attribute 'fti'; it has: fit, open"):
        _ = rv.fti


@pytest.mark.full
def test_what_was_learned(run, data, digits):
    images, labels = digits
    assert run.evaluate("test")["accuracy"] > 0.9 < run.evaluate()["accuracy"]
    predicted = run.predict(images[:300], batch_size=128)
    np.testing.assert_allclose(predicted.sum(1), 1, rtol=1e-5)
    assert (predicted.argmax(1) == labels[:300]).mean() > 0.9
    assert [r["split"] for r in run.history].count("val") >= 2
    losses = [r["loss"] for r in run.history if r["split"] == "train"]
    assert losses[-1] < losses[0] / 2
    assert run.layers == ("stem", "stage1/block1", "features", "logits")
    whole = run.features(data.val, "features")
    held = np.stack([e["image"] for e in data.val.read(range(data.val.length))])
    np.testing.assert_allclose(whole, run.features(held, "features"), rtol=1e-4, atol=1e-5)
    assert whole.shape == (data.val.length, 32) and "10 classes" in repr(run)


def test_features_are_the_models_own(run, digits):
    images = digits[0][:7]
    (mean,), (std,) = run.run.data.info.statistics
    x = (images[..., None] / 255 - mean) / std
    _, acts = run.run.model.apply(run.variables, jnp.asarray(x, jnp.float32), train=False)
    for layer in ("stage1/block1", "logits"):
        np.testing.assert_allclose(run.features(images, layer, batch_size=4), acts[layer], rtol=1e-3, atol=1e-4)
    logits = run.apply(images)[0]
    np.testing.assert_allclose(run.predict(images), jax.nn.softmax(logits), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(run.apply(images / 255.0)[0], logits, rtol=1e-4, atol=1e-4)


def test_it_is_the_loop_of_the_programs(data):
    """`fit` is the steps that a config's run makes, one by one."""
    found = rv.fit(model(), data, optax.sgd(0.1), steps=5, batch_size=64, seed=3, progress=False, eval_every=5)
    net = model()
    task = build.make_task(data, net)
    run = build.assemble(
        data, net, task, rv.training.optim.of_optax(optax.sgd(0.1)), total_steps=5, batch_size=64, seed=3
    )
    state = place_state(run.create(), run.shardings, "jit")
    step = make_train_step(task, run.optimizer, augment=data.augment, shardings=run.shardings)
    for batch in build.train_batches(run, 0):
        state, _ = step(state, batch)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.full
def test_one_device_gives_the_numbers_of_eight(tmp_path):
    """The same lines in processes of one and of eight devices."""
    script = """
import sys; sys.path.insert(0, "tests")
import numpy as np, optax, recvis_jax as rv
rng = np.random.default_rng(0)
images, labels = rng.integers(0, 256, (96, 6, 6), dtype=np.uint8), np.arange(96) % 3
data = rv.data.from_arrays(images, labels, val=32 / 96)
run = rv.fit(rv.models.create("mlp", num_classes=3, hidden=(8,)), data, optax.adam(1e-2), steps=6, batch_size=32)
task, tx = rv.task(run.run.model, data), optax.sgd(0.1)
state, step = rv.init(task, tx, data), rv.make_step(task, tx)
for batch in data.batches(32, steps=3):
    state, _ = step(state, batch)
kept = {"fit": run.params["head"]["kernel"], "loop": state.params["head"]["kernel"], "p": run.predict(images[:5])}
np.savez(sys.argv[1], **kept)
"""
    found = {}
    for devices in (1, 8):
        out = tmp_path / f"{devices}.npz"
        env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        done = subprocess.run(
            [sys.executable, "-c", script, str(out)], capture_output=True, text=True, env=env, cwd=programs.ROOT
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "WARNING" not in done.stderr and "Warning" not in done.stderr
        found[devices] = dict(np.load(out))
    for name in found[1]:
        np.testing.assert_allclose(found[1][name], found[8][name], atol=2e-6)


@pytest.mark.full
def test_a_run_is_saved_and_opened_without_its_data(run, data, digits, tmp_path, program):
    folder = run.save(tmp_path / "a run")
    again = rv.open(folder)
    np.testing.assert_array_equal(again.predict(digits[0][:9]), run.predict(digits[0][:9]))
    assert again.evaluate(data.test) == pytest.approx(run.evaluate(data.test))
    assert again.step == run.step and len(again.history) == len(run.history)
    with pytest.raises(errors.BadRequest, match="already holds a run"):
        run.save(folder)
    with pytest.raises(errors.BadRequest, match="opened from a run's record; to train, open the data set itself"):
        rv.fit(again.run.model, again.run.data, optax.sgd(0.1), steps=1)
    with pytest.raises(errors.BadRequest, match="no data set 'arrays'"):
        again.evaluate()
    import cv2

    cv2.imwrite(str(tmp_path / "digit.png"), digits[0][0])
    ended = program("predict", f"--weights={folder}", str(tmp_path / "digit.png"))
    assert ended.code == 0 and "class 0" in ended.out.splitlines()[2], ended.err


class Own(nn.Module):
    """A model that no table knows."""

    width: int = 8

    @nn.compact
    def __call__(self, x, *, train):
        hidden = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
        return nn.Dense(10)(hidden), {"hidden": hidden}


@pytest.mark.full
def test_a_model_of_ones_own(data, digits, tmp_path):
    run = rv.fit(Own(), data, optax.adam(1e-2), epochs=1, batch_size=64, progress=False)
    assert run.features(digits[0][:3], "hidden").shape == (3, 8)
    folder = run.save(tmp_path / "own")
    with pytest.raises(errors.BadRequest, match=r"model is one of its author's own: give it, as open\(folder, model="):
        rv.open(folder)
    again = rv.open(folder, model=Own())
    np.testing.assert_array_equal(again.predict(digits[0][:3]), run.predict(digits[0][:3]))
    with pytest.raises(errors.BadRequest, match="is intact, but its model or optimizer differs"):
        rv.open(folder, model=Own(width=9))


@pytest.mark.full
def test_a_run_of_the_program_is_opened(program, tmp_path):
    flag = programs.write_config(tmp_path / "c.py", dict(
        seed=0, steps=20, batch_size=64, eval_every=10, log_every=5, checkpoint_every=10,
        data=dict(name="digits", train="train[:90%]", val="train[90%:]", statistics="digits"),
        model=dict(name="mlp", hidden=(16,)), optim=dict(name="momentum", lr=0.05), task=dict(name="classify"),
    ))  # fmt: skip
    ended = program("train", flag, f"--workdir={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    run = rv.open(tmp_path / "run")
    (best,) = [r for r in run.history if r["split"] == "val" and r["step"] == run.step]
    assert run.evaluate("val")["accuracy"] == pytest.approx(best["accuracy"])
    assert run.evaluate("val")["loss"] == pytest.approx(best["loss"], rel=1e-5)
    assert rv.open(f"{tmp_path / 'run'}@last").step == 20 and run.classes == tuple("0123456789")


@pytest.mark.full
def test_numbers_and_several_labels():
    rng = np.random.default_rng(0)
    images = rng.random((64, 4, 4)).astype(np.float32)
    data = rv.data.from_arrays(images, images.mean((1, 2)), val=0.25, statistics="none")
    run = rv.fit(
        rv.models.create("linear", num_classes=1), data, optax.adam(3e-2), steps=800, batch_size=48, progress=False
    )
    found = run.evaluate(data.val)
    assert found["mean_absolute_error"] < 0.02 and run.predict(images[:3]).shape == (3, 1)
    several = np.stack([images[:, 0, 0] > 0.5, images[:, 1, 1] > 0.5], 1).astype(int)
    data = rv.data.from_arrays(images, several, val=0.25)
    run = rv.fit(
        rv.models.create("linear", num_classes=2), data, optax.adam(3e-2), steps=200, batch_size=48, progress=False
    )
    assert run.evaluate(data.train)["mean_average_precision"] > 0.95
    assert ((0 <= run.predict(images)) & (run.predict(images) <= 1)).all()


def test_a_net_starts_from_a_run_and_keeps_what_is_frozen(run, data, tmp_path):
    """With a decay of weights, which would move whatever the optimizer is given."""
    folder, kw = str(run.save(tmp_path / "source")), dict(steps=2, batch_size=64, progress=False)
    probe = rv.models.create("probe", backbone=model(), num_classes=10)
    probed = rv.fit(probe, data, optax.adamw(0.1, weight_decay=0.5), init_from=folder, **kw)
    kept, begun = ({k: v for k, v in p.items() if k != "head"} for p in (probed.params["backbone"], run.params))
    assert kept and jax.tree.all(jax.tree.map(np.array_equal, kept, begun))
    assert np.abs(probed.params["head"]["kernel"]).max() > 0.1
    tuned = rv.fit(model(), data, optax.sgd(0.0), init_from=folder, **kw)
    assert jax.tree.all(jax.tree.map(np.array_equal, tuned.params, run.params))


def test_texts_from_memory():
    pairs = [(f"{a} and {b}", f"{b.upper()} {a.upper()}") for a in ("on", "off", "up") for b in ("in", "out")]
    data = rv.data.from_texts(pairs * 4, test=[("yes", "YES")], text={"kind": "characters", "tokens": 300, "most": 16})
    known = data.info.vocabulary
    assert known.decode(data.train.read([3])[0]["target"]) == "OUT OFF"
    assert {*"onfupidat "} <= set(known.characters) and "y" not in known.characters and data.test.length == 1
    sizes = dict(width=8, heads=2, encoder_depth=1, decoder_depth=1, hidden=8)
    net = rv.models.create("transformer_base", vocabulary=known.size, **sizes)
    kw = dict(task=rv.task(net, data, "translate"), steps=1, batch_size=8, progress=False)
    found = rv.fit(net, data, optax.adam(1e-3), **kw).attended("on and in", "IN ON", head=1)
    assert list(found.maps) == ["layer 0, head 1"] and found.columns == [*"on␣and␣in", "<end>"]
    np.testing.assert_allclose(found.maps["layer 0, head 1"].sum(1), 1, rtol=1e-5)
    for wrong, says in ((["a b"], "pair 0: 'a b' is not a text and its translation"), ([], "no pairs of texts")):
        with pytest.raises(errors.BadRequest, match=says):
            rv.data.from_texts(wrong)


def test_what_is_visible_is_not_reconstructed(data, digits, run):
    sizes = dict(patch_size=2, width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)
    net = rv.models.create("mae_b16", mask_ratio=0.5, **sizes)
    kw = dict(task=rv.task(net, data, "mae"), steps=1, batch_size=64, progress=False)
    found = rv.fit(net, data, optax.adam(1e-3), **kw).reconstruct(digits[0][:4])
    np.testing.assert_allclose(found["original"][..., 0], digits[0][:4] / 255, atol=1e-5)
    same = np.isclose(found["reconstruction"], found["original"], atol=1e-5)
    patches = same.reshape(4, 4, 2, 4, 2).all((2, 4)).sum((1, 2))
    assert (patches >= 8).all() and not same.all()
    with pytest.raises(errors.BadRequest, match="MLP of this run reconstructs nothing: its task is not 'mae'"):
        run.reconstruct(digits[0][:1])


def test_batches_are_a_function_of_seed_and_number(data):
    whole = [np.asarray(b["image"]) for b in data.batches(64, steps=6, seed=2)]
    rest = [np.asarray(b["image"]) for b in data.batches(64, steps=2, start=4, seed=2)]
    np.testing.assert_array_equal(np.stack(whole[4:]), np.stack(rest))
    assert not np.array_equal(whole[0], np.asarray(next(data.batches(64, seed=3))["image"]))
    assert len(list(data.batches(64))) == round(data.train.length / 64)


arrays, fit, opened = rv.data.from_arrays, rv.fit, rv.data.open
SGD = optax.sgd(0.1)
# What is asked for, of images x, labels y, the data d and the run r; and what the message says.
WRONG = [
    (lambda x, y, d, r: arrays(x.astype(int), y), r"images are int64; give uint8 .*\(images.astype\(np.uint8\)\)"),
    (lambda x, y, d, r: arrays(x.astype(float), y), r"images are float32 from 0 to 255; give uint8"),
    (lambda x, y, d, r: arrays(x.reshape(-1, 64), y), r"images have shape \(1797, 64\); they must be \(n h w c\)"),
    (lambda x, y, d, r: arrays(x, y[:9]), r"labels have shape \(9,\) for 1797 images"),
    (lambda x, y, d, r: arrays(x, y.astype(str)), "labels are <U21; they must be integers"),
    (lambda x, y, d, r: arrays(x, y - 1), "labels reach down to -1"),
    (lambda x, y, d, r: arrays(x, y, val=3), "val is 3; it takes a share between 0 and 1"),
    (lambda x, y, d, r: arrays(x, y, class_names=("a", "b")), "labels reach 9, and class_names has 2 names"),
    (lambda x, y, d, r: arrays(x, y, vall=0.1), "unknown key from_arrays.vall. Did you mean 'val'"),
    (lambda x, y, d, r: arrays(x, y, augment="flop"), "^data.augment: unknown device operation 'flop'"),
    (lambda x, y, d, r: opened("fashion_mnits"), "no data set 'fashion_mnits'"),
    (lambda x, y, d, r: opened(3), "a data set is opened by name or folder, not by 3"),
    (lambda x, y, d, r: opened("digits", trian="train"), "unknown key data.trian. Did you mean 'train'"),
    (lambda x, y, d, r: fit(model(), d, 0.1, steps=1), "the optimizer is 0.1; give one of optax, such as optax.adam"),
    (lambda x, y, d, r: fit(model(), d, SGD), "give the length as either epochs or steps"),
    (lambda x, y, d, r: fit(model(), d, SGD, steps=-1), "steps is -1; it takes a positive number"),
    (lambda x, y, d, r: fit(model(), d, SGD, steps=1, batch_size=4000), "batch_size=4000 is larger than the 1437"),
    (lambda x, y, d, r: fit(model(), d, SGD, steps=1, batch_size=60), "batch_size=60 is not divisible by 8 device"),
    (lambda x, y, d, r: rv.models.create("lenet6"), "'lenet6'.* Did you mean 'lenet5'"),
    (lambda x, y, d, r: r.features(x[:2], "nope"), "no layer 'nope'. It has: stem, stage1/block1, features, logits"),
    (lambda x, y, d, r: r.predict(x[:2, :4]), r"images have shape \(2, 4, 8\); this model takes \(n, 8, 8, 1\)"),
    (lambda x, y, d, r: r.predict(x[:2].astype(int)), "images are int.*; give uint8 from 0 to 255"),
    (lambda x, y, d, r: rv.open("nowhere"), "nowhere is not the folder of a run: it has no config.json"),
]


@pytest.mark.parametrize("ask, says", WRONG, ids=[says[:30] for _, says in WRONG])
def test_messages_say_what_would_be_right(ask, says, data, run, digits):
    with pytest.raises(errors.BadRequest, match=says):
        ask(*digits, data, run)
