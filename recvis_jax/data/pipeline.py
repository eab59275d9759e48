"""Batches: which examples, in which order, from which memory.

Batch i of a training stream holds the positions [i B, (i + 1) B) of an endless sequence of epochs, each epoch a
permutation drawn from (seed, epoch). A host transform draws its numbers from (seed, position), a device augmentation
from (seed, step, slot). So the content of batch i is a function of (seed, i) alone. It does not depend on cache,
threads, worker processes, number of hosts or restarts, and a stream can start at any batch at no cost.
"""

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from recvis_jax import errors
from recvis_jax.data import fields
from recvis_jax.data.buckets import Buckets, Order
from recvis_jax.data.sources import Indices, Source

Batch = dict[str, Any]
Arrays = dict[str, Any]  # a data set in memory, every field (n ...), from `fields.stack`
Cache = Literal["none", "host", "device", "auto"]

# "auto" keeps decoded data up to this size on the device; CIFAR-10 fits several times.
_DEVICE_BYTES = 1 << 30
_CHUNK = 64  # examples that one thread reads at a time
# Small batches are taken from a cache several at a time: with steps of 10 ms, the cost of a single one would matter.
_TOGETHER = 8
_TOGETHER_BYTES = 8 << 20


class Placement(NamedTuple):
    """How batches are placed on the devices; `training.distributed` makes one for `jit` and one for `pmap`.

    If the only device is a CPU, cached data and their batches stay in numpy.

    Attributes:
      host: index of this process, and number of processes.
      put: this host's part of a batch in numpy -> the global batch on devices.
      put_several: this host's part of k batches in numpy, every array (k b ...) -> the k global batches on devices.
      keep: `Arrays` in numpy -> `Arrays` on every device.
      take: (`Arrays` on devices, indices (k b), this host's slots (b)) -> the k global batches on devices.
      put_eval: like `put`, for evaluation (which always runs under `jit`).
    """

    host: tuple[int, int]
    put: Callable[[Batch], Batch]
    put_several: Callable[[Batch], list[Batch]]
    keep: Callable[[Arrays], Arrays]
    take: Callable[[Arrays, np.ndarray, np.ndarray], list[Batch]]
    put_eval: Callable[[Batch], Batch]


@functools.lru_cache(maxsize=3)
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Returns the permutation of range(length) that is the order of the data in epoch `epoch`."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(length)


def examples_of(
    seed: int, positions: np.ndarray, length: int, orders: Callable[[int], np.ndarray] | None = None
) -> np.ndarray:
    """Returns the example index at each position of the endless training stream.

    Args:
      seed: for the order, see `epoch_order`.
      positions: positions in the stream.
      length: number of examples.
      orders: epoch -> permutation, instead of `epoch_order`.
    """
    epochs, places = np.divmod(positions, length)
    out = np.empty(len(positions), np.int64)
    for epoch in range(epochs.min(), epochs.max() + 1):
        here = epochs == epoch
        out[here] = (orders(epoch) if orders else epoch_order(seed, epoch, length))[places[here]]
    return out


def choose_cache(cache: Cache, source: Source, random_transform: bool, bucketed: bool = False) -> Cache:
    """Resolves "auto" and refuses impossible choices: a device cache with random host transforms, or with buckets."""
    if cache == "device" and bucketed:
        raise errors.BadRequest(
            "data.cache='device' keeps arrays of one length, but data.buckets gives each batch its own. Use "
            "data.cache='host'."
        )
    if cache == "auto":
        sizes = [field.bytes for field in source.fields if field.shape is not None]
        small = None not in sizes and source.length * sum(n or 0 for n in sizes) <= _DEVICE_BYTES
        return "none" if not small else "host" if random_transform or bucketed else "device"
    if cache == "device" and random_transform:
        raise errors.BadRequest(
            "data.cache='device' keeps images after data.transform, but data.transform draws random numbers, again for "
            "every epoch. Use data.augment for random operations, or data.cache='host'."
        )
    return cache


