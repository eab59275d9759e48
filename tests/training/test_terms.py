"""Losses of several terms, each divided by what it counts: the same parameters however the batch is cut."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import programs
import pytest
from flax import linen as nn

from recvis_jax import errors
from recvis_jax.data import pipeline
from recvis_jax.data.fields import Field
from recvis_jax.data.sources import Source
from recvis_jax.evaluation import metrics
from recvis_jax.tasks import Task
from recvis_jax.tasks.applying import apply_train
from recvis_jax.training import distributed, sharding, state, step

WORDS = Field("words", "tokens", (None,), "int32", most=12, padding=-1)
BOXES = Field("boxes", "boxes", (None, 4), "float32", most=6)
STEPS, BATCH, LENGTH = 6, 32, 64


def source():
    """Sentences of 1 to 12 words beside 0 to 6 boxes, in no proportion to each other."""
    rng = np.random.default_rng(0)
    words = [rng.integers(0, 20, rng.integers(1, 13)) for _ in range(LENGTH)]
    boxes = [rng.random((rng.integers(0, 7), 4)).astype(np.float32) for _ in range(LENGTH)]
    return Source(
        "made up", LENGTH, lambda ix: [{"words": words[i], "boxes": boxes[i]} for i in ix], (0, 0, 0), 0, (),
        (("train", 0, LENGTH),), declared=(WORDS, BOXES),
    )  # fmt: skip


class Toy(nn.Module):
    """Predicts every word from the one before it, and every box's last corner from its first."""

    @nn.compact
    def __call__(self, batch, *, train):
        x = nn.Embed(21, 8, name="embed")(jnp.maximum(batch["words"], 0))
        words = nn.Dense(20, name="words")(jnp.tanh(x))
        corner = nn.Dense(2, name="boxes")(jnp.tanh(nn.Dense(8, name="corner")(batch["boxes"][..., :2])))
        return words, {"corner": corner}


def toy(weight=0.5):
    model = Toy()

    def init(key):
        return dict(
            model.init(key, {"words": jnp.zeros((1, 12), jnp.int32), "boxes": jnp.zeros((1, 6, 4))}, train=False)
        )

    def counts(batch):
        return {"words": batch["words_mask"][:, 1:].sum(1), "boxes": batch["boxes_mask"].sum(1)}

    def loss(params, model_state, batch, key):
        words, acts, new = apply_train(model, params, model_state, batch, key, inputs=batch)
        nats = optax.softmax_cross_entropy_with_integer_labels(words[:, :-1], jnp.maximum(batch["words"][:, 1:], 0))
        error = jnp.square(acts["corner"] - batch["boxes"][..., 2:]).sum(-1)
        terms = {
            "words": jnp.where(batch["words_mask"][:, 1:], nats, 0).sum(1),
            "boxes": jnp.where(batch["boxes_mask"], error, 0).sum(1),
        }
        right = (words[:, :-1].argmax(-1) == batch["words"][:, 1:]) & batch["words_mask"][:, 1:]
        return terms, new, {"right": (right.sum(1), batch["words_mask"][:, 1:].sum(1))}

    def predict(params, model_state, batch):
        terms = loss(params, model_state, batch, jax.random.key(0))[0]
        return {"terms": terms, "counts": counts(batch)}

    weights = {"boxes": weight}
    measured = {"loss": metrics.terms(weights)}
    return Task(init, loss, predict, measured, ("loss", "min"), counts=counts, weights=weights)


class SGD(NamedTuple):
    """Plain gradient descent, so that parameters show the gradient."""

    init: Any = optax.sgd(0.5).init
    update: Any = optax.sgd(0.5).update
    schedule: Any = lambda step: 0.5


WAYS = {
    "jit on 8": dict(devices=8),
    "pmap on 8": dict(devices=8, compile="pmap"),
    "accumulate=4": dict(devices=1, accumulate=4),
    "accumulate=4, pmap on 8": dict(devices=8, compile="pmap", accumulate=4),
    "fsdp on 8": dict(devices=8, layout=dict(strategy="fsdp")),
}


