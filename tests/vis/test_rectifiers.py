"""The rules by which gradients pass relus and pools: by hand, wherever they lie in a program; one switch a window."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from recvis_jax.errors import BadRequest
from recvis_jax.kernels.own_gradient import own_gradient
from recvis_jax.models.conv_layers import ceil_max_pool
from recvis_jax.operations import max_pool
from recvis_jax.vis.rectifiers import with_rule

# relu(x W + b) V + c, then relu, then u: every rule by hand at x = (1, 2).
W = jnp.array([[1.0, -2.0, 1.0], [1.0, 1.0, -2.0]])
B = jnp.array([-1.0, 1.0, 1.0])  # before the relu: 2, 1, -2
V = jnp.array([[1.0, -1.0], [-1.0, 2.0], [3.0, 1.0]])
C = jnp.array([1.0, -1.0])  # before the relu: 2, -1
U = jnp.array([2.0, 3.0])
X = jnp.array([1.0, 2.0])


def by_hand(x):
    return jax.nn.relu(jax.nn.relu(x @ W + B) @ V + C) @ U


@pytest.mark.parametrize(
    "rule, expected",
    [
        # To the second relu's input: plain (2, 0), guided (2, 0), deconvnet (2, 3).
        # To the first relu's output by V: (2, -2, 6), the same, and (2 - 3, -2 + 6, 6 + 3) = (-1, 4, 9).
        # To its input: plain (2, -2, 0), guided (2, 0, 0), deconvnet (0, 4, 9).
        ("plain", (2 + 4, 2 - 2)),
        ("guided", (2, 2)),
        ("deconvnet", (-8 + 9, 4 - 18)),
    ],
)
def test_a_network_with_biases_by_hand(rule, expected):
    function = with_rule(by_hand, rule)
    assert function(X) == by_hand(X) == 4
    np.testing.assert_array_equal(jax.grad(function)(X), expected)


def swapped(act, x):
    """The function that the wrapped ones below compute."""
    return act(3 - act(x) * 2) * x


@jax.custom_jvp
def _with_own_jvp(x):
    return jax.nn.relu(x)


_with_own_jvp.defjvp(lambda p, t: (_with_own_jvp(*p), 7 * t[0]))


@jax.custom_vjp
def _with_own_vjp(x):
    return jax.nn.relu(x)


_with_own_vjp.defvjp(lambda x: (_with_own_vjp(x), None), lambda _, g: (7 * g,))


@own_gradient
def _with_own_gradient(x):
    return jax.nn.relu(x)


_with_own_gradient.define(lambda x: (jax.nn.relu(x), x), lambda x, g: (7 * g,))


WRAPPERS = {
    "plainly": jax.nn.relu,
    "jit": jax.jit(lambda x: jax.nn.relu(x)),
    "scan": lambda x: lax.scan(lambda c, y: (c + y.sum(), jax.nn.relu(y)), 0.0, x[:, None])[1][:, 0],
    "map": lambda x: lax.map(jax.nn.relu, x),
    "remat": jax.checkpoint(lambda x: jax.nn.relu(x)),
    "remat in scan": lambda x: lax.scan(lambda c, y: (c, jax.checkpoint(lambda y: jax.nn.relu(y))(y)), 0.0, x)[1],
    "cond": lambda x: lax.cond(x.sum() < 1e9, lambda x: jax.nn.relu(x), lambda x: x, x),
    "platform": lambda x: lax.platform_dependent(x, cpu=lambda x: jnp.where(x > 0, x, 0), default=jax.nn.relu),
    "vmap": jax.vmap(jax.nn.relu),
    "custom_jvp": _with_own_jvp,
    "custom_vjp": _with_own_vjp,
    "own_gradient": _with_own_gradient,
}


@pytest.mark.parametrize("where", WRAPPERS)
def test_relus_are_found_wherever_they_lie(where):
    x = jnp.array([-1.0, 0.5, 1.0, 4.0])

    @jax.jit
    def both(x):
        found = []
        for rule in ("guided", "deconvnet"):
            by_rule = with_rule(jax.nn.relu, rule)
            inside = with_rule(partial(swapped, WRAPPERS[where]), rule)
            functions = inside, partial(swapped, by_rule)  # the second is swapped by hand
            found += [jax.value_and_grad(lambda x, f=f: f(x).sum())(x) for f in functions]
        return found

    for a, b in zip(*[iter(both(x))] * 2, strict=True):
        jax.tree.map(np.testing.assert_allclose, a, b)
    assert both(x)[0][0] == swapped(jax.nn.relu, x).sum()


def test_what_is_minimised_opens_relus_that_are_closed_for_all_of_an_example():
    x = jnp.array([[-1.0, -2.0], [-1.0, 2.0], [-1.0, -2.0]])
    g = jnp.array([[-3.0, 4.0], [-3.0, 4.0], [0.0, 4.0]])
    found = jax.grad(lambda x: (with_rule(jax.nn.relu, "redirected")(x) * g).sum())(x)
    np.testing.assert_array_equal(found, [[-3, 0], [0, 4], [0, 0]])


def test_relu6_is_closed_above_six():
    x = jnp.array([-1.0, 3.0, 7.0])
    for rule, expected in {"plain": (0, -1, 0), "guided": (0, 0, 0), "deconvnet": (2, 0, 3)}.items():
        g = jnp.array([2.0, -1.0, 3.0])
        np.testing.assert_array_equal(jax.grad(lambda x: with_rule(jax.nn.relu6, rule)(x) @ g)(x), expected)  # noqa: B023


def test_what_is_no_relu_is_left_alone_and_said():
    """jnp.maximum keeps a variance from being negative: of GroupNorm gradients must pass as they are."""
    for function in (lambda x: jnp.maximum(x, 0).sum(), lambda x: jax.nn.gelu(x).sum()):
        with pytest.raises(BadRequest, match=r"no jax\.nn\.relu for the rule 'guided'"):
            jax.grad(with_rule(function, "guided"))(X)

    def both(x):
        return -jnp.maximum(jax.nn.relu(x), 0.5).sum()

    np.testing.assert_array_equal(jax.grad(with_rule(both, "plain"))(X), [-1, -1])
    np.testing.assert_array_equal(jax.grad(with_rule(both, "deconvnet"))(X), [0, 0])
    with pytest.raises(BadRequest, match="inside a 'while'"):
        with_rule(lambda x: lax.while_loop(lambda c: c.sum() < 1, jax.nn.relu, x), "guided")(X)
    with pytest.raises(BadRequest, match="There are: deconvnet, guided, plain, redirected"):
        with_rule(by_hand, "backwards")


POOLS = {
    "2x2": (lambda x: max_pool(x, 2), lambda x: nn.max_pool(x, (2, 2), (2, 2))),
    "3x3 of stride 2": (
        lambda x: max_pool(x, 3, 2, padding=1), lambda x: nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
    ),
    "windows that reach over the edge": (
        lambda x: ceil_max_pool(x, 3, 2), lambda x: nn.max_pool(x, (3, 3), (2, 2), [(0, 1), (0, 1)])
    ),
}  # fmt: skip


@pytest.mark.parametrize("pool", POOLS)
def test_a_window_has_one_switch_the_first_of_equal_ones(pool):
    """XLA's own pool gives ties to the first in a window, row by row; ours, in training, shares between them."""
    ours, xla = POOLS[pool]
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 8, 8, 3)), jnp.float32)  # full of ties
    g = jnp.asarray(np.random.default_rng(1).normal(size=jax.eval_shape(ours, x).shape), jnp.float32)
    function = with_rule(ours, "plain")

    @jax.jit
    def pooled_and_back(x):
        return [jax.value_and_grad(lambda x, f=f: (f(x) * g).sum())(x) for f in (function, xla, ours)]

    (value, found), (same, want), (_, shared) = pooled_and_back(x)
    np.testing.assert_allclose(value, same, rtol=1e-6)
    np.testing.assert_allclose(found, want, atol=1e-6)
    assert (np.abs(found - shared) > 0.1).any()


def test_dead_windows_pass_a_deconvnets_gradient_to_one_place():
    x = jnp.zeros((1, 2, 2, 1)).at[0, 0, 0, 0].set(-1.0)
    found = jax.grad(lambda x: with_rule(lambda x: max_pool(jax.nn.relu(x), 2), "deconvnet")(x).sum())(x)
    np.testing.assert_array_equal(found[0, ..., 0], [[1, 0], [0, 0]])
