"""Names, masks, merging and fingerprints of pytrees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recvis_jax import trees
from recvis_jax.errors import BadRequest


def params():
    return {
        "stem": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "bias": np.zeros(4, np.float32)},
        "head": {"kernel": np.ones((4, 2), np.float32), "bias": np.ones(2, np.float32)},
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: int
    params: dict


# --- names ---


def test_flatten_names_nested_dicts_in_leaf_order():
    assert list(trees.flatten(params())) == ["head/bias", "head/kernel", "stem/bias", "stem/kernel"]
    for leaf, other in zip(trees.flatten(params()).values(), jax.tree.leaves(params()), strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize(
    "tree, names",
    [
        (FrozenDict({"a": FrozenDict({"b": 1})}), ["a/b"]),
        (State(3, {"w": 1}), ["step", "params/w"]),
        ([{"a": 1}, (2, None, 3)], ["0/a", "1/0", "1/2"]),
        (optax.adam(1e-3).init({"a": {"w": jnp.ones(1)}}), ["0/count", "0/mu/a/w", "0/nu/a/w"]),
        (5, [""]),
        ({}, []),
    ],
)
def test_flatten_names_other_containers(tree, names):
    assert list(trees.flatten(tree)) == names


def test_unflatten_inverts_flatten():
    assert trees.unflatten({"a/b/c": 1, "a/d": {"leaf": 2}, "e": 3}) == {
        "a": {"b": {"c": 1}, "d": {"leaf": 2}},
        "e": 3,
    }
    flat = trees.flatten(params())
    assert jax.tree.structure(trees.unflatten(flat)) == jax.tree.structure(params())
    assert trees.unflatten(trees.flatten(7)) == 7
    assert trees.unflatten({}) == {}


@pytest.mark.parametrize("flat", [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}, {"a": {"x": 0}, "a/b": 1}])
def test_unflatten_refuses_a_leaf_that_is_a_branch(flat):
    with pytest.raises(BadRequest, match="'a' is a leaf"):
        trees.unflatten(flat)


def test_flatten_refuses_ambiguous_names():
    with pytest.raises(BadRequest, match="both named 'a/b'"):
        trees.flatten({"a/b": 1, "a": {"b": 2}})


# --- masks ---


@pytest.mark.parametrize(
    "pattern, marked",
    [
        ("bias$", {"head/bias", "stem/bias"}),
        ("^head/", {"head/bias", "head/kernel"}),
        ("^(?!head/)", {"stem/bias", "stem/kernel"}),
        (["^stem/bias$", "head/k"], {"stem/bias", "head/kernel"}),
        ((), set()),
    ],
)
def test_mask_searches_names(pattern, marked):
    mask = trees.mask(params(), pattern)
    assert jax.tree.structure(mask) == jax.tree.structure(params())
    assert {n for n, yes in trees.flatten(mask).items() if yes} == marked
    assert all(type(x) is bool for x in jax.tree.leaves(mask))


def test_mask_keeps_the_kind_of_container():
    assert isinstance(trees.mask(FrozenDict({"a": 1}), "a"), FrozenDict)


def test_mask_refuses_patterns_that_match_nothing():
    with pytest.raises(BadRequest, match=r"'baises\$' matches none of the 4 names: head/bias, head/kernel"):
        trees.mask(params(), ["kernel$", "baises$"])
    assert not any(jax.tree.leaves(trees.mask(params(), "baises$", allow_empty=True)))
    with pytest.raises(BadRequest, match="not a regular expression"):
        trees.mask(params(), "(kernel")


def test_count():
    assert trees.count(params()) == 12 + 4 + 8 + 2
    assert trees.count(jax.eval_shape(lambda: {"w": jnp.ones((3, 5)), "s": jnp.ones(())})) == 16
    assert trees.count({}) == 0


# --- merge ---


def test_merge_takes_all_leaves_and_the_expected_structure():
    expected = FrozenDict(jax.eval_shape(params))
    for given in (params(), trees.flatten(params())):
        merged = trees.merge(expected, given)
        assert isinstance(merged, FrozenDict)
        jax.tree.map(np.testing.assert_array_equal, merged.unfreeze(), params())


def test_merge_casts_floats_only():
    given = jax.tree.map(lambda x: x.astype(np.float64), params())
    assert {x.dtype for x in jax.tree.leaves(trees.merge(params(), given))} == {np.dtype(np.float32)}
    given["head"]["bias"] = np.ones(2, np.int32)
    with pytest.raises(BadRequest, match="1 of another dtype: head/bias int32 instead of float32"):
        trees.merge(params(), given)


def test_merge_names_every_difference_at_once():
    given = params()
    given["head"]["kernel"] = np.ones((4, 3), np.float32)
    given["head"]["scale"] = given["head"].pop("bias")
    given["stem"]["kernel"] = np.ones((3, 4, 1), np.float32)
    with pytest.raises(BadRequest) as e:
        trees.merge(params(), given)
    message = str(e.value)
    assert "1 missing: head/bias" in message
    assert "1 unexpected: head/scale" in message
    assert (
        "2 of another shape: head/kernel (4, 3) instead of (4, 2), stem/kernel (3, 4, 1) instead of (3, 4)" in message
    )


def test_merge_cuts_long_lists():
    with pytest.raises(BadRequest, match=r"50 missing: .* and 30 more$") as e:
        trees.merge({f"w{i}": np.ones(1) for i in range(50)}, {})
    assert str(e.value).count("w") < 25


def test_merge_can_keep_a_new_head():
    given = params()
    given["head"] = {"kernel": np.zeros((4, 1000), np.float32), "extra": np.ones(1)}
    given["stem"]["bias"] += 5
    merged = trees.merge(params(), given, keep="^head/")
    np.testing.assert_array_equal(merged["head"]["kernel"], params()["head"]["kernel"])
    np.testing.assert_array_equal(merged["stem"]["bias"], 5)
    with pytest.raises(BadRequest, match="matches none"):
        trees.merge(params(), given, keep="^haed/")


# --- fingerprint ---


def reference(words: np.ndarray) -> int:
    """The checksum in Python integers, one element at a time."""
    total = 0
    for i, word in enumerate(words.ravel().tolist()):
        h = (word + (i + 1) * 0x9E3779B1) % 2**32
        h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
        h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
        total += h ^ (h >> 16)
    return total % 2**32


@pytest.mark.parametrize(
    "x, words",
    [
        (x := np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32), x.view(np.uint32)),
        (x := np.arange(-3, 4, dtype=np.int8), x.view(np.uint8)),
        (x := np.linspace(-1, 1, 5, dtype=np.float16), x.view(np.uint16)),
        (np.array([True, False, True]), np.array([1, 0, 1])),
        (x := np.array([1.0, -2.5, np.nan]), x.view(np.uint32)),
        (2**40 + 1, np.array([1, 2**8])),
        (jax.random.key(7), np.array([0, 7])),
        (jnp.array(1.5, jnp.bfloat16), np.array(0x3FC0)),
        (x := np.array([1 + 2j, 3 - 1j], np.complex64), x.view(np.uint32)),
        (np.zeros((0, 3), np.float32), np.zeros(0, np.uint32)),
    ],
    ids=["float32", "int8", "float16", "bool", "float64", "int", "key", "bfloat16", "complex64", "empty"],
)
def test_fingerprint_equals_the_definition(x, words):
    assert trees.fingerprint({"a": x}) == {"a": reference(words)}


def test_fingerprint_sees_any_small_change():
    x = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    first = trees.fingerprint(x)[""]
    seen = {first}
    for place in np.ndindex(2, 3):
        for bit in range(0, 32, 5):
            y = x.copy()
            y.view(np.uint32)[place] ^= np.uint32(1 << bit)
            seen.add(trees.fingerprint(y)[""])
    assert len(seen) == 1 + 6 * 7
    changed = {
        "all signs": -x,
        "two signs": np.where(np.arange(256) < 2, -x, x),
        "row order": x[::-1],
        "order": np.roll(x, 1, axis=1),
    }
    assert first not in trees.fingerprint(changed).values()
    # With weights linear in the index, elements 256 apart could be swapped unseen.
    far = np.zeros(512, np.float32)
    far[[0, 256]] = 1, 2
    assert trees.fingerprint(far) != trees.fingerprint(np.roll(far, 256))
    assert trees.fingerprint(np.float32(0)) != trees.fingerprint(np.float32(-0.0))
    assert trees.fingerprint(np.float32(np.nan)) == trees.fingerprint(np.float32(np.nan))


def test_fingerprint_of_a_tree():
    assert trees.fingerprint({}) == {}
    p = params()
    before = trees.fingerprint(p)
    assert list(before) == list(trees.flatten(p)) and all(type(v) is int for v in before.values())
    p["head"]["bias"][1] += 1
    after = trees.fingerprint(p)
    assert [n for n in before if before[n] != after[n]] == ["head/bias"]


def test_fingerprint_does_not_depend_on_the_sharding():
    devices = jax.devices()
    assert len(devices) > 1
    mesh = Mesh(np.array(devices), ("data",))
    x = np.random.default_rng(0).normal(size=(2, 8 * len(devices))).astype(np.float32)
    expected = reference(x.view(np.uint32))
    for spec in (PartitionSpec(), PartitionSpec(None, "data")):
        y = jax.device_put(x, NamedSharding(mesh, spec))
        assert trees.fingerprint({"whole": x, "split": y}) == {"whole": expected, "split": expected}
