"""Attributions against arithmetic by hand, and what holds of all of them."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from recvis_jax import pretrained, vis
from recvis_jax.errors import BadRequest
from recvis_jax.vis import rise

APPLY, VARIABLES, IMAGES = (tiny.GLOBALS[k] for k in ("apply", "variables", "images"))
LINEAR, WEIGHTS = tiny.GLOBALS["linear"], tiny.GLOBALS["weights"]
METHODS = [name for name in vis.ATTRIBUTIONS if name != "rise"]


def test_a_linear_network_is_explained_exactly():
    """Of w x + b each method is known: w, w x, w (x - x0), and the mean over windows of the sum of w (x - fill)."""
    kernel, bias = WEIGHTS["params"]["head"].values()
    w = np.asarray(kernel if kernel.ndim == 2 else bias)[:, 3].reshape(tiny.SHAPE)
    at = partial(lambda method, **kw: np.asarray(method(LINEAR, WEIGHTS, IMAGES, 3, **kw)))
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(at(vis.gradient), np.broadcast_to(w, IMAGES.shape))
    close(at(vis.gradient_x_input), w * IMAGES)
    close(at(vis.smoothgrad, samples=3), np.broadcast_to(w, IMAGES.shape))
    close(at(vis.smoothgrad, samples=3, squared=True), np.broadcast_to(w**2, IMAGES.shape))
    close(at(vis.integrated_gradients, baseline=0.5, points=3), w * (IMAGES - 0.5))
    found, change = at(vis.occlusion, window=10, stride=9, fill=0.5, at_once=3), w * (IMAGES - 0.5)
    # Windows begin at 0, 9, 18: pixel (0, 0) is in one, pixel (9, 27) in the rows of two and the columns of one.
    close(found[:, 0, 0], change[:, :10, :10].sum((1, 2, 3)))
    close(found[:, 9, 27], (change[:, :10, 18:].sum((1, 2, 3)) + change[:, 9:19, 18:].sum((1, 2, 3))) / 2)


@pytest.mark.full
def test_rise_by_its_own_masks():
    """Of a score that is linear, the result is known from the masks: the paper's equation 6."""
    key, keep = jax.random.key(5), 0.3
    score = lambda output, acts: output[:, 3]  # noqa: E731
    found = rise(LINEAR, WEIGHTS, IMAGES, score, key=key, masks=24, cells=4, visible=keep, at_once=8)
    masks_of = importlib.import_module("recvis_jax.vis.rise").masks_of
    masks = np.concatenate([masks_of(jax.random.fold_in(key, i), 8, (28, 28), 4, keep) for i in range(3)])
    scores = np.stack([LINEAR(WEIGHTS, IMAGES * m[..., None])[0][:, 3] for m in masks])
    np.testing.assert_allclose(found, np.einsum("kb,khw->bhw", scores, masks) / (24 * keep), rtol=1e-4, atol=1e-4)
    many = np.asarray(masks_of(key, 600, (28, 28), 4, keep))
    assert many.min() >= 0 and many.max() <= 1 and abs(many.mean() - keep) < 0.02
    assert np.abs(many.mean(0) - keep).max() < 0.1  # no place is special, borders neither


def test_gradcam_by_hand():
    """Tiny ends in the mean of its last maps, so that all places of a map have the same gradient."""
    maps = vis.activations(APPLY, VARIABLES, IMAGES, "stage1/block1")
    gradient = jax.grad(lambda m: (_rest(m)[:, 3]).sum())(maps)
    want = np.maximum(np.einsum("bijd,bd->bij", maps, gradient.mean((1, 2))), 0)
    np.testing.assert_allclose(vis.gradcam(APPLY, VARIABLES, IMAGES, 3), want, rtol=1e-4, atol=1e-6)


def _rest(maps):
    p = VARIABLES["params"]
    hidden = jax.nn.relu(maps.mean((1, 2)) @ p["fc"]["kernel"] + p["fc"]["bias"])
    return hidden @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.full
