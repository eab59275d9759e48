"""Functions with gradients of their own against plain ones: forwards, backwards, twice, mapped."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax.kernels import attention, layer_norm, onednn, pool, products, shifted, winograd
from recvis_jax.kernels.own_gradient import own_gradient

PADS = ((1, 1), (1, 1))


def convolution(x, kernel, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), PADS, dimension_numbers=numbers, feature_group_count=groups)


def maxima(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def normal(x, scale, bias):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


def weighted(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bnkd,bmkd->bknm", q, k) / q.shape[-1] ** 0.5)
    return jnp.einsum("bknm,bmke->bnke", weights, v), weights


X, D = (3, 6, 4, 5), (2, 5, 3, 4)
# name -> function, what it is, shapes of its arguments.
SIBLINGS = {
    "dense": (lambda x, k: products.dense(x, k, None, False), jnp.dot, [(7, 5), (5, 3)]),
    "layer norm": (lambda *a: layer_norm.normalised(*a, 1e-6), normal, [(3, 4, 5), (5,), (5,)]),
    "attention": (attention.unmasked, weighted, [D, (2, 6, 3, 4), (2, 6, 3, 2)]),
    "maximum": (pool.max_pool_2x2, maxima, [X]),
    "sum of products": (
        lambda x, k: shifted._by_products(x, k, PADS, convolution),
        convolution,
        [X, (3, 3, 5, 8)],
    ),
    "depthwise": (
        lambda x, k: shifted.depthwise(x, k, PADS),
        partial(convolution, groups=5),
        [X, (3, 3, 1, 5)],
    ),
    "Winograd's": (lambda x, k: winograd.winograd(x, k, PADS), convolution, [X, (3, 3, 5, 3)]),
    "Winograd's, pooled": (
        lambda x, k: winograd.winograd_pooled(x, k, PADS),
        lambda x, k: maxima(convolution(x, k)),
        [X, (3, 3, 5, 3)],
    ),
    "oneDNN's": (lambda x, k: onednn.convolution(x, k, (1, 1), PADS, None), convolution, [X, (3, 3, 5, 3)]),
    "oneDNN's product": (
        lambda a, b: onednn.matmul(a, b, transpose_b=True),
        lambda a, b: a @ b.mT,
        [(3, 4, 5), (3, 2, 5)],
    ),
}


@pytest.fixture(params=SIBLINGS)
def sibling(request):
    if "oneDNN" in request.param and not onednn.available():
        pytest.skip("this jaxlib has no oneDNN")
    fun, plain, shapes = SIBLINGS[request.param]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    args = tuple(map(jax.random.normal, keys, shapes))
    keys = jax.random.split(jax.random.key(1), len(shapes))
    return fun, plain, args, tuple(map(jax.random.normal, keys, shapes))


def gradient(loss, *args):
    return jax.grad(loss, tuple(range(len(args))))(*args)


def along(loss, args, v):
    return jax.jvp(loss, args, v)[1]


def pairs(a, b):
    return tuple(jnp.stack(pair) for pair in zip(a, b, strict=True))


def looped(loss):
    return lambda x, *rest: jax.lax.scan(lambda sum, x: (sum + loss(x, *rest), None), 0.0, jnp.stack([x, 2 * x]))[0]


# Name -> (loss, arguments, a direction) -> derivatives.
WAYS = {
    "backwards": lambda loss, args, v: gradient(loss, *args),
    "forwards": lambda loss, args, v: along(loss, args, v),
    "forwards in one argument": lambda loss, args, v: along(lambda x: loss(x, *args[1:]), args[:1], v[:1]),
    "linearized": lambda loss, args, v: jax.linearize(loss, *args)[1](*v),
    "forwards over backwards": lambda loss, args, v: along(partial(gradient, loss), args, v),
    "backwards over forwards": lambda loss, args, v: gradient(lambda *args: along(loss, args, v), *args),
    "backwards over backwards": lambda loss, args, v: jax.vjp(partial(gradient, loss), *args)[1](v),
    "forwards over forwards": lambda loss, args, v: along(lambda *args: along(loss, args, v), args, v),
    "backwards, mapped over one": lambda loss, args, v: jax.vmap(
        lambda x: gradient(loss, x, *args[1:]),
    )(jnp.stack([args[0], v[0]])),
    "backwards, mapped over all": lambda loss, args, v: jax.vmap(partial(gradient, loss))(*pairs(args, v)),
    "forwards, mapped": lambda loss, args, v: jax.vmap(lambda *v: along(loss, args, v))(*pairs(v, args)),
    "rematerialised": lambda loss, args, v: gradient(jax.checkpoint(loss), *args),
    "in a loop": lambda loss, args, v: gradient(looped(loss), *args),
    "forwards in a loop": lambda loss, args, v: along(looped(loss), args, v),
}


@pytest.mark.parametrize("way", WAYS)
def test_derivatives_are_those_of_the_plain_function(sibling, way):
    fun, plain, args, v = sibling

    def loss(f):
        def of_outputs(*args):
            flat = jnp.concatenate([y.ravel() for y in jax.tree.leaves(f(*args))])
            return jnp.sin(flat + jnp.arange(flat.size)).sum()

        return of_outputs

    found, expected = jax.jit(lambda *given: [WAYS[way](loss(f), *given) for f in (fun, plain)])(args, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()), found, expected)


def test_backwards_is_as_defined_and_forwards_as_the_function_is():
    square = own_gradient(jnp.square)
    square.define(lambda x: (jnp.square(x), x), lambda x, d_y: (100 * d_y,))
    assert square(3.0) == 9
    assert jax.grad(square)(3.0) == 100
    assert jax.jvp(square, (3.0,), (1.0,)) == (9, 6)
