"""Files of weights: what is read, and what is refused in one line with nothing executed."""

import argparse
import contextlib
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest

from recvis_jax.errors import BadRequest
from recvis_jax.pretrained import files, rules, safetensors

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
    assert len(str(e.value)) < 600 + len(str(path)) and str(e.value).isprintable()


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
    "header of no bytes": (raw(b"", bytes(8)), "truncated or not a safetensors"),
    "not JSON": (raw(b"{broken", bytes(8)), "not valid JSON"),
    "not text": (raw(b"\xff\xfe{}", bytes(8)), "not valid JSON"),
    "deeply nested": (raw(b"[" * 100_000), "not valid JSON"),
    "a list": (raw([1, 2]), "not a table of tensors"),
    "an entry that is no tensor": (raw({"x": 3}), "'x' is not a tensor"),
    "a name twice": (raw(b'{"x": 1, "x": 2}'), "occurs twice"),
    "truncated data": (raw({"x": entry()}, bytes(7)), "need 8 bytes, but it has 7"),
    "data that no tensor claims": (raw({"x": entry()}, bytes(9)), "need 8 bytes, but it has 9"),
    "a shape of other size": (raw({"x": entry(shape=(3,))}, bytes(8)), "'x' needs 12 bytes"),
    "a shape that overflows": (raw({"x": entry(shape=(1 << 62, 4))}, bytes(8)), "no array can have"),
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
    "a number too long to read": (raw(b'{"x": {"shape": [' + b"9" * 10_000 + b"]}}"), "not valid JSON"),
    "a shape of 400,000 numbers": (
        raw({"x": entry(shape=[1 << 62] * 400_000)}, bytes(8)),
        "'x' has 400,000 axes, which no array can have",
    ),
    "offsets of 400,000 numbers": (raw({"x": entry(offsets=[1] * 400_000)}, bytes(8)), "offsets .1, 1, .* of 'x'"),
    "numbers of 4,000 digits": (raw({"x": entry(shape=[10**4000] * 9)}, bytes(8)), "no array can have"),
    "offsets of 4,000 digits": (raw({"x": entry(offsets=[0, 10**4000])}, bytes(8)), "offsets .* of 'x'"),
    "a dtype of a megabyte": (raw({"x": entry(dtype="F" * 10**6)}, bytes(8)), "unknown dtype 'FFF"),
    "a dtype of many lists": (raw({"x": entry(dtype=[[]] * 10**5)}, bytes(8)), "unknown dtype"),
    "a name of a megabyte": (raw({"x" * 10**6: entry()}, bytes(8)), "has 1,000,000 characters"),
    "a long name twice": (
        raw(b'{"' + b"x" * 10**6 + b'": 1, "' + b"x" * 10**6 + b'": 2}'),
        "occurs twice",
    ),
    "30,000 tensors": (raw({f"x{i}": entry(shape=[0], offsets=[0, 0]) for i in range(30_000)}), "names 30,000 tensors"),
    "a header of 20 megabytes": (raw(b"{" + b" " * (20 * 2**20) + b"}"), "header has 20,971,522 bytes; at most"),
    "many names, one twice": (
        raw(("{" + ",".join(f'"n{i}":0' for i in range(300_000)) + ',"n9":1}').encode()),
        "'n9' occurs twice",
    ),
    "metadata that is no text": (raw({"__metadata__": {"a": [1] * 10**5}}), "__metadata__ is not a table of strings"),
    "an offset in words": (raw({"x": entry(offsets=("0", "8"))}, bytes(8)), "not whole numbers"),
    "a name that writes to the terminal": (raw({"\x1b[2Jx\n": entry()}, bytes(8)), "characters that are not printable"),
    "a zip archive under a false name": (b"PK\x03\x04" + bytes(100), "truncated or not a safetensors"),
    "a pickle under a false name": (pickle.dumps({"x": 1}), "truncated or not a safetensors"),
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
        refused(tmp_path / f"x{suffix}", "damaged or not an .npz archive|truncated or not a safetensors")
    np.save(tmp_path / "y.npy", np.array([Malicious()], dtype=object), allow_pickle=True)
    (tmp_path / "y.npy").rename(tmp_path / "y.npz")
    refused(tmp_path / "y.npz", "damaged or not an .npz archive")
    assert not Malicious.executed


def npy(header, data=b""):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def zipped(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)


