"""Path names of pytrees ('stage1/conv/kernel'), masks by regular expression, strict merging, and fingerprints."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32

from recvis_jax.errors import BadRequest

_SHOWN = 20  # names listed in a message before it is cut


def flatten(tree: PyTree) -> dict[str, Any]:
    """Lists the leaves of a tree by path name, in the order of `jax.tree.leaves`.

    Args:
      tree: any pytree. Keys of dicts, indices of sequences and fields of (named) tuples and dataclasses become the
        parts of a name, joined by '/': 'stem/conv/kernel', or '0/mu/stem/conv/kernel' in a state of optax.

    Returns:
      A dict from name to leaf. A tree that is itself a leaf has the empty name; None is not a leaf.

    Raises:
      BadRequest: two leaves have the same name, as in {'a/b': x, 'a': {'b': y}}.
    """
    flat: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = _name(path)
        if name in flat:
            raise BadRequest(f"two leaves of the tree are both named {name!r}; a key that contains '/' is ambiguous.")
        flat[name] = leaf
    return flat


def unflatten(flat: Mapping[str, Any]) -> Any:
    """Builds the nested dict whose `flatten` is `flat`; every part of a name becomes a string key.

    Raises:
      BadRequest: a name is both a leaf and a branch, as in {'a': x, 'a/b': y}.
    """
    if set(flat) == {""}:
        return flat[""]
    tree: dict[str, Any] = {}
    branches = {id(tree)}  # a leaf may itself be a dict, so branches are recognised by identity
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for depth, key in enumerate(parents):
            if key not in node:
                node[key] = {}
                branches.add(id(node[key]))
            if id(node[key]) not in branches:
                raise BadRequest(f"{'/'.join(parents[: depth + 1])!r} is a leaf, but {name!r} is below it.")
            node = node[key]
        if last in node:
            raise BadRequest(f"{name!r} is a leaf, but other names are below it.")
        node[last] = leaf
    return tree


def mask(tree: PyTree, pattern: str | Sequence[str], *, allow_empty: bool = False) -> PyTree[bool]:
    """Marks the leaves whose path name matches a regular expression.

    Args:
      tree: any pytree.
      pattern: searched for anywhere in the name (`re.search`); use anchors to fix the position: 'bias$', '^head/',
        '^(?!head/)' for all but the head. With several patterns, one match is enough.
      allow_empty: whether a pattern may match no leaf at all.

    Returns:
      A tree of the same structure, with True where the name matches.

    Raises:
      BadRequest: a pattern matches no leaf (probably a typo), or is not a regular expression.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    names = list(flatten(tree))
    for p in patterns:
        try:
            found = any(re.search(p, name) for name in names)
        except re.error as e:
            raise BadRequest(f"{p!r} is not a regular expression: {e}.") from e
        if not found and not allow_empty:
            raise BadRequest(f"the pattern {p!r} matches none of the {len(names)} names: {shorten(names, 8)}.")
    return jax.tree_util.tree_map_with_path(lambda path, _: any(re.search(p, _name(path)) for p in patterns), tree)


def count(tree: PyTree) -> int:
    """Returns the number of elements in all leaves (arrays or `ShapeDtypeStruct`s), such as of parameters."""
    return sum(math.prod(np.shape(x)) for x in jax.tree.leaves(tree))


