"""One contract for every model of the table, and their exact sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import models
from recvis_jax.errors import BadRequest

# Parameters for 28x28x1 and 32x32x3 images and 10 classes (None: computed by formula below).
COUNTS = {
    "linear": (784 * 10 + 10, 3072 * 10 + 10),
    "mlp": (784 * 512 + 512 + 512 * 256 + 256 + 2570, 3072 * 512 + 512 + 512 * 256 + 256 + 2570),
    "lenet5": (61_706, 456 + 2416 + 16 * 36 * 120 + 120 + 10_164 + 850),
    "convnet": (21_840, 760 + 5020 + 500 * 50 + 50 + 510),
    "resnet20": (269_434, 269_722),
    "resnet32": (463_866, 464_154),
    "resnet44": (658_298, 658_586),
    "resnet56": (852_730, 853_018),
    "resnet110": (1_727_674, 1_727_962),
}
COUNTS |= {name.replace("resnet", "plain"): c for name, c in COUNTS.items() if name.startswith("resnet")}

# The family's members differ in depth alone, so behaviour is tested on the smallest.
SMALL = {n: {} for n in ("linear", "mlp", "lenet5", "convnet")}
SMALL |= {n: {"depth": 8, "width": 4} for n in ("resnet20", "plain20")}
DEEPER = [n for n in models.MODELS if n not in SMALL]


def fill(spec, seed=0):
    """Variables of the given shapes, kernels with He's variance, drawn by numpy: compiling `init` takes far longer."""
    rng = np.random.default_rng(seed)

    def leaf(path, s):
        name = path[-1].key
        if name == "kernel":
            return jnp.asarray(rng.normal(0, np.sqrt(2 / np.prod(s.shape[:-1])), s.shape), s.dtype)
        return jnp.full(s.shape, float(name in ("scale", "var")), s.dtype)

    return jax.tree_util.tree_map_with_path(leaf, spec)


def build(name, shape=(2, 28, 28, 1), **kw):
    model = models.create(name, **SMALL[name], **kw)
    x = jnp.asarray(np.random.default_rng(1).random(shape, np.float32))
    return model, fill(jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))), x


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", models.MODELS)
def test_parameter_count(name):
    assert name in COUNTS, "a registered model needs a row in COUNTS"
    model = models.create(name)
    for shape, count in zip([(1, 28, 28, 1), (1, 32, 32, 3)], COUNTS[name], strict=True):
        variables = jax.eval_shape(lambda m=model, s=shape: m.init(jax.random.key(0), jnp.zeros(s), train=False))
        assert size(variables["params"]) == count


def test_counts_by_formula():
    # conv3x3 is 9 c_in c_out, a norm 2c; stages of n blocks of two convolutions at 16, 32 and 64 channels.
    for depth in (20, 56, 110):
        n = (depth - 2) // 6
        stages = 9 * (16 * 16 * 2 * n + 16 * 32 + 32 * 32 * (2 * n - 1) + 32 * 64 + 64 * 64 * (2 * n - 1))
        norms = 2 * (16 * (2 * n + 1) + 32 * 2 * n + 64 * 2 * n)
        assert COUNTS[f"resnet{depth}"][1] == 27 * 16 + stages + norms + 650


def test_every_model_is_tested():
    assert set(SMALL) | set(DEEPER) == set(models.MODELS) == set(COUNTS)


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
        exact_model = models.create(name, **SMALL[name], num_classes=7)
        exact, _ = jax.jit(lambda v, x: exact_model.apply(v, x, train=False))(variables, x)
        np.testing.assert_allclose(logits, exact, atol=0.05 * (1 + np.abs(exact).max()))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name):
    model, variables, x = build(name, shape=(8, 28, 28, 1))
    label = jnp.arange(8) % 10
    stats = {k: v for k, v in variables.items() if k != "params"}

    @jax.jit
    def grads(params):
        def loss(params):
            (logits, acts), new = model.apply(
                {"params": params, **stats}, x, train=True, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"]
            )
            nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1).mean()
            return nll, (acts, new)

        return jax.grad(loss, has_aux=True)(params)

    g, (acts, new) = grads(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(g):
        assert np.isfinite(leaf).all() and np.any(leaf != 0), jax.tree_util.keystr(path)
    _, evaluated = jax.eval_shape(lambda v: model.apply(v, x, train=False), variables)
    assert {k: v.shape for k, v in acts.items()} == {k: v.shape for k, v in evaluated.items()}
    for old, now in zip(jax.tree.leaves(stats), jax.tree.leaves(dict(new)), strict=True):
        assert old.shape == now.shape and np.any(old != now)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (2, 32, 32, 3), (2, 33, 47, 3)])
def test_other_sizes_work_or_say_why(name, shape):
    model = models.create(name, **SMALL[name])

    def run():
        x = jnp.zeros(shape)
        return model.init_with_output(jax.random.key(0), x, train=False)

    try:
        (logits, _), _ = jax.eval_shape(run)
    except BadRequest as e:
        assert "at least" in str(e) and f"{shape[1]}x{shape[2]}" in str(e)
        assert min(shape[1:3]) < 16
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