FLOAT = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }\n"
HEADERS = {
    "a header that is code": (b"__import__('os').system('true')\n", "damaged or not an .npz"),
    "a header of a million brackets": (b"(" * 9000 + b"\n", "damaged or not an .npz"),
    "a header without an end": (b"{'descr': '<f4', 'shape': (", "damaged or not an .npz"),
    "a dtype of objects inside another": (
        b"{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }\n", "pickled objects"
    ),
    "an unknown dtype": (b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,), }\n", "damaged or not an .npz"),
    "a negative shape": (FLOAT % b"-2, -2", "claims shape"),
    "a shape in words": (FLOAT % b"'2',", "damaged or not an .npz"),
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
    refused(tmp_path / "x.npz", "characters that are not printable")
    zipped(tmp_path / "x.npz", [("../../x.npy", good)])  # a name as any other: nothing is unpacked to the disk
    assert set(files.read(str(tmp_path / "x.npz")).tensors) == {"../../x"}


def test_damaged_compression(tmp_path):
    path, values = tmp_path / "x.npz", np.random.default_rng(0).standard_normal(300)
    entries = [("x.npy", npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (300,), }\n", values.tobytes()))]
    zipped(path, entries, zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    np.testing.assert_array_equal(files.read(str(path)).tensors["x"], values)
    for start in (40, 60, 200, 1000):
        path.write_bytes(whole[:start] + bytes(b ^ 0xFF for b in whole[start : start + 40]) + whole[start + 40 :])
        refused(path, "damaged")
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):  # which unpack a whole block whatever is asked for
        zipped(path, entries, compression)
        refused(path, "compressed in a way that neither numpy nor torch writes")


def test_nothing_is_unpacked_that_is_not_asked_for(tmp_path, monkeypatch):
    """An archive of 0.2 MB whose second array has 134 MB of zeros: its names and shapes are known without it."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small.npy", npy(FLOAT % b"2,", np.float32([1, 2]).tobytes()))
        with archive.open("large.npy", "w") as f:
            f.write(npy(FLOAT % b"33554432,"))
            for _ in range(32):
                f.write(bytes(2**22))
    assert path.stat().st_size < 2**19
    unpacked = []
    read_array = np.lib.format.read_array
    monkeypatch.setattr(np.lib.format, "read_array", lambda f, **kw: unpacked.append(f.name) or read_array(f, **kw))
    found = files.read(str(path)).tensors
    assert "large" in found and "none" not in found and len(found) == 2 and found.shape_of("large") == (2**25,)
    np.testing.assert_array_equal(found["small"], [1, 2])
    assert unpacked == ["small.npy"]
    move = rules.Move("large", ("params/w",), rules.LAYOUTS[""])
    fit = rules.fit([move], found, template={"params/w": np.zeros(2, np.float32)})
    assert fit.misshapen == {"large": (2**25,)} and unpacked == ["small.npy"]


def directory_entry(name, size, compressed, offset, crc=0, flags=0):
    return (
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, flags, 8, 0, 0, crc, compressed, size, len(name), 0, 0, 0, 0,
                    0, offset) + name
    )  # fmt: skip


def test_archives_that_lie(tmp_path):
    path = tmp_path / "x.npz"
    data = npy(FLOAT % b"1000,", bytes(4000))
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), 5, 0)

    def write(*entries, count=None):
        table = b"".join(entries)
        body = local + b"a.npy" + data
        end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, len(entries), len(entries), len(table), len(body), 0)
        path.write_bytes(body + table + end)

    write(directory_entry(b"a.npy", len(data), len(data), 0), directory_entry(b"b.npy", len(data), len(data), 0))
    refused(path, "begins inside the entry before it")
    write(directory_entry(b"a.npy", 10**9, len(data), 0))
    refused(path, "claims 1,000,000,000 bytes in 4,0.*: impossible")
    write(directory_entry(b"a.npy", len(data), len(data), 0, flags=1))
    refused(path, "is encrypted")
    write(directory_entry(b"a.npy", len(data), 2**31, 0))
    refused(path, "ends after the end of the file")
    write(*(directory_entry(b"%06d.npy" % i, 0, 0, 40 * i) for i in range(45_000)))
    refused(path, "it has 45,000 entries")
    write(directory_entry(b"a" * 60_000, len(data), len(data), 0))
    refused(path, "damaged or not an .npz")
    zipped(path, [("x.npy", npy(b"{'descr': '<U9', 'fortran_order': False, 'shape': (1,), }\n", bytes(36)))])
    refused(path, "has dtype <U9, which is not numeric")


def test_half_precision_of_brains_in_npz(tmp_path):
    """numpy writes bfloat16 as two bytes without a meaning."""
    values = np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3)
    np.savez(tmp_path / "x.npz", x=values)
    same(files.read(str(tmp_path / "x.npz")).tensors, {"x": values})


def test_broken_npz(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.ones(100, np.float32), b=np.ones(5))
    whole = path.read_bytes()
    for n in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        refused(path, "damaged or not an .npz")
    path.write_bytes(whole.replace(np.ones(100, np.float32).tobytes(), np.zeros(100, np.float32).tobytes()))
    refused(path, "Bad CRC-32")
    with zipfile.ZipFile(path, "w") as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16))
    refused(path, r"x.npy claims shape \(1000000000000,\)")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, "damaged or not an .npz")


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

    @contextlib.contextmanager
    def safe_globals(allowed):
        assert allowed == [argparse.Namespace]
        yield

    serialization = types.SimpleNamespace(safe_globals=safe_globals)
    return types.SimpleNamespace(
        load=load, Tensor=FakeTensor, bfloat16="bfloat16", __version__=version, serialization=serialization
    )


def test_a_pth_needs_a_torch_that_keeps_its_promise(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps(Malicious()))
    for version in ("1.13.1", "2.5.1+cu121", "2.9.1"):
        monkeypatch.setitem(sys.modules, "torch", fake_torch(AssertionError("was asked to read it"), version))
        refused(path, rf"in torch {version.replace('+', '.')} despite weights_only.*torch>=2.10")
    for version in ("2.10.0", "2.13.0a0+git1234", "3.0"):
        path.write_bytes(OLD)
        monkeypatch.setitem(sys.modules, "torch", fake_torch({"a": FakeTensor([1])}, version))
        assert set(files.read(str(path)).tensors) == {"a"}


class StrangeTensor(FakeTensor):
    """As torch's sparse and quantised ones, and those of eight bits."""

    def numpy(self):
        raise TypeError("can't convert\nSparse layout tensor to numpy")


# As torch.save writes the tables of an empty state dict in its old format.
OLD = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, []))


