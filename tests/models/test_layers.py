"""Normalisation and pooling against formulas, flax and each other under every way of splitting a batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recvis_jax import operations
from recvis_jax.errors import BadRequest
from recvis_jax.models import layers, norms


def data(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0.5, 2.0, shape), jnp.float32)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 3)])
def test_batch_norm_is_the_formula(groups, shape):
    x = data(shape)
    bn = norms.BatchNorm(groups=groups)
    v = bn.init(jax.random.key(0), x, train=True)
    assert np.all(v["batch_stats"]["mean"] == 0) and np.all(v["batch_stats"]["var"] == 1)
    v["params"] = {"scale": jnp.arange(3.0) + 1, "bias": jnp.arange(3.0) - 1}
    y, new = bn.apply(v, x, train=True, mutable=["batch_stats"])

    means, unbiased = [], []
    for i in range(groups):  # every groups-th example is of the same part
        part = np.asarray(x, np.float64)[i::groups]
        pixels = part.reshape(-1, 3)
        expected = (part - pixels.mean(0)) / np.sqrt(pixels.var(0) + 1e-5) * (np.arange(3) + 1) + np.arange(3) - 1
        np.testing.assert_allclose(y[i::groups], expected, atol=2e-5)
        means.append(pixels.mean(0))
        unbiased.append(pixels.var(0, ddof=1))
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * np.mean(means, 0), rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 + 0.1 * np.mean(unbiased, 0), rtol=1e-5)

    y = bn.apply({**v, **new}, x, train=False)
    running = np.asarray(new["batch_stats"]["mean"]), np.asarray(new["batch_stats"]["var"])
    expected = (x - running[0]) / np.sqrt(running[1] + 1e-5) * (np.arange(3) + 1) + np.arange(3) - 1
    np.testing.assert_allclose(y, expected, atol=2e-5)


def test_batch_norm_and_its_gradient_match_flax():
    x, target = data((8, 6, 6, 5)), data((8, 6, 6, 5), 1)
    ours, theirs = norms.BatchNorm(), nn.BatchNorm(momentum=0.9, use_fast_variance=False)
    params = {"scale": jnp.linspace(0.5, 2, 5), "bias": jnp.linspace(-1, 1, 5)}
    stats = {"mean": jnp.zeros(5), "var": jnp.ones(5)}

    def loss(params, x, call):
        y, new = call({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return (y * target).sum(), (y, new)

    a = jax.grad(loss, (0, 1), has_aux=True)(params, x, lambda *b, **k: ours.apply(*b, train=True, **k))
    b = jax.grad(loss, (0, 1), has_aux=True)(
        params, x, lambda *b, **k: theirs.apply(*b, use_running_average=False, **k)
    )
    np.testing.assert_allclose(a[1][0], b[1][0], atol=1e-5)
    np.testing.assert_allclose(a[1][1]["batch_stats"]["mean"], b[1][1]["batch_stats"]["mean"], rtol=1e-5)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=2e-4), a[0], b[0])


def test_batch_norm_options():
    x = data((4, 3, 3, 2))
    v = norms.BatchNorm(use_scale=False, use_bias=False).init(jax.random.key(0), x, train=True)
    assert "params" not in v
    v = norms.BatchNorm(zero_init=True).init(jax.random.key(0), x, train=True)
    y, _ = norms.BatchNorm(zero_init=True).apply(v, x, train=True, mutable=["batch_stats"])
    assert np.all(y == 0)
    v = norms.BatchNorm().init(jax.random.key(0), x, train=True)
    y, new = norms.BatchNorm(dtype=jnp.bfloat16).apply(v, jnp.bfloat16(x), train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16 and new["batch_stats"]["mean"].dtype == jnp.float32
    with pytest.raises(BadRequest, match="bn_groups=3"):
        norms.BatchNorm(groups=3).apply(v, x, train=True, mutable=["batch_stats"])


def run(mode, groups, x, target, params):
    """Loss gradient of (normalise, nonlinear) and running statistics: jit on one device, jit on all, or pmap."""
    bn = norms.BatchNorm(groups=groups)
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}

    def step(params, x, target):
        def loss(params):
            y = bn.apply({"params": params, "batch_stats": stats}, jnp.tanh(x * params["w"]), train=True,
                         mutable=["batch_stats"])  # fmt: skip
            return (jnp.sin(y[0]) * target).sum((1, 2, 3)).mean(), y

        g, (y, new) = jax.grad(loss, has_aux=True)({**params})
        return g, y, new["batch_stats"]

    if mode == "jit1":
        return jax.jit(step)(params, x, target)
    devices = np.array(jax.devices())
    if mode == "jit":
        shard = NamedSharding(Mesh(devices, ("data",)), PartitionSpec("data"))
        return jax.jit(step)(params, jax.device_put(x, shard), jax.device_put(target, shard))

    def pstep(params, x, target):
        g, y, stats = step(params, x, target)
        return jax.lax.pmean(g, "data"), y, stats

    cut = lambda a: a.reshape(len(devices), -1, *a.shape[1:])  # noqa: E731
    g, y, stats = jax.pmap(pstep, "data", in_axes=(None, 0, 0))(params, cut(x), cut(target))
    for leaf in jax.tree.leaves((g, stats)):
        assert np.all(leaf == leaf[:1])  # the same on every device
    return *jax.tree.map(lambda a: a[0], (g,)), y.reshape(x.shape), jax.tree.map(lambda a: a[0], stats)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=8")
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_batch_norm_is_the_same_however_the_batch_is_split(mode, groups):
    x, target = data((32, 3, 2, 3)), data((32, 3, 2, 3), 1)
    x += jnp.arange(32)[:, None, None, None] / 16  # so that the parts' statistics differ
    params = {"scale": jnp.linspace(0.5, 2, 3), "bias": jnp.linspace(-1, 1, 3), "w": jnp.float32(0.7)}
    one, many = run("jit1", groups, x, target, params), run(mode, groups, x, target, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, many)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=8")
def test_batch_norm_groups_that_do_not_fit_the_devices():
    with pytest.raises(BadRequest, match="bn_groups=6 does not divide the 3 examples of a batch on one device"):
        jax.pmap(lambda x: norms.batch_statistics(x, 6), "data")(jnp.zeros((8, 3, 1, 1, 2)))


@pytest.mark.parametrize("kind", ["group", "layer", "instance"])
def test_group_norms_match_flax(kind):
    x = data((3, 4, 5, 8))
    ours = norms.make_norm(kind, norm_groups=4)()
    flax = nn.GroupNorm(num_groups={"group": 4, "layer": 1, "instance": 8}[kind], epsilon=1e-5)
    v = {"params": {"scale": jnp.linspace(0.5, 2, 8), "bias": jnp.linspace(-1, 1, 8)}}
    np.testing.assert_allclose(ours.apply(v, x, train=True), flax.apply(v, x), atol=1e-5)


def test_group_norm_groups():
    assert norms.GroupNorm().init(jax.random.key(0), jnp.zeros((1, 2, 2, 48)))["params"]["scale"].shape == (48,)
    with pytest.raises(BadRequest, match="5 groups do not divide 48"):
        norms.GroupNorm(groups=5).init(jax.random.key(0), jnp.zeros((1, 2, 2, 48)))
    with pytest.raises(BadRequest, match="one number each"):
        norms.make_norm("instance")().init(jax.random.key(0), jnp.zeros((2, 48)))


@pytest.mark.full
@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 3, 0), (3, 1, 1), (2, 3, 0)])
def test_pools_match_flax(window, stride, padding):
    x, pads = data((2, 9, 8, 3)), ((padding, padding),) * 2
    for ours, theirs in [(operations.max_pool, nn.max_pool), (operations.avg_pool, nn.avg_pool)]:
        f = lambda x, p=ours: p(x, window, stride, padding)  # noqa: E731
        g = lambda x, p=theirs: p(x, (window, window), (stride, stride), pads)  # noqa: E731
        y, back = jax.vjp(f, x)
        z, flax_back = jax.vjp(g, x)
        np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-6)
        t = data(z.shape, 2)
        np.testing.assert_allclose(back(t)[0], flax_back(t)[0], rtol=1e-5, atol=1e-6)


def test_equal_maxima_share_the_gradient_and_odd_borders_get_none():
    x = jnp.asarray([[1, 1, 9], [0, 1, 9], [9, 9, 9]], jnp.float32)[None, :, :, None]
    back = jax.vjp(lambda x: operations.max_pool(x, 2), x)[1]
    # Rows first: of the left column the upper, of the right one both; then the two columns are equal.
    expected = [[0.5, 0.25, 0], [0, 0.25, 0], [0, 0, 0]]
    np.testing.assert_array_equal(back(jnp.ones((1, 1, 1, 1)))[0][0, :, :, 0], expected)
    slices = jax.vjp(lambda x: operations.max_pool.__wrapped__(x, 2), x)[1]
    np.testing.assert_array_equal(slices(jnp.ones((1, 1, 1, 1)))[0][0, :, :, 0], expected)


def test_pools_refuse_a_window_that_does_not_fit():
    with pytest.raises(BadRequest, match="3x3 pooling window does not fit a 2x9"):
        operations.max_pool(jnp.zeros((1, 2, 9, 1)), 3)


def test_global_pools():
    x = data((2, 3, 4, 5))
    np.testing.assert_allclose(layers.global_avg_pool(jnp.asarray(x)), x.mean((1, 2)), atol=1e-6)
    np.testing.assert_array_equal(layers.global_max_pool(jnp.asarray(x)), x.max((1, 2)))


def test_activations():
    x = jnp.linspace(-3, 3, 7)
    for name in layers.ACTIVATIONS:
        assert layers.activation(name)(x).shape == (7,)
    np.testing.assert_allclose(layers.activation("silu")(x), x / (1 + np.exp(-x)), rtol=1e-5)
    np.testing.assert_allclose(layers.activation("mish")(x), x * np.tanh(np.log1p(np.exp(x))), rtol=1e-5)
    with pytest.raises(BadRequest, match="leaky_relu"):
        layers.activation("leakyrelu")


@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (1, 2, 3, 12)])
def test_layer_norm_and_its_gradients_are_those_of_flax(shape):
    keys = jax.random.split(jax.random.key(0), 4)
    x = 3 + 2 * jax.random.normal(keys[0], shape)
    weight = jax.random.normal(keys[1], shape)
    params = {"scale": jax.random.normal(keys[2], shape[-1:]), "bias": jax.random.normal(keys[3], shape[-1:])}

    def loss(module):
        return lambda params, x: (jnp.sin(module.apply({"params": params}, x)) * weight).sum()

    ours, reference = norms.LayerNorm(epsilon=1e-3), nn.LayerNorm(epsilon=1e-3, use_fast_variance=False)
    np.testing.assert_allclose(*(m.apply({"params": params}, x) for m in (ours, reference)), atol=2e-6)
    found, expected = (jax.jit(jax.grad(loss(m), argnums=(0, 1)))(params, x) for m in (ours, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


@pytest.mark.full
def test_layers_compute_in_their_dtype():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8), jnp.bfloat16)
    for layer in (norms.LayerNorm(dtype=jnp.bfloat16), layers.Dense(4, dtype=jnp.bfloat16)):
        params = layer.init(jax.random.key(1), x)
        loss = lambda params, x, layer=layer: layer.apply(params, x).astype(jnp.float32).sum()  # noqa: E731
        assert layer.apply(params, x).dtype == jnp.bfloat16
        of_params, of_x = jax.grad(loss, argnums=(0, 1))(params, x)
        assert of_x.dtype == jnp.bfloat16 and {p.dtype for p in jax.tree.leaves(of_params)} == {jnp.dtype("float32")}