def test_a_last_block_without_a_gradient_is_explained():
    model = pretrained.models.create("vit_ti16", patch_size=4, width=8, depth=2, heads=2, num_classes=3)
    variables, apply = tiny.variables(model, (8, 12, 3)), partial(model.apply, train=False)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 12, 3)), jnp.float32)
    for layer in ("block1", "tokens"):
        with pytest.raises(BadRequest, match=r"only the class token is read.*take 'block1/norm1'"):
            vis.gradcam(apply, variables, images, 0, layer)
    found = vis.gradcam(apply, variables, images)
    assert found.shape == (2, 2, 3) and np.asarray(found).any()  # six patches in two rows; the class token is left out
    with pytest.raises(BadRequest, match=r"'features' of shape .* has no places; use one of stem, block0"):
        vis.gradcam(apply, variables, images, 0, "features")
    with pytest.raises(BadRequest, match=r"no layer 'blok1'\. Did you mean 'block1'"):
        vis.gradcam(apply, variables, images, 0, "blok1")
    with pytest.raises(BadRequest, match=r"no jax\.nn\.relu"):
        vis.guided_backpropagation(apply, variables, images)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_does_not_know_the_others(method):
    """Each has its own class, the predicted one where none is given; one alone gives what it gives among others."""
    function = vis.ATTRIBUTIONS[method]
    predicted = np.asarray(APPLY(VARIABLES, IMAGES)[0]).argmax(1)
    both = np.asarray(function(APPLY, VARIABLES, IMAGES))
    np.testing.assert_array_equal(both, function(APPLY, VARIABLES, IMAGES, predicted))
    alone = function(APPLY, VARIABLES, IMAGES[1:], int(predicted[1]))
    np.testing.assert_allclose(both[1], alone[0], rtol=1e-4, atol=1e-6 * np.abs(both).max())
    assert np.isfinite(both).all() and both.any()


def test_units_channels_and_directions():
    maps = np.asarray(vis.activations(APPLY, VARIABLES, IMAGES, "stage1/block1"))
    for target, score in {
        vis.Unit("stage1/block1", 2): maps[..., 2].max((1, 2)),
        vis.Unit("stage1/block1", 2, (3, 4)): maps[:, 3, 4, 2],
        vis.Channel("stage1/block1", 2): maps[..., 2].mean((1, 2)),
        vis.Unit("features", 5): np.asarray(vis.activations(APPLY, VARIABLES, IMAGES, "features"))[:, 5],
    }.items():
        found = vis.gradient_x_input(APPLY, VARIABLES, IMAGES, target)
        assert found.shape == IMAGES.shape
        np.testing.assert_allclose(target(vis.activations(APPLY, VARIABLES, IMAGES, target.layer)), score, rtol=1e-6)
    direction = vis.Direction("stage1/block1", np.arange(6.0))
    np.testing.assert_allclose(direction(jnp.asarray(maps)), (maps @ np.arange(6.0)).mean((1, 2)), rtol=1e-5)
    one_unit = vis.deconvnet(APPLY, VARIABLES, IMAGES, vis.Unit("stage1/block1", 2, (5, 5)))
    rows, columns = np.nonzero(np.asarray(one_unit)[0, ..., 0])
    # Of (5, 5) a convolution of 3x3 reads pooled rows 4 to 6, these rows 8 to 13, and 5x5 reads two more on each side.
    assert rows.size == 0 or (rows.min() >= 6 and rows.max() <= 15 and columns.min() >= 6 and columns.max() <= 15)


def test_what_cannot_be_is_refused():
    ask = partial(vis.saliency, APPLY, VARIABLES, IMAGES)
    for target, message in {
        10: "outside the classes 0 to 9", (1, 2, 3): "neither a class nor one for each of 2 images",
        vis.Unit("stage1/block1", 6): "channel 6 of 'stage1/block1' is outside 0 to 5",
        vis.Unit("stage9", 0): "no layer 'stage9'",
        vis.Unit("stage1/block1", 0, (3,)): r"which has \(14, 14\) places",
    }.items():  # fmt: skip
        with pytest.raises(BadRequest, match=message):
            ask(target)
    with pytest.raises(BadRequest, match="does not fit into 28x28"):
        vis.occlusion(APPLY, VARIABLES, IMAGES, window=29)
    with pytest.raises(BadRequest, match="every pixel must be covered"):
        vis.occlusion(APPLY, VARIABLES, IMAGES, window=3, stride=4)
    with pytest.raises(BadRequest, match="is not that of classes"):
        vis.saliency(lambda v, x: (x, {}), VARIABLES, IMAGES)
