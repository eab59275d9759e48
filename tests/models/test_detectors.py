"""One contract for every model of `models.DENSE`, and what is DETR's and the segmenters' own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import models, trees
from recvis_jax.errors import BadRequest
from recvis_jax.models import detr, segment_heads, segmenters

BACKBONE = dict(name="resnet18", norm="frozen", width=4, blocks=(1, 1))
SMALL = {
    "detr_tiny": dict(queries=3, width=8, heads=2, encoder_depth=1, decoder_depth=2, hidden=8, dropout=0.0),
    "centre_r18": dict(width=4, norm="none"),
    "fcn_r50": dict(norm="none", dropout=0.0, auxiliary_layer="stage1/block1"),
    "deeplabv3_r50": dict(norm="none", dropout=0.0, width=4, rates=(1, 2)),
    "fcn16_vgg16": dict(dropout=0.0),
    "unet_r18": dict(norm="none"),
    "segment_vit_s16": dict(),
    "segment_vit_s16_mask": dict(dropout=0.0),
}
SHAPES = {"detr_tiny": (2, 3, 6), "centre_r18": (2, 8, 12, 5)}
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 48, 3)), jnp.float32)


def build(name, backbone=BACKBONE, **kw):
    model = models.create(name, num_classes=5, backbone=backbone, **SMALL[name], **kw)
    rng = np.random.default_rng(1)

    def leaf(path, s):
        x = rng.normal(size=s.shape)
        return jnp.asarray(1 + 0.1 * np.abs(x) if path[-1].key in ("scale", "var") else 0.3 * x, s.dtype)

    template = jax.eval_shape(lambda: model.init(jax.random.key(0), X, train=False))
    return model, jax.tree_util.tree_map_with_path(leaf, template)


def test_every_detector_is_tested():
    classes = {getattr(c, "func", c).__name__ for c in models.DENSE.values()}
    assert {type(build(name)[0]).__name__ for name in SMALL} == classes


@pytest.mark.parametrize("name", SMALL)
def test_outputs_and_frozen_norms(name):
    model, variables = build(name)
    params = variables.pop("params")

    @jax.jit
    def run(params, variables, valid):
        def loss(params):
            (logits, acts), new = model.apply(
                {"params": params, **variables}, X, train=True, valid=valid, mutable=["batch_stats"]
            )
            others = ("boxes", "sizes", "auxiliary/logits")
            return logits.sum() + sum(acts[k].sum() for k in others if k in acts), (logits, acts, new)

        return jax.value_and_grad(loss, has_aux=True)(params)

    everywhere = jnp.ones(X.shape[:3], bool)
    (_, (logits, acts, new)), grads = run(params, variables, everywhere)
    assert logits.dtype == jnp.float32 and {"stem", "features", "logits"} <= set(acts)
    assert logits.shape == SHAPES.get(name, (2, 32, 48, 5))
    assert acts["features"].shape[0] == 2 and acts["features"].ndim == 2
    for old, now in zip(jax.tree.leaves(variables), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(old, now)
    frozen = trees.mask(params, model.frozen_parameters)
    for (where, g), own in zip(trees.flatten(grads).items(), trees.flatten(frozen).values(), strict=True):
        assert np.isfinite(g).all() and (not own or not g.any()), where
        assert own == ("norm" in where and where.startswith("backbone")), where
    eager, _ = jax.jit(lambda v: model.apply(v, X, train=False))({"params": params, **variables})
    np.testing.assert_allclose(eager, logits, atol=1e-4)


def test_positions_are_those_of_the_reference_code():
    """`PositionEmbeddingSine`, written down again in numpy loops."""
    valid = np.ones((2, 3, 4), bool)
    valid[1, 2:], valid[1, :, 3:] = False, False
    got = np.asarray(detr.sine_positions(jnp.asarray(valid), 8))
    for b, (rows, columns) in enumerate(((3, 4), (2, 3))):
        for i in range(rows):
            for j in range(columns):
                for k in range(4):
                    for half, place, most in ((0, i + 1, rows), (4, j + 1, columns)):
                        angle = place / (most + 1e-6) * 2 * np.pi / 10_000 ** (2 * (k // 2) / 4)
                        assert got[b, i, j, half + k] == pytest.approx((np.sin, np.cos)[k % 2](angle), abs=1e-5)


def test_other_backbones_are_said_in_part_or_whole():
    assert models.create("detr_r50", num_classes=2, backbone=dict(norm="group")).backbone.blocks == (3, 4, 6, 3)
    vit = dict(name="vit_s16", width=8, depth=1, heads=2, patch_size=16)
    model, variables = build("detr_tiny", vit)
    logits, _ = model.apply(variables, X, train=False)
    assert logits.shape == (2, 3, 6), "tokens of patches are a map, too"
    with pytest.raises(BadRequest, match=r"the backbone has no layer 'stag1/block1'\. Did you mean 'stage1/block1'"):
        build("detr_tiny", layer="stag1/block1")
    with pytest.raises(BadRequest, match="positions on two axes need a width divisible by 4"):
        models.create("detr_tiny", num_classes=2, width=6, heads=2)


def test_dilation_keeps_the_size_and_the_weights():
    """Strides of 16 and 8: larger maps of the same parameters."""
    kw = dict(width=4, blocks=(1, 1, 2, 2), num_classes=0)
    sizes, shapes = [], []
    for stride in (32, 16, 8):
        model = models.create("resnet50", output_stride=stride, **kw)
        (_, acts), variables = jax.eval_shape(lambda m=model: m.init_with_output(jax.random.key(0), X, train=False))
        sizes.append(acts["stage4/block2"].shape[1:3])
        shapes.append(jax.tree.map(lambda s: s.shape, variables))
    assert sizes == [(1, 2), (2, 3), (4, 6)] and shapes[0] == shapes[1] == shapes[2]
    with pytest.raises(BadRequest, match=r"unknown head 'fcm'\. Did you mean 'fcn'"):
        models.create("fcn_r50", num_classes=2, head="fcm")
    with pytest.raises(BadRequest, match="output_stride=16 needs bottleneck=True"):
        models.create("resnet18", output_stride=16)


def maps(*sizes, channels=3):
    rng = np.random.default_rng(2)
    return [jnp.asarray(rng.normal(size=(1, *size, channels)), jnp.float32) for size in sizes]


def test_skips_begin_at_zero_and_are_added_to_enlarged_scores():
    coarse, finer = maps((2, 3), (4, 5))
    head = segment_heads.SkipHead(2)
    found, variables = head.init_with_output(jax.random.key(0), [coarse, finer], False)
    alone = head.apply({"params": {"classes": variables["params"]["classes"]}}, [coarse], False)
    np.testing.assert_allclose(found, segment_heads.enlarged(alone, (4, 5)), atol=1e-6)
    kernel = np.arange(6.0).reshape(1, 1, 3, 2)
    variables["params"]["skip0"]["kernel"] = jnp.asarray(kernel)
    np.testing.assert_allclose(head.apply(variables, [coarse, finer], False), found + finer @ kernel[0, 0], atol=1e-5)


def test_up_convolution_gives_every_place_four_values_of_its_own():
    coarse, finer = maps((2, 2), (3, 4))
    _, variables = segment_heads.UNetHead(2, "none").init_with_output(jax.random.key(0), [coarse, finer], False)
    kernel = np.asarray(variables["params"]["up0"]["kernel"])
    expected = np.einsum("bijc,uvcd->biujvd", coarse, kernel).reshape(1, 4, 4, 3)[:, :3]
    seen = []
    with nn.intercept_methods(lambda f, a, k, c: (y := f(*a, **k), seen.append((c.module.name, a, y)))[0]):
        segment_heads.UNetHead(2, "none").apply(variables, [coarse, finer], False)
    joined = next(a[0] for name, a, _ in seen if name == "level0_0")
    turned = np.einsum("bijc,uvcd->biujvd", coarse, kernel[::-1, ::-1]).reshape(1, 4, 4, 3)[:, :3]
    assert any(np.allclose(joined[..., :3], up, atol=1e-5) for up in (expected, turned))
    np.testing.assert_array_equal(joined[..., 3:], finer)


def test_mask_scores_are_cosines_and_follow_a_permutation_of_patches():
    """No positions in the head: moved patches have moved scores; cosines lie in [-1, 1] before their norm."""
    (x,) = maps((2, 3), channels=4)
    head = segment_heads.MaskHead(3)
    found, variables = head.init_with_output(jax.random.key(0), x, False)
    np.testing.assert_allclose(head.apply(variables, x[:, ::-1], False), found[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(found.mean(-1), 0, atol=1e-5)


def test_finer_maps_that_are_not_there_are_refused():
    acts = {"a": jnp.zeros((1, 4, 4, 2)), "b": jnp.zeros((1, 2, 2, 2))}
    with pytest.raises(BadRequest, match="the head reads 2 maps that are finer than the last, and the backbone has 1"):
        segmenters.finer(acts, acts["b"], 2)
