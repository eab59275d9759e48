"""Products and convolutions in their fast forms against flax's and XLA's."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax.kernels import gradients, onednn, shifted, trials, winograd
from recvis_jax.models import layers
from recvis_jax.models.attention import MultiHeadAttention


@pytest.mark.parametrize("width, hidden", [(6, 24), (24, 6), (8, 8)])
def test_a_dense_layer_on_tokens_and_its_gradients_are_those_of_flax(width, hidden):
    keys = jax.random.split(jax.random.key(0), 3)
    x, weight = jax.random.normal(keys[0], (3, 5, width)), jax.random.normal(keys[1], (3, 5, hidden))
    ours, reference = layers.Dense(hidden), nn.Dense(hidden)
    params = reference.init(keys[2], x)["params"]

    def loss(module):
        return lambda params, x: (jnp.sin(module.apply({"params": params}, x)) * weight).sum()

    found, expected = (jax.jit(jax.value_and_grad(loss(m), argnums=(0, 1)))(params, x) for m in (ours, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
    assert jax.tree.map(jnp.shape, found[1]) == jax.tree.map(jnp.shape, (params, x))


def check_convolution(image, kernel, padding, strides=(1, 1)):
    groups = image[3] // kernel[2]
    conv = layers.Conv(kernel[3], kernel[:2], strides, padding, feature_group_count=groups)
    x = jax.random.normal(jax.random.key(1), image)
    params = conv.init(jax.random.key(0), x)
    k = params["params"]["kernel"]
    pads = padding if isinstance(padding, str) else ((padding, padding),) * 2 if isinstance(padding, int) else padding

    def expected(x, k):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, k, strides, pads, dimension_numbers=dimensions, feature_group_count=groups
        )

    def found(x, k):
        return conv.apply({"params": {"kernel": k, "bias": jnp.zeros(kernel[3])}}, x)

    y, pull = jax.vjp(found, x, k)
    expected_y, expected_pull = jax.vjp(expected, x, k)
    np.testing.assert_allclose(y, expected_y, atol=1e-4)
    d_y = jax.random.normal(jax.random.key(2), y.shape)
    for ours, theirs in zip(pull(d_y), expected_pull(d_y), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "image, kernel, padding",
    [
        ((28, 28, 1), (5, 5, 1, 6), 2),  # LeNet's first: 4 neighbours
        ((14, 14, 6), (5, 5, 6, 16), "VALID"),  # and second: 2, as 4 do not divide 14
        ((16, 16, 3), (3, 7, 3, 5), "SAME"),
        ((10, 11, 3), (3, 3, 3, 16), 1),  # as sums of products
        ((10, 11, 8), (3, 2, 8, 16), ((2, 3), (0, 1))),  # and its gradient, too
        ((9, 12, 2), (5, 6, 2, 3), ((1, 0), (5, 0))),
        ((9, 13, 2), (5, 5, 2, 3), 2),  # one by one: 13 is odd
        ((12, 10, 8), (9, 9, 1, 8), "SAME"),  # depthwise
        ((9, 40, 5), (3, 4, 1, 5), "VALID"),
        ((6, 5, 4), (7, 7, 1, 4), ((0, 7), (9, 0))),
        ((4, 4, 6), (3, 3, 3, 6), 1),  # two groups
    ],
)
def test_convolutions_in_forms_for_cpus_are_convolutions(image, kernel, padding):
    check_convolution((3, *image), kernel, padding)


@pytest.mark.full
@pytest.mark.parametrize(
    "image, outputs, padding, large",  # large: products by oneDNN, whatever the padding
    [
        ((3, 7, 6), 5, 1, False),
        ((2, 8, 9), 3, ((0, 0), (2, 1)), False),
        ((4, 5, 5), 4, ((3, 0), (0, 4)), False),
        ((40, 6, 8), 5, "SAME", False),
        ((40, 6, 8), 5, "SAME", True),
        ((1, 4, 3), 3, 0, False),
        ((3, 3, 3), 5, 1, False),  # tiles of 3x3 outputs
        ((3, 3, 3), 5, 1, True),
        ((40, 5, 6), 3, ((2, 1), (1, 1)), False),
        ((40, 5, 6), 3, ((2, 1), (1, 1)), True),
    ],
)
def test_winograds_convolutions_are_convolutions(monkeypatch, image, outputs, padding, large):
    monkeypatch.setattr(winograd, "tiles_pay", lambda image, kernel, pads: True)
    monkeypatch.setattr(winograd, "_BLOCKS", (4 * 10 * 6 * 8 * 5,) * 2)
    monkeypatch.setattr(onednn, "large", lambda examples, multiplications: large and onednn.available())
    check_convolution((*image, 4), (3, 3, 4, outputs), padding)


@pytest.mark.full
@pytest.mark.parametrize(
    "image, outputs, padding, tiled",
    [
        ((3, 7, 6), 5, 1, True),  # the last row of outputs is in no window
        ((3, 7, 6), 5, 1, False),
        ((40, 6, 8), 5, "SAME", True),
        ((2, 8, 9), 3, ((0, 0), (2, 1)), True),
        ((2, 7, 7), 3, "VALID", True),  # as here, where no padding can be left out
        ((2, 7, 7), 3, "VALID", False),
        ((4, 6, 6), 6, ((2, 2), (0, 1)), True),
    ],
)
def test_a_convolution_with_max_pooling_is_one_after_the_other(monkeypatch, image, outputs, padding, tiled):
    monkeypatch.setattr(winograd, "tiles_pay", lambda image, kernel, pads: tiled)
    monkeypatch.setattr(winograd, "_BLOCKS", (4 * 10 * 6 * 8 * 5,) * 2)
    x = jax.random.normal(jax.random.key(1), (*image, 4))
    together, apart = (kind(outputs, (3, 3), 1, padding) for kind in (layers.ConvMaxPool, nn.Conv))
    params = apart.init(jax.random.key(0), x)
    params = jax.tree.map(lambda p: jax.random.normal(jax.random.key(3), p.shape), params)

    def expected(params, x):
        return nn.max_pool(apart.apply(params, x), (2, 2), (2, 2))

    y, pull = jax.vjp(together.apply, params, x)
    expected_y, expected_pull = jax.vjp(expected, params, x)
    np.testing.assert_allclose(y, expected_y, atol=1e-4)
    np.testing.assert_allclose(jax.jit(together.apply)(params, x), expected_y, atol=1e-4)
    d_y = jax.random.normal(jax.random.key(2), y.shape)
    found, wanted = pull(d_y), expected_pull(d_y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), found, wanted)


@pytest.mark.parametrize("with_onednn", [True, False])
def test_winograds_convolutions_are_for_large_ones_on_one_device(with_onednn, monkeypatch):
    monkeypatch.setattr(onednn, "available", lambda: with_onednn)

    def pays(image, kernel, pad=1):
        return winograd.tiles_pay(image, kernel, ((pad, pad),) * 2)

    assert pays((16, 56, 56, 64), (3, 3, 64, 64)) and pays((100, 14, 14, 128), (3, 3, 128, 64), 0)
    assert pays((16, 56, 56, 64), (3, 3, 64, 32)) != with_onednn
    assert not pays((16, 56, 56, 64), (3, 3, 64, 16))
    assert not pays((16, 56, 56, 64), (5, 5, 64, 64))
    assert not pays((1, 14, 14, 64), (3, 3, 64, 64))  # not worth its compilation
    assert pays((500, 3, 3, 128), (3, 3, 128, 128)) and pays((500, 7, 7, 128), (3, 3, 128, 128))
    assert not pays((500, 5, 5, 256), (3, 3, 256, 256))  # 36 outputs computed for 25
    assert not pays((8, 7, 7, 512), (3, 3, 512, 512))  # 32 tiles: the kernel's takes longer
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((8,), ("data",))):
        assert not pays((16, 56, 56, 64), (3, 3, 64, 64))


@pytest.mark.full
@pytest.mark.parametrize(
    "image, kernel, padding, strides",
    [
        ((9, 7, 5), (3, 3, 5, 16), 1, (1, 1)),
        ((8, 8, 8), (5, 3, 8, 17), "SAME", (1, 1)),
        ((10, 9, 3), (3, 4, 3, 16), ((2, 0), (0, 1)), (2, 1)),
        ((11, 8, 16), (1, 3, 16, 32), "VALID", (1, 1)),
        ((6, 5, 16), (3, 2, 16, 16), ((3, 4), (1, 2)), (1, 1)),  # padded by more than a kernel: no turned one
    ],
)
def test_convolutions_by_onednn_are_convolutions(monkeypatch, image, kernel, padding, strides):
    asked = []
    monkeypatch.setattr(onednn, "pays", lambda *shapes: not asked.append(shapes) and onednn.available())
    check_convolution((3, *image), kernel, padding, strides)
    assert asked


@pytest.mark.full
@pytest.mark.parametrize(
    "image, kernel, padding",
    [
        ((9, 7, 8), (3, 3, 8, 16), 1),
        ((8, 8, 16), (5, 3, 16, 8), "SAME"),
        ((11, 8, 8), (1, 4, 8, 9), "VALID"),
        ((6, 7, 9), (4, 2, 9, 8), ((5, 0), (0, 3))),
    ],
)
@pytest.mark.parametrize("block", [1, 2 << 20], ids=["blocks", "whole"])
def test_a_kernels_gradient_by_one_product_is_the_gradient(monkeypatch, image, kernel, padding, block):
    monkeypatch.setattr(onednn, "pays", lambda *shapes: onednn.available())
    monkeypatch.setattr(gradients, "_BLOCK", block)
    assert gradients.pays((4, *image), kernel)
    check_convolution((4, *image), kernel, padding)


def test_convolutions_by_onednn_are_for_large_ones_that_this_jaxlib_computes(monkeypatch):
    def pays(image, kernel, stride=1, pad=1):
        return onednn.pays(image, kernel, (stride,) * 2, ((pad, pad),) * 2)

    monkeypatch.setattr(onednn, "available", lambda: True)
    assert pays((128, 32, 32, 16), (3, 3, 16, 16)) and pays((16, 224, 224, 3), (7, 7, 3, 64), 2, 3)
    assert not pays((16, 224, 224, 3), (16, 16, 3, 384), 16, 0)  # patches
    assert not pays((1, 56, 56, 64), (3, 3, 64, 64))  # one image is answered sooner by a program from the cache
    assert not pays((256, 28, 28, 1), (5, 5, 1, 6))
    monkeypatch.setattr(onednn, "available", lambda: False)
    assert not pays((128, 32, 32, 16), (3, 3, 16, 16))


@pytest.mark.parametrize("turned", range(4))
@pytest.mark.parametrize("layout", [None, (0, 2, 1, 3), (1, 0, 2, 3)])
def test_products_by_onednn_and_their_gradients_of_any_order_are_those_of_numpy(turned, layout):
    if not onednn.available():
        pytest.skip("this jaxlib has no oneDNN that we know.")
    turn_a, turn_b = turned % 2 == 1, turned > 1
    draw = np.random.default_rng(0).standard_normal
    a, b = (draw((2, 3, *(size[::-1] if turn else size))) for size, turn in (((4, 5), turn_a), ((5, 6), turn_b)))

    def ours(a, b):
        how = dict(transpose_a=turn_a, transpose_b=turn_b, layouts=(layout,) * 3)
        return onednn.matmul(a, b, **how)

    def plain(a, b):
        return (a.swapaxes(2, 3) if turn_a else a) @ (b.swapaxes(2, 3) if turn_b else b)

    def second(product):
        inner = jax.grad(lambda a, b: jnp.sin(product(a, b)).sum(), argnums=(0, 1))
        return jax.jit(jax.grad(lambda a, b: sum(jnp.square(d).sum() for d in inner(a, b)), argnums=(0, 1)))

    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    np.testing.assert_allclose(jax.jit(ours)(a, b), plain(np.asarray(a), np.asarray(b)), rtol=1e-5, atol=1e-5)
    for found, expected in zip(second(ours)(a, b), second(plain)(a, b), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_a_large_dense_layer_and_attention_are_onednns_and_what_they_were(monkeypatch):
    """Tokens, attention weights and gradients of a block of each kind, as plain programs have them."""
    x = jax.random.normal(jax.random.key(0), (8, 17, 48))
    module = MultiHeadAttention(3)
    params = module.init(jax.random.key(1), x)

    def loss(params, x, of_weights):
        out, weights = module.apply(params, x)
        return jnp.sin(out).sum() + of_weights * jnp.square(weights).sum(), (out, weights)

    def run(least, of_weights):
        monkeypatch.setattr(onednn, "_LEAST", least)
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        return step(params, x, of_weights), step.lower(params, x, of_weights).as_text()

    for of_weights in (0.0, 3.0):
        (found, text), (expected, plain_text) = run(1, of_weights), run(2**60, of_weights)
        assert "onednn" not in plain_text and ("onednn$matmul" in text) == onednn.available()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected)


@pytest.mark.full
def test_programs_with_onednns_calls_stay_out_of_the_compilation_cache(tmp_path):
    """jaxlib would fail to write them; nothing of them is left there, without a warning, and others are kept."""
    script = """
