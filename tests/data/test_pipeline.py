"""Batches are a function of (seed, number) alone: whatever the cache, threads, workers, hosts and first batch."""

import functools
import itertools

import jax
import numpy as np
import programs
import pytest
import small

from recvis_jax import errors
from recvis_jax.data import pipeline, sources, transforms
from recvis_jax.data.pipeline import EvalBatches
from recvis_jax.training import distributed, sharding

LENGTH, BATCH, STEPS, SEED = 37, 8, 14, 3  # three epochs, none of whole batches


def source(length=LENGTH, read_too=lambda indices: None, classes=5):
    """Images that are all different, and labels that say which."""
    images = np.random.default_rng(0).integers(0, 256, (length, 8, 8, 3), np.uint8)

    def read(indices):
        read_too(indices)
        return [{"image": images[i], "label": int(i) % classes} for i in indices]

    stretches = (("train", 0, length),)
    return sources.Source("made up/train", length, read, (8, 8, 3), classes, tuple("abcde"), stretches)


@functools.cache
def placement(host=(0, 1), devices=1):
    """Batches of one host of several stay in numpy; arrays on devices are real ones."""
    made = distributed.jit_placement(sharding.make_mesh(jax.devices()[:devices]))
    return made._replace(host=host, put=lambda batch: batch, put_eval=lambda batch: batch)


def batches(cache="none", spec="", host=(0, 1), start=0, stop=STEPS, data=None, devices=1, **kw):
    data = data or source()
    transform = transforms.parse(spec).fn if spec else None
    where = placement(host, devices)
    kept = data
    if cache != "none":
        kept = pipeline.materialise(data)
        kept = where.keep(kept) if cache == "device" else kept
    given = dict(batch_size=BATCH, seed=SEED, start=start, stop=stop, placement=where, transform=transform)
    return [jax.device_get(b) for b in pipeline.train_batches(kept, data, **(given | kw))]


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys() == {"image", "label", "mask", "slot"}
        for name in a:
            assert a[name].dtype == b[name].dtype, name
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


RANDOM = "random_resized_crop(6)|flip"


@pytest.fixture(scope="module")
def plain():
    return batches()


@pytest.fixture(scope="module")
def transformed():
    return batches(spec=RANDOM)


CACHES = [dict(cache=cache, devices=n) for cache in ("host", "device") for n in (1, 2)]


@pytest.mark.parametrize("way", [*CACHES, dict(threads=1), dict(threads=32)])
def test_cache_and_threads_change_nothing(way, plain):
    assert_same(batches(**way), plain)


@pytest.mark.parametrize("way", [dict(cache="host"), dict(threads=1), dict(cache="host", threads=1)])
def test_random_transforms_are_those_of_the_position(way, transformed):
    assert_same(batches(spec=RANDOM, **way), transformed)
    assert transformed[0]["image"].shape == (BATCH, 6, 6, 3)
    seen = [image.tobytes() for batch in transformed for image in batch["image"]]
    assert len(set(seen)) == len(seen), "an example that comes again comes in another crop"


@pytest.mark.parametrize("start", [1, 4, 5, STEPS - 1])
@pytest.mark.parametrize("way", [dict(cache="none"), *CACHES])
def test_a_stream_may_start_anywhere(start, way, plain, transformed):
    assert_same(batches(**way, start=start), plain[start:])
    if way["cache"] != "device":
        assert_same(batches(spec=RANDOM, **way, start=start), transformed[start:])


@pytest.mark.parametrize("large", [1, 3 * BATCH * 8 * 8 * 3, 1 << 30])
@pytest.mark.parametrize("way", CACHES)
def test_batches_leave_a_cache_together_only_up_to_a_size(large, way, plain, monkeypatch):
    monkeypatch.setattr(pipeline, "_TOGETHER_BYTES", large)
    assert_same(batches(**way, start=2), plain[2:])


