"""What is particular to a family, against the papers' words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import models


def shapes(name, shape=(2, 28, 28, 1), **kw):
    model = models.create(name, **kw)
    x = jnp.zeros(shape)
    (_, acts), variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, train=False))
    return {k: v.shape[1:] for k, v in acts.items()}, variables


def test_linear_is_a_matrix_product():
    model = models.create("linear", activation="sigmoid")
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 2))
    v = model.init(jax.random.key(1), x, train=True)
    w, b = v["params"]["head"]["kernel"], v["params"]["head"]["bias"] + 0.5
    v["params"]["head"]["bias"] = b
    expected = 1 / (1 + np.exp(-(np.asarray(x).reshape(3, 40) @ w + b)))
    np.testing.assert_allclose(model.apply(v, x, train=False)[0], expected, rtol=1e-5)


def test_lenet_has_the_papers_feature_maps():
    acts, _ = shapes("lenet5")  # S2, S4, C5, F6 of figure 2
    assert [acts[k] for k in ("stem", "stage1/block1", "stage2/block1", "features")] == [
        (14, 14, 6),
        (5, 5, 16),
        (120,),
        (84,),
    ]
    acts, _ = shapes("lenet5", (1, 8, 8, 1), activation="relu", pool="max")
    assert acts["stage1/block1"] == (2, 2, 16)


def test_convnet_has_the_tutorials_feature_maps():
    acts, v = shapes("convnet")
    assert acts["stem"] == (12, 12, 10) and acts["stage1/block1"] == (4, 4, 20)
    assert v["params"]["fc1"]["kernel"].shape == (320, 50)


@pytest.mark.full
def test_convnet_drops_whole_channels():
    model = models.create("convnet", dropout=0.7)
    x = jax.random.uniform(jax.random.key(0), (4, 28, 28, 1))
    v = jax.jit(lambda x: model.init(jax.random.key(1), x, train=False))(x)
    v["params"]["conv2"]["bias"] += 10.0  # so that only a dropped channel is zero
    _, acts = model.apply(v, x, train=True, rngs={"dropout": jax.random.key(2)})
    dead = np.asarray(acts["stage1/block1"] == 0)
    assert (dead.all((1, 2)) == dead.any((1, 2))).all()
    assert 0.4 < dead.mean() < 0.95


def test_mlp_widths_norm_and_dropout():
    acts, v = shapes("mlp", hidden=(30, 20, 10), norm="batch", dropout=0.1)
    assert [acts[f"stage1/block{i}"] for i in (1, 2, 3)] == [(30,), (20,), (10,)]
    assert v["batch_stats"]["norm2"]["mean"].shape == (20,)
    for norm in ("layer", "group"):
        shapes("mlp", norm=norm)


def test_resnet_feature_maps():
    acts, _ = shapes("resnet20", (1, 32, 32, 3))
    assert acts["stem"] == (32, 32, 16)
    assert [acts[f"stage{s}/block3"] for s in (1, 2, 3)] == [(32, 32, 16), (16, 16, 32), (8, 8, 64)]
    assert acts["features"] == (64,) and len(acts) == 12


def test_projection_shortcuts():
    _, a = shapes("resnet20")
    _, b = shapes("resnet20", shortcut="B")
    extra = sum(x.size for x in jax.tree.leaves(b["params"])) - sum(x.size for x in jax.tree.leaves(a["params"]))
    assert extra == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_option_a_shortcut_pads_channels():
    # With the last scale of every block at zero, a block is its shortcut followed by ReLU.
    model = models.create("resnet20", depth=8, width=4, zero_init=True)
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    _, acts = jax.jit(lambda x: model.init_with_output(jax.random.key(1), x, train=False)[0])(x)
    np.testing.assert_array_equal(acts["stage1/block1"], acts["stem"])
    out = np.zeros((2, 4, 4, 8), np.float32)
    out[..., 2:6] = acts["stem"][:, ::2, ::2]
    np.testing.assert_array_equal(acts["stage2/block1"], out)
    np.testing.assert_allclose(acts["features"], np.asarray(acts["stage3/block1"]).mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group", "none"])
def test_resnet_norms(norm):
    _, v = shapes("resnet20", norm=norm)
    assert ("batch_stats" in v) == (norm == "batch")
    assert ("bias" in v["params"]["stem"]) == (norm == "none")


def test_he_initialisation():
    model = models.create("plain20")

    @jax.jit  # only one parameter leaves the function, so that only one is compiled
    def kernel():
        return model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"]["stage3_block2"]["conv1"]

    np.testing.assert_allclose(kernel()["kernel"].std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
