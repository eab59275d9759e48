"""Buckets of length: a batch holds examples of similar length and is padded only to its bucket's edge.

An epoch is still a permutation that depends on (seed, epoch) alone, so batch i is a function of (seed, i), every
example comes once per epoch, and a stream can begin at any batch. Only the examples that remain of each bucket after
its whole batches are mixed with those of neighbouring lengths.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from recvis_jax.data.fields import Field
from recvis_jax.data.sources import Source
from recvis_jax.errors import BadRequest, brief, nearest, shown

_CHUNK = 1000  # examples read at a time for their lengths


class Buckets(NamedTuple):
    """How the examples of a split are grouped into batches.

    Attributes:
      edges: field -> increasing lengths that batches are padded to; the last is the field's maximum.
      lengths: field -> length of each example (n).
    """

    edges: dict[str, tuple[int, ...]]
    lengths: dict[str, Int[np.ndarray, " n"]]

    @property
    def bucket(self) -> Int[np.ndarray, " n"]:
        """The bucket of each example, from all fields together; the numbers increase with the length."""
        out = np.zeros(len(next(iter(self.lengths.values()))), np.int64)
        for name, edges in self.edges.items():
            out = out * len(edges) + np.searchsorted(edges, self.lengths[name])
        return out

    def most(self, rows: Int[np.ndarray, " b"]) -> dict[str, int]:
        """Returns {field: the length that a batch of these examples is padded to}."""
        longest = {name: int(lengths[rows].max(initial=0)) for name, lengths in self.lengths.items()}
        return {name: next((e for e in of if e >= longest[name]), of[-1]) for name, of in self.edges.items()}


class Order:
    """Epoch -> the permutation of the data in that epoch; the last few are cached. Can be pickled."""

    def __init__(self, seed: int, batch_size: int, bucket: Int[np.ndarray, " n"]):
        self.seed, self.batch_size, self.bucket = seed, batch_size, bucket
        self._kept: dict[int, np.ndarray] = {}

    def __call__(self, epoch: int) -> Int[np.ndarray, " n"]:
        if epoch not in self._kept:
            kept = list(self._kept.items())[-2:]
            self._kept = {**dict(kept), epoch: epoch_order(self.seed, epoch, self.batch_size, self.bucket)}
        return self._kept[epoch]


@functools.lru_cache(maxsize=4)
def of_source(source: Source, edges: tuple[tuple[str, tuple[int, ...]], ...]) -> Buckets:
    """Returns the buckets of a split; all its examples are read once for their lengths.

    Args:
      source: the split.
      edges: (field, lengths), see `make`.

    Raises:
      BadRequest: see `make`.
    """
    check(edges, source.fields)
    lengths: dict[str, list[int]] = {name: [] for name, _ in edges}
    for first in range(0, source.length, _CHUNK):
        for example in source.read(np.arange(first, min(first + _CHUNK, source.length))):
            for name, found in lengths.items():
                found.append(len(example[name]))
    return make(dict(edges), source.fields, lengths)


def check(edges: tuple[tuple[str, tuple[int, ...]], ...], fields: Sequence[Field]) -> None:
    """Refuses edges that do not fit the declared fields, without reading any data; see `make`."""
    make(dict(edges), fields, {name: [0] for name, _ in edges})


def as_key(edges: Mapping[str, Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Converts the edges of a config to a tuple, which can be compared; `BadRequest` for what are no whole numbers."""
    out = tuple((str(k), tuple(v) if isinstance(v, tuple | list) else (v,)) for k, v in edges.items())
    for name, values in out:
        if not all(type(e) is int for e in values):
            raise BadRequest(f"data.buckets: {brief(name)} takes whole numbers, such as (8, 16), not {shown(values)}.")
    return out


def make(edges: Mapping[str, Any], fields: Sequence[Field], lengths: Mapping[str, Sequence[int]]) -> Buckets:
    """Checks edges against the declared fields.

    Args:
      edges: field -> lengths, such as {"words": (8, 16, 32)}. The field's maximum is added if it is missing.
      fields: the declaration.
      lengths: field -> length of each example (n).

    Raises:
      BadRequest: a field that is not declared or does not vary in length, or edges that do not increase.

    Example:
      >>> words = Field("words", "tokens", (None,), "int32", most=32)
      >>> make({"words": (8, 16)}, [words], {"words": [3, 20, 9]}).bucket.tolist()
      [0, 2, 1]
    """
    known = {f.name: f for f in fields if f.most is not None and not f.of}
    out = {}
    for name, given in edges.items():
        if name not in known:
            raise BadRequest(
                f"data.buckets: no field {name!r} varies in length.{nearest(name, known)} Those that do: "
                f"{', '.join(known) or 'none'}."
            )
        most = known[name].most or 0
        values = list(given) if isinstance(given, tuple | list) else [given]
        whole = all(type(e) is int and 0 < e <= most for e in values)
        if not values or not whole or values != sorted(set(values)):
            raise BadRequest(
                f"data.buckets: {name} takes increasing lengths from 1 to its maximum of {most}, such as (8, 16), "
                f"not {shown(given)}."
            )
        out[name] = tuple(values) if values[-1] == most else (*values, most)
    if not out:
        raise BadRequest('data.buckets: name a field and its lengths, such as {"words": (8, 16, 32)}.')
    return Buckets(out, {name: np.asarray(lengths[name], np.int64) for name in out})


def epoch_order(seed: int, epoch: int, batch_size: int, bucket: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns a permutation of the examples in which batches come from one bucket, as far as it fills whole batches.

    Epochs follow each other without a gap, so the first batch of an epoch may have begun in the epoch before: an epoch
    is a piece that completes that batch, whole batches in random order, and a piece that begins the next one. The
    pieces, and a few batches, are made from the remainders of the buckets.

    Args:
      seed, epoch: the draws depend on them alone.
      batch_size: examples of a global batch.
      bucket: of each example.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    n = len(bucket)
    head = -epoch * n % batch_size
    if head >= n:
        return rng.permutation(n)
    shuffled = rng.permutation(n)
    shuffled = shuffled[np.argsort(bucket[shuffled], kind="stable")]  # by bucket, in random order inside each
    groups, rest = [], []
    for members in np.split(shuffled, np.flatnonzero(np.diff(bucket[shuffled])) + 1):
        whole = len(members) // batch_size * batch_size
        groups += np.split(members[:whole], range(batch_size, whole, batch_size)) if whole else []
        rest.append(members[whole:])
    groups = [groups[i] for i in rng.permutation(len(groups))]
    tail = (n - head) % batch_size
    if len(groups) > (n - head - tail) // batch_size:  # head and tail split a batch
        rest.append(groups.pop())
    left = np.concatenate(rest) if rest else shuffled[:0]
    left = left[np.argsort(bucket[left], kind="stable")]
    ends, mixed = left[: head + tail], left[head + tail :]  # the shortest, because their padding costs least
    groups += np.split(mixed, range(batch_size, len(mixed), batch_size)) if len(mixed) else []
    groups = [groups[i] for i in rng.permutation(len(groups))]
    return np.concatenate([ends[:head], *groups, ends[head:]]).astype(np.int64)