@pytest.mark.parametrize("hosts", [2, 4, 8])
@pytest.mark.parametrize("cache, spec", [("none", RANDOM), ("host", ""), ("host", RANDOM), ("device", "")])
def test_hosts_divide_the_same_batches(hosts, cache, spec, plain, transformed):
    devices = min(2, BATCH // hosts)
    parts = [batches(cache, spec, (i, hosts), devices=devices) for i in range(hosts)]
    joined = [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    assert_same(joined, transformed if spec else plain)
    assert len(parts[0][0]["label"]) == BATCH // hosts


def test_every_example_comes_once_an_epoch_in_a_new_order(plain):
    by_image = {image.tobytes(): i for i, image in enumerate(pipeline.materialise(source())["image"])}
    row = [by_image[image.tobytes()] for batch in plain for image in batch["image"]]
    assert [label for batch in plain for label in batch["label"]] == [i % 5 for i in row]
    epochs = [row[e * LENGTH : (e + 1) * LENGTH] for e in range(3)]
    assert all(sorted(epoch) == list(range(LENGTH)) for epoch in epochs)
    orders = [*epochs, list(range(LENGTH)), pipeline.epoch_order(SEED + 1, 0, LENGTH).tolist()]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert all(batch["mask"].all() and batch["slot"].tolist() == list(range(BATCH)) for batch in plain)


@pytest.mark.parametrize("batch_size", [1, 5, LENGTH, 2 * LENGTH + 1])
def test_the_row_of_examples_is_that_of_any_batch_size(batch_size, plain):
    """One example, mini-batches and full batches (a batch may even exceed an epoch) see one row."""
    count = len(plain) * BATCH // batch_size
    found = batches(batch_size=batch_size, stop=count)
    row = [np.concatenate([b["image"] for b in bs])[: count * batch_size] for bs in (found, plain)]
    np.testing.assert_array_equal(*row)


def test_materialised_data_are_the_stream():
    data, fixed = source(1000), transforms.parse("resize(5)").fn
    kept = pipeline.materialise(data, fixed)
    assert kept["image"].shape == (1000, 5, 5, 3) and kept["image"].dtype == np.uint8
    streamed = list(EvalBatches(data, batch_size=100, placement=placement(), transform=fixed))
    np.testing.assert_array_equal(kept["image"], np.concatenate([b["image"] for b in streamed]))
    np.testing.assert_array_equal(kept["label"], np.arange(1000) % 5)


@pytest.mark.parametrize("length, hosts", [(37, 1), (37, 2), (37, 4), (33, 8), (40, 4), (3, 4), (1, 8)])
def test_evaluation_drops_nothing_and_pads_the_last_batch(length, hosts):
    """With 33 examples on 8 hosts, seven hosts have nothing in the last batch, and with 1 nothing at all."""
    data = source(length)
    evals = [EvalBatches(data, batch_size=BATCH, placement=placement((i, hosts))) for i in range(hosts)]
    parts = [list(e) for e in evals]
    assert {len(p) for p in parts} == {len(evals[0])} == {-(-length // BATCH)}, "all hosts make the same steps"
    assert all(len(b["label"]) == BATCH // hosts for p in parts for b in p)
    for step, together in enumerate(zip(*parts, strict=True)):
        joined = {k: np.concatenate([b[k] for b in together]) for k in together[0]}
        expected = np.arange(step * BATCH, min((step + 1) * BATCH, length))
        keep = joined["mask"]
        assert keep.dtype == bool and keep.tolist() == [i < len(expected) for i in range(BATCH)]
        np.testing.assert_array_equal(joined["image"][keep], [e["image"] for e in data.read(expected)])
        np.testing.assert_array_equal(joined["label"][keep], expected % 5)


def test_evaluation_repeats_and_keeps_if_asked():
    reads = []
    evals = EvalBatches(source(read_too=reads.append), batch_size=BATCH, placement=placement(), keep=True)
    first = list(evals)
    assert_same(list(evals), first)
    assert sum(map(len, reads)) == LENGTH, "the second pass reads nothing"
    streamed = EvalBatches(source(), batch_size=BATCH, placement=placement(), threads=1)
    assert_same(list(streamed), first)


def test_a_pass_that_was_left_is_not_kept():
    evals = EvalBatches(source(), batch_size=BATCH, placement=placement(), keep=True)
    next(iter(evals))
    assert sum(b["mask"].sum() for b in evals) == LENGTH


def test_what_cannot_be_batched_is_said():
    good = source()
    odd = good._replace(
        read=lambda ix: [{"image": np.zeros((8, 8 + int(i) % 2, 3), np.uint8), "label": 0} for i in ix],
        image_shape=(None, None, 3),
    )
    with pytest.raises(errors.BadRequest, match=r"different shapes cannot be batched .*\(8, 8, 3\).*resize_crop"):
        batches(data=odd)
    wrong = good._replace(num_classes=4)
    for cache in ("none", "host"):
        with pytest.raises(errors.BadRequest, match=r"made up/train: label 4 is outside 0\.\.3"):
            batches(cache, data=wrong)
    target = good._replace(num_classes=0, read=lambda ix: [{**e, "label": float("nan")} for e in good.read(ix)])
    with pytest.raises(errors.BadRequest, match="label holds a number that is not finite"):
        batches(data=target)
    with pytest.raises(errors.BadRequest, match=r"data.cache='device' keeps images after data.transform"):
        pipeline.choose_cache("device", good, random_transform=True)


def test_auto_cache_goes_by_size():
    small = source()
    assert pipeline.choose_cache("auto", small, random_transform=False) == "device"
    assert pipeline.choose_cache("auto", small, random_transform=True) == "host"
    for large in (small._replace(length=10**8), small._replace(image_shape=(None, None, 3))):
        assert pipeline.choose_cache("auto", large, random_transform=False) == "none"


def test_arrays_are_kept_on_every_device():
    mesh = sharding.make_mesh()
    kept = distributed.jit_placement(mesh).keep(
        {"image": np.zeros((4, 2, 2, 1), np.uint8), "label": np.zeros(4, np.int32)}
    )
    where = kept["image"].sharding
    assert where.is_fully_replicated and len(where.device_set) == len(jax.devices())


@pytest.mark.slow
def test_worker_processes_change_nothing(tmp_path):
    """As a program starts them; both train and evaluate through them."""
    for workers in (0, 2):
        sections = small.sections(steps=20, data__cache="none", data__threads=2, data__workers=workers)
        flag = programs.write_config(tmp_path / "config.py", sections)
        programs.run("-m", "recvis_jax.train", "--report=false", flag, f"--workdir={tmp_path / str(workers)}")
    alone, helped = tmp_path / "0", tmp_path / "2"
    programs.assert_same_arrays(programs.arrays(helped, "last"), programs.arrays(alone, "last"))
    assert programs.records(helped) == programs.records(alone)
