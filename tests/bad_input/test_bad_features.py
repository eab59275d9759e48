"""Features on disk that are damaged, or of another kind than they were written."""

import functools
import io
import itertools
import shutil

import harness
import numpy as np
import pytest
from harness import Case

from recvis_jax.evaluation import features

SEED = 3
N, D = 24, 6
ORIGIN = {"layer": "features", "pool": "mean", "data": {"name": "x/train", "examples": N, "hash": "0"}}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with the features of one layer."""
    folder = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(SEED)
    path = features.path_of(folder, "train", "features", "mean", "step1")
    rows = [(np.arange(12) % 3, {"features": rng.normal(size=(12, D)).astype(np.float32)}) for _ in range(2)]
    features.write({"features": path}, {"features": ORIGIN}, rows, N)
    found = features.read(path, ORIGIN)
    assert found.values.shape == (N, D) and found.labels.shape == (N,)
    return path


def npy(x):
    out = io.BytesIO()
    np.save(out, x, allow_pickle=True)
    return out.getvalue()


def read(good, harm, folder):
    copy = shutil.copytree(good.parent, folder / "features") / good.name
    harm(copy.parent)
    found = features.read(copy, ORIGIN)
    if found is not None:  # what was damaged must then be no matter
        values, labels = np.load(good), np.load(good.with_suffix(".labels.npy"))
        assert found.values.dtype == np.float32 and np.array_equal(found.values, values), (
            "other features than were written"
        )
        assert found.labels.dtype.kind in "iu" and np.array_equal(found.labels, labels), (
            "other labels than were written"
        )


def put(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def tampered(good):
    """Arrays that are whole as files, and not what was written."""
    values, labels = np.load(good), np.load(good.with_suffix(".labels.npy"))
    for what, at in itertools.product((np.nan, np.inf, -np.inf, 0.0, 1e30), ((0, 0), (N - 1, D - 1), (7, 3))):
        bad = values.copy()
        bad[at] = what
        yield f"{what} at {at}", good.name, npy(bad)
    for what, x in {
        "double": values.astype(np.float64), "half": values.astype(np.float16), "whole numbers": values.astype(np.int32),
        "complex": values.astype(np.complex64), "text": values.astype(str), "objects": values.astype(object), "big endian": values.astype(">f4"),
        "one axis": values.ravel(), "three axes": values[..., None], "a scalar": values[0, 0], "a row less": values[:-1], "a row more":
        np.concatenate([values, values[:1]]), "a column less": values[:, :-1], "swapped": values.T, "fortran": np.asfortranarray(values),
        "reversed": values[::-1], "shuffled": np.random.default_rng(0).permutation(values), "zeros": np.zeros_like(values), "empty": values[:0],
    }.items():  # fmt: skip
        yield f"values: {what}", good.name, npy(x)
    for at, label in itertools.product((0, N // 2, N - 1), (999, -1, 2**40, -(2**63))):
        bad = labels.astype(np.int64)
        bad[at] = label
        yield f"label {label} at {at}", good.with_suffix(".labels.npy").name, npy(bad)
    for what, x in {
        "floats": labels + 0.5, "text": labels.astype(str), "objects": labels.astype(object), "two axes": labels[:, None], "a scalar": labels[0],
        "one less": labels[:-1], "one more": np.append(labels, 0), "none": labels[:0], "booleans": labels.astype(bool), "nan":
        np.full(N, np.nan), "shifted": (labels + 1) % 3, "multi-hot": np.eye(3)[labels],
    }.items():  # fmt: skip
        yield f"labels: {what}", good.with_suffix(".labels.npy").name, npy(x)


def cases(good):
    rng = np.random.default_rng(SEED)
    files = [good.name, good.with_suffix(".labels.npy").name, good.with_suffix(".json").name]
    for name in files:
        data = (good.parent / name).read_bytes()
        harms = {f"cut to {w}": put(name, d) for w, d in harness.cuts(data, 8).items()}
        flips = harness.flips(data, rng)
        if name.endswith(".json"):  # a flip of white space between the values says nothing else
            flips = ((w, d) for w, d in flips if d.split() != data.split())
        harms |= {f"{w} flipped": put(name, d) for w, d in itertools.islice(flips, 16)}
        harms |= {
            "zeros": put(name, bytes(len(data))),
            "noise": put(name, rng.bytes(len(data))),
            "a byte more": put(name, data + b"\1"),
        }
        if not name.endswith(".json"):  # without the record there are no features
            harms["gone"] = lambda folder, name=name: (folder / name).unlink()
        harms |= harness.irregular(name)
        for what, harm in harms.items():
            yield Case(f"{name}: {what}", functools.partial(read, good, harm), (good.stem,), True)
    for what, name, data in tampered(good):
        yield Case(what, functools.partial(read, good, put(name, data)), (good.stem,), True)
    for what, data in {
        "[]": b"[]",
        "null": b"null",
        "{}": b"{}",
        "1": b"1",
        "deep": b"[" * 100_000,
        "latin": b'{"\xe4": 1}',
    }.items():
        yield Case(f"record is {what}", functools.partial(read, good, put(files[2], data)), (good.stem,))


@pytest.mark.full
def test_malformed_features(good, tmp_path):
    harness.hold(list(cases(good)), tmp_path)


def test_features_that_are_wrong_from_the_start_are_not_written(tmp_path):
    """What is not finite, or of a label that cannot be, is refused before it is on the disk as good."""
    path = features.path_of(tmp_path, "train", "features", "mean", "step1")
    bad = np.ones((N, D), np.float32)
    bad[3, 3] = np.nan

    def write(folder):
        features.write({"features": path}, {"features": ORIGIN}, [(np.zeros(N, int), {"features": bad})], N)

    harness.hold([Case("NaN is written", write, ("features",))], tmp_path / "own")
    assert features.read(path, ORIGIN) is None
