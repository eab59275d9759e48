"""DETR against the numbers of facebookresearch/detr and of transformers: outputs, set loss, gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import Fixture, load

from recvis_jax import models, pretrained, trees
from recvis_jax.tasks.detect import set_losses

TINY = dict(queries=10, num_classes=5, width=64, heads=4, encoder_depth=2, decoder_depth=2, hidden=128, dropout=0.0)
BOTTLENECKS = dict(name="resnet50", norm="frozen", stem_width=16, width=4, blocks=(1, 1, 2, 1))
slow = pytest.mark.slow
# Fixture: library, our model, features.
NAMES = {
    "hf_detr_tiny": ("transformers", models.create("detr_tiny", backbone=BOTTLENECKS, **TINY)),
    "hf_detr_timm_r18": ("transformers", models.create("detr_tiny", **TINY)),
    "detr_resnet50": ("detr", pretrained.create("detr", "detr_resnet50", dropout=0.0)),
}
ROWS = [pytest.param(name, marks=slow if name == "detr_resnet50" else ()) for name in NAMES]
# Labels and boxes (centre, width and height) of the fixtures' two images; the second has one object only.
LABELS = jnp.array([[1, 0], [1, 0]])
BOXES = jnp.array([[[0.5, 0.5, 0.2, 0.3], [0.3, 0.6, 0.4, 0.2]], [[0.6, 0.4, 0.5, 0.5], [0.5, 0.5, 1, 1]]])
VALID = jnp.array([[True, True], [True, False]])


@pytest.mark.parametrize("name", ROWS)
def test_inference(name):
    fixture, (library, model) = Fixture(name), NAMES[name]
    forward = jax.jit(partial(model.apply, train=False))
    valid = jnp.asarray(fixture.arrays["pixel_mask"] == 1)
    for run in fixture.runs:
        x = jnp.asarray(fixture.images(run))
        variables = load(model, fixture.state_dict(run), 64, library=library)
        for prefix, kw in (("", {"valid": jnp.ones_like(valid)}), ("masked_", {"valid": valid})):
            logits, acts = forward(variables, x, **kw)
            fixture.compare(f"{run}{prefix}logits", logits)
            fixture.compare(f"{run}{prefix}pred_boxes", acts["boxes"])
            if run or prefix:
                continue
            if library == "detr":
                fixture.compare("feat_backbone", acts["projected"])
                fixture.compare("feat_decoder", acts["decoder0"].swapaxes(0, 1))
            else:
                fixture.compare("feat_memory", acts["memory"])
                fixture.compare("feat_decoder", acts["decoder1"])


@pytest.mark.parametrize("name", ROWS)
def test_training(name):
    fixture, (library, model) = Fixture(f"{name}_train"), NAMES[name]
    variables = load(model, fixture.state_dict(), 64, library=library)
    images = jnp.asarray(fixture.images())
    layers = model.decoder_depth if library == "detr" else 1
    objects, queries = VALID.sum(), VALID.size // 2 * model.queries

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        _, acts = model.apply({**variables, "params": params}, images, train=False)  # the fixtures' without padding
        parts = {}
        for i in range(model.decoder_depth - layers, model.decoder_depth):
            of = jax.vmap(set_losses)(acts[f"decoder{i}/logits"], acts[f"decoder{i}/boxes"], LABELS, BOXES, VALID)
            suffix = "" if i == model.decoder_depth - 1 else f"_{i}"
            parts[f"loss_ce{suffix}"] = of["classes"].sum() / (objects + 0.1 * (queries - objects))
            parts[f"loss_bbox{suffix}"] = of["l1"].sum() / objects
            parts[f"loss_giou{suffix}"] = of["giou"].sum() / objects
        weights = {"ce": 1, "bbox": 5, "giou": 2}
        return sum(weights[k.split("_")[1]] * x for k, x in parts.items()), parts

    (value, parts), grads = loss(variables["params"])
    fixture.compare("loss", value)
    for key in parts.keys() & fixture.expected.keys():
        fixture.compare(key, parts[key])
    moves = pretrained.moves(model, trees.flatten(variables), library)
    fixture.compare_gradients("", grads, [m for m in moves if m.ours[0].startswith("params/")])


@pytest.mark.parametrize("name", ["hf_detr_timm_r18", "hf_detr_tiny"])
def test_export_is_what_was_loaded(name):
    fixture, (library, model) = Fixture(name), NAMES[name]
    state = fixture.state_dict()
    again = pretrained.export(load(model, state, 64, library=library), model, library)
    if name == "hf_detr_timm_r18":
        assert again.keys() == {n for n in state if "num_batches_tracked" not in n}
    for key in again.keys() & state.keys():
        np.testing.assert_array_equal(again[key], state[key], err_msg=key)
