"""Images in the order of 2-D local attention: probabilities sum to one, and completions keep what is given."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import generation, models
from recvis_jax.errors import BadRequest
from recvis_jax.tasks import pixels

SPARSE = dict(kind="local_2d", h=2, w=4, block=(2, 2), memory=(1, 1))
SIZES = dict(colours=2, pixels=8, width=8, depth=1, heads=2)


@pytest.fixture(scope="module")
def net():
    model = models.create("igpt_s", **SIZES, sparse=SPARSE)
    task = pixels(model, image_shape=(2, 4, 1))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return task, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.7, x.shape), x.dtype), shapes)["params"]


def test_probabilities_of_all_images_sum_to_one(net):
    task, params = net
    images = jnp.asarray(list(itertools.product((0.0, 1.0), repeat=8))).reshape(-1, 2, 4, 1)
    found = jax.jit(task.predict)(params, {}, {"image": images})
    assert jnp.exp(-8 * found["loss"]).sum() == pytest.approx(1, abs=1e-5)


def test_what_is_given_stays_where_it_is(net):
    task, params = net
    image = jnp.asarray(np.random.default_rng(1).integers(0, 2, (3, 2, 4, 1)), jnp.float32)
    known = jnp.array([[True, False, True, True], [False, False, True, False]])
    keys = generation.keys(0, jnp.arange(3))
    found = jax.jit(lambda p: task.generate(p, {}, keys, image=image, known=known))(params)
    np.testing.assert_array_equal(np.asarray(found)[:, known], np.asarray(image)[:, known])
    assert set(np.unique(found)) <= {0.0, 1.0}


@pytest.mark.parametrize(
    "kw, words",
    [
        (dict(sparse=dict(kind="local_2d", h=2, w=4, block=(2, 2))), "lacks memory"),
        (dict(sparse=dict(kind="strided", stride=2, rows=3)), "takes kind, merged, stride, no 'rows'"),
        (dict(sparse="strided"), "'strided'; it takes a dict"),
        (dict(sparse=dict(kind="stride")), "unknown pattern 'stride'"),
        (dict(sparse=dict(kind="fixed", stride=2), heads=1), "2 kinds of heads do not divide 1 heads"),
        (dict(sparse=SPARSE, pixels=12), "12 tokens are not an image of 2x4"),
        (dict(sparse=dict(kind="strided", stride=2), pixels=9), "config.model.pixels=8 for 2x4"),
    ],
)
def test_refusals(kw, words):
    with pytest.raises(BadRequest, match=words):
        model = models.create("igpt_s", **SIZES | kw)
        jax.eval_shape(pixels(model, image_shape=(2, 4, 1)).init, jax.random.key(0))
