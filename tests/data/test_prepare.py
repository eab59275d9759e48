"""Preparation, against tfds's own builders and readers, Pillow, and files made here. Nothing needs a network."""

import gzip
import hashlib
import http.server
import io
import json
import os
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from recvis_jax import errors
from recvis_jax.data import builders, download, writing

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
RNG = np.random.default_rng(0)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def stock(name: str, root: Path):
    kwargs = {"file_format": "array_record"}
    return tfds.data_source(name, data_dir=str(root), builder_kwargs=kwargs, download=False)


@pytest.fixture
def lines():
    """Collects what `prepare` says."""
    return []


@pytest.fixture(autouse=True)
def no_debian(monkeypatch, request):
    """Keeps tests away from the real package, apt-get and the network, unless they ask for it."""
    if "real" not in request.keywords and "test_debian" not in request.node.name:
        nowhere = download.Debian("dataset-fashion-mnist", Path("/nonexistent/fashion"))
        spec = builders.BUILDERS["fashion_mnist"]._replace(debian=nowhere)
        monkeypatch.setitem(builders.BUILDERS, "fashion_mnist", spec)
        monkeypatch.setattr(download.shutil, "which", lambda name: None)


@pytest.fixture
def raw_mnist(tmp_path, monkeypatch):
    """MNIST of 60 + 12 made-up images: returns the folder of its gz files and the arrays."""
    arrays = {
        "train": (RNG.integers(0, 256, (60, 28, 28), np.uint8), RNG.integers(0, 10, 60).astype(np.uint8)),
        "t10k": (RNG.integers(0, 256, (12, 28, 28), np.uint8), RNG.integers(0, 10, 12).astype(np.uint8)),
    }
    source = tmp_path / "raw files"
    source.mkdir()
    files = []
    for name in IDX:
        array = arrays[name.split("-")[0]]["labels" in name]
        data = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
        (source / f"{name}.gz").write_bytes(gzip.compress(data, 1))
        urls = (f"http://127.0.0.1:9/{name}.gz",)  # nobody listens there
        files.append(download.RawFile(f"{name}.gz", sha256(data), urls, gzipped=True))
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(builders.BUILDERS, name, builders.BUILDERS[name]._replace(files=tuple(files)))
    return source, arrays


