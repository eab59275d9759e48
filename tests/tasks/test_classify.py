"""The classification task beyond its losses: what it predicts."""

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
    np.testing.assert_allclose(loss, -(target * log_p).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(smoothed.losses(logits, batch["label"]), -log_p[np.arange(4), np.arange(4)], rtol=1e-5)
    np.testing.assert_array_equal(found["accuracy"], log_p.argmax(-1) == np.arange(4))


@pytest.mark.parametrize(
    "kw, says",
    [
        (dict(loss="hinge"), "There are: huber, l1, l2, sigmoid, softmax"),
        (dict(loss="l1", label_smoothing=0.1), "no meaning for task.loss='l1'"),
        (dict(label_smoothing=1.0), "outside"),
        (dict(loss="softmax", multi_label=True), "multi-hot"),
    ],
)
def test_what_does_not_fit_is_refused(kw, says):
    with pytest.raises(BadRequest, match=says):
        make(**kw)
