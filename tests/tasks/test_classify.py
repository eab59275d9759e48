"""The classification task beyond its losses: what it predicts."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import models
from recvis_jax.errors import BadRequest
from recvis_jax.tasks import classify

IMAGES = jnp.asarray(np.random.default_rng(0).random((4, 12, 12, 1)), jnp.float32)


def make(**kw):
    return classify(models.create("lenet5", num_classes=5), image_shape=(12, 12, 1), num_classes=5, **kw)


@pytest.mark.full
def test_views_average_the_image_its_mirror_image_and_both_moved_by_a_pixel():
    task = make()
    variables = task.init(jax.random.key(0))
    params = variables.pop("params")

    def predict(x, **kw):
        return np.asarray(make(**kw).predict(params, variables, {"image": x})["logits"])

    def both(x):
        return (predict(x) + predict(x[:, :, ::-1])) / 2

    # Edges are repeated, so an image with a margin of two constant pixels moves as a whole.
    framed = jnp.pad(IMAGES[:, 2:-2, 2:-2], ((0, 0), (2, 2), (2, 2), (0, 0)))
    moved = [jnp.roll(framed, (i, i), (1, 2)) for i in (-1, 1)]
    np.testing.assert_allclose(predict(framed, views="mirror"), both(framed), rtol=1e-5)
    mirrored = [jnp.roll(framed, (i, -i), (1, 2)) for i in (-1, 1)]  # the mirror image moves the other way
    shifted = [(predict(m) + predict(n[:, :, ::-1])) / 2 for m, n in zip(moved, mirrored, strict=True)]
    expected = both(framed) / 2 + sum(shifted) / 4
    np.testing.assert_allclose(predict(framed, views="mirror_shift"), expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(predict(framed, views="mirror"), predict(framed))


def test_smoothing_is_for_training_alone():
    batch = {"image": IMAGES, "label": jnp.arange(4), "slot": jnp.arange(4)}
    variables = make().init(jax.random.key(0))
    params = variables.pop("params")
    logits = make().predict(params, variables, batch)["logits"]
    smoothed = make(label_smoothing=0.2)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    target = 0.8 * np.eye(5)[:4] + 0.2 / 5
    loss, _, found = smoothed.loss(params, variables, batch, jax.random.key(1))
    np.testing.assert_allclose(loss["loss"], -(target * log_p).sum(-1), rtol=1e-5)
    measured = mean_loss(smoothed, logits, batch["label"])
    np.testing.assert_allclose(measured, -log_p[np.arange(4), np.arange(4)].mean(), rtol=1e-5)
    np.testing.assert_array_equal(found["accuracy"], log_p.argmax(-1) == np.arange(4))


def mean_loss(task, logits, label):
    """What evaluation reports as the loss."""
    batch = {"label": label, "mask": jnp.ones(len(label), bool)}
    loss = task.metrics["loss"]
    return loss.compute(loss.update({"logits": logits}, batch))["loss"]


class ThreeHeads(nn.Module):
    """A linear map for each head; an intermediate of another name looks like one."""

    aux_logits: bool = True

    @nn.compact
    def __call__(self, x, *, train):
        x = x.reshape(len(x), -1)
        heads = {name: nn.Dense(5, name=name)(x) for name in ("head", "aux1", "aux2", "block1")}
        acts = {f"{name}/logits": y for name, y in heads.items() if name != "head"}
        return heads["head"], acts


def negative_log_likelihood(logits, label, smoothing=0.0):
    """Of every example (row) under the label of every other (column)."""
    p = np.exp(np.asarray(logits, np.float64))
    log_p = np.log(p / p.sum(-1, keepdims=True))
    return -((1 - smoothing) * np.eye(5)[label] + smoothing / 5) @ log_p.T


@pytest.mark.parametrize("weight", [None, 0.0, 0.7])
def test_auxiliary_heads_are_trained_and_not_evaluated(weight):
    kw = {} if weight is None else {"aux_weight": weight}
    task = classify(ThreeHeads(), image_shape=(12, 12, 1), num_classes=5, label_smoothing=0.2, **kw)
    params = task.init(jax.random.key(0))["params"]
    label = np.arange(4)
    x = np.asarray(IMAGES).reshape(4, -1)
    logits = {name: x @ np.asarray(p["kernel"]) for name, p in params.items()}  # biases begin at zero
    nll = {name: np.diag(negative_log_likelihood(y, label, 0.2)) for name, y in logits.items()}
    batch = {"image": IMAGES, "label": jnp.asarray(label), "slot": jnp.arange(4)}
    weight = 0.3 if weight is None else weight

    loss, _, found = task.loss(params, {}, batch, jax.random.key(1))
    np.testing.assert_allclose(loss["loss"], nll["head"] + weight * (nll["aux1"] + nll["aux2"]), rtol=1e-4)
    np.testing.assert_array_equal(found["accuracy"], logits["head"].argmax(-1) == label)

    predicted = task.predict(params, {}, batch)["logits"]
    np.testing.assert_allclose(predicted, logits["head"], rtol=1e-4, atol=1e-5)
    plain = np.diag(negative_log_likelihood(logits["head"], label))
    np.testing.assert_allclose(mean_loss(task, predicted, batch["label"]), plain.mean(), rtol=1e-4)

    # d loss / d bias of a head is its weight times the sum of p - target; the look-alike has none.
    grads = jax.grad(lambda p: task.loss(p, {}, batch, jax.random.key(1))[0]["loss"].sum())(params)
    for name, w in {"head": 1, "aux1": weight, "aux2": weight, "block1": 0}.items():
        p = np.exp(logits[name]) / np.exp(logits[name]).sum(-1, keepdims=True)
        expected = w * (p - 0.8 * np.eye(5)[label] - 0.2 / 5).sum(0)
        np.testing.assert_allclose(grads[name]["bias"], expected, atol=1e-4)


@pytest.mark.full
def test_auxiliary_heads_of_googlenet():
    model = models.create("googlenet", num_classes=5, dropout=0.0, dropout_aux=0.0)
    tasks = {w: classify(model, image_shape=(15, 15, 1), num_classes=5, aux_weight=w) for w in (0.3, 0.0)}
    rng = np.random.default_rng(0)
    spec = jax.eval_shape(tasks[0.3].init, jax.random.key(0))
    variables = jax.tree.map(lambda s: jnp.asarray(0.05 * rng.standard_normal(s.shape), s.dtype), spec)
    params = variables.pop("params")
    batch = {"image": IMAGES[:2].repeat(2, 1)[:, :15].repeat(2, 2)[:, :, :15], "label": jnp.array([3, 1])}
    batch["slot"] = jnp.arange(2)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # it runs once
    def run(params, state):
        losses = {w: task.loss(params, state, batch, jax.random.key(1))[0]["loss"] for w, task in tasks.items()}
        (_, acts), _ = model.apply({"params": params, **state}, batch["image"], train=True, mutable=["batch_stats"])
        return losses, acts["aux1/logits"], acts["aux2/logits"]

    losses, *heads = run(params, variables)
    added = sum(np.diag(negative_log_likelihood(y, np.array([3, 1]))) for y in heads)
    assert (added > 0.1).all()
    np.testing.assert_allclose(losses[0.3] - losses[0.0], 0.3 * added, rtol=1e-4)


def test_auxiliary_heads_of_a_part_of_the_model_are_not_its_own():
    task = classify(ThreeHeads(aux_logits=False), image_shape=(12, 12, 1), num_classes=5)  # as those of a probe
    params = task.init(jax.random.key(0))["params"]
    batch = {"image": IMAGES, "label": jnp.arange(4), "slot": jnp.arange(4)}
    loss, _, _ = task.loss(params, {}, batch, jax.random.key(1))
    logits = np.asarray(IMAGES).reshape(4, -1) @ np.asarray(params["head"]["kernel"])
    np.testing.assert_allclose(loss["loss"], np.diag(negative_log_likelihood(logits, np.arange(4))), rtol=1e-4)


@pytest.mark.parametrize(
    "kw, says",
    [
        (dict(loss="hinge"), "There are: huber, l1, l2, sigmoid, softmax"),
        (dict(loss="l1", label_smoothing=0.1), "is not used by task.loss='l1'"),
        (dict(label_smoothing=1.0), "outside"),
        (dict(loss="softmax", multi_label=True), "multi-hot"),
        (dict(aux_weight=-0.1), "task.aux_weight=-0.1 is not a number of at least 0"),
        (dict(aux_weight=float("nan")), "not a number of at least 0"),
        (dict(aux_weight=0.5), "LeNet5 has no auxiliary heads"),
    ],
)
def test_what_does_not_fit_is_refused(kw, says):
    with pytest.raises(BadRequest, match=says):
        make(**kw)