def test_a_pth_is_read_by_torch_as_weights_only(tmp_path, monkeypatch):
    state = {"a": FakeTensor([1, 2]), "b": FakeTensor([3], "bfloat16")}
    values = {n: t.x for n, t in state.items()}
    (tmp_path / "x.pth").write_bytes(OLD)
    for contents, prefix, tables in (
        (state, "", ("",)),
        ({"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, "model.", ("model",)),
        ({"a": {"b": {"c": state}}, 0: FakeTensor([1]), "list": [FakeTensor([1])]}, "a.b.c.", ("a.b.c",)),
    ):
        monkeypatch.setitem(sys.modules, "torch", fake_torch(contents))
        found = files.read(str(tmp_path / "x.pth"))
        same(found.tensors, {f"{prefix}{n}": x for n, x in values.items()})
        assert found.tables == tables


def endless():
    table = {}
    table["again"] = table
    return table


def doubling(depth=40):
    table = {"a": FakeTensor([1])}
    for _ in range(depth):
        table = {"l": table, "r": table}
    return table


def test_what_torch_finds_that_is_no_state_dict(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    path.write_bytes(OLD)
    for contents, words in (
        ({"optimizer": {}, "x": 3}, "holds no state dict, a table of tensors, but a table of .'optimizer', 'x'"),
        ({0: FakeTensor([1])}, "holds no state dict"),
        ({"model": [FakeTensor([1])]}, "holds no state dict"),
        (FakeTensor([1]), "but a FakeTensor"),
        (endless(), "are nested too deeply"),
        (doubling(), "are nested too deeply"),
        (doubling(30), "more than 100,000 entries"),
        ({"a": {"b": FakeTensor([1])}, "a.b": FakeTensor([1])}, "the name a.b occurs twice"),
        ({"a": StrangeTensor([1])}, "a is not a plain array: can't convert Sparse layout"),
        ({"\x1b[2J": FakeTensor([1])}, "the name .* has characters that are not printable"),
    ):
        monkeypatch.setitem(sys.modules, "torch", fake_torch(contents))
        refused(path, words)


def archived(data_pkl, *more, compression=zipfile.ZIP_STORED):
    """A file as torch.save writes it: a zip archive of a pickle and the tensors' bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in (("x/data.pkl", data_pkl), *more):
            archive.writestr(name, data)
    return out.getvalue()


MALICIOUS = {
    "a pickle": pickle.dumps(Malicious()),
    "of every protocol": pickle.dumps(Malicious(), 0),
    "in the old format": OLD.replace(pickle.dumps({}, 2), pickle.dumps({"x": Malicious()}, 2)),
    "in an archive": archived(pickle.dumps({"x": Malicious()}, 2)),
    "in an archive, by other steps": archived(pickle.dumps({"x": Malicious()}, 4)),
    "by names of the system": archived(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."),
    "by an instance": archived(b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n."),
    "a second pickle": archived(pickle.dumps({}, 2), ("x/more.pkl", pickle.dumps(Malicious(), 2))),
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_a_malicious_pth_is_refused_before_torch_sees_it(kind, tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    path.write_bytes(MALICIOUS[kind])
    monkeypatch.setitem(sys.modules, "torch", fake_torch(AssertionError("was asked to read it")))
    refused(path, r"not a file of weights only, and is refused \(it asks for (builtins|__builtin__|os)\.\w+")
    assert not Malicious.executed


BOMBS = {
    "memory that a pickle asks for": (archived(b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."), "bytearray"),
    "an array of bytes of any length": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40), "damaged|BYTEARRAY8|expected"),
    "millions of steps": (archived(b"\x80\x02" + b"N0" * 800_000 + b"N."), "more than 1,500,000 steps"),
    "an archive that unpacks to more": (
        archived(pickle.dumps({}, 2), ("x/data/0", bytes(2**25)), compression=zipfile.ZIP_DEFLATED),
        "it unpacks to 33,554,.* bytes",
    ),
    "an archive of other things": (archived(b"").replace(b"data.pkl", b"data.txt"), "without data.pkl"),
    "a pickle cut short": (OLD[:40], "refused"),
    "an archive cut short": (archived(pickle.dumps({}, 2))[:-30], "refused"),
    "a tar archive": (bytes(257) + b"ustar  " + bytes(300), "a tar archive, as torch wrote before 2017"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pth_that_would_fill_the_memory_is_refused_before_torch_sees_it(kind, tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    path.write_bytes(BOMBS[kind][0])
    monkeypatch.setitem(sys.modules, "torch", fake_torch(AssertionError("was asked to read it")))
    refused(path, BOMBS[kind][1])


def test_what_torch_refuses_is_said_in_a_line(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    path.write_bytes(OLD)
    for said, words in (
        # As torch 2.13 says it.
        ("Re-running `torch.load` will likely succeed.\n\nTrying to load unsupported GLOBAL torch.x whose module",
         r"is refused \(it asks for torch.x\)"),
        ("\x1b[1mdo those steps only\x1b[0m\nUnsupported operand 149", r"is refused \(\[1mdo those .*operand 149\)"),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, "torch", fake_torch(pickle.UnpicklingError(said)))
        refused(path, f"not a file of weights only, and {words}")


def test_files_of_torch_itself(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": Malicious()}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "is refused")
    assert not Malicious.executed
    weight = torch.arange(6.0).reshape(2, 3)
    content = {
        "model": {"w": weight, "half": weight.half(), "brain": weight.bfloat16(), "t": weight.T, "n": torch.tensor(7)},
        "optimizer": {"state": {0: {"exp_avg": weight}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1, layers=[1, 2], inner=argparse.Namespace(a=None)),
    }
    for old in (False, True):
        torch.save(content, tmp_path / "y.pth", _use_new_zipfile_serialization=not old)
        found = files.read(str(tmp_path / "y.pth"))
        assert found.tables == ("model", "optimizer.state.0")
        for name in ("w", "half", "brain"):
            np.testing.assert_array_equal(found.tensors[f"model.{name}"], weight.numpy())
        np.testing.assert_array_equal(found.tensors["model.t"], weight.numpy().T)
        assert found.tensors["model.n"].shape == ()
    torch.save({"x": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "z.pth")
    refused(tmp_path / "z.pth", r"x of shape \(1000000, 1000000\) has 4 bytes, fewer than it needs")


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
    refused("hf://google/bit", "several files of weights: a.npz, b.npz. Choose one")
    hub(monkeypatch, ["README.md"], tmp_path)
    refused("hf://google/bit", "no file of weights")


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("hf://timm/resnet18", "pip install huggingface_hub")


# --- what is no file of weights ---


def test_other_sources(tmp_path):
    refused(tmp_path / "none.safetensors", "there is no file")
    refused(tmp_path, "a folder without checkpoints/")
    os.mkfifo(tmp_path / "pipe.safetensors")
    refused(tmp_path / "pipe.safetensors", "is a named pipe, not a regular file")
    for suffix in files.SUFFIXES:
        (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
        if suffix in (".safetensors", ".npz"):  # the others need torch
            refused(tmp_path / f"zero{suffix}", "is a device, not a regular file")
    with pytest.raises(BadRequest, match="not a valid file name"):
        files.read("a\0b.npz")
    with pytest.raises(BadRequest, match="there is no file"):
        files.read("x" * 300 + ".npz")
    (tmp_path / "x.onnx").write_bytes(b"")
    refused(tmp_path / "x.onnx", "has an unknown file type; .safetensors, .npz")