import jax, jax.numpy as jnp, warnings, sys
warnings.simplefilter("error")
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
from recvis_jax.kernels import onednn
onednn.available()
x = jnp.ones((8, 8))
if onednn.available():
    jax.jit(lambda given: onednn.matmul(given, given))(x).block_until_ready()
jax.jit(lambda kept: kept @ kept + 1)(x).block_until_ready()
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    names = [p.name for p in tmp_path.iterdir()]
    assert sum(name.startswith("jit__lambda") and name.endswith("-cache") for name in names) == 1, names


@pytest.mark.parametrize("failure", [RuntimeError("no such call"), None])
@pytest.mark.parametrize("name", ["_call", "matmul"])
def test_a_jaxlib_without_onednns_calls_or_with_others_is_found_out(monkeypatch, name, failure):
    right = getattr(onednn, name)

    def other(*args, **kw):
        if failure:
            raise failure
        return 1.001 * right(*args, **kw)

    monkeypatch.setattr(onednn, name, other)
    with pytest.raises((RuntimeError, AssertionError)):  # in a process of its own; see `recvis_jax.tried`
        trials.try_onednn()


@pytest.mark.parametrize("size, inputs, outputs", [((5, 4), 8, 16), ((3, 5), 1, 8)], ids=["products", "depthwise"])
@pytest.mark.full
def test_blocks_of_examples_change_nothing_and_are_for_one_device(monkeypatch, size, inputs, outputs):
    x = jax.random.normal(jax.random.key(0), (24, 6, 5, inputs if inputs > 1 else outputs))
    k = jax.random.normal(jax.random.key(1), (*size, inputs, outputs))

    def pulled(x, k):
        conv = layers.Conv(outputs, size, use_bias=False, feature_group_count=x.shape[-1] // inputs)
        y, pull = jax.vjp(lambda x, k: conv.apply({"params": {"kernel": k}}, x), x, k)
        return y, *pull(jnp.sin(y))

    def blocks(x, k):
        return str(jax.make_jaxpr(lambda x, k: pulled(x, k))(x, k)).count("scan[")  # traced anew

    expected, whole = pulled(x, k), blocks(x, k)
    monkeypatch.setitem(shifted._SHIFTED, "size", 4 * 4 * 6 * 5 * outputs)  # four examples
    assert whole == 0 and blocks(x, k) > 1 and blocks(x[:23], k) == 0
    for ours, theirs in zip(pulled(x, k), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((8,), ("data",))):
        assert blocks(x, k) == 0
