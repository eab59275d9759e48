"""What the models over tokens share: stacked blocks, stochastic depth, positions, masking, sizes that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import models, pretrained, trees
from recvis_jax.errors import BadRequest
from recvis_jax.models import scan
from recvis_jax.models.mae import patchify, random_masking, unpatchify
from recvis_jax.models.tokens import sincos2d

TINY = dict(patch_size=4, width=16, depth=3)
HEADS = dict(heads=2, num_classes=5)
MAE = dict(heads=2, decoder_width=8, decoder_depth=2, decoder_heads=2)
MIXER = dict(tokens_dim=6, channels_dim=10, num_classes=5)
SMALL = {
    "vit_ti16": TINY | HEADS,
    "vit_s16": TINY | HEADS | dict(pool="gap", positions="sincos2d", pre_logits=True),
    "vit_b16": TINY | HEADS | dict(pool="map"),
    "vit_l16": TINY | HEADS | dict(pool="gap_norm"),
    "mixer_s16": TINY | MIXER,
    "gmixer_12": TINY | MIXER,
    "resmlp_12": TINY | dict(num_classes=5),
    "gmlp_ti16": TINY | dict(num_classes=5),
    "ff_only_ti16": TINY | dict(num_classes=5),
    "mae_b16": TINY | MAE,
}


def fill(spec, seed=0):
    """Variables of the given shapes, drawn by numpy."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), spec)


def build(name, size=8, **kw):
    model = models.create(name, **SMALL[name], **kw)
    x = jnp.asarray(np.random.default_rng(1).random((2, size, size, 3), np.float32))
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False)), x


def run(model, variables, x, **kw):
    return jax.jit(lambda v, x: model.apply(v, x, **kw))(variables, x)


@pytest.mark.full
@pytest.mark.parametrize("name", SMALL)
def test_scan_equals_unrolled(name):
    unrolled, spec, x = build(name)
    stacked, stacked_spec, _ = build(name, scan=True, remat=True)
    variables = fill(spec)
    converted = scan.stack(variables)
    assert jax.tree.map(lambda v: v.shape, converted) == jax.tree.map(lambda v: v.shape, dict(stacked_spec))
    jax.tree.map(np.testing.assert_array_equal, scan.unstack(converted), dict(variables))
    assert scan.stack(scan.unstack(stacked_spec)) == dict(stacked_spec)
    (out, acts), (out2, acts2) = run(unrolled, variables, x, train=False), run(stacked, converted, x, train=False)
    np.testing.assert_allclose(out2, out, atol=1e-5)
    assert {k: v.shape for k, v in acts2.items()} == {k: v.shape for k, v in acts.items()}
    np.testing.assert_allclose(acts2["block1"], acts["block1"], atol=1e-5)


def test_unequal_blocks_cannot_be_stacked():
    with pytest.raises(BadRequest, match=r"\[0, 2\]"):
        scan.stack({"block0": {"a": np.ones(2)}, "block2": {"a": np.ones(2)}})
    with pytest.raises(BadRequest, match="differ"):
        scan.stack({"block0": {"a": np.ones(2)}, "block1": {"a": np.ones(3)}})
    with pytest.raises(BadRequest, match="not stacked"):
        scan.unstack({"blocks": {"a": np.ones(2), "b": np.ones(3)}})


@pytest.mark.full
@pytest.mark.parametrize("scanned", [False, True])
def test_drop_path(scanned):
    model, spec, x = build("vit_ti16", drop_path=0.6, scan=scanned)
    plain, _, _ = build("vit_ti16", scan=scanned)
    variables, x = fill(spec), jnp.tile(x[:1], (64, 1, 1, 1))
    expected = run(plain, variables, x, train=False)[1]
    np.testing.assert_array_equal(run(model, variables, x, train=False)[0], expected["logits"])
    acts = run(model, variables, x, train=True, rngs={"dropout": jax.random.key(3)})[1]
    # The first block drops nothing; the last one drops both branches of (0.6)^2 of the examples, whole.
    np.testing.assert_allclose(acts["block0"], expected["block0"], atol=1e-5)
    same = np.asarray(acts["block2"] == acts["block1"]).all((1, 2))
    assert 0.1 < same.mean() < 0.65


