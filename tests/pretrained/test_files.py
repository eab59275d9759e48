"""Files of weights: what is read, and what is refused in one line with nothing executed."""

import json
import pickle
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from recvis_jax.errors import BadRequest
from recvis_jax.pretrained import files, safetensors

TENSORS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array(7, np.int64),
    "half": np.arange(4, dtype=np.float16),
    "brain": np.arange(3).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 4), np.float32),
    "flags": np.array([True, False, True]),
}


def refused(path, words):
    with pytest.raises(BadRequest, match=words) as e:
        tensors = files.read(str(path)).tensors
        {name: tensors[name] for name in tensors}
    assert "\n" not in str(e.value) and str(path) in str(e.value)


def same(found, expected):
    assert set(found) == set(expected) and len(found) == len(expected)
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape
        np.testing.assert_array_equal(found[name], x)


# --- safetensors ---


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, TENSORS, {"format": "pt", "note": "ü"})
    found = files.read(str(path)).tensors
    same(found, TENSORS)
    assert found.metadata == {"format": "pt", "note": "ü"}
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0 and [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    assert json.loads(data[8 : 8 + length])["b.weight"]["dtype"] == "F32"
    with pytest.raises(BadRequest, match="complex64"):
        safetensors.write(path, {"x": np.zeros(1, np.complex64)})


def test_safetensors_are_those_of_the_format_itself(tmp_path):
    reference = pytest.importorskip("safetensors.numpy")
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    tensors = {n: x for n, x in TENSORS.items() if n != "brain"}  # which needs torch there
    safetensors.write(ours, tensors)
    same(reference.load_file(ours), tensors)
    reference.save_file(tensors, theirs)
    same(files.read(str(theirs)).tensors, tensors)


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BROKEN = {
    "empty": (b"", "truncated"),
    "no header": (b"\x01\x02", "truncated"),
    "header longer than the file": (raw({"x": entry()}, bytes(8), length=10_000), "truncated"),
    "header of 2^63 bytes": (raw({"x": entry()}, bytes(8), length=1 << 63), "claims 9223372036854775808 bytes"),
    "header of no bytes": (raw(b"", bytes(8)), "truncated or no safetensors"),
    "not JSON": (raw(b"{broken", bytes(8)), "not JSON"),
    "not text": (raw(b"\xff\xfe{}", bytes(8)), "not JSON"),
    "deeply nested": (raw(b"[" * 100_000), "not JSON"),
    "a list": (raw([1, 2]), "no table of tensors"),
    "an entry that is no tensor": (raw({"x": 3}), "'x' is no tensor"),
    "a name twice": (raw(b'{"x": 1, "x": 2}'), "occurs twice"),
    "truncated data": (raw({"x": entry()}, bytes(7)), "take 8 bytes, and it has 7"),
    "data that no tensor claims": (raw({"x": entry()}, bytes(9)), "take 8 bytes, and it has 9"),
    "a shape of other size": (raw({"x": entry(shape=(3,))}, bytes(8)), "'x' needs 12 bytes"),
    "a shape that overflows": (raw({"x": entry(shape=(1 << 62, 4))}, bytes(8)), "needs"),
    "a negative shape": (raw({"x": entry(shape=(-1, -2))}, bytes(8)), "not whole numbers"),
    "a fractional shape": (raw({"x": entry(shape=(2.0,))}, bytes(8)), "not whole numbers"),
    "offsets before the start": (raw({"x": entry(offsets=(-8, 0))}, bytes(8)), "not whole numbers"),
    "three offsets": (raw({"x": entry(offsets=(0, 8, 8))}, bytes(8)), "not whole numbers"),
    "overlapping tensors": (raw({"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12)), "'y' begins at byte 4"),
    "a gap": (raw({"x": entry(), "y": entry(offsets=(12, 20))}, bytes(20)), "'y' begins at byte 12"),
    "an unknown dtype": (raw({"x": entry(dtype="O")}, bytes(8)), "unknown dtype 'O'"),
    "a dtype that is no name": (raw({"x": entry(dtype=["F32"])}, bytes(8)), "unknown dtype"),
    "a dtype of other size": (raw({"x": entry("F64")}, bytes(8)), "'x' needs 16 bytes"),
    "more axes than an array has": (raw({"x": entry(shape=[1] * 100, offsets=(0, 4))}, bytes(4)), "no array can have"),
    "an empty shape that overflows": (raw({"x": entry(shape=(0, 1 << 62, 1 << 62), offsets=(0, 0))}), "no array"),
    "a number too long to read": (raw(b'{"x": {"shape": [' + b"9" * 10_000 + b"]}}"), "not JSON"),
    "an offset in words": (raw({"x": entry(offsets=("0", "8"))}, bytes(8)), "not whole numbers"),
    "a name that writes to the terminal": (raw({"\x1b[2Jx\n": entry()}, bytes(8)), "not of printable characters"),
    "a zip archive under a false name": (b"PK\x03\x04" + bytes(100), "truncated or no safetensors"),
    "a pickle under a false name": (pickle.dumps({"x": 1}), "truncated or no safetensors"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_safetensors(kind, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(BROKEN[kind][0])
    refused(path, BROKEN[kind][1])


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, TENSORS)
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(BadRequest):
            files.read(str(path))


# --- npz ---


def test_npz(tmp_path):
    tensors = {"Transformer/block_0/kernel": np.ones((2, 3), np.float32), "head/bias": np.zeros(3, np.float32)}
    np.savez(tmp_path / "x.npz", **tensors)
    same(files.read(str(tmp_path / "x.npz")).tensors, tensors)
    np.savez_compressed(tmp_path / "y.npz", **tensors)
    same(files.read(str(tmp_path / "y.npz")).tensors, tensors)


class Malicious:
    executed = False

    def __reduce__(self):
        return setattr, (Malicious, "executed", True)


def test_a_malicious_npz_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([Malicious()], dtype=object))
    refused(tmp_path / "x.npz", "pickled objects, which could execute code")
    assert not Malicious.executed


def test_a_pickle_under_a_false_name_is_not_unpickled(tmp_path):
    for suffix in (".npz", ".safetensors"):
        (tmp_path / f"x{suffix}").write_bytes(pickle.dumps(Malicious()))
        refused(tmp_path / f"x{suffix}", "damaged or no .npz archive|truncated or no safetensors")
    np.save(tmp_path / "y.npy", np.array([Malicious()], dtype=object), allow_pickle=True)
    (tmp_path / "y.npy").rename(tmp_path / "y.npz")
    refused(tmp_path / "y.npz", "damaged or no .npz archive")
    assert not Malicious.executed


def npy(header, data=b""):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def zipped(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)


FLOAT = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }\n"
HEADERS = {
    "a header that is code": (b"__import__('os').system('true')\n", "damaged or no .npz"),
    "a header of a million brackets": (b"(" * 9000 + b"\n", "damaged or no .npz"),
    "a header without an end": (b"{'descr': '<f4', 'shape': (", "damaged or no .npz"),
    "a dtype of objects inside another": (
        b"{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }\n", "pickled objects"
    ),
    "an unknown dtype": (b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,), }\n", "damaged or no .npz"),
    "a negative shape": (FLOAT % b"-2, -2", "claims shape"),
    "a shape in words": (FLOAT % b"'2',", "damaged or no .npz"),
    "an empty shape that overflows": (FLOAT % b"0, %d, %d" % (1 << 62, 1 << 62), "is damaged"),
    "more axes than an array has": (FLOAT % (b"1, " * 100), "x.npy claims shape|is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_lying_headers_of_npz(kind, tmp_path):
    header, words = HEADERS[kind]
    zipped(tmp_path / "x.npz", [("x.npy", npy(header, bytes(16) if "negative" in kind else b""))])
    refused(tmp_path / "x.npz", words)
    if "axes" in kind:  # with as many bytes as it claims
        zipped(tmp_path / "x.npz", [("x.npy", npy(header, bytes(4)))])
        refused(tmp_path / "x.npz", words)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_say_two_things(tmp_path):
    good = npy(FLOAT % b"1,", bytes(4))
    zipped(tmp_path / "x.npz", [("x.npy", good), ("x.npy", good)])
    refused(tmp_path / "x.npz", "x occurs twice")
    zipped(tmp_path / "x.npz", [("x.npy", good), ("x", good)])
    refused(tmp_path / "x.npz", "x occurs twice")
    zipped(tmp_path / "x.npz", [("\x1b[2J.npy", good)])
    refused(tmp_path / "x.npz", "not of printable characters")
    zipped(tmp_path / "x.npz", [("../../x.npy", good)])  # a name as any other: nothing is unpacked to the disk
    assert set(files.read(str(tmp_path / "x.npz")).tensors) == {"../../x"}


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_compression(compression, tmp_path):
    path, values = tmp_path / "x.npz", np.random.default_rng(0).standard_normal(300)
    zipped(path, [("x.npy", npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (300,), }\n", values.tobytes()))],
           compression)  # fmt: skip
    whole = path.read_bytes()
    np.testing.assert_array_equal(files.read(str(path)).tensors["x"], values)
    for start in (40, 60, 200, 1000):
        path.write_bytes(whole[:start] + bytes(b ^ 0xFF for b in whole[start : start + 40]) + whole[start + 40 :])
        refused(path, "damaged")


def test_broken_npz(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.ones(100, np.float32), b=np.ones(5))
    whole = path.read_bytes()
    for n in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        refused(path, "damaged or no .npz")
    path.write_bytes(whole.replace(np.ones(100, np.float32).tobytes(), np.zeros(100, np.float32).tobytes()))
    refused(path, "Bad CRC-32")
    with zipfile.ZipFile(path, "w") as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16))
    refused(path, r"x.npy claims shape \(1000000000000,\)")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, "damaged or no .npz")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", "_compressed.npz"])
def test_whatever_the_damage_it_is_refused_or_read(suffix, tmp_path):
    path, rng = tmp_path / f"x{suffix}", np.random.default_rng(0)
    if suffix == ".safetensors":
        safetensors.write(path, TENSORS)
    else:
        save = np.savez_compressed if "compressed" in suffix else np.savez
        save(path, **{n: x for n, x in TENSORS.items() if n != "brain"})
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    outcomes = set()
    for _ in range(500):
        damaged = whole.copy()
        places = rng.integers(len(whole), size=rng.integers(1, 4))
        damaged[places] = rng.choice([0, 255, ord("9"), ord("{"), ord(","), rng.integers(256)], len(places))
        path.write_bytes(damaged.tobytes())
        try:
            tensors = files.read(str(path)).tensors
            {name: np.array(tensors[name]) for name in tensors}
            outcomes.add("read")
        except BadRequest as e:
            assert "\n" not in str(e)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


# --- pth ---


def test_a_pth_needs_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps(Malicious()))
    refused(path, "torch is not installed: pip install torch, or convert the file to .safetensors")
    assert not Malicious.executed


class FakeTensor:
    """What is used of torch's tensors."""

    def __init__(self, x, dtype="float32"):
        self.x, self.dtype = np.asarray(x, np.float32), dtype

    def float(self):
        return FakeTensor(self.x)

    def detach(self):
        return self

    def numpy(self):
        assert self.dtype != "bfloat16", "numpy has none"
        return self.x


def fake_torch(contents, version="2.13.0+cpu"):
    def load(path, *, map_location, weights_only):
        assert map_location == "cpu" and weights_only is True
        if isinstance(contents, Exception):
            raise contents
        return contents

    return types.SimpleNamespace(load=load, Tensor=FakeTensor, bfloat16="bfloat16", __version__=version)


def test_a_pth_needs_a_torch_that_keeps_its_promise(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps(Malicious()))
    for version in ("1.13.1", "2.5.1+cu121", "2.9.1"):
        monkeypatch.setitem(sys.modules, "torch", fake_torch(AssertionError("was asked to read it"), version))
        refused(path, rf"in torch {version.replace('+', '.')} in spite of weights_only.*torch>=2.10")
    for version in ("2.10.0", "2.13.0a0+git1234", "3.0"):
        monkeypatch.setitem(sys.modules, "torch", fake_torch({"a": FakeTensor([1])}, version))
        assert set(files.read(str(path)).tensors) == {"a"}


class StrangeTensor(FakeTensor):
    """As torch's sparse and quantised ones, and those of eight bits."""

    def numpy(self):
        raise TypeError("can't convert\nSparse layout tensor to numpy")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
def test_a_pth_is_read_by_torch_as_weights_only(wrap, tmp_path, monkeypatch):
    state = {"a": FakeTensor([1, 2]), "b": FakeTensor([3], "bfloat16")}
    monkeypatch.setitem(sys.modules, "torch", fake_torch(wrap(state)))
    (tmp_path / "x.pth").write_bytes(b"")
    same(files.read(str(tmp_path / "x.pth")).tensors, {n: t.x for n, t in state.items()})


def test_a_malicious_pth_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps(Malicious()))
    for said, words in (
        # As torch 2.13 says it.
        ("Re-running `torch.load` will likely succeed.\n\nTrying to load unsupported GLOBAL posix.system whose module",
         r"is refused \(it asks for posix.system\)"),
        ("\x1b[1mdo those steps only\x1b[0m\nUnsupported operand 149", r"is refused \(\[1mdo those .*operand 149\)"),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, "torch", fake_torch(pickle.UnpicklingError(said)))
        refused(path, f"no file of weights alone, and {words}")
    assert not Malicious.executed
    for contents in ({"optimizer": {}, "x": 3}, {0: FakeTensor([1])}, {"model": [FakeTensor([1])]}, FakeTensor([1])):
        monkeypatch.setitem(sys.modules, "torch", fake_torch(contents))
        refused(path, "holds no state dict")
    for contents in ({"a": StrangeTensor([1])}, {"\x1b[2J": FakeTensor([1])}):
        monkeypatch.setitem(sys.modules, "torch", fake_torch(contents))
        refused(path, "no plain array .(can't convert Sparse|the name .* is not of printable)")


def test_a_malicious_pth_with_torch_itself(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": Malicious()}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "is refused")
    assert not Malicious.executed


# --- the hub ---


def hub(monkeypatch, names, folder):
    asked = []

    def hf_hub_download(repo, name):
        asked.append((repo, name))
        if name not in names:
            raise OSError(f"404: no {name}\n(Request ID)")
        return str(folder / name)

    fake = types.SimpleNamespace(hf_hub_download=hf_hub_download, list_repo_files=lambda repo: names)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return asked


def test_the_hub(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    for name in ("model.safetensors", "deep/other.safetensors"):
        safetensors.write(tmp_path / name, {"x": TENSORS["b.weight"]})
    names = ["README.md", "model.safetensors", "deep/other.safetensors", "pytorch_model.bin"]
    asked = hub(monkeypatch, names, tmp_path)
    assert set(files.read("hf://timm/resnet18.a1_in1k").tensors) == {"x"}
    assert set(files.read("hf://timm/resnet18.a1_in1k/deep/other.safetensors").tensors) == {"x"}
    repo = "timm/resnet18.a1_in1k"
    assert asked == [(repo, "model.safetensors"), (repo, "deep/other.safetensors")]
    refused("hf://timm/resnet18.a1_in1k/none.npz", "404: no none.npz")
    refused("hf://timm", "hf://owner/repo/file")
    hub(monkeypatch, ["a.npz", "b.npz"], tmp_path)
    refused("hf://google/bit", "several files of weights: a.npz, b.npz. Name one")
    hub(monkeypatch, ["README.md"], tmp_path)
    refused("hf://google/bit", "no file of weights")


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("hf://timm/resnet18", "pip install huggingface_hub")


# --- what is no file of weights ---


def test_other_sources(tmp_path):
    refused(tmp_path / "none.safetensors", "there is no file")
    refused(tmp_path, "a folder without checkpoints/")
    (tmp_path / "x.h5").write_bytes(b"")
    refused(tmp_path / "x.h5", "of no known kind: .safetensors, .npz")