def in_tfds_order(count: int, split: str, tmp_path: Path) -> list[int]:
    """Returns the order in which tfds's own GeneratorBasedBuilder stores the keys 0 ... count - 1."""

    class Order(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"k": np.int64}))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples()}

        def _generate_examples(self):
            for k in range(count):
                yield k, {"k": k}

    builder = Order(data_dir=str(tmp_path / f"order_{split}"), file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    return [int(e["k"]) for e in builder.as_data_source(split=split)]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_is_read_by_stock_tfds_in_its_own_order(name, raw_mnist, tmp_path, lines):
    source, arrays = raw_mnist
    root = tmp_path / "data"
    directory = builders.prepare(name, root, source, say=lines.append)
    assert directory == root / name / "3.0.1"
    data = stock(name, root)
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        images, labels = arrays[prefix]
        order = in_tfds_order(len(labels), split, tmp_path)
        assert [e["label"] for e in data[split]] == labels[order].tolist()
        np.testing.assert_array_equal([e["image"] for e in data[split]], images[order][..., None])
    own = tfds.builder_cls(name)(data_dir=str(tmp_path / "unprepared")).info.features
    read = tfds.builder_from_directory(directory).info
    assert {k: repr(v) for k, v in read.features.items()} == {k: repr(v) for k, v in own.items()}
    assert read.features["label"].names == own["label"].names == list(builders.CLASS_NAMES[name])
    assert builders.summary(directory) == (name, "3.0.1", {"train": 60, "test": 12}, builders.CLASS_NAMES[name])
    assert "tensorflow" not in sys.modules
    assert sorted(p.name for p in root.iterdir()) == [name]


def cifar_archive(coarse: bool, counts: dict[str, int]) -> tuple[bytes, dict[str, np.ndarray]]:
    """Returns a CIFAR archive of `counts` rows a file, and the rows by split."""
    rows: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, count in counts.items():
            labels = [RNG.integers(0, 20, (count, 1))] if coarse else []
            labels.append(RNG.integers(0, 100 if coarse else 10, (count, 1)))
            part = np.concatenate([*labels, RNG.integers(0, 256, (count, 3072))], 1).astype(np.uint8)
            rows["test" if "test" in name else "train"].append(part)
            info = tarfile.TarInfo(f"cifar-binary/{name}")
            info.size = part.size
            tar.addfile(info, io.BytesIO(part.tobytes()))
        if not coarse:
            names = b"\n".join(n.encode() for n in builders.CLASS_NAMES["cifar10"]) + b"\n\n"
            info = tarfile.TarInfo("cifar-binary/batches.meta.txt")
            info.size = len(names)
            tar.addfile(info, io.BytesIO(names))
    return out.getvalue(), {split: np.concatenate(parts) for split, parts in rows.items()}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name, tmp_path, monkeypatch, lines):
    coarse = name == "cifar100"
    batches = {f"data_batch_{k}.bin": 5 for k in (1, 3, 2)} | {"test_batch.bin": 4}
    archive, rows = cifar_archive(coarse, {"train.bin": 15, "test.bin": 4} if coarse else batches)
    spec = builders.BUILDERS[name]
    file = spec.files[0]._replace(sha256=sha256(archive))
    monkeypatch.setitem(builders.BUILDERS, name, spec._replace(files=(file,)))
    path = tmp_path / file.name
    path.write_bytes(archive)
    directory = builders.prepare(name, tmp_path / "data", path, say=lines.append)  # the file, not its folder
    info = tfds.builder_from_directory(directory).info
    own = tfds.builder_cls(name)(data_dir=str(tmp_path / "unprepared")).info.features
    assert {k: repr(v) for k, v in info.features.items()} == {k: repr(v) for k, v in own.items()}
    assert tuple(info.features["label"].names) == builders.CLASS_NAMES[name] and len(set(own)) == 3 + coarse
    if not coarse:  # data_batch_2 comes before 3 whatever the order in the archive
        rows["train"] = np.concatenate([rows["train"][:5], rows["train"][10:], rows["train"][5:10]])
    for split, data in stock(name, tmp_path / "data").items():
        order = in_tfds_order(len(rows[split]), split, tmp_path)
        for k, example in zip(order, data, strict=True):
            row = rows[split][k]
            assert example["id"] == f"{split}_{k:05d}".encode()
            assert [example["coarse_label"], example["label"]] == row[:2].tolist() if coarse else True
            assert example["label"] == row[int(coarse)]
            np.testing.assert_array_equal(example["image"], row[1 + coarse :].reshape(3, 32, 32).transpose(1, 2, 0))


def test_names_of_cifar100():
    names = builders.CLASS_NAMES["cifar100"]
    assert len(set(names)) == 100 and list(names) == sorted(names)
    assert len(set(builders.COARSE_NAMES)) == 20 and list(builders.COARSE_NAMES) == sorted(builders.COARSE_NAMES)


def test_hashes_of_archives_are_those_of_tfds():
    folder = Path(tfds.__file__).parent / "url_checksums"
    for name in ("cifar10", "cifar100"):
        url, _, digest, _ = (folder / f"{name}.txt").read_text().split()
        assert builders.BUILDERS[name].files[0].sha256 == digest and builders.BUILDERS[name].files[0].urls[0] == url
    urls = {line.split()[0] for line in (folder / "mnist.txt").read_text().splitlines()}
    assert {f.urls[0] for f in builders.BUILDERS["mnist"].files} == urls


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_debian_folder_has_the_right_content(tmp_path, lines):
    spec = builders.BUILDERS["fashion_mnist"]
    raw = download.obtain("fashion_mnist", spec.files, data_dir=tmp_path, debian=spec.debian, say=lines.append)
    assert lines == [f"raw files: {DEBIAN}"]
    columns = builders._read_idx(raw)
    assert columns["train"]["image"].shape == (60000, 28, 28, 1) and columns["test"]["image"].shape == (
        10000,
        28,
        28,
        1,
    )
    assert np.bincount(columns["train"]["label"]).tolist() == [6000] * 10


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_debian_fashion_mnist_is_prepared_whole(tmp_path, lines):
    builders.prepare("fashion_mnist", tmp_path, say=lines.append)
    data = stock("fashion_mnist", tmp_path)
    for split, prefix, count in (("train", "train", 60000), ("test", "t10k", 10000)):
        pixels = gzip.decompress((DEBIAN / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:]
        labels = gzip.decompress((DEBIAN / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:]
        order = in_tfds_order(count, split, tmp_path)
        examples = data[split].__getitems__(list(range(count)))
        assert b"".join(bytes([e["label"]]) for e in examples) == bytes(labels[k] for k in order)
        expected = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28, 1)[order]
        np.testing.assert_array_equal(np.stack([e["image"] for e in examples]), expected)


# Where the raw files come from.


def test_unpacked_files_are_taken_too(raw_mnist, tmp_path, lines):
    source, _ = raw_mnist
    for path in list(source.glob("*.gz")):
        name = path.stem.replace("-idx", ".idx") if "t10k" in path.stem else path.stem
        (source / name).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert builders.prepare("mnist", tmp_path / "data", source, say=lines.append).is_dir()


def test_wrong_content_is_named_with_both_hashes(raw_mnist, tmp_path, lines):
    source, _ = raw_mnist
    path = source / "t10k-images-idx3-ubyte.gz"
    good = sha256(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(errors.BadRequest) as e:
        builders.prepare("mnist", tmp_path / "data", source, say=lines.append)
    assert all(part in str(e.value) for part in (str(path), good, sha256(b"something else")))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(errors.BadRequest, match="not a complete gzip file"):
        builders.prepare("mnist", tmp_path / "data", source, say=lines.append)
    assert not (tmp_path / "data" / "mnist").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda source: (source / "train-labels-idx1-ubyte.gz").unlink(), "lacks train-labels-idx1-ubyte.gz"),
        (lambda source: source.rename(source.parent / "elsewhere"), "does not exist"),
    ],
)
def test_source_that_will_not_do(change, message, raw_mnist, tmp_path, lines):
    change(raw_mnist[0])
    with pytest.raises(errors.BadRequest, match=message):
        builders.prepare("mnist", tmp_path / "data", raw_mnist[0], say=lines.append)


