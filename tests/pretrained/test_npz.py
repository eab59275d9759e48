"""The .npz files of vision_transformer and big_vision, against flax's own modules under the names that these give."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import load, template

from recvis_jax import models, pretrained, trees
from recvis_jax.errors import BadRequest
from recvis_jax.pretrained import big_vision

D, HEADS, DEPTH, PATCH, CLASSES = 16, 2, 2, 4, 5
normal = nn.initializers.normal(0.5)


class MlpBlock(nn.Module):
    hidden: int = 4 * D

    @nn.compact
    def __call__(self, x):
        y = nn.gelu(nn.Dense(self.hidden)(x))
        return nn.Dense(x.shape[-1])(y)


class EncoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
        return x + MlpBlock()(nn.LayerNorm()(x))


class Positions(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("pos_embedding", normal, (1, *x.shape[1:]))


class Encoder(nn.Module):
    positions: bool

    @nn.compact
    def __call__(self, x):
        x = Positions(name="posembed_input")(x) if self.positions else x
        for i in range(DEPTH):
            x = EncoderBlock(name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class MAPHead(nn.Module):
    @nn.compact
    def __call__(self, x):
        probe = jnp.tile(self.param("probe", normal, (1, 1, D)), (len(x), 1, 1))
        x = nn.MultiHeadDotProductAttention(HEADS)(probe, x)
        return (x + MlpBlock()(nn.LayerNorm()(x)))[:, 0]


def class_token(self, x):
    return jnp.concatenate([jnp.tile(self.param("cls", normal, (1, 1, D)), (len(x), 1, 1)), x], 1)


class StdConv(nn.Module):
    width: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        w = self.param("kernel", normal, (self.size, self.size, x.shape[-1], self.width))
        w = (w - w.mean((0, 1, 2))) / (w.std((0, 1, 2)) + 1e-5)
        return jax.lax.conv_general_dilated(
            x, w, (self.stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class Unit(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.GroupNorm(name="gn1")(StdConv(self.width, 1, name="conv1")(x)))
        y = nn.relu(nn.GroupNorm(name="gn2")(StdConv(self.width, 3, self.stride, name="conv2")(y)))
        y = nn.GroupNorm(name="gn3")(StdConv(4 * self.width, 1, name="conv3")(y))
        if x.shape != y.shape:
            x = nn.GroupNorm(name="gn_proj")(StdConv(4 * self.width, 1, self.stride, name="conv_proj")(x))
        return nn.relu(x + y)


class Stage(nn.Module):
    blocks: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.blocks):
            x = Unit(self.width, 1 if i else self.stride, name=f"unit{i + 1}")(x)
        return x


class VisionTransformer(nn.Module):
    """vision_transformer's: positions below the encoder, the class token's among them."""

    pool: str = "cls"
    stages: tuple[int, ...] | None = None
    rep: bool = False
    patch: int = PATCH

    @nn.compact
    def __call__(self, x):
        if self.stages is not None:
            x = nn.relu(nn.GroupNorm(name="gn_root")(StdConv(64, 7, 2, name="conv_root")(x)))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for i, blocks in enumerate(self.stages):
                x = Stage(blocks, 64 * 2**i, 2 if i else 1, name=f"block{i + 1}")(x)
        x = nn.Conv(D, (self.patch,) * 2, (self.patch,) * 2, name="embedding")(x)
        x = x.reshape(len(x), -1, D)
        x = class_token(self, x) if self.pool == "cls" else x
        x = Encoder(True, name="Transformer")(x)
        x = x[:, 0] if self.pool == "cls" else x.mean(1)
        x = nn.tanh(nn.Dense(D, name="pre_logits")(x)) if self.rep else x
        return nn.Dense(CLASSES, name="head")(x)


class BigVision(nn.Module):
    """big_vision's: positions of the patches alone, beside the encoder."""

    pool: str
    patch: int = PATCH

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(D, (self.patch,) * 2, (self.patch,) * 2, name="embedding")(x)
        x = x.reshape(len(x), -1, D)
        x = x + self.param("pos_embedding", normal, (1, *x.shape[1:]))
        x = class_token(self, x) if self.pool == "cls" else x
        x = Encoder(False, name="Transformer")(x)
        x = MAPHead(name="MAPHead_0")(x) if self.pool == "map" else x[:, 0] if self.pool == "cls" else x.mean(1)
        return nn.Dense(CLASSES, name="head")(x)


class MixerBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x).swapaxes(1, 2)
        x = x + MlpBlock(6, name="token_mixing")(y).swapaxes(1, 2)
        return x + MlpBlock(10, name="channel_mixing")(nn.LayerNorm()(x))


class MlpMixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(D, (PATCH, PATCH), (PATCH, PATCH), name="stem")(x).reshape(len(x), -1, D)
        for _ in range(DEPTH):
            x = MixerBlock()(x)
        return nn.Dense(CLASSES, name="head")(nn.LayerNorm(name="pre_head_layer_norm")(x).mean(1))


