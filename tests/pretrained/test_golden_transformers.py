"""Vision Transformers, MLP networks, masked autoencoders and the Transformer against their references' numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import fill
from reference import Fixture, check_inference, check_training, load

from recvis_jax import models, pretrained, trees
from recvis_jax.models.attention import MultiHeadAttention
from recvis_jax.models.mae import patchify
from recvis_jax.models.transformer import Transformer
from recvis_jax.tasks.mae import patch_loss, target_patches

slow = pytest.mark.slow

# Fixture's intermediate -> ours, for networks whose middle block is `mid`.
VIT = {"feat_patch_embed": "stem", "feat_block_mid": "block6", "feat_tokens": "tokens"}


def mlp(mid):
    return {"feat_stem": "stem", "feat_block_mid": f"block{mid}", "feat_tokens": "tokens"}


INFERENCE = {
    "timm_vit_tiny_patch16_224": VIT,
    "timm_vit_small_patch16_224": {},
    "timm_vit_base_patch16_224": {},
    "timm_mixer_s16_224": mlp(4),
    "timm_mixer_b16_224": {},
    "timm_gmixer_12_224": mlp(6),
    "timm_gmlp_s16_224": mlp(15),
    "timm_resmlp_12_224": mlp(6),
    "timm_convmixer_768_32": {"feat_stem": "stem", "feat_block_mid": "block16"},
    "timm_vit_tiny_r_s16_p8_224": {"feat_stem": "stem", "feat_patch_embed": "patches", "feat_tokens": "tokens"},
    "timm_vit_small_r26_s32_224": {
        "feat_stem": "stem",
        "feat_stage2": "stage2/block2",
        "feat_stage4": "stage4/block2",
        "feat_tokens": "tokens",
    },
    "timm_vit_base_r50_s16_224": {"feat_stage3": "stage3/block9", "feat_tokens": "tokens"},
    "timm_vit_base_patch32_siglip_256": {"feat_block_mid": "block6", "feat_tokens": "tokens"},
}
LARGE = ("base", "_b16", "convmixer")
# Whose weights, those that the name means, have no head.
HEAD = {"timm_vit_base_r50_s16_224": {"num_classes": 1000}}


@pytest.mark.full
@pytest.mark.parametrize("name", [pytest.param(n, marks=slow if any(s in n for s in LARGE) else ()) for n in INFERENCE])
def test_inference(name):
    check_inference(name, "timm", name.removeprefix("timm_"), INFERENCE[name], **HEAD.get(name, {}))


@pytest.mark.full
def test_inference_of_the_mean_of_patches():
    features = VIT | {"feat_tokens": "block11", "feat_pooled": "features"}
    check_inference("timm_vit_tiny_patch16_224_gap", "timm", "vit_tiny_patch16_224", features, pool="gap_norm")


def test_inference_of_transformers():
    kw = dict(patch_size=8, width=192, depth=4, heads=3, num_classes=10)
    check_inference("hf_vit_tiny", "transformers", "google/vit-base-patch16-224", {}, **kw)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mixer_s16_224"])
def test_inference_by_scan(name):
    check_inference(f"timm_{name}", "timm", name, {}, scan=True)


@slow
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "mixer_s16_224", "gmlp_s16_224", "resmlp_12_224", "convmixer_768_32"]
)
def test_training(name):
    check_training(f"timm_{name}_train", "timm", name)


@pytest.mark.full
def test_training_by_scan():
    check_training("timm_vit_tiny_patch16_224_train", "timm", "vit_tiny_patch16_224", scan=True, remat=True)


TINY = dict(patch_size=8, width=192, depth=4, heads=3, decoder_width=128, decoder_depth=2, decoder_heads=4)
AUTOENCODERS = {"mae_tiny": ("mae", 1e-6), "hf_vitmae_tiny": ("transformers", 1e-12)}


def mae_loss(pred, mask, images, norm_pix):
    """The mean squared error of the masked patches, which are normalised with the unbiased variance if `norm_pix`."""
    target = patchify(images, 8)
    if norm_pix:
        var = target.var(-1, ddof=1, keepdims=True)
        target = (target - target.mean(-1, keepdims=True)) / jnp.sqrt(var + 1e-6)
    return (jnp.square(pred - target).mean(-1) * mask).sum() / mask.sum()


@pytest.mark.full
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_masked_autoencoder(name, scan):
    fixture, (library, eps) = Fixture(name), AUTOENCODERS[name]
    model = models.create("mae_b16", norm_eps=eps, scan=scan, **TINY)
    forward = jax.jit(partial(model.apply, train=False))
    for run, spec in fixture.runs.items():
        images = jnp.asarray(fixture.images(run))
        (noise,) = [jnp.asarray(fill.make_input(s)) for s in spec["inputs"] if s["name"] == "noise"]
        variables = load(model, fixture.state_dict(run), 64, library=library)
        pred, acts = forward(variables, images, noise=noise)
        fixture.compare(f"{run}logits", pred)
        fixture.compare(f"{run}mask", acts["mask"])
        fixture.compare(f"{run}loss", mae_loss(pred, acts["mask"], images, False))
        fixture.compare(f"{run}loss_norm_pix", mae_loss(pred, acts["mask"], images, True))
        for norm, suffix in ((False, ""), (True, "_norm_pix")):  # and by the task's own loss
            ours = patch_loss(pred, target_patches(images, model.patch_size, norm), acts["mask"])
            fixture.compare(f"{run}loss{suffix}", ours.mean())
        if f"{run}ids_restore" in fixture.expected:
            np.testing.assert_array_equal(acts["ids_restore"], fixture.arrays[f"{run}ids_restore"])
        if not run:
            fixture.compare("feat_latent", acts["latent"])
            fixture.compare("feat_decoder_embed", acts["decoder_embed"])


@pytest.mark.full
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_masked_autoencoder_training(name):
    fixture, (library, eps) = Fixture(f"{name}_train"), AUTOENCODERS[name]
    model = models.create("mae_b16", norm_eps=eps, **TINY)
    (noise,) = [jnp.asarray(fill.make_input(s)) for s in fixture.manifest["inputs"] if s["name"] == "noise"]
    images = jnp.asarray(fixture.images())
    variables = load(model, fixture.state_dict(), 64, library=library)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        pred, acts = model.apply({**variables, "params": params}, images, train=True, noise=noise)
        return mae_loss(pred, acts["mask"], images, True)

    value, grads = loss(variables["params"])
    fixture.compare("loss", value)
    moves = pretrained.moves(model, trees.flatten(variables), library)
    fixture.compare_gradients("", grads, [m for m in moves if m.ours[0].startswith("params/")])


def inputs(fixture, run=""):
    """The inputs of a run by name; what is stored says where padding is."""
    specs = fixture.runs[run]["inputs"]
    made = {s["name"]: fill.make_input(s) for s in specs}
    return {n: jnp.asarray(fixture.arrays[n] == 0 if x is None else x) for n, x in made.items()}


def test_multi_head_attention():
    fixture, layer = Fixture("torch_mha"), MultiHeadAttention(4)
    x = inputs(fixture)
    template = jax.eval_shape(lambda: layer.init(jax.random.key(0), x["q"]))
    variables = pretrained.load(fixture.state_dict(), layer, template)
    out, weights = layer.apply(variables, x["q"], mask=jnp.tri(12, dtype=bool))
    fixture.compare("self_out", out)
    np.testing.assert_allclose(weights.mean(1), fixture.arrays["self_weights"], rtol=0, atol=2e-6)
    out, weights = layer.apply(variables, x["q"], x["kv"], mask=x["kv_padding"][:, None, None])
    fixture.compare("cross_out", out)
    atol = fixture.expected["cross_weights"]["atol"]
    np.testing.assert_allclose(weights, fixture.arrays["cross_weights"], rtol=0, atol=atol)


def transformer(kind):
    kw = dict(width=64, heads=4, encoder_depth=2, decoder_depth=2, hidden=128)
    model = Transformer(pre_norm=kind == "pre", positions="none", dropout=0.0, **kw)
    token = jnp.zeros((1, 3, 64))
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), token, token, train=False))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["post", "pre"])
def test_transformer(kind):
    fixture, (model, template) = Fixture(f"torch_transformer_{kind}"), transformer(kind)
    forward = jax.jit(partial(model.apply, train=False))
    for run in fixture.runs:
        x = inputs(fixture, run)
        variables = pretrained.load(fixture.state_dict(run), model, template)
        out, acts = forward(variables, x["src"], x["tgt"])
        fixture.compare(f"{run}out", out)
        padded, _ = forward(variables, x["src"], x["tgt"], x["src_padding"])
        fixture.compare(f"{run}out_padded", padded)
        if not run:
            fixture.compare("feat_memory", acts["memory"])


@pytest.mark.full
@pytest.mark.parametrize("kind", ["post", "pre"])
def test_transformer_training(kind):
    fixture, (model, template) = Fixture(f"torch_transformer_{kind}_train"), transformer(kind)
    x = inputs(fixture)
    variables = pretrained.load(fixture.state_dict(), model, template)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return (model.apply({"params": params}, x["src"], x["tgt"], train=True)[0] ** 3).mean()

    value, grads = loss(variables["params"])
    fixture.compare("loss", value)
    fixture.compare_gradients("", grads, pretrained.moves(model, trees.flatten(variables), "torch"))


def image_gpt():
    model = models.create("igpt_s", colours=16, pixels=64, width=64, depth=3, heads=4)
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64), jnp.int32), train=False))


def test_image_gpt():
    fixture, (model, template) = Fixture("hf_imagegpt_tiny"), image_gpt()
    tokens = jnp.asarray(fixture.arrays["input_ids"], jnp.int32)
    for run in fixture.runs:
        variables = pretrained.load(fixture.state_dict(run), model, template)
        logits, acts = jax.jit(partial(model.apply, train=False))(variables, tokens)
        fixture.compare(f"{run}logits", logits)
        if not run:
            fixture.compare("feat_block0", acts["block0"])
            fixture.compare("feat_final", acts["tokens"])


@pytest.mark.full
def test_image_gpt_training():
    fixture, (model, template) = Fixture("hf_imagegpt_tiny_train"), image_gpt()
    tokens = jnp.asarray(fixture.arrays["input_ids"], jnp.int32)
    variables = pretrained.load(fixture.state_dict(), model, template)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        logits, _ = model.apply({"params": params}, tokens, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    value, grads = loss(variables["params"])
    fixture.compare("loss", value)
    fixture.compare_gradients("", grads, pretrained.moves(model, trees.flatten(variables), "transformers"))
