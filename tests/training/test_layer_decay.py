"""Layer-wise learning-rate decay against factors worked out by hand, in every form in which blocks come."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recvis_jax import models, trees
from recvis_jax.errors import BadRequest
from recvis_jax.models import scan
from recvis_jax.training.layer_decay import layer_factors
from recvis_jax.training.optim import make_optimizer

# 0.5 ** (depth + 1 - layer) for 3 blocks: layer 0, blocks 0, 1, 2, and what comes after.
FIRST, BLOCKS, AFTER = 0.0625, (0.125, 0.25, 0.5), 1.0


@functools.cache
def vit(**kw):
    """A small Vision Transformer's parameters, none of them zero, so that decay shows."""
    shape = (1, 8, 8, 3)
    model = models.create("vit_ti16", num_classes=4, patch_size=4, width=8, depth=3, heads=2, **kw)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=False))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), variables["params"])


def by_hand(name):
    top = name.split("/")[0]
    if top.startswith("block"):
        return BLOCKS[int(top.removeprefix("block"))]
    return {"patch_embed": FIRST, "cls_token": FIRST, "pos_embed": FIRST, "norm": AFTER, "head": AFTER}[top]


def updates(params, gradients, steps=2, **kw):
    """The updates of every step, from the same parameters."""
    kw = {"lr": 0.1, "weight_decay": 0.05, "b2": 0.95, **kw}
    opt = make_optimizer("adamw", params=params, total_steps=10, schedule="constant", **kw)
    state, out = opt.init(params), []
    update = jax.jit(opt.update)
    for i in range(steps):
        u, state = update(jax.tree.map(lambda g, i=i: g + 0.1 * i, gradients), state, params)
        out.append(jax.device_get(u))
    return out


def gradients(params):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)


@pytest.mark.full
def test_updates_are_multiplied_by_the_factors():
    params = vit()
    g = gradients(params)
    for plain, decayed in zip(updates(params, g), updates(params, g, layer_decay=0.5), strict=True):
        for name, u in trees.flatten(decayed).items():
            # Powers of 2: exact, Adam's moments and decoupled weight decay included.
            np.testing.assert_array_equal(u, by_hand(name) * trees.flatten(plain)[name], err_msg=name)


def test_stacked_blocks_have_the_same_updates():
    params = vit()
    g = gradients(params)
    stacked = scan.stack(params)
    assert any(n.startswith("blocks/") for n in trees.flatten(stacked))
    assert jax.tree.structure(stacked) == jax.tree.structure(vit(scan=True))
    kw = dict(layer_decay=0.5, decay=None)
    for one, other in zip(updates(params, g, **kw), updates(stacked, scan.stack(g), **kw), strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), scan.stack(one), other)


def test_the_factors_of_a_published_size():
    """ViT-B/16 at 0.65, as the fine-tuning of masked autoencoders has it: 0.65^13 at the bottom, 1 at the head."""
    model = models.create("vit_b16", num_classes=10)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))["params"]
    got = trees.flatten(layer_factors(shapes, 0.65))
    assert (
        got["patch_embed/proj/kernel"] == got["pos_embed"] == got["cls_token"] == pytest.approx(0.003697206, rel=1e-6)
    )
    assert got["block0/mlp/fc1/bias"] == pytest.approx(0.005688009, rel=1e-6)
    assert got["block11/norm1/scale"] == pytest.approx(0.65)
    assert got["norm/scale"] == got["head/kernel"] == 1


@pytest.mark.parametrize("name", ["vit_b_r50_s16", "convmixer_768_32", "mixer_s16", "mae_b16"])
def test_what_comes_before_the_blocks(name):
    model = models.create(name)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))["params"]
    factors = trees.flatten(layer_factors(shapes, 0.5))
    depth = 1 + max(int(n.split("/")[0].removeprefix("block")) for n in factors if n.startswith("block"))
    tops = {top: {f for n, f in factors.items() if n.split("/")[0] == top} for top in shapes}
    first = {top for top, values in tops.items() if values == {0.5 ** (depth + 1)}}
    assert {top for top, values in tops.items() if values == {1.0}} | first == {t for t in tops if t[:5] != "block"}
    assert first == {t for t in tops if t in ("patch_embed", "cls_token", "pos_embed") or t[:4] in ("stem", "stag")}


@pytest.mark.parametrize("form", [lambda p: p, scan.stack])
def test_below_a_prefix_and_under_another_name(form):
    params = form(vit())
    below = layer_factors({"backbone": params, "head2": np.zeros(3)}, 0.5)
    jax.tree.map(np.testing.assert_array_equal, below, {"backbone": layer_factors(params, 0.5), "head2": 1.0})
    x = np.zeros((2, 3))
    got = layer_factors({"net": {"stem": x, "encoder0": {"w": x}, "encoder1": {"w": x}}}, 0.1, r"encoder(\d+)")
    assert trees.flatten(got) == pytest.approx({"net/encoder0/w": 0.01, "net/encoder1/w": 0.1, "net/stem": 0.001})
    got = layer_factors({"encoders": {"w": x}, "out": x}, 0.1, r"encoder(\d+)")
    np.testing.assert_allclose(got["encoders"]["w"], [[0.01], [0.1]])


def test_with_multipliers_and_frozen_parameters():
    params = vit()
    g = gradients(params)
    kw = dict(freeze="^(patch_embed|block0)/", lr_multipliers=(("bias$", 4.0), ("^head/", 2.0)))
    (plain,), (decayed,) = updates(params, g, 1), updates(params, g, 1, layer_decay=0.5, **kw)
    for name, u in trees.flatten(decayed).items():
        factor = 0.0 if name.startswith(("patch_embed", "block0/")) else by_hand(name)
        factor *= 4 if name.endswith("bias") else 2 if name.startswith("head/") else 1
        np.testing.assert_array_equal(u, factor * trees.flatten(plain)[name], err_msg=name)
    params = jax.tree.map(jnp.asarray, params)
    after = optax.apply_updates(params, decayed)
    np.testing.assert_array_equal(after["block0"]["norm1"]["scale"], params["block0"]["norm1"]["scale"])


X = np.zeros((3, 2))


@pytest.mark.parametrize(
    "params, kw, message",
    [
        ({"stage1_block1": X, "head": X}, {}, "the depth is unknown; names: head, stage1_block1"),
        ({"block0": X, "block2": X}, {}, r"numbered \[0, 2\]"),
        ({"block1": X}, {}, r"numbered \[1\]"),
        ({"blocks": {"a": X, "b": X[:2]}}, {}, r"of \[2, 3\] in one array"),
        ({"blocks": {"a": np.zeros(())}}, {}, r"of \[0\] in one array"),
        ({"blocks": X, "block0": X}, {}, r"numbered \[0\]"),
        ({"a": {"block0": X}, "b": {"block0": X}}, {}, "several places.*a/block0, b/block0"),
        ({"block0": X}, {"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"block0": X}, {"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"block0": X}, {"layer_decay": float("nan")}, "layer_decay is nan"),
        ({"block0": X}, {"layer_blocks": "block"}, r"one group, \(\\d\+\)"),
        ({"block0": X}, {"layer_blocks": r"(b|c)lock(\d+)"}, "one group"),
        ({"block0": X}, {"layer_blocks": r"block(\d+"}, "not a regular expression"),
    ],
)
def test_bad_requests(params, kw, message):
    with pytest.raises(BadRequest, match=message):
        make_optimizer("sgd", params=params, total_steps=1, lr=1.0, **{"layer_decay": 0.5, **kw})
