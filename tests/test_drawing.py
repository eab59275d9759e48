"""Images drawn in the colours of a palette that was learned, and details drawn into small images."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import recvis_jax as rv
from recvis_jax import models
from recvis_jax.errors import BadRequest
from recvis_jax.models.image_gpt import nearest
from recvis_jax.tasks import pixels

COLOURS = np.array([[0, 0, 0], [200, 30, 30], [30, 60, 220]], np.uint8)
RNG = np.random.default_rng(0)
UNIT = ((0.0,), (1.0,))


def fitted(images, model):
    data = rv.data.from_arrays(images, np.zeros(len(images), int), val=0.25, statistics=UNIT)
    return rv.fit(
        model, data, optax.adam(1e-3), steps=2, batch_size=8, task=rv.task(model, data, "pixels"), progress=False
    )


def test_a_palette_is_learned_from_the_training_images():
    """Pixels of three colours, and nearly; k-means finds them, and every image that is drawn consists of them."""
    near = COLOURS[RNG.integers(0, 3, (40, 2, 2))] + RNG.integers(0, 3, (40, 2, 2, 1)).astype(np.uint8)
    run = fitted(near, models.create("igpt_s", colours=3, pixels=4, width=8, depth=1, heads=2, palette=True))
    palette = np.asarray(run.model_state["palette"]["colours"])
    np.testing.assert_allclose(palette * 255, COLOURS + 1.0, atol=0.4)
    drawn = run.generate(6)["images"]
    assert drawn.shape == (6, 2, 2, 3)
    assert np.abs(drawn[..., None, :] - palette).sum(-1).min(-1).max() < 1e-6
    kept = run.generate(3, split="val")
    assert np.abs(kept["images"][:, 0] - kept["originals"][:, 0]).max() < 3 / 255, "the upper half stays"
    assert "bits_per_dim" not in run.evaluate("val"), "a colour of a palette is no dimension"


def test_the_nearest_colour():
    x = RNG.random((2, 3, 4, 3), np.float32)
    palette = RNG.random((5, 3), np.float32)
    expected = ((x.reshape(2, 12, 1, 3) - palette) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(nearest(jnp.asarray(x), jnp.asarray(palette)), expected)


def test_details_are_drawn_into_small_images():
    sizes = dict(levels=2, width=8, depth=1, heads=2, hidden=8, encoder_depth=1, factor=2)
    run = fitted(
        RNG.integers(0, 255, (40, 4, 4, 1), np.uint8), models.create("image_transformer", **sizes, shape=(4, 4, 1))
    )
    found = run.generate(3, seed=1, split="val")
    assert found["images"].shape == (3, 4, 4, 1) and set(np.unique(found["images"])) <= {0.0, 1.0}
    blocks = found["originals"].reshape(3, 2, 2, 2, 2).mean((2, 4))
    np.testing.assert_allclose(found["given"][:, ::2, ::2, 0], blocks, atol=1e-6)
    np.testing.assert_array_equal(run.generate(3, seed=1, split="val", batch_size=2)["images"], found["images"])
    with pytest.raises(BadRequest, match="name the split of them"):
        run.generate(3)


@pytest.mark.parametrize(
    "kw, shape, words",
    [
        (dict(shape=(4, 4, 1)), (4, 4, 3), r"config.model.shape is \(4, 4, 1\), the images are of \(4, 4, 3\)"),
        (dict(shape=(4, 4)), (4, 4, 1), "it takes a tuple of int"),
    ],
)
def test_refusals(kw, shape, words):
    with pytest.raises(BadRequest, match=words):
        model = models.create("image_transformer", levels=2, width=8, depth=1, heads=2, hidden=8, **kw)
        jax.eval_shape(pixels(model, image_shape=shape).init, jax.random.key(0))