def check_labels(label: np.ndarray, source: Source) -> None:
    """Raises BadRequest if a label lies outside [0, num_classes) or is not finite."""
    if not source.num_classes or source.multi_label:
        bad = ~np.isfinite(label)
        if bad.any():
            raise errors.BadRequest(f"{source.name}: a label is not finite.")
        return
    bad = (label < 0) | (label >= source.num_classes)
    if bad.any():
        raise errors.BadRequest(
            f"{source.name}: label {label[bad][0]} is outside 0..{source.num_classes - 1} "
            f"({int(bad.sum())} of {len(label)} labels are wrong)."
        )


def stack(
    examples: Sequence[dict[str, Any]],
    source: Source,
    transformed: bool = False,
    most: Mapping[str, int] = MappingProxyType({}),
) -> Batch:
    """Stacks examples to a batch by the fields of their source, and checks shapes and labels.

    Args:
      examples: of the source.
      source: their source, which declares the fields.
      transformed: whether a host transform may have changed the sizes of spatial fields.
      most: field -> the length that it is padded to, instead of its declared maximum.
    """
    declared = fields.resizable(source.fields) if transformed else source.fields
    declared = tuple(f if f.most is None else f._replace(most=most.get(f.of or f.name, f.most)) for f in declared)
    batch = fields.stack(examples, declared, source.name)
    for field in source.fields:
        if field.kind == "label":
            labels = batch[field.name]
            check_labels(labels[batch[field.mask_name]] if field.mask_name else labels, source)
    return batch


def materialise(source: Source, transform: Callable | None = None) -> Arrays:
    """Reads a whole split into memory, decoded and (deterministically) transformed, with threads if that helps."""
    chunks = _Chunks(source, transform, 0, np.arange(source.length), 512)
    parts = list(_read(chunks, threads=4, workers=0))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


class _Chunks:
    """Random access to consecutive pieces of a sequence of positions, in the form that grain needs."""

    def __init__(self, source, transform, seed, positions, size, order=None, most=None):
        self.source, self.transform, self.seed = source, transform, seed
        self.positions, self.size, self.order, self.most = positions, size, order, most

    def __len__(self) -> int:
        return -(-len(self.positions) // self.size)

    def __getitem__(self, k: int) -> Batch:
        positions = np.asarray(self.positions[k * self.size : (k + 1) * self.size])
        indices = self.order(positions) if self.order else positions
        examples = self.source.read(indices)
        if self.transform:
            for j, position in enumerate(positions):
                rng = np.random.Generator(np.random.Philox(key=[self.seed, int(position)]))
                examples[j] = self.transform(rng, examples[j])
        most = self.most(int(positions[0])) if self.most else {}
        return stack(examples, self.source, self.transform is not None, most)


def _read(chunks: Any, threads: int, workers: int) -> Iterator[Batch]:
    import grain  # takes a third of a second, which programs without a data set save

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    data = grain.MapDataset.source(chunks).to_iter_dataset(options)
    if workers:
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4))
    return iter(data)


class _Positions:
    """This host's positions from batch `start` to batch `stop`, computed on request."""

    def __init__(self, start, stop, batch_size, host):
        self.start, self.batch_size = start, batch_size
        self.local = batch_size // host[1]
        self.first = self.local * host[0]
        self.length = max(0, stop - start) * self.local

    def __len__(self):
        return self.length

    def __getitem__(self, s: slice) -> np.ndarray:
        batch, slot = np.divmod(np.arange(*s.indices(self.length)), self.local)
        return (self.start + batch) * self.batch_size + self.first + slot


