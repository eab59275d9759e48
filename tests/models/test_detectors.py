"""One contract for every model of `models.DENSE`, and what is DETR's and the segmenters' own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import models, trees
from recvis_jax.errors import BadRequest
from recvis_jax.models import detr

BACKBONE = dict(name="resnet18", norm="frozen", width=4, blocks=(1, 1))
SMALL = {
    "detr_tiny": dict(queries=3, width=8, heads=2, encoder_depth=1, decoder_depth=2, hidden=8, dropout=0.0),
    "centre_r18": dict(width=4, norm="none"),
    "fcn_r50": dict(norm="none", dropout=0.0, auxiliary_layer="stage1/block1"),
    "deeplabv3_r50": dict(norm="none", dropout=0.0, width=4, rates=(1, 2)),
    "segment_vit_s16": dict(),
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