def reference(model, size, seed=0):
    """Images, outputs and the file of a model of flax: name -> array of numbers that are nowhere 0 or 1."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((2, size, size, 3), np.float32))
    spec = jax.eval_shape(lambda: model.init(jax.random.key(0), x))
    variables = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape, np.float32) + 0.1, spec)
    return x, jax.jit(model.apply)(variables, x), trees.flatten(variables["params"])


TINY = dict(num_classes=CLASSES, width=D, depth=DEPTH)
VIT = dict(heads=HEADS, patch_size=PATCH, **TINY)
CASES = {
    "vision_transformer with a class token": (VisionTransformer(), "ViT-B_16", VIT, 12),
    "vision_transformer, pre-training": (VisionTransformer(rep=True), "ViT-B_16", VIT | dict(pre_logits=True), 8),
    "vision_transformer, mean": (VisionTransformer("gap"), "ViT-S_16-gap-norep", VIT, 8),
    "big_vision with a class token": (BigVision("cls"), "B/16", VIT, 12),
    "big_vision, mean": (BigVision("gap"), "B/16", VIT | dict(pool="gap"), 8),
    "big_vision, attention": (BigVision("map"), "B/16", VIT | dict(pool="map"), 12),
    "mixer": (MlpMixer(), "Mixer-B_16", TINY | dict(patch_size=PATCH, tokens_dim=6, channels_dim=10), 12),
    "hybrid": (VisionTransformer(stages=(2, 1), patch=1), "R26+ViT-S_32", VIT | dict(stages=(2, 1), patch_size=1), 32),
    "hybrid of a stem": (VisionTransformer(stages=(), patch=2), "R_Ti_16", VIT | dict(patch_size=2), 32),
}


def same(model, state, x, want, tolerance=2e-5, **kw):
    """Holds the model's outputs against theirs; returns its variables."""
    variables = load(model, state, x.shape[1], **kw)
    got, _ = jax.jit(partial(model.apply, train=False))(variables, x)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())
    return variables


@pytest.mark.full
@pytest.mark.parametrize("case", CASES)
def test_outputs(case, tmp_path):
    theirs, name, kw, size = CASES[case]
    x, want, state = reference(theirs, size)
    model = pretrained.create("big_vision", name, **kw)
    variables = same(model, state, x, want, 2e-4 if "hybrid" in case else 2e-5)  # see `big_vision.hybrid`
    exported = pretrained.export(variables, model, "big_vision", tmp_path / "x.npz")
    for again in (
        exported,
        tmp_path / "x.npz",
        # of a whole training state, and with group norms as flax once had them
        {f"opt/target/{n}": v[None, None, None] if "/gn" in f"/{n}" else v for n, v in state.items()},
    ):
        jax.tree.map(np.testing.assert_array_equal, load(model, again, size), variables)
    if case != "big_vision with a class token":  # which is written as vision_transformer's
        published = {_published(n, getattr(model, "pool", "")): v.shape for n, v in state.items()}
        assert {n: v.shape for n, v in exported.items()} == published


def _published(name, pool):
    """What we write for a name that today's flax gives: published files count the parts of a block together."""
    if pool == "gap":
        return name.replace("Transformer/posembed_input/", "")
    if pool == "cls":
        name = name.replace("LayerNorm_1", "LayerNorm_2").replace("MlpBlock_0", "MlpBlock_3")
        name = name.replace("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1")
    return name


def test_published_names_of_blocks():
    # As timm's reader of these files has them (vision_transformer.py:_load_weights).
    model = models.create("vit_b16", **VIT)
    names = {m.theirs for m in pretrained.moves(model, trees.flatten(template(model, 12)), "big_vision")}
    block = "Transformer/encoderblock_1"
    assert {n.removeprefix(f"{block}/").partition("/")[0] for n in names if n.startswith(block)} == {
        "LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"
    }  # fmt: skip


def test_a_tower_beside_a_text_tower():
    x, want, state = reference(BigVision("map"), 12)
    model = models.create("vit_b16", activation="gelu_tanh", pool="map", **VIT)
    both = {f"params/img/{n}": v for n, v in state.items()} | {
        "params/txt/head/bias": np.ones(3),
        "params/t": np.ones(1),
    }
    with pytest.raises(BadRequest, match="2 not in the model: txt/head/bias, t"):
        load(model, both, 12)
    same(model, both, x, want, ignore="^(txt/|t$)")


def test_pooling_by_attention_before_it_was_a_module():
    x, want, state = reference(BigVision("map"), 8)
    model = models.create("vit_b16", activation="gelu_tanh", pool="map", **VIT)
    same(model, {n.removeprefix("MAPHead_0/"): v for n, v in state.items()}, x, want)


def test_a_class_token_without_a_position():
    # 4 and 9 positions are squares, 5 and 10 are squares and the class token's.
    for n, out in ((4, 5), (5, 5), (9, 10), (10, 10)):
        (found,) = big_vision._POSITIONS.load(np.ones((1, n, 3)), 1)
        assert found.shape == (1, out, 3) and found[0, 0].sum() == 3 * (n == out)
