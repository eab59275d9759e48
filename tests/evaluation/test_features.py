"""Features on disk: read back as they were written, and whatever was damaged since is refused by the file's name."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from recvis_jax import errors
from recvis_jax.evaluation import features

N, D, K = 23, 5, 4
ORIGIN = {"layer": "block3", "pool": "mean", "weights": {"step": 7}, "data": {"name": "x/train", "examples": N}}
OTHER = {**ORIGIN, "layer": "block4"}
X = np.random.default_rng(0).normal(size=(2, N, D)).astype(np.float32)
Y = (np.arange(N) % K).astype(np.int32)


def rows(*layers, size=10):
    for start in range(0, N, size):
        part = slice(start, start + size)
        yield Y[part], {layer: X[i][part] for i, layer in enumerate(layers)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    paths = {layer: features.path_of(folder, "train", layer, "mean", "step7") for layer in ("block3", "block4")}
    features.write(paths, {"block3": ORIGIN, "block4": OTHER}, rows("block3", "block4"), N)
    return folder


@pytest.fixture
def there(written, tmp_path):
    """A copy that may be damaged: the `.npy` file of its first layer."""
    shutil.copytree(written / "features", tmp_path / "features")
    return features.path_of(tmp_path, "train", "block3", "mean", "step7")


def test_what_is_written_is_read(there):
    told = []
    found = features.read(there, ORIGIN, K, lambda *how_far: told.append(how_far))
    assert isinstance(found.values, np.memmap) and found.values.dtype == np.float32
    np.testing.assert_array_equal(found.values, X[0])
    np.testing.assert_array_equal(found.labels, Y)
    np.testing.assert_array_equal(np.load(there), X[0])  # and by numpy alone
    assert found.origin == ORIGIN and told[-1][0] == told[-1][1] == Y.nbytes
    assert not list(there.parent.glob(".*")), "no parts are left"
    for y, k in ((np.linspace(0, 1, N, dtype=np.float32), 0), (np.eye(3, dtype=np.float32)[Y % 3], 3)):
        features.write({"block3": there}, {"block3": ORIGIN}, [(y, {"block3": X[0]})], N)
        np.testing.assert_array_equal(features.read(there, ORIGIN, k).labels, y)


def labels(path):
    return path.with_suffix(".labels.npy")


def record(path):
    return path.with_suffix(".json")


def flip(file, where):
    data = bytearray(file.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1 << (int(where * 1000) % 8)
    file.write_bytes(data)


def edited(**changes):
    def edit(path):
        found = json.loads(record(path).read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            node = found
            for name in parents:
                node = node[name]
            node[last] = value
        record(path).write_text(json.dumps(found))

    return edit


def saved(change, of=lambda path: path):
    return lambda path: np.save(of(path), change(np.load(of(path))), allow_pickle=True)


def put(x, at, value):
    x = x.copy()
    x[at] = value
    return x


def instead(make, of=lambda path: path):
    def replace(path):
        of(path).unlink()
        make(of(path))

    return replace


def swap(a, b):
    a.rename(a.with_suffix(".swap"))
    b.rename(a)
    a.with_suffix(".swap").rename(b)


def claims(shape, descr="<f4", fortran=False, version=None):
    def write(path):
        with path.open("wb") as f:
            header = {"descr": descr, "fortran_order": fortran, "shape": shape}
            np.lib.format.write_array_header_1_0(f, header)
            f.write(X[0].tobytes())

    return write


def other(path, name):
    return path.with_name(path.name.replace("block3", "block4").replace(".npy", name))


DAMAGE = {
    **{f"bit of the values at {w:.2f}": lambda p, w=w: flip(p, w) for w in np.linspace(0, 1, 14)},
    **{f"bit of the labels at {w:.2f}": lambda p, w=w: flip(labels(p), w) for w in np.linspace(0, 1, 14)},
    **{f"bit of the record at {w:.2f}": lambda p, w=w: flip(record(p), w) for w in np.linspace(0, 0.98, 14)},
    **{f"values cut to {n}": lambda p, n=n: os.truncate(p, n) for n in (0, 5, 10, 60, 128, 200, -1 + 128 + 4 * N * D)},
    **{f"labels cut to {n}": lambda p, n=n: os.truncate(labels(p), n) for n in (0, 9, 128, 150)},
    **{f"record cut to {n}": lambda p, n=n: os.truncate(record(p), n) for n in (0, 1, 100)},
    "bytes after the values": lambda p: p.write_bytes(p.read_bytes() + b"\0" * 4),
    "NaN": saved(lambda x: put(x, (3, 2), np.nan)),
    "infinity": saved(lambda x: put(x, (3, 2), -np.inf)),
    "one number": saved(lambda x: put(x, (3, 2), 0.5)),
    "zeros": saved(np.zeros_like),
    "order": saved(lambda x: x[::-1]),
    "fewer": saved(lambda x: x[:-1]),
    "more": saved(lambda x: np.concatenate([x, x])),
    "none": saved(lambda x: x[:0]),
    "float64": saved(lambda x: x.astype(np.float64)),
    "float16": saved(lambda x: x.astype(np.float16)),
    "int32": saved(lambda x: x.view(np.int32)),
    "big-endian": saved(lambda x: x.astype(">f4")),
    "complex": saved(lambda x: x.astype(np.complex64)),
    "text": saved(lambda x: x.astype(str)),
    "objects": saved(lambda x: x.astype(object)),
    "fortran": saved(np.asfortranarray),
    "rank 1": saved(np.ravel),
    "rank 3": saved(lambda x: x[..., None]),
    "transposed": saved(lambda x: np.ascontiguousarray(x.T)),
    "label 999": saved(lambda y: put(y, 4, 999), labels),
    "label -1": saved(lambda y: put(y, 4, -1), labels),
    "another label": saved(lambda y: put(y, 4, (y[4] + 1) % K), labels),
    "labels of another length": saved(lambda y: y[:-1], labels),
    "labels of another type": saved(lambda y: y.astype(np.int64), labels),
    "labels as numbers": saved(lambda y: y.astype(np.float32), labels),
    "labels of another rank": saved(lambda y: y[:, None], labels),
    "huge": instead(claims((2**62, 2**62))),
    "huge by many axes": instead(claims((2**31,) * 32)),
    "negative": instead(claims((-N, D))),
    "no shape": instead(claims(())),
    "structured": instead(claims((N, D), [("a", "<f4")])),
    "pickle": instead(lambda p: p.write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/never'\ntR.")),
    "zip": instead(lambda p: np.savez(p.open("wb"), X[0])),
    "code": instead(lambda p: p.write_bytes(b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').abort()".ljust(64))),
    "header that nests": instead(lambda p: p.write_bytes(b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535)),
    "version 9": instead(lambda p: p.write_bytes(b"\x93NUMPY\x09\x00" + b" " * 200)),
    "values gone": instead(lambda p: None),
    "labels gone": instead(lambda p: None, labels),
    "pipe": instead(os.mkfifo),
    "pipe of labels": instead(os.mkfifo, labels),
    "pipe as record": instead(os.mkfifo, record),
    "folder": instead(os.mkdir),
    "device": instead(lambda p: p.symlink_to("/dev/zero")),
    "device as record": instead(lambda p: p.symlink_to("/dev/zero"), record),
    "link into nowhere": instead(lambda p: p.symlink_to("/nowhere"), record),
    "sparse": lambda p: os.truncate(p, 2**40),
    "values of the other layer": lambda p: swap(p, other(p, ".npy")),
    "record of the other layer": lambda p: swap(record(p), other(p, ".json")),
    "labels as values": lambda p: swap(p, labels(p)),
    "layer": edited(layer="block4"),
    "step": edited(weights__step=8),
    "another type": edited(weights="step 7"),
    "count": edited(data__examples=-1),
    "shape": edited(files__values__shape=[N, -D]),
    "huge shape": edited(files__values__shape=[10**300, 10**300]),
    "checksum of the values": edited(files__values__checksum=0),
    "checksum": edited(checksum="00000000"),
    "no checksum": edited(checksum=None),
    "no files": edited(files=None),
    "further key": edited(further=1),
    "list": lambda p: record(p).write_text("[]"),
    "number": lambda p: record(p).write_text("1e999"),
    "nests": lambda p: record(p).write_text("[" * 100_000),
    "latin-1": lambda p: record(p).write_bytes(b'{"layer": "\xe4"}'),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused_and_overwritten(there, what):
    DAMAGE[what](there)
    with pytest.raises(errors.BadRequest) as caught:
        features.read(there, ORIGIN, K)
    text = str(caught.value)
    assert there.name.removesuffix(".npy") in text and "--overwrite" in text
    assert "\n" not in text and len(text) < 600
    if what != "folder":
        features.write({"block3": there}, {"block3": ORIGIN}, rows("block3"), N)
        np.testing.assert_array_equal(features.read(there, ORIGIN, K).values, X[0])


def test_features_of_an_earlier_version_are_computed_again(there):
    record(there).write_text(json.dumps(ORIGIN))
    said = []
    assert features.read(there, ORIGIN, K, note=said.append) is None
    assert len(said) == 1 and there.name in said[0] and "earlier version" in said[0]
    record(there).unlink()
    assert features.read(there, ORIGIN, K, note=said.append) is None and len(said) == 1


def test_labels_are_classes(there):
    assert features.read(there, ORIGIN) and features.read(there, ORIGIN, K)
    with pytest.raises(errors.BadRequest, match="label 3, which is not one of 3 classes"):
        features.read(there, ORIGIN, 3)


def test_a_kill_leaves_the_old_ones_or_none(there, monkeypatch):
    """At every replacement of a file in turn."""
    before = {p.name: p.read_bytes() for p in there.parent.iterdir()}
    new = [(Y, {"block3": X[1]})]

    class Killed(BaseException):
        pass

    replace = type(there).replace
    for at in range(4):
        count = iter(range(10))

        def dying(self, target, count=count, at=at):
            if next(count) == at:
                raise Killed
            return replace(self, target)

        monkeypatch.setattr(type(there), "replace", dying)
        try:
            features.write({"block3": there}, {"block3": ORIGIN}, new, N)
        except Killed:
            assert at < 3 and features.read(there, ORIGIN, K) is None
        else:
            assert at == 3
            np.testing.assert_array_equal(features.read(there, ORIGIN, K).values, X[1])
        monkeypatch.setattr(type(there), "replace", replace)
    for name, data in before.items():
        (there.parent / name).write_bytes(data)
    with pytest.raises(errors.Failure, match="10 examples were read, but 23"):
        features.write({"block3": there}, {"block3": ORIGIN}, [(Y[:10], {"block3": X[0][:10]})], N)
    with pytest.raises(errors.Failure, match="features block3 of example 4 are not all finite"):
        features.write({"block3": there}, {"block3": ORIGIN}, [(Y, {"block3": put(X[0], (4, 1), np.nan)})], N)
    assert {p.name: p.read_bytes() for p in there.parent.iterdir()} == before


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "features").write_text("a file")
    path = features.path_of(tmp_path, "train", "x", "mean", "step1")
    with pytest.raises(errors.Failure, match=r"cannot write features: .*features: "):
        features.write({"x": path}, {"x": ORIGIN}, [(Y, {"x": X[0]})], N)


def test_names_of_files():
    name = features.path_of(Path("r"), "train[:90%]", "stage1/block1", "mean", "step7").name
    assert name == "train__90__-stage1_block1-mean-step7.npy"
    long = [features.path_of(Path("r"), "+".join(["träin[:1]"] * 40), layer, "mean", "step7").name for layer in "ab"]
    assert long[0] != long[1] and all(len(n.encode()) < 170 for n in long)