def train(task=None, devices=1, compile="jit", accumulate=1, layout=None, cache="none"):
    task = task or toy()
    mesh = sharding.make_mesh(jax.devices()[:devices], **(layout or {}))
    begin = state.create_state(task, SGD(), 0)
    shardings = sharding.make_layout(begin, mesh, (layout or {}).get("strategy", "replicate")).shardings
    fn = step.make_train_step(
        task, SGD(), augment=lambda key, b: b, accumulate=accumulate, compile=compile, shardings=shardings
    )
    placement = (distributed.pmap_placement if compile == "pmap" else distributed.jit_placement)(mesh)
    now, data = step.place_state(begin, shardings, compile), source()
    kept = placement.keep(pipeline.materialise(data)) if cache == "device" else data
    for batch in pipeline.train_batches(
        kept, data, batch_size=BATCH, seed=1, start=0, stop=STEPS, placement=placement, threads=1
    ):
        now, found = fn(now, batch)
    one = jax.tree.map(lambda x: np.ravel(x.addressable_data(0))[0], found)
    return jax.device_get(step.fetch_state(now, shardings, compile).params), one


def difference(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def alone():
    return train()


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_parameters(alone, way):
    params, found = train(**WAYS[way], cache="device" if "accumulate" in way else "none")
    assert difference(params, alone[0]) < 1e-5
    for name in ("words", "boxes", "right"):
        np.testing.assert_allclose(found[name], alone[1][name], rtol=1e-5)
    np.testing.assert_allclose(found["loss"][0], alone[1]["loss"][0], rtol=1e-5)


@pytest.mark.full
def test_two_processes_give_the_same_parameters(alone, tmp_path):
    script = (
        "import sys, json; sys.path.insert(0, 'tests'); sys.path.insert(0, 'tests/training')\n"
        "from recvis_jax.training import processes\n"
        "at, count, index = (flag.partition('=')[2] for flag in sys.argv[1:4])\n"
        "processes.start(at, int(count), int(index))\n"
        "import jax, test_terms\n"
        "params, _ = test_terms.train(devices=len(jax.devices()))\n"
        "print('found', json.dumps(jax.tree.map(lambda x: x.tolist(), params)))\n"
    )
    for process in programs.start_together(2, 2, "-c", script):
        text = programs.finish(process)
        found = json.loads(next(line for line in text.splitlines() if line.startswith("found"))[6:])
        expected = jax.tree.map(lambda x: x.tolist(), alone[0])
        assert (
            difference(
                jax.tree.map(np.asarray, found, is_leaf=lambda x: isinstance(x, list)),
                jax.tree.map(np.asarray, expected, is_leaf=lambda x: isinstance(x, list)),
            )
            < 1e-5
        )


def test_a_mean_of_means_would_be_another_training(alone):
    """Each of 8 devices dividing by its own words and boxes, and the mean of their gradients: what this is not."""
    task, data = toy(), source()
    params = state.create_state(task, SGD(), 0).params
    placement = distributed.jit_placement(sharding.make_mesh(jax.devices()[:1]))

    def mean_loss(params, part):
        terms, counts = task.loss(params, {}, part, jax.random.key(0))[0], task.counts(part)
        return sum(task.weights.get(t, 1) * terms[t].sum() / jnp.maximum(counts[t].sum(), 1) for t in terms)

    @jax.jit
    def update(params, batch):
        parts = jax.tree.map(lambda x: x.reshape(8, 4, *x.shape[1:]), batch)
        grads = jax.vmap(jax.grad(mean_loss), (None, 0))(params, parts)
        return jax.tree.map(lambda p, g: p - 0.5 * g.mean(0), params, grads)

    for batch in pipeline.train_batches(data, data, batch_size=BATCH, seed=1, start=0, stop=STEPS, placement=placement):
        params = update(params, batch)
    assert difference(params, alone[0]) > 1e-2


@pytest.mark.full
def test_the_gradient_is_that_of_the_formula():
    """One step against sum_t w_t S_t / N_t, written down over the whole batch."""
    task, data = toy(weight=2.0), source()
    placement = distributed.jit_placement(sharding.make_mesh(jax.devices()[:1]))
    batch = next(pipeline.train_batches(data, data, batch_size=BATCH, seed=1, start=0, stop=1, placement=placement))
    begin = state.create_state(task, SGD(), 0)
    new, found = jax.jit(step.step_body(task, SGD(), augment=lambda key, b: b))(begin, batch)

    def loss(params):
        terms = task.loss(params, {}, batch, jax.random.key(0))[0]
        words, boxes = batch["words_mask"][:, 1:].sum(), batch["boxes_mask"].sum()
        return terms["words"].sum() / words + 2.0 * terms["boxes"].sum() / boxes

    value, grads = jax.value_and_grad(loss)(begin.params)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, begin.params, grads)
    assert difference(new.params, expected) < 1e-6
    np.testing.assert_allclose(found["loss"][0] / found["loss"][1], value, rtol=1e-6)


