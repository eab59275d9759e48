"""The best patches against brute force, filters, attention and positions against what is known of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from vis import tiny

from recvis_jax import models, vis
from recvis_jax.errors import BadRequest
from recvis_jax.models.tokens import sincos2d
from recvis_jax.vis import layers, structure
from recvis_jax.vis.top_patches import Top, crops, top_patches

APPLY, VARIABLES = tiny.GLOBALS["apply"], tiny.GLOBALS["variables"]
# Whole numbers, many of them equal, and one image twice: ties of values.
IMAGES = np.random.default_rng(3).integers(0, 3, (53, 28, 28, 1)).astype(np.float32)
IMAGES[41] = IMAGES[7]
LAYER = "stage1/block1"


def brute_force(k, chunk):
    """Everything at once: sorted by value, then by image; the first place of a maximum row by row."""
    filled = np.concatenate([IMAGES, np.zeros((-len(IMAGES) % chunk, 28, 28, 1), np.float32)])
    forward = jax.jit(lambda v, x: vis.activations(APPLY, v, x, LAYER))
    values = np.concatenate([forward(VARIABLES, filled[i : i + chunk]) for i in range(0, len(filled), chunk)])[:53]
    flat = values.reshape(53, -1, values.shape[-1])
    best, place = flat.max(1), flat.argmax(1)
    order = np.argsort(-best, axis=0, kind="stable")[:k].T
    units = np.arange(values.shape[-1])[:, None]
    where = place.T[units, order]
    return Top(best.T[units, order], order, np.stack(np.divmod(where, values.shape[2]), -1))


@pytest.mark.parametrize("devices", [0, 1, 8])
def test_the_best_patches_are_brute_forces_to_the_bit(devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",)) if devices else None
    want = brute_force(9, 4)
    for sizes in ([53], [1, 7, 30, 15], [16, 16, 16, 5]) if devices != 1 else ([20, 33],):
        batches = np.split(IMAGES, np.cumsum(sizes)[:-1])
        found = top_patches(APPLY, VARIABLES, batches, LAYER, 9, chunk=4, mesh=mesh)
        for a, b in zip(found, want, strict=True):
            np.testing.assert_array_equal(a, b)
    assert (want.values[:, :-1] == want.values[:, 1:]).any()  # there are ties


def test_fewer_images_than_places_and_none():
    found = top_patches(APPLY, VARIABLES, [IMAGES[:2]], LAYER, 3, chunk=4)
    assert (found.images[:, 2] == -1).all() and np.isneginf(found.values[:, 2]).all()
    assert set(found.images[:, :2].ravel()) == {0, 1}
    with pytest.raises(BadRequest, match="no images"):
        top_patches(APPLY, VARIABLES, [], LAYER)
    vectors = top_patches(APPLY, VARIABLES, [IMAGES[:5]], "features", 2, chunk=4)
    assert vectors.values.shape == (8, 2) and not vectors.places.any()


def test_crops_are_what_the_units_see():
    """Of a convolution of 5x5, a pool of 2x2 and a convolution of 3x3: 10 pixels, 2 apart, 4 over the edge."""
    window = structure.window(partial(layers.activations, APPLY, layer=LAYER), VARIABLES, (28, 28, 1))
    assert window == structure.Window((10, 10), (2, 2), (4, 4))
    top = Top(np.zeros((1, 2)), np.array([[0, 1]]), np.array([[[0, 0], [6, 3]]]))
    found = crops(lambda i: IMAGES[i], top, window, fill=-1.0)
    assert found.shape == (1, 2, 10, 10, 1)
    np.testing.assert_array_equal(found[0, 0, 4:, 4:], IMAGES[0, :6, :6])
    assert (found[0, 0, :4] == -1).all() and (found[0, 0, :, :4] == -1).all()
    np.testing.assert_array_equal(found[0, 1], IMAGES[1, 8:18, 2:12])
    whole = crops(lambda i: IMAGES[i], top, None)
    np.testing.assert_array_equal(whole[0], IMAGES[:2])
    # What lies outside of the window has no influence, what lies inside does.
    at = lambda x: np.asarray(vis.activations(APPLY, VARIABLES, x, LAYER))[0, 6, 3]  # noqa: E731
    inside, outside = IMAGES[1:2].copy(), 9 - IMAGES[1:2]
    inside[0, 8:18, 2:12] += 1
    outside[0, 8:18, 2:12] = IMAGES[1, 8:18, 2:12]
    np.testing.assert_allclose(at(outside), at(IMAGES[1:2]), rtol=1e-5)
    assert (np.abs(at(inside) - at(IMAGES[1:2])) > 1e-3).any()


def test_filters_of_a_convolution_and_of_pixels():
    np.testing.assert_array_equal(
        vis.first_filters(APPLY, VARIABLES, tiny.SHAPE)[2], VARIABLES["params"]["conv1"]["kernel"][..., 2]
    )
    weights = tiny.GLOBALS["weights"]
    found = vis.first_filters(tiny.GLOBALS["linear"], weights, tiny.SHAPE)
    np.testing.assert_array_equal(found[3].ravel(), weights["params"]["head"]["kernel"][:, 3])


def test_attention_by_hand():
    a = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    b = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    acts = {f"block{i}/attention": jnp.asarray(x[None, None], jnp.float32) for i, x in ((0, a), (1, b))}
    want = ((b + np.eye(3)) / 2) @ ((a + np.eye(3)) / 2)
    np.testing.assert_allclose(vis.rollout(acts)[0], want, atol=1e-6)
    np.testing.assert_allclose(vis.rollout(acts).sum(-1), 1, atol=1e-6)
    grid = layers.Grid(1, 1, 2)
    np.testing.assert_allclose(vis.from_class_token(vis.rollout(acts), grid)[0, 0], want[0, 1:], atol=1e-6)
    # From patch 1 to 2 the distance is 8 pixels: half of what patch 1 gives to patches goes there, nothing from 2.
    found = vis.attention_distance(acts["block0/attention"], grid, (8, 8))
    np.testing.assert_allclose(found, [[8 * (0.5 / 0.8) / 2]], rtol=1e-6)
    with pytest.raises(BadRequest, match="no attention weights; it names features"):
        vis.rollout({"features": a})


@pytest.mark.full
def test_positions_and_mixing_of_real_networks():
    table = np.pad(sincos2d(4, 6, 16), ((1, 0), (0, 0)))[None]
    found = np.asarray(vis.position_similarity({"constants": {"pos_embed": jnp.asarray(table)}}, (4, 6)))
    np.testing.assert_allclose(found.reshape(24, 24).diagonal(), 1, rtol=1e-5)
    assert found[0, 0, 1] > found[0, 0, 5] and found[0, 1, 0] > found[0, 3, 0]
    for name, units in (("mixer_s16", 4), ("ff_only_ti16", 28), ("resmlp_12", 6), ("gmlp_s16", 6)):
        more = {"tokens_dim": 4} if name == "mixer_s16" else {}
        model = models.create(name, patch_size=8, width=16, depth=2, num_classes=3, **more)
        shapes = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), jnp.zeros((1, 16, 24, 3)), train=False))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
        mixing = vis.token_mixing(zeros, (2, 3))
        assert {k: v.shape for k, v in mixing.items()} == dict.fromkeys(("block0", "block1"), (units, 2, 3)), name
    with pytest.raises(BadRequest, match="with attention"):
        vis.token_mixing(VARIABLES, (2, 3))
