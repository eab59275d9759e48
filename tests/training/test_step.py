"""One step, four ways of running it: the same numbers from each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import models, trees
from recvis_jax.data import augment, pipeline, sources
from recvis_jax.tasks import classify
from recvis_jax.training import distributed, optim, sharding, state, step

STEPS, BATCH = 5, 64
# Largest difference of any parameter, running statistic or average after 5 steps. Sums in another order differ by some
# 1e-7; a deep net with batch norm, whose early steps are chaotic, makes more of that, and its running variances most.
TOLERANCE = {"convnet": 2e-6, "linear": 2e-6, "resnet20": 1e-4, "vit_s16": 2e-6}

SMALL = {
    "resnet20": {"depth": 8, "width": 8},
    "vit_s16": {"patch_size": 7, "width": 32, "depth": 2, "heads": 4, "drop_path": 0.2},
}

WAYS = {
    "jit on 1": dict(devices=1),
    "jit on 8": dict(devices=8),
    "pmap on 8": dict(devices=8, compile="pmap"),
    "4 x accumulation": dict(devices=1, accumulate=4),
    "4 x accumulation, jit on 8": dict(devices=8, accumulate=4),
    "4 x accumulation, pmap on 8": dict(devices=8, accumulate=4, compile="pmap"),
    "fsdp on 8": dict(devices=8, layout=dict(strategy="fsdp")),
    "fsdp of 2 x data 4, 4 x accumulation": dict(devices=8, accumulate=4, layout=dict(strategy="fsdp", fsdp=2, data=4)),
    "tensor on 4": dict(devices=4, layout=dict(strategy="tensor")),
    "tensor of 2 x fsdp 2 x data 2": dict(devices=8, layout=dict(strategy="tensor", data=2, fsdp=2, model=2)),
}


def train(
    model_kw, devices, accumulate=1, compile="jit", spec="pad_crop(2)|flip", bn_groups=None, cache="device", layout=None
):
    """Parameters, model state and losses after five steps on mock images."""
    if bn_groups:
        model_kw = {**model_kw, "bn_groups": bn_groups // accumulate}
    source = sources.open_split("fashion_mnist", "train", mock=256)
    mesh = sharding.make_mesh(jax.devices()[:devices], **(layout or {}))
    task = classify(models.create(**model_kw), image_shape=(28, 28, 1), num_classes=10)
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    optimizer = optim.make_optimizer("momentum", params=shapes, total_steps=STEPS, lr=0.01, weight_decay=1e-4)
    operations = augment.parse(spec, 10)

    def prepare(key, batch):
        batch = operations(key, batch)
        return {**batch, "image": augment.normalise(batch["image"], "fashion_mnist")}

    begin = state.create_state(task, optimizer, 0, ema=True)
    shardings = sharding.make_layout(begin, mesh, (layout or {}).get("strategy", "replicate")).shardings
    fn = step.make_train_step(
        task, optimizer, augment=prepare, accumulate=accumulate, ema_decay=0.9, compile=compile, shardings=shardings
    )
    now = step.place_state(begin, shardings, compile)
    placement = (distributed.pmap_placement if compile == "pmap" else distributed.jit_placement)(mesh)
    data = pipeline.materialise(source)
    batches = pipeline.train_batches(
        placement.keep(data) if cache == "device" else data,
        source, batch_size=BATCH, seed=3, start=0, stop=STEPS, placement=placement,
    )  # fmt: skip
    losses = []
    for batch in batches:
        now, metrics = fn(now, batch)
        losses.append(float(np.ravel(metrics["loss"][0])[0]) / float(np.ravel(metrics["loss"][1])[0]))
    final = step.fetch_state(now, shardings, compile)
    return jax.device_get(final), losses


def difference(a, b):
    """Largest difference between two trees, relative for leaves whose largest entry is above 1."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max((float(np.abs(x - y).max() / max(1, np.abs(x).max())) for x, y in pairs), default=0.0)


# Batch norm under accumulation sees micro-batches; the large batch in four groups sees the same.
EXTRA = {"resnet20": {"bn_groups": 4}}


@functools.cache  # each model's first way is what all others are compared with
def trained(name, way):
    return train({"name": name, "num_classes": 10, **SMALL.get(name, {})}, **WAYS[way], **EXTRA.get(name, {}))


# Each way by a model with random layers; what batch norm and dropout may change by each kind of them.
PAIRS = [
    *(("vit_s16", way) for way in WAYS if way != "jit on 1"),
    *(("resnet20", way) for way in ("pmap on 8", "4 x accumulation", "4 x accumulation, pmap on 8", "fsdp on 8")),
    *(("convnet", way) for way in ("jit on 8", "pmap on 8", "4 x accumulation")),  # dropout
]