LIBRARIES = {
    "vit_ti16": ("timm", "mae", "transformers", "big_vision"),
    "vit_s16": ("big_vision",),
    "vit_b16": ("timm", "big_vision"),
    "vit_l16": ("timm", "mae"),
    "mixer_s16": ("timm", "big_vision"),
    "gmixer_12": ("timm",),
    "resmlp_12": ("timm",),
    "gmlp_ti16": ("timm",),
    "mae_b16": ("mae", "transformers"),
}


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize(("name", "library"), [(n, lib) for n, libs in LIBRARIES.items() for lib in libs])
def test_round_trip_is_exact(name, library, scanned):
    model, spec, _ = build(name, scan=scanned)
    variables = fill(spec)
    exported = pretrained.export(variables, model, library)
    assert trees.count(exported) == trees.count(variables)
    loaded = pretrained.load(exported, model, spec, library=library)
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(variables))
    if len(LIBRARIES[name]) == 1:
        pretrained.load(exported, model, spec)  # recognised by its names


def test_round_trip_of_networks_with_convolutions():
    for name, kw in (
        ("convmixer_768_32", dict(width=8, depth=2, kernel_size=3)),
        ("vit_s_r26_s32", dict(width=8, depth=1, heads=2, stages=(1, 1), patch_size=2)),
        ("vit_ti_r_s16", dict(width=8, depth=1, heads=2, patch_size=2)),
    ):
        model = models.create(name, num_classes=3, **kw)
        x = jnp.zeros((1, 32, 32, 3))
        spec = jax.eval_shape(lambda m=model, x=x: m.init(jax.random.key(0), x, train=False))
        variables = fill(spec)
        exported = pretrained.export(variables, model, "timm")
        jax.tree.map(np.testing.assert_array_equal, pretrained.load(exported, model, spec), dict(variables))


def test_names_of_the_npz_files():
    model, spec, _ = build("vit_ti16")
    names = {n: x.shape for n, x in pretrained.export(fill(spec), model, "big_vision").items()}
    block = "Transformer/encoderblock_2"
    assert names[f"{block}/MultiHeadDotProductAttention_1/query/kernel"] == (16, 2, 8)
    assert names[f"{block}/MultiHeadDotProductAttention_1/out/kernel"] == (2, 8, 16)
    assert names["Transformer/posembed_input/pos_embedding"] == (1, 5, 16)
    assert names[f"{block}/MlpBlock_3/Dense_0/kernel"] == (16, 64)
    model, spec, _ = build("vit_b16")
    names = pretrained.export(fill(spec), model, "big_vision")
    assert names["pos_embedding"].shape == (1, 4, 16)
    assert {"MAPHead_0/probe", "Transformer/encoderblock_0/MlpBlock_0/Dense_1/bias"} <= set(names)
    model, spec, _ = build("vit_l16")
    with pytest.raises(BadRequest, match="gap_norm"):
        pretrained.export(fill(spec), model, "big_vision")


@pytest.mark.parametrize("name", [n for n in SMALL if n != "vit_s16"])
def test_other_sizes_are_refused(name):
    model, spec, _ = build(name)
    with pytest.raises(BadRequest, match=r"12x8 images give (6|7) tokens"):
        jax.eval_shape(lambda v: model.apply(v, jnp.zeros((2, 12, 8, 3)), train=False), spec)
    with pytest.raises(BadRequest, match="9x8 images are not made of 4x4 patches"):
        jax.eval_shape(lambda v: model.apply(v, jnp.zeros((2, 9, 8, 3)), train=False), spec)


