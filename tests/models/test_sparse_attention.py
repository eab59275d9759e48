"""Gathered blocks compute what the masks of the same patterns say, and hold far fewer pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax.errors import BadRequest
from recvis_jax.models import sparse_attention
from recvis_jax.operations import attention

CASES = {
    "1-D": ("local_1d", 11, dict(block=3, memory=4)),
    "1-D, both ways": ("local_1d", 12, dict(block=4, memory=4, causal=False)),
    "2-D": ("local_2d", 30, dict(h=5, w=6, block=(2, 3), memory=(2, 1))),
    "2-D, both ways": ("local_2d", 24, dict(h=4, w=6, block=(2, 2), memory=(1, 1), causal=False)),
    "strided": ("strided", 13, dict(stride=4)),
    "fixed": ("fixed", 14, dict(stride=4, summary=2)),
}


@pytest.mark.every
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_blocks_are_the_masks(name, merged):
    kind, n, kw = CASES[name]
    masks = sparse_attention.dense(kind, n, merged=merged, **kw)
    made = sparse_attention.blocks(kind, n, merged=merged, **kw)
    assert len(masks) == len(made)
    for mask, parts in zip(masks, made, strict=True):
        seen = np.zeros((n, n), int)
        for part in parts:
            assert sorted(part.queries[part.queries >= 0]) == list(range(n))
            g, i, j = np.nonzero(part.mask & (part.queries >= 0)[..., None] & (part.keys >= 0)[:, None])
            np.add.at(seen, (part.queries[g, i], part.keys[g, j]), 1)
        np.testing.assert_array_equal(seen, mask)


@pytest.mark.parametrize("name, merged", [("fixed", True), ("2-D", False)])
def test_attention_and_its_gradient_are_those_of_the_mask(name, merged):
    kind, n, kw = CASES[name]
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, n, 2, 4))
    mask = jnp.asarray(sparse_attention.dense(kind, n, merged=merged, **kw)[0])
    parts = sparse_attention.blocks(kind, n, merged=merged, **kw)[0]

    def of_mask(q, k, v):
        return (attention(q, k, v, mask)[0] ** 3).sum()

    def of_blocks(q, k, v):
        return (sparse_attention.attend(q, k, v, parts) ** 3).sum()

    found = [jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v) for f in (of_blocks, of_mask)]
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_costs_grow_as_the_papers_say():
    def pairs(kind, n, **kw):
        return sum(p.mask.size for parts in sparse_attention.blocks(kind, n, **kw) for p in parts)

    assert pairs("local_1d", 4096, block=64, memory=128) == 4096 * 192
    assert pairs("local_1d", 8192, block=64, memory=128) == 2 * 4096 * 192
    assert pairs("strided", 4096, stride=64) == 4096 * (2 * 64 + 64)
    assert pairs("fixed", 4096, stride=64) == 4096 * (64 + 64)


def test_refusals():
    for call, words in (
        (lambda: sparse_attention.blocks("random", 8), "unknown pattern 'random'"),
        (lambda: sparse_attention.blocks("local_1d", 8, block=0, memory=1), "block must be at least 1"),
        (lambda: sparse_attention.blocks("fixed", 8, stride=2, summary=3), "summary=3 is more"),
        (lambda: sparse_attention.blocks("local_2d", 8, h=3, w=3, block=(1, 1), memory=(1, 1)), "8 tokens are not"),
    ):
        with pytest.raises(BadRequest, match=words):
            call()