@pytest.mark.parametrize("name, way", PAIRS)
@pytest.mark.slow
def test_every_way_gives_the_same_parameters(name, way):
    expected, losses = trained(name, "jit on 1")
    found, same = trained.__wrapped__(name, way)
    assert difference(expected.params, found.params) < TOLERANCE[name]
    assert difference(expected.ema["params"], found.ema["params"]) < TOLERANCE[name]
    assert difference(expected.model_state, found.model_state) < 10 * TOLERANCE[name]
    np.testing.assert_allclose(losses, same, rtol=1e-4)


@pytest.mark.slow
def test_batch_norm_uses_the_whole_batch_under_jit_and_pmap():
    model = {"name": "resnet20", "num_classes": 10, "depth": 8, "width": 4}
    expected, _ = train(model, 1)
    for way in ({"devices": 8}, {"devices": 8, "compile": "pmap"}):
        found, _ = train(model, **way)
        assert difference(expected.params, found.params) < TOLERANCE["resnet20"]


@pytest.mark.full
@pytest.mark.parametrize("cache", ["host", "device"])
def test_mixing_and_erasing_do_not_depend_on_the_devices(cache):
    spec = "pad_crop(2)|flip|erase(0.5)|mixup(0.4)"
    expected, _ = train({"name": "linear", "num_classes": 10}, 1, spec=spec)
    for way in ({"devices": 8}, {"devices": 8, "compile": "pmap"}):
        found, _ = train({"name": "linear", "num_classes": 10}, **way, spec=spec, cache=cache)
        assert difference(expected.params, found.params) < TOLERANCE["linear"]


@pytest.mark.full
def test_padding_counts_for_nothing():
    task = classify(models.create("mlp", num_classes=10, hidden=(8,)), image_shape=(4, 4, 1), num_classes=10)
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    optimizer = optim.make_optimizer("sgd", params=shapes, total_steps=5, lr=0.1, schedule="constant")
    body = step.step_body(task, optimizer, augment=lambda _, b: b)
    rng = np.random.default_rng(0)
    image, label = rng.random((6, 4, 4, 1), np.float32), np.arange(6, dtype=np.int32)
    start = state.create_state(task, optimizer, 0)
    whole = {"image": image, "label": label, "mask": np.ones(6, bool), "slot": np.arange(6)}
    padded = pipeline.pad({**whole}, 8)
    padded["image"][6:], padded["label"][6:] = np.nan, 77
    (a, m), (b, n) = (body(start, jax.tree.map(jnp.asarray, batch)) for batch in (whole, padded))
    assert difference(a.params, b.params) < 1e-6
    np.testing.assert_allclose(m["loss"], n["loss"], rtol=1e-6)


@pytest.mark.full
def test_step_is_sgd_on_the_mean_gradient():
    """Against the formula for softmax regression: W - lr x^T (p - y) / b."""
    task = classify(models.create("linear", num_classes=3), image_shape=(2, 2, 1), num_classes=3)
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    optimizer = optim.make_optimizer("sgd", params=shapes, total_steps=5, lr=0.5, schedule="constant")
    body = step.step_body(task, optimizer, augment=lambda _, b: b)
    rng = np.random.default_rng(1)
    image, label = rng.random((4, 2, 2, 1), np.float32), np.array([0, 2, 1, 2], np.int32)
    start = state.create_state(task, optimizer, 0)
    (kernel,) = (v for k, v in trees.flatten(start.params).items() if k.endswith("kernel"))
    (bias,) = (v for k, v in trees.flatten(start.params).items() if k.endswith("bias"))
    batch = {"image": image, "label": label, "mask": np.ones(4, bool), "slot": np.arange(4)}
    new, _ = body(start, jax.tree.map(jnp.asarray, batch))
    x = image.reshape(4, 4)
    logits = x @ np.asarray(kernel) + np.asarray(bias)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = kernel - 0.5 * x.T @ (p - np.eye(3)[label]) / 4
    (found,) = (v for k, v in trees.flatten(new.params).items() if k.endswith("kernel"))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.full
def test_keys_differ_between_steps_and_streams():
    key = jax.random.key(0)
    drawn = {
        tuple(np.asarray(jax.random.key_data(step.stream(jax.random.fold_in(key, i), name))))
        for i in range(3)
        for name in ("augment", "dropout")
    }
    assert len(drawn) == 6