def merge(expected: PyTree, given: PyTree, *, keep: str | Sequence[str] = ()) -> PyTree:
    """Puts the leaves of `given` into the structure of `expected`; all names and shapes must agree.

    Args:
      expected: a tree of arrays or `ShapeDtypeStruct`s, such as freshly initialised parameters.
      given: a tree of arrays with the same path names (as nested or as flat dict), such as a loaded checkpoint.
      keep: regular expressions of names that are taken from `expected`, whatever `given` has: the new head in
        fine-tuning.

    Returns:
      A tree like `expected` with the leaves of `given`. Floating-point leaves are cast to the expected dtype.

    Raises:
      BadRequest: names are missing or unexpected, or shapes or kinds of dtypes differ; one message lists everything.
    """
    want, have = flatten(expected), flatten(given)
    kept = {name for name, yes in flatten(mask(expected, keep)).items() if yes}
    skip = [keep] if isinstance(keep, str) else keep
    missing = [n for n in want if n not in have and n not in kept]
    unexpected = [n for n in have if n not in want and not any(re.search(p, n) for p in skip)]
    common = [n for n in want if n in have and n not in kept]
    shapes = [n for n in common if np.shape(have[n]) != np.shape(want[n])]
    dtypes = [n for n in common if n not in shapes and not _castable(_dtype(have[n]), _dtype(want[n]))]
    problems = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": [f"{n} {np.shape(have[n])} instead of {np.shape(want[n])}" for n in shapes],
        "of another dtype": [f"{n} {_dtype(have[n])} instead of {_dtype(want[n])}" for n in dtypes],
    }
    if any(problems.values()):
        lists = [f"\n  {len(v)} {k}: {shorten(v)}" for k, v in problems.items() if v]
        raise BadRequest(f"the given tree does not fit the expected one of {len(want)} leaves:{''.join(lists)}")

    def pick(name: str) -> Any:
        if name in kept:
            return want[name]
        return have[name] if _dtype(have[name]) == _dtype(want[name]) else have[name].astype(_dtype(want[name]))

    return jax.tree.unflatten(jax.tree.structure(expected), [pick(n) for n in want])


def fingerprint(tree: PyTree) -> dict[str, int]:
    """Computes a 32-bit checksum of the bits of every leaf, on the device that holds it.

    Every element's bits are mixed with its flat index by a bijection of 32 bits, and the results are added modulo
    2^32. So a single changed element always changes the sum (64-bit elements count as two), and any other change is
    missed with probability 2^-32. The sum does not depend on how the leaf is sharded. Bits are compared: 0.0 and -0.0
    differ, a NaN equals itself. It finds corruption and diverging runs, but does not protect against forgery.

    Args:
      tree: any pytree of arrays, scalars or typed PRNG keys.

    Returns:
      A dict from path name to checksum, in [0, 2^32).

    Reference:
      The mixing function is the 32-bit finaliser of MurmurHash3 (Appleby, 2011).
    """
    # Compiling once per shape, dtype and sharding is cheaper than for the whole tree, and allows leaves on different
    # devices. All are dispatched before waiting for the first.
    sums = {}
    for name, x in flatten(tree).items():
        sums[name] = _checksum(_host_words(x))
        if isinstance(x, jax.Array) and not x.is_fully_replicated:
            sums[name].block_until_ready()  # on CPUs, sums over devices that run at the same time may deadlock
    return {name: int(s) for name, s in jax.device_get(sums).items()}


def shorten(names: Sequence[str], limit: int = _SHOWN) -> str:
    """Joins at most `limit` names for a message, and adds how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _dtype(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype


def _castable(have: Any, want: Any) -> bool:
    return have == want or (jnp.issubdtype(have, jnp.floating) and jnp.issubdtype(want, jnp.floating))


def _host_words(x: Any) -> Any:
    """Splits 64-bit numbers on the host into 32-bit words, because JAX without x64 would round them."""
    if isinstance(x, jax.Array):
        return x
    x = np.asarray(x)
    if x.dtype.itemsize != 8 or x.dtype.kind not in "iuf":
        return x
    return np.ascontiguousarray(x)[..., None].view(np.uint32).reshape(*x.shape, 2)


@jax.jit
def _checksum(x: Array) -> UInt32[Array, ""]:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype == jnp.bool_ or jax.dtypes.itemsize_bits(x.dtype) < 8:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, getattr(jnp, f"uint{min(32, 8 * x.dtype.itemsize)}")).astype(jnp.uint32)
    # Compute the flat index from one iota per axis: reshaping a sharded array would gather it on every device.
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    h = bits + (index + jnp.uint32(1)) * jnp.uint32(0x9E3779B1)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)