def test_source_file_of_another_name(tmp_path, lines):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x")
    for source, message in (
        (tmp_path, "lacks cifar-10-binary"),
        (tmp_path / "cifar-10-python.tar.gz", "not a raw file"),
    ):
        with pytest.raises(errors.BadRequest, match=message):
            builders.prepare("cifar10", tmp_path / "data", source, say=lines.append)


def test_nothing_works(raw_mnist, tmp_path, lines):
    with pytest.raises(errors.Failure) as e:
        builders.prepare("fashion_mnist", tmp_path / "data", say=lines.append)
    text = str(e.value)
    for part in (
        "/nonexistent/fashion",
        "downloads/raw/fashion_mnist",
        "no apt-get",
        "http://127.0.0.1:9/train-images",
    ):
        assert part in text.split("What to do")[0]
    for part in ("t10k-labels-idx1-ubyte.gz", "--source=FOLDER", "configs/digits/lenet.py"):
        assert part in text.split("What to do")[1]
    assert not (tmp_path / "data" / "fashion_mnist").exists()


@pytest.fixture
def server(tmp_path):
    """Serves a folder on this machine; yields its address and the folder."""
    root = tmp_path / "served"
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(root))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}", root
        served.shutdown()


def test_download_goes_on_to_the_next_mirror_and_is_kept(server, raw_mnist, tmp_path, monkeypatch, lines):
    address, served = server
    source, _ = raw_mnist
    spec = builders.BUILDERS["mnist"]
    (served / "good").mkdir()
    (served / "bad").mkdir()
    for path in source.iterdir():
        (served / "good" / path.name).write_bytes(path.read_bytes())
        (served / "bad" / path.name).write_bytes(gzip.compress(b"a page that says hello"))
    mirrors = ("http://127.0.0.1:9", f"{address}/none", f"{address}/bad", f"{address}/good")
    files = tuple(f._replace(urls=tuple(f"{m}/{f.name}" for m in mirrors)) for f in spec.files)
    monkeypatch.setitem(builders.BUILDERS, "mnist", spec._replace(files=files))
    root = tmp_path / "data"
    builders.prepare("mnist", root, say=lines.append)
    kept = sorted(p.name for p in (root / "downloads/raw/mnist").iterdir())
    assert kept == sorted(f"{n}.gz" for n in IDX)
    monkeypatch.setattr(download, "_download", None)
    builders.prepare("mnist", root, overwrite=True, say=lines.append)
    assert lines[-1] == f"raw files: {root / 'downloads/raw/mnist'}"


def test_mirrors_that_are_all_wrong(server, raw_mnist, tmp_path, monkeypatch, lines):
    address, served = server
    spec = builders.BUILDERS["mnist"]
    files = tuple(f._replace(urls=(f"{address}/{f.name}",)) for f in spec.files)
    monkeypatch.setitem(builders.BUILDERS, "mnist", spec._replace(files=files))
    (served / files[0].name).write_bytes(b"hello")
    with pytest.raises(errors.Failure, match=f"{files[0].urls[0]} has the wrong content.*{files[0].sha256}"):
        builders.prepare("mnist", tmp_path / "data", say=lines.append)
    assert list((tmp_path / "data/downloads/raw/mnist").iterdir()) == []


