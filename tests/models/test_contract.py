"""One contract for every model of the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import models
from recvis_jax.errors import BadRequest

# The smallest of every class: attributes that make it small, and rows and columns of its images.
TOKENS = {"patch_size": 8, "width": 16, "depth": 2}
SMALL = {
    "linear": ({}, 28),
    "mlp": ({}, 28),
    "lenet5": ({}, 28),
    "convnet": ({}, 28),
    "speednet": ({"widths": (4, 8, 8), "blocks": (1, 0)}, 28),
    "resnet20": ({"depth": 8, "width": 4}, 28),
    "alexnet": ({}, 64),
    "vgg_m": ({"hidden": 8}, 64),
    "vgg11": ({"width": 4, "hidden": 8}, 32),
    "googlenet": ({}, 32),
    "resnet18": ({"width": 4}, 32),
    "bit_r50x1": ({"width": 8, "norm_groups": 2, "blocks": (1, 1)}, 32),
    "vit_s16": ({**TOKENS, "heads": 2}, 24),
    "mixer_s16": ({**TOKENS, "tokens_dim": 4, "channels_dim": 8}, 24),
    "resmlp_12": (TOKENS, 24),
    "gmlp_s16": (TOKENS, 24),
    "ff_only_ti16": (TOKENS, 24),
    "convmixer_768_32": ({**TOKENS, "kernel_size": 3}, 24),
    "vit_s_r26_s32": ({"stages": (1, 1), "width": 16, "depth": 2, "heads": 2}, 32),
}
# An autoencoder's output is an image, so that its own tests hold it.
ELSEWHERE = {"MAE"}
# The other forms of a class whose behaviour differs.
SMALL |= {
    "plain20": SMALL["resnet20"],
    "vgg11_bn": SMALL["vgg11"],
    "resnet50": ({"width": 4, "blocks": (1, 1)}, 32),
    "gmixer_12": SMALL["mixer_s16"],
}


def fill(spec, seed=0):
    """Variables of the given shapes, none of them special, drawn by numpy: compiling `init` takes far longer."""
    rng = np.random.default_rng(seed)

    def leaf(path, s):
        name, x = path[-1].key, rng.normal(0, 1, s.shape)
        if name == "kernel":
            return jnp.asarray(x * np.sqrt(2 / np.prod(s.shape[:-1])), s.dtype)
        return jnp.asarray(1 + 0.1 * np.abs(x) if name in ("scale", "var") else 0.1 * x, s.dtype)

    return jax.tree_util.tree_map_with_path(leaf, spec)


def build(name, batch=2, channels=1, **kw):
    attributes, size = SMALL[name]
    model = models.create(name, **attributes, **kw)
    x = jnp.asarray(np.random.default_rng(1).random((batch, size, size, channels), np.float32))
    return model, fill(jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))), x


def test_every_model_is_tested():
    classes = {getattr(constructor, "func", constructor).__name__ for constructor in models.MODELS.values()}
    small = {type(models.create(name, **kw)).__name__ for name, (kw, _) in SMALL.items()}
    assert small | ELSEWHERE == classes | ELSEWHERE


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs(name, dtype):
    model, variables, x = build(name, num_classes=7, dtype=jnp.dtype(dtype))
    forward = jax.jit(lambda v, x: model.apply(v, x, train=False))  # no rng streams: evaluation draws nothing
    logits, acts = forward(variables, x)
    np.testing.assert_array_equal(forward(variables, x)[0], logits)
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    assert {"stem", "features", "logits"} <= set(acts)
    assert acts["features"].ndim == 2 and len(acts["features"]) == 2
    np.testing.assert_array_equal(acts["logits"], logits)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
    if dtype == "bfloat16":
        exact_model = models.create(name, **SMALL[name][0], num_classes=7)
        exact, _ = jax.jit(lambda v, x: exact_model.apply(v, x, train=False))(variables, x)
        np.testing.assert_allclose(logits, exact, atol=0.05 * (1 + np.abs(exact).max()))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name):
    model, variables, x = build(name, batch=8, num_classes=10)
    label = jnp.arange(8) % 10
    stats = {k: v for k, v in variables.items() if k != "params"}

    @jax.jit
    def grads(params):
        def loss(params):
            (logits, acts), new = model.apply(
                {"params": params, **stats}, x, train=True, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"]
            )
            heads = [logits, *(x for key, x in acts.items() if key.endswith("/logits"))]  # auxiliary ones too
            nll = [-jnp.take_along_axis(jax.nn.log_softmax(x), label[:, None], 1).mean() for x in heads]
            return sum(nll), (acts, new)

        return jax.grad(loss, has_aux=True)(params)

    g, (acts, new) = grads(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(g):
        assert np.isfinite(leaf).all() and np.any(leaf != 0), jax.tree_util.keystr(path)
    _, evaluated = jax.eval_shape(lambda v: model.apply(v, x, train=False), variables)
    assert {k: v.shape for k, v in acts.items()} == {k: v.shape for k, v in evaluated.items()}
    for old, now in zip(jax.tree.leaves(stats), jax.tree.leaves(dict(new)), strict=True):
        assert old.shape == now.shape and np.any(old != now)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (2, 32, 32, 3), (2, 33, 47, 3), (1, 96, 96, 3)])
def test_other_sizes_work_or_say_why(name, shape):
    model = models.create(name, **SMALL[name][0], num_classes=10)

    def run():
        x = jnp.zeros(shape)
        return model.init_with_output(jax.random.key(0), x, train=False)

    try:
        (logits, _), _ = jax.eval_shape(run)
    except BadRequest as e:
        assert "at least" in str(e) and f"{shape[1]}x{shape[2]}" in str(e)
        assert shape[1] != 96, "which is large enough, and made of whole patches"
    else:
        assert logits.shape == (shape[0], 10)


def test_unknown_names_and_values():
    with pytest.raises(BadRequest, match="resnet20"):
        models.create("resnet21")
    with pytest.raises(BadRequest, match="num_classes"):
        models.create("lenet5", num_clases=3)
    with pytest.raises(BadRequest, match="hidden"):
        models.create("mlp", hidden="512")
    for bad in ({"depth": 21}, {"shortcut": "C"}, {"norm": "bach"}, {"activation": "rely"}):
        with pytest.raises(BadRequest):
            jax.eval_shape(
                lambda kw=bad: models.create("resnet20", **kw).init(
                    jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False
                )
            )