def train_batches(
    data: Source | Arrays,
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    placement: Placement,
    transform: Callable | None = None,
    threads: int = 8,
    workers: int = 0,
    buckets: Buckets | None = None,
) -> Iterator[Batch]:
    """Yields the batches `start`..`stop - 1` of the training stream on the devices, and prefetches the next one.

    Args:
      data: the source itself (streamed), numpy `Arrays` (kept on the host) or device `Arrays`.
      source: the source that `data` was made from.
      batch_size: size of the global batch, a multiple of the number of hosts.
      seed: the order of the examples and the host transforms depend on it.
      start, stop: numbers of batches.
      placement: how a batch is placed on the devices.
      transform: `f(rng, example) -> example` on the host; None if `data` is `Arrays` that need none.
      threads, workers: number of reading threads, and of processes with that many threads each (0: this process).
      buckets: of length, see `data.buckets`; `data` is then not on devices.
    """
    host, count = placement.host
    local = batch_size // count
    slots = np.arange(host * local, (host + 1) * local, dtype=np.int32)
    orders = Order(seed, batch_size, buckets.bucket) if buckets else None
    order = functools.partial(examples_of, seed, length=source.length, orders=orders)
    most = functools.partial(_most, buckets, order, batch_size) if buckets else None

    def on_device(cached: Arrays) -> Iterator[Batch]:
        for rows in _rows_of_several(cached, start, stop, batch_size, slots, order):
            yield from placement.take(cached, rows.astype(np.int32), slots)

    def on_host(cached: Arrays) -> Iterator[Batch]:
        same = placement.put({"mask": np.ones(local, bool), "slot": slots})
        for rows in _rows_of_several(cached, start, stop, batch_size, slots, order):
            for batch in placement.put_several({k: v.take(rows, axis=0) for k, v in cached.items()}):
                yield {**batch, **same}

    def in_buckets(cached: Arrays, most: Callable[[int], dict[str, int]]) -> Iterator[Batch]:
        same = placement.put({"mask": np.ones(local, bool), "slot": slots})
        for first in range(start * batch_size, stop * batch_size, batch_size):
            batch = {k: v.take(order(first + slots), axis=0) for k, v in cached.items()}
            yield {**placement.put(_cut_to(batch, source, most(first))), **same}

    def streamed(read_from: Source) -> Iterator[Batch]:
        size = next(s for s in range(min(_CHUNK, local), 0, -1) if local % s == 0)
        positions = _Positions(start, stop, batch_size, placement.host)
        parts = _read(_Chunks(read_from, transform, seed, positions, size, order, most), threads, workers)
        per_batch = local // size
        same = placement.put({"mask": np.ones(local, bool), "slot": slots})
        for _ in range(start, stop):
            pieces = [next(parts) for _ in range(per_batch)]
            batch = {k: np.concatenate([p[k] for p in pieces]) if per_batch > 1 else pieces[0][k] for k in pieces[0]}
            yield {**placement.put(batch), **same}

    if isinstance(data, Source):
        batches = streamed(source)
    elif not isinstance(next(iter(data.values())), np.ndarray):
        batches = on_device(data)
    elif transform is None:
        batches = in_buckets(data, most) if most else on_host(data)
    else:
        batches = streamed(_kept(data, source))
    yield from _ahead(itertools.islice(batches, stop - start))


def _most(
    buckets: Buckets, order: Callable[[np.ndarray], np.ndarray], batch_size: int, position: int
) -> dict[str, int]:
    """Returns the lengths that the fields of the global batch at a position are padded to, equal on all hosts."""
    first = position // batch_size * batch_size
    return buckets.most(order(np.arange(first, first + batch_size)))


def _cut_to(batch: Batch, source: Source, most: Mapping[str, int]) -> Batch:
    """Cuts fields, and their masks, to the longest example of a batch."""
    names = {n: most[f.of or f.name] for f in source.fields if (f.of or f.name) in most for n in (f.name, f.mask_name)}
    return {name: v[:, : names[name]] if name in names else v for name, v in batch.items()}


