"""Attention against its formula, written as loops; and the published connectivity of restricted patterns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax.errors import BadRequest
from recvis_jax.models import attention_patterns as patterns
from recvis_jax.models.attention import MultiHeadAttention
from recvis_jax.models.transformer import Transformer, sinusoidal
from recvis_jax.operations import attention


def tokens(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_loops(q, k, v, mask):
    """softmax(Q K^T / sqrt(d)) V, one query at a time, in float64."""
    (b, n, heads, d), m = q.shape, k.shape[1]
    out, weights = np.zeros((b, n, heads, v.shape[-1])), np.zeros((b, heads, n, m))
    for i in np.ndindex(b, heads, n):
        keys = [j for j in range(m) if mask[i][j]]
        scores = {j: np.dot(q[i[0], i[2], i[1]].astype(float), k[i[0], j, i[1]]) / np.sqrt(d) for j in keys}
        total = sum(np.exp(s) for s in scores.values())
        for j, s in scores.items():
            weights[i][j] = np.exp(s) / total
            out[i[0], i[2], i[1]] += weights[i][j] * v[i[0], j, i[1]]
    return out, weights


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_its_formula(masked):
    q, k, v = tokens(0, 2, 5, 3, 4), tokens(1, 2, 7, 3, 4), tokens(2, 2, 7, 3, 6)
    mask = np.random.default_rng(3).random((2, 3, 5, 7)) < 0.5 if masked else np.ones((2, 3, 5, 7), bool)
    mask[0, 0, 0] = not masked  # a query without any key gets zeros
    out, weights = attention(*map(jnp.asarray, (q, k, v)), mask if masked else None)
    want_out, want_weights = by_loops(q, k, v, mask)
    np.testing.assert_allclose(out, want_out, atol=2e-6)
    np.testing.assert_allclose(weights, want_weights, atol=1e-6)


@pytest.mark.full
def test_masked_tokens_have_no_influence():
    q, k, v = (jnp.asarray(tokens(i, 2, 6, 2, 4)) for i in range(3))
    mask = np.array([True, True, False, True, False, True])

    @jax.jit
    def run(k, v):
        out, pull = jax.vjp(lambda k, v: attention(q, k, v, mask)[0], k, v)
        return out, pull(jnp.ones_like(out))

    out, (dk, dv) = run(k, v)
    far = run(k.at[:, ~mask].add(1e4), v.at[:, ~mask].set(-1e9))
    np.testing.assert_array_equal(far[0], out)
    assert not np.any(dk[:, ~mask]) and not np.any(dv[:, ~mask]) and np.any(dk[:, mask])
    np.testing.assert_array_equal(far[1][0], dk)
    # No key at all: zeros, and gradients that are zeros and not NaN.
    out, pull = jax.vjp(lambda k, v: attention(q, k, v, np.zeros(6, bool))[0], k, v)
    assert not np.any(out) and not any(np.any(g != 0) for g in pull(jnp.ones_like(out)))


def test_attention_in_bfloat16_has_a_float32_softmax():
    q, k, v = (jnp.asarray(tokens(i, 1, 64, 1, 8), jnp.bfloat16) for i in range(3))
    out, weights = attention(q, k, v)
    assert out.dtype == jnp.bfloat16 and weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_heads_read_their_own_columns():
    layer = MultiHeadAttention(2)
    x, memory = (jnp.asarray(tokens(i, 2, 5, 6)) for i in range(2))
    variables = layer.init(jax.random.key(0), x)
    p = jax.tree.map(np.asarray, variables["params"])
    assert {n: p[n]["kernel"].shape for n in p} == dict.fromkeys(("query", "key", "value", "out"), (6, 6))
    out, weights = layer.apply(variables, x, memory)
    q = (x @ p["query"]["kernel"]).reshape(2, 5, 2, 3)
    k = (memory @ p["key"]["kernel"]).reshape(2, 5, 2, 3)
    v = (memory @ p["value"]["kernel"]).reshape(2, 5, 2, 3)
    want, want_weights = by_loops(*map(np.asarray, (q, k, v)), np.ones((2, 2, 5, 5), bool))
    np.testing.assert_allclose(out, want.reshape(2, 5, 6) @ p["out"]["kernel"], atol=1e-5)
    np.testing.assert_allclose(weights, want_weights, atol=1e-6)
    with pytest.raises(BadRequest, match="4 heads do not divide a width of 6"):
        MultiHeadAttention(4).init(jax.random.key(0), x)


def connected(mask):
    return [np.flatnonzero(row).tolist() for row in mask]


def test_strided_pattern():
    row, column = patterns.strided(8, 3)
    assert connected(row) == [list(range(max(0, i - 3), i + 1)) for i in range(8)]
    assert connected(column) == [[0], [1], [2], [0, 3], [1, 4], [2, 5], [0, 3, 6], [1, 4, 7]]


def test_fixed_pattern():
    block, summary = patterns.fixed(8, 4, 2)
    assert connected(block) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [4], [4, 5], [4, 5, 6], [4, 5, 6, 7]]
    assert connected(summary) == [[], [], [2], [2, 3], [2, 3], [2, 3], [2, 3, 6], [2, 3, 6, 7]]


@pytest.mark.parametrize("make", [lambda n: patterns.strided(n, 5), lambda n: patterns.fixed(n, 5, 1)])
def test_sparse_patterns_reach_everything_before_in_two_steps(make):
    heads = make(25).astype(int)
    merged = heads.any(0).astype(int)
    assert ((merged @ merged > 0) == np.tri(25, dtype=bool)).all()
    assert heads.sum(-1).max() <= 6  # of the order of sqrt(n) keys a head


def test_local_1d_pattern():
    mask = patterns.local_1d(7, 3, 2)
    assert connected(mask) == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5], [4, 5, 6]]
    assert connected(patterns.local_1d(7, 3, 2, causal=False))[3] == [1, 2, 3, 4, 5]


def test_local_2d_pattern():
    # 4x6 pixels in blocks of 2x3, memory of 1 row above and 1 column on either side.
    both, past = (patterns.local_2d(4, 6, (2, 3), (1, 1), causal=c) for c in (False, True))
    picture = lambda row: ["".join(".#"[int(v)] for v in line) for line in row.reshape(4, 6)]  # noqa: E731
    assert picture(both[2 * 6 + 1]) == ["......", "####..", "####..", "####.."]
    assert picture(both[0 * 6 + 4]) == ["..####", "..####", "......", "......"]
    # Pixel (2, 1) of the third block: above it everything is generated; of its own block, row 2 up to itself.
    assert picture(past[2 * 6 + 1]) == ["......", "####..", "##....", "......"]
    # Pixel (0, 4) of the second block: the first block is generated, in both rows.
    assert picture(past[0 * 6 + 4]) == ["..###.", "..#...", "......", "......"]


def test_patterns_refuse_what_makes_no_sense():
    for make, args in ((patterns.strided, (4, 0)), (patterns.fixed, (4, 2, 3)), (patterns.local_1d, (4, 0, 1))):
        with pytest.raises(BadRequest, match=r"stride|summary|block"):
            make(*args)


def test_sinusoidal_positions():
    table = sinusoidal(5, 6)
    for p in range(5):
        for i in range(3):
            angle = p / 10_000 ** (2 * i / 6)
            np.testing.assert_allclose(table[p, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], atol=1e-6)


@pytest.mark.full
def test_the_decoder_sees_neither_the_future_nor_padding():
    model = Transformer(width=16, heads=2, encoder_depth=1, decoder_depth=1, hidden=32)
    source, target = jnp.asarray(tokens(0, 2, 5, 16)), jnp.asarray(tokens(1, 2, 6, 16))
    variables = jax.jit(lambda: model.init(jax.random.key(0), source, target, train=False))()
    keep = jnp.arange(5) < 3
    run = jax.jit(lambda s, t: model.apply(variables, s, t, jnp.tile(keep, (2, 1)), train=False)[0])
    out = run(source, target)
    np.testing.assert_array_equal(run(source.at[:, 3:].set(9.0), target), out)
    np.testing.assert_array_equal(run(source, target.at[:, 4:].set(9.0))[:, :4], out[:, :4])
    assert np.any(run(source, target.at[:, 3].set(9.0))[:, 3] != out[:, 3])
    with pytest.raises(BadRequest, match="width 8"):
        model.apply(variables, source[..., :8], target[..., :8], train=False)