@pytest.mark.parametrize("user", [0, 1000])
def test_apt_get(user, raw_mnist, tmp_path, monkeypatch, lines):
    """As root the package is installed, after an update where need be; others unpack it."""
    source, _ = raw_mnist
    package = tmp_path / "package"
    debian = download.Debian("dataset-fashion-mnist", package)
    spec = builders.BUILDERS["fashion_mnist"]._replace(debian=debian)
    monkeypatch.setitem(builders.BUILDERS, "fashion_mnist", spec)
    monkeypatch.setattr(download.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    calls = []

    def run(command, cwd=None):
        calls.append(" ".join(map(str, command[:2])))
        if command[1] == "install" and calls.count("apt-get install") == 1:
            return False, "404 Not Found"
        if command[1] == "install":
            source.rename(package)
        if command[1] == "download":
            (cwd / "dataset.deb").touch()
        if command[0] == "dpkg-deb":
            (cwd / "x" / package.relative_to("/")).parent.mkdir(parents=True)
            source.rename(cwd / "x" / package.relative_to("/"))
        return True, ""

    monkeypatch.setattr(download, "_run", run)
    builders.prepare("fashion_mnist", tmp_path / "data", say=lines.append)
    root = ["apt-get install", "apt-get update", "apt-get install"]
    assert calls == ["apt-cache show", *(["apt-get download", "dpkg-deb -x"] if user else root)]


# What is there already, and what is left when things go wrong.


def test_a_prepared_set_is_left_alone(raw_mnist, tmp_path, lines):
    source, _ = raw_mnist
    root = tmp_path / "data"
    directory = builders.prepare("mnist", root, source, say=lines.append)
    before = {p.name: p.stat().st_mtime_ns for p in directory.iterdir()}
    assert builders.prepare("mnist", root, tmp_path / "gone", say=lines.append) == directory
    assert lines[-1] == f"already prepared at {directory}, 72 examples; use --overwrite to make it again"
    assert {p.name: p.stat().st_mtime_ns for p in directory.iterdir()} == before
    with pytest.raises(errors.BadRequest):
        builders.prepare("mnist", root, tmp_path / "gone", overwrite=True, say=lines.append)
    assert len(stock("mnist", root)["train"]) == 60
    builders.prepare("mnist", root, source, overwrite=True, say=lines.append)
    assert {p.name: p.stat().st_mtime_ns for p in directory.iterdir()} != before
    assert len(stock("mnist", root)["train"]) == 60


def test_what_is_there_but_cannot_be_read(raw_mnist, tmp_path, lines):
    source, _ = raw_mnist
    root = tmp_path / "data"
    directory = root / "mnist" / "3.0.1"
    directory.mkdir(parents=True)
    with pytest.raises(errors.BadRequest, match="is not a data set; use --overwrite"):
        builders.prepare("mnist", root, source, say=lines.append)
    splits = [{"name": "train", "shardLengths": ["60000"]}]
    (directory / "dataset_info.json").write_text(json.dumps({"fileFormat": "tfrecord", "splits": splits}))
    with pytest.raises(errors.BadRequest, match=r"prepared as tfrecord.*use --overwrite"):
        builders.prepare("mnist", root, source, say=lines.append)
    builders.prepare("mnist", root, source, overwrite=True, say=lines.append)
    next(directory.glob("*test*")).unlink()
    with pytest.raises(errors.BadRequest, match="lacks files of the split test"):
        builders.prepare("mnist", root, source, say=lines.append)


def test_a_failure_while_replacing_keeps_the_old(raw_mnist, tmp_path, monkeypatch, lines):
    source, _ = raw_mnist
    root = tmp_path / "data"
    directory = builders.prepare("mnist", root, source, say=lines.append)

    def broken(columns):
        yield from ()
        raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(builders, "_rows", lambda columns: broken)
    with pytest.raises(errors.Failure, match="No space left on device"):
        builders.prepare("mnist", root, source, overwrite=True, say=lines.append)
    assert len(stock("mnist", root)["train"]) == 60
    assert [p.name for p in root.iterdir()] == ["mnist"] and [p.name for p in directory.parent.iterdir()] == ["3.0.1"]


def test_no_room(raw_mnist, tmp_path, monkeypatch, lines):
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(errors.Failure, match="no room"):
        builders.prepare("mnist", tmp_path / "data", raw_mnist[0], say=lines.append)