def test_evaluation_divides_over_the_whole_split():
    task, data = toy(weight=2.0), source()
    params = task.init(jax.random.key(0))["params"]
    placement = distributed.jit_placement(sharding.make_mesh(jax.devices()[:1]))
    loss, totals = task.metrics["loss"], {"words": [0.0, 0.0], "boxes": [0.0, 0.0]}
    values = []
    for size in (64, 24):  # 24 does not divide 64: padding
        batches = pipeline.EvalBatches(data, batch_size=size, placement=placement, threads=1)
        update = jax.jit(lambda b: {"loss": loss.update(task.predict(params, {}, b), b)})
        states = map(update, batches)
        values.append(metrics.accumulate({"loss": loss}, states))
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    whole = pipeline.stack(data.read(np.arange(LENGTH)), data)
    terms = task.loss(params, {}, {**whole, "slot": jnp.arange(LENGTH)}, jax.random.key(0))[0]
    totals = {"words": whole["words_mask"][:, 1:].sum(), "boxes": whole["boxes_mask"].sum()}
    by_hand = {t: float(terms[t].sum() / totals[t]) for t in terms}
    assert values[0]["words_loss"] == pytest.approx(by_hand["words"], rel=1e-5)
    assert values[0]["loss"] == pytest.approx(by_hand["words"] + 2 * by_hand["boxes"], rel=1e-5)


def test_a_batch_without_a_single_box_has_a_finite_gradient():
    task, data = toy(), source()
    empty = data._replace(read=lambda ix: [{**e, "boxes": np.zeros((0, 4), np.float32)} for e in data.read(ix)])
    batch = pipeline.stack(empty.read(np.arange(8)), empty)
    batch |= {"mask": np.ones(8, bool), "slot": np.arange(8, dtype=np.int32)}
    body = jax.jit(step.step_body(task, SGD(), augment=lambda key, b: b))
    new, found = body(state.create_state(task, SGD(), 0), batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(new.params)) and float(found["boxes"][1]) == 0


def test_what_cannot_be_cut_or_does_not_fit_is_refused():
    coupled = toy()._replace(couples_examples=True)
    train(coupled, devices=8)  # a batch on many devices is one batch
    with pytest.raises(errors.BadRequest, match=r"accumulate=4 cuts the batch, .*compile='jit'"):
        train(coupled, accumulate=4)
    with pytest.raises(errors.BadRequest, match="compile='pmap' cuts the batch"):
        train(coupled, devices=8, compile="pmap")
    with pytest.raises(errors.BadRequest, match="weights of unknown terms box; there are: words, boxes"):
        train(toy()._replace(weights={"box": 1.0}))
    with pytest.raises(errors.BadRequest, match="the loss has the terms words, boxes, but counts for words"):
        train(toy()._replace(counts=lambda b: {"words": b["words_mask"].sum(1)}, weights={}))
