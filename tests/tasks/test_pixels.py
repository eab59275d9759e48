"""Images as sequences: the loss is a probability, and what is given stays."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import recvis_jax as rv
from recvis_jax import generation, models
from recvis_jax.errors import BadRequest
from recvis_jax.models.image_gpt import greys
from recvis_jax.tasks import pixels

TINY = dict(colours=3, pixels=4, width=16, depth=2, heads=2)


@pytest.fixture(scope="module")
def run():
    """A model of 2x2 images of two kinds, trained until it knows them."""
    kinds = np.array([[[0, 255], [255, 0]], [[255, 255], [0, 0]]], np.uint8)
    images = np.tile(kinds, (64, 1, 1))
    data = rv.data.from_arrays(images, np.zeros(128, int), val=0.25, statistics=((0.0,), (1.0,)))
    model = models.create("igpt_s", **TINY)
    return rv.fit(
        model, data, optax.adam(1e-2), steps=60, batch_size=32, task=rv.task(model, data, "pixels"), progress=False
    )


@pytest.mark.full
def test_the_loss_is_minus_the_logarithm_of_a_probability():
    task = pixels(models.create("igpt_s", **TINY), image_shape=(2, 2, 1))
    params = task.init(jax.random.key(0))["params"]
    images = jnp.asarray(list(itertools.product((0, 0.5, 1.0), repeat=4))).reshape(-1, 2, 2, 1)
    found = task.predict(params, {}, {"image": images})
    assert jnp.exp(-4 * found["loss"]).sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found["bits"], found["loss"] / math.log(2), rtol=1e-6)
    batch = {"image": images, "slot": jnp.arange(81)}
    terms, _, _ = task.loss(params, {}, batch, jax.random.key(0))
    np.testing.assert_allclose(terms["loss"] / task.counts(batch)["loss"], found["loss"], rtol=1e-5)


@pytest.mark.full
def test_what_was_learned_is_drawn(run):
    assert run.evaluate("val")["bits_per_dim"] == pytest.approx(0.25, abs=0.05)  # one bit an image of four pixels
    drawn = np.asarray(run.run.task.generate(run.params, {}, generation.keys(0, jnp.arange(64))))[..., 0]
    known = [[[0, 1], [1, 0]], [[1, 1], [0, 0]]]
    kinds = [known.index(image.round(3).tolist()) for image in drawn if image.round(3).tolist() in known]
    assert len(kinds) > 58 and 10 < sum(kinds) < 54


@pytest.mark.full
def test_the_given_half_stays_and_the_batch_does_not_matter(run):
    found = run.generate(8, seed=1, split="val")
    np.testing.assert_array_equal(found["images"][:, 0], found["originals"][:, 0])
    np.testing.assert_array_equal(found["images"], found["originals"])  # the upper row says which of the two it is
    again = run.generate(8, seed=1, batch_size=3)
    np.testing.assert_array_equal(run.generate(8, seed=1)["images"], again["images"])


def test_features_of_a_layer(run):
    assert run.features(np.zeros((3, 2, 2), np.uint8), "block0").shape == (3, 16)


def test_greys():
    values = jnp.array([0.0, 0.24, 0.26, 1.0]).reshape(1, 2, 2, 1)
    assert greys(values, 3).tolist() == [[0, 0, 1, 2]]
    with pytest.raises(BadRequest, match="3 channels"):
        greys(jnp.zeros((1, 2, 2, 3)), 3)


@pytest.mark.parametrize(
    "model, shape, text",
    [
        ("lenet5", (28, 28, 1), "LeNet5 does not"),
        ("igpt_s", (2, 2, 3), "grey images; these have 3 channels"),
        ("igpt_s", (3, 3, 1), "9 pixels, config.model.pixels is 4"),
    ],
)
def test_refusals(model, shape, text):
    kw = TINY if model == "igpt_s" else {}
    with pytest.raises(BadRequest, match=text):
        pixels(models.create(model, **kw), image_shape=shape)