def test_fixed_positions_take_any_size():
    model, spec, _ = build("vit_s16")
    out, _ = jax.eval_shape(lambda v: model.apply(v, jnp.zeros((2, 12, 20, 3)), train=False), spec)
    assert out.shape == (2, 5)


@pytest.mark.parametrize(
    "kw", [dict(pool="max"), dict(positions="rope"), dict(heads=5), dict(drop_path=1.0), dict(dropout=-0.1)]
)
def test_arguments_are_checked_at_once(kw):
    with pytest.raises(BadRequest):
        models.create("vit_s16", **kw)


def test_sincos2d():
    table = sincos2d(3, 5, 8)
    for y in range(3):
        for x in range(5):
            want = [f(p / 100**i) for p in (x, y) for f in (np.sin, np.cos) for i in (0, 1)]
            np.testing.assert_allclose(table[y * 5 + x], want, atol=1e-6)
    np.testing.assert_allclose(
        sincos2d(2, 2, 8, last=True)[1], [np.sin(1), np.sin(1e-4), np.cos(1), np.cos(1e-4), 0, 0, 1, 1], atol=1e-6
    )
    with pytest.raises(BadRequest, match="divisible by 4"):
        sincos2d(2, 2, 6)


def test_patches_and_back():
    x = jnp.asarray(np.random.default_rng(0).random((2, 8, 12, 3)))
    patches = patchify(x, 4)
    assert patches.shape == (2, 6, 48)
    np.testing.assert_array_equal(patches[1, 4].reshape(4, 4, 3), x[1, 4:8, 4:8])
    np.testing.assert_array_equal(unpatchify(patches, 4, (8, 12)), x)
    with pytest.raises(BadRequest, match="6 patches"):
        unpatchify(patches, 4, (8, 8))


def test_random_masking():
    noise = jax.random.uniform(jax.random.key(0), (4, 10))
    ids_keep, mask, ids_restore = random_masking(noise, 3)
    for b in range(4):
        order = np.argsort(noise[b])
        np.testing.assert_array_equal(ids_keep[b], order[:3])
        np.testing.assert_array_equal(order[ids_restore[b]], range(10))
        np.testing.assert_array_equal(np.flatnonzero(mask[b] == 0), sorted(order[:3]))


@pytest.mark.full
def test_masked_patches_are_not_seen_by_the_encoder():
    model, spec, x = build("mae_b16", size=16)
    variables = fill(spec)
    noise = jax.random.uniform(jax.random.key(0), (2, 16))
    pred, acts = run(model, variables, x, train=False, noise=noise)
    assert pred.shape == (2, 16, 48) and acts["latent"].shape == (2, 5, 16) and acts["mask"].sum() == 24
    hidden = unpatchify(jnp.where(acts["mask"][..., None] > 0, 7.0, patchify(x, 4)), 4, (16, 16))
    np.testing.assert_array_equal(run(model, variables, hidden, train=False, noise=noise)[0], pred)
    _, acts = run(model, variables, x, train=False)
    assert not acts["mask"].any() and acts["latent"].shape == (2, 17, 16)
    masks = [run(model, variables, x, train=True, rngs={"dropout": jax.random.key(i)})[1]["mask"] for i in (1, 1, 2)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert np.any(masks[0] != masks[2])
    with pytest.raises(BadRequest, match="noise"):
        model.apply(variables, x, train=False, noise=noise[:, :9])


@pytest.mark.full
def test_initial_positions_of_the_autoencoder_are_fixed():
    model, _, x = build("mae_b16")
    variables = jax.jit(lambda: model.init(jax.random.key(0), x, train=False))()
    assert set(variables) == {"params", "constants"}
    for name, width in (("pos_embed", 16), ("decoder_pos_embed", 8)):
        table = variables["constants"][name]
        np.testing.assert_array_equal(table[0, 0], 0)
        np.testing.assert_array_equal(table[0, 1:], sincos2d(2, 2, width))