def _rows_of_several(
    cached: Arrays, start: int, stop: int, batch_size: int, slots: np.ndarray, order: Callable[[np.ndarray], np.ndarray]
) -> Iterator[np.ndarray]:
    """Yields the examples (k b) of the next k batches; the last batches may lie beyond `stop`."""
    size = batch_size * sum(math.prod(v.shape[1:]) * v.dtype.itemsize for v in cached.values())
    k = max(1, min(_TOGETHER, _TOGETHER_BYTES // size))
    for first in range(start, stop, k):
        positions = np.arange(first, first + k)[:, None] * batch_size + slots
        yield order(positions.ravel()).reshape(positions.shape)


def _kept(data: Arrays, source: Source) -> Source:
    def read(indices: Indices) -> list[dict[str, Any]]:
        return [fields.unpadded(data, source.fields, int(i)) for i in indices]

    return source._replace(read=read)


def _ahead(batches: Iterator[Batch], depth: int = 2) -> Iterator[Batch]:
    """Keeps `depth` batches dispatched ahead: transfers and gathers are asynchronous, so they overlap with the step."""
    queue: deque[Batch] = deque()
    for batch in batches:
        queue.append(batch)
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue


class EvalBatches:
    """All examples of a split, once and in order; the last batch is padded and masked. Can be iterated repeatedly.

    Batches of a small split are kept on the devices after the first pass.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        placement: Placement,
        transform: Callable | None = None,
        keep: bool = False,
        threads: int = 8,
        workers: int = 0,
        buckets: Buckets | None = None,
    ):
        self.buckets = buckets
        self.source, self.batch_size, self.placement = source, batch_size, placement
        self.transform, self.keep, self.threads, self.workers = transform, keep, threads, workers
        self._kept: list[Batch] | None = None

    def __len__(self) -> int:
        return -(-self.source.length // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            return iter(self._kept)
        return iter(self._pass())

    def _pass(self) -> Iterable[Batch]:
        host, count = self.placement.host
        local = self.batch_size // count
        kept = []
        # Every host reads its own rows of every batch; a chunk is one such part, which keeps padding simple.
        starts = range(host * local, len(self) * self.batch_size, self.batch_size)
        rows = [np.arange(s, min(s + local, self.source.length)) for s in starts]
        most = [
            self.buckets.most(np.arange(s, min(s + self.batch_size, self.source.length))) if self.buckets else {}
            for s in range(0, self.source.length, self.batch_size)
        ]
        parts = _read(_Rows(self.source, self.transform, rows, most), self.threads, self.workers)
        for batch in _ahead(self.placement.put_eval(pad(p, local)) for p in parts):
            if self.keep:
                kept.append(batch)
            yield batch
        if self.keep:
            self._kept = kept


class _Rows:
    """Like `_Chunks`, for given rows; a host with an empty part of the last batch repeats example 0, masked."""

    def __init__(self, source, transform, rows, most):
        self.source, self.transform, self.rows, self.most = source, transform, rows, most

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> Batch:
        rows = self.rows[k]
        indices = rows if len(rows) else np.zeros(1, int)
        examples = self.source.read(indices)
        if self.transform:
            examples = [self.transform(np.random.default_rng(0), e) for e in examples]
        return {
            **stack(examples, self.source, self.transform is not None, self.most[k]),
            "mask": np.full(len(indices), len(rows) > 0),
        }


def pad(batch: Batch, size: int) -> Batch:
    """Pads a batch to `size` examples with zeros; `mask` is false on the padding, `slot` counts the rows."""
    n = len(next(iter(batch.values())))
    mask = batch.get("mask", np.ones(n, bool))
    out = {k: np.concatenate([v, np.zeros((size - n, *v.shape[1:]), v.dtype)]) for k, v in batch.items()}
    out["mask"] = np.concatenate([mask, np.zeros(size - n, bool)])
    out["slot"] = np.arange(size, dtype=np.int32)
    return out
