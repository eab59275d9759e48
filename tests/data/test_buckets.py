"""Batches of similar length: still a function of (seed, number) alone, every example once an epoch."""

import functools

import numpy as np
import pytest

import recvis_jax as rv
from recvis_jax import errors
from recvis_jax.data import buckets, pipeline
from recvis_jax.data.fields import Field
from recvis_jax.data.pipeline import EvalBatches, Placement
from recvis_jax.data.sources import Source

LENGTH, BATCH, STEPS = 61, 8, 24  # more than three epochs, none of whole batches
WORDS = Field("words", "tokens", (None,), "int32", most=20, padding=-1)
EDGES = (("words", (5, 10)),)


@functools.cache
def source():
    """Sentences of 1 to 20 words, whose first word is their number."""
    rng = np.random.default_rng(0)
    rows = [np.r_[i, rng.integers(0, 9, rng.integers(0, 20))].astype(np.int32) for i in range(LENGTH)]
    return Source(
        "words", LENGTH, lambda ix: [{"words": rows[i]} for i in ix], (0, 0, 0), 0, (), (("train", 0, LENGTH),),
        declared=(WORDS,),
    )  # fmt: skip


def placement(host=(0, 1)):
    def several(batches):
        return [{k: v[i] for k, v in batches.items()} for i in range(len(next(iter(batches.values()))))]

    return Placement(host, lambda b: b, several, lambda a: a, lambda *a: [], lambda b: b)


def batches(cache=False, host=(0, 1), start=0, stop=STEPS, transform=None, **kw):
    data = pipeline.materialise(source()) if cache else source()
    found = pipeline.train_batches(
        data, source(), batch_size=BATCH, seed=3, start=start, stop=stop, placement=placement(host),
        transform=transform, buckets=buckets.of_source(source(), EDGES), **kw,
    )  # fmt: skip
    return list(found)


@pytest.fixture(scope="module")
def plain():
    return batches()


def numbers(found):
    return [int(words[0]) for batch in found for words in batch["words"]]


def test_every_example_once_an_epoch_in_batches_of_its_length(plain):
    row = numbers(plain)
    for epoch in range(len(row) // LENGTH):
        assert sorted(row[epoch * LENGTH : (epoch + 1) * LENGTH]) == list(range(LENGTH))
    widths = [batch["words"].shape[1] for batch in plain]
    assert set(widths) == {5, 10, 20}
    for batch, width in zip(plain, widths, strict=True):
        longest = int(batch["words_mask"].sum(1).max())
        assert longest <= width and width == min(e for e in (5, 10, 20) if e >= longest)
        assert (batch["words"][~batch["words_mask"]] == -1).all()
    padded = sum(b["words_mask"].size for b in plain) / sum(b["words_mask"].sum() for b in plain)
    assert padded < 0.75 * 20 * LENGTH / sum(len(e["words"]) for e in source().read(range(LENGTH)))
    epochs = [row[e * LENGTH : (e + 1) * LENGTH] for e in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]


WAYS = {
    "resumed": dict(start=9),
    "cached": dict(cache=True),
    "cached and resumed": dict(cache=True, start=13),
    "one thread": dict(threads=1),
    "cached, transformed": dict(cache=True, transform=lambda rng, example: example),
}


@pytest.mark.parametrize("way", WAYS)
def test_batches_are_a_function_of_their_number(way, plain):
    found = batches(**WAYS[way])
    for a, b in zip(found, plain[WAYS[way].get("start", 0) :], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("cache", [False, True])
def test_hosts_divide_the_same_batches(cache, plain):
    parts = [batches(cache, host=(i, 4)) for i in range(4)]
    for step, whole in zip(zip(*parts, strict=True), plain, strict=True):
        np.testing.assert_array_equal(np.concatenate([p["words"] for p in step]), whole["words"])


@pytest.mark.parametrize("count, size", [(1, 1), (5, 3), (7, 7), (8, 3), (64, 16), (200, 9)])
def test_orders_are_permutations(count, size):
    bucket = np.random.default_rng(count).integers(0, 4, count)
    order = buckets.Order(1, size, bucket)
    rows = np.concatenate([order(e) for e in range(7)])
    assert all(sorted(rows[e * count : (e + 1) * count]) == list(range(count)) for e in range(7))
    whole = [rows[i * size : (i + 1) * size] for i in range(len(rows) // size)]
    mixed = sum(len(set(bucket[b])) > 1 for b in whole)
    assert mixed <= 7 * 4 + 7, "at most a batch a bucket and epoch, and one where epochs meet"


def test_evaluation_is_padded_by_the_batch():
    every = EvalBatches(source(), batch_size=8, placement=placement(), buckets=buckets.of_source(source(), EDGES))
    found = list(every)
    assert numbers(found)[:LENGTH] == list(range(LENGTH))
    assert [b["words"].shape[1] for b in found] == [
        min(e for e in (5, 10, 20) if e >= int(b["words_mask"].sum(1).max())) for b in found
    ]


def test_the_library_takes_edges():
    examples = source().read(range(LENGTH))
    data = rv.data.from_examples(examples, [WORDS], val=0.2, buckets={"words": (5, 10)})
    assert data.cache == "host"
    widths = {batch["words"].shape[1] for batch in data.batches(8, epochs=1)}
    assert widths <= {5, 10, 20} and len(widths) > 1
    for edges, message in (
        ({"word": (5,)}, r"no field 'word' varies in length\. Did you mean 'words'\?"),
        ({"words": (10, 5)}, "words takes increasing lengths from 1 to its maximum of 20"),
        ({"words": (30,)}, "from 1 to its maximum of 20"),
    ):
        with pytest.raises(errors.BadRequest, match=message):
            rv.data.from_examples(examples, [WORDS], buckets=edges)
    with pytest.raises(errors.BadRequest, match="keeps arrays of one length"):
        pipeline.choose_cache("device", source(), False, True)
