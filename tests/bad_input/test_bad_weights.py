"""Files of weights that are damaged, contradict themselves, claim too much, or would run code."""

import functools
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from itertools import islice

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import Case

from recvis_jax import models, pretrained

SEED = 1


@functools.cache
def model():
    """A small ResNet and its variables, as shapes."""
    net = models.create("resnet18", blocks=(1, 1), width=4, num_classes=3)
    return net, jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))


@functools.cache
def tensors():
    """Its state dict under torchvision's names."""
    net, shapes = model()
    return pretrained.export(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), net, "torchvision")


def load(path):
    net, shapes = model()
    return pretrained.load(path, net, shapes, say=lambda line: None)


def case(what, name, data):
    make = harness.write(name, data)
    return Case(f"{name}, {what}", lambda folder: load(make(folder)), (name,))


class Runs:
    """Leaves the canary behind when it is unpickled."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        if self.how == "open":
            return open, (str(harness.CANARY), "w")
        if self.how == "eval":
            return eval, (f"open({str(harness.CANARY)!r}, 'w')",)
        if self.how == "exec":
            return exec, (f"open({str(harness.CANARY)!r}, 'w')",)
        return os.system, (f": > {harness.CANARY}",)


@functools.cache
def pickles():
    """Name -> bytes that leave the canary behind when Python unpickles them."""
    out = {
        f"{how}, protocol {p}": pickle.dumps({"w": Runs(how)}, p)
        for how in ("system", "open", "eval", "exec") for p in (0, 2, 4, 5)
    }  # fmt: skip
    command = f": > {harness.CANARY}"
    out["inst"] = f"(S{command!r}\nios\nsystem\n.".encode()
    out["obj"] = f"(cos\nsystem\nS{command!r}\no.".encode()
    out["after a state dict"] = (
        pickle.dumps({"fc.weight": [1.0]}, 2)[:-1] + f"0cos\nsystem\n(S{command!r}\ntR.".encode()
    )
    out["in the keys"] = pickle.dumps({("k", 1): Runs("system")}, 2)
    return out


# --- safetensors ---


def packed(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


@functools.cache
def base():
    """(header, tensors' bytes) of the good file."""
    header, data = {}, b""
    for name, x in tensors().items():
        x = np.asarray(x)
        kind = {"f": "F32", "i": "I64"}[x.dtype.kind]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.tobytes()
    return header, data


def changed(name="fc.weight", **entry):
    """The good file with other values in one tensor's entry; None removes the key."""
    header, data = base()
    new = {k: v for k, v in (header[name] | entry).items() if v is not None}
    return packed({**header, name: new}, data)


NAN = "NOT-A-NUMBER"  # replaced in the text, as json.dumps would not write it so


def entries():
    header, data = base()
    begin, end = header["fc.weight"]["data_offsets"]
    rows, columns = header["fc.weight"]["shape"]
    shapes = {
        "": [], "one axis": [rows * columns], "swapped": [columns, rows], "another": [rows + 1, columns],
        "one more axis": [rows, columns, 1], "a zero": [0, columns], "negative": [-rows, -columns],
        "fractions": [rows + 0.0, columns + 0.0], "booleans": [True, rows * columns], "texts": [str(rows), str(columns)],
        "nulls": [None], "lists": [[rows], [columns]], "a number": rows, "a text": "3x16", "an object": {"0": rows},
        "2^63": [2**63, columns], "2^64 and zero": [2**64, 0], "10^30": [10**30], "33 axes": [1] * 31 + [rows, columns],
        "400,000 axes of 1": [1] * 400_000, "400,000 axes of 9": [9] * 400_000, "400,000 zeros": [0] * 400_000,
        "a number of 4,000 digits": [int("9" * 4000)], "400,000 large numbers": [2**62] * 400_000,
        "100,000 fractions": [0.5] * 100_000, "nan": [NAN],
    }  # fmt: skip
    yield from ((f"shape {what}", changed(shape=s)) for what, s in shapes.items())
    kinds = ("", "F33", "f32", "F32 ", "F32\n", "C64", "F8_E4M3", "F4", "F64", "I64", "U8", "float32", "\x1b[31mF32")
    yield from ((f"dtype {d!r}", changed(dtype=d)) for d in (*kinds, 32, ["F32"], {"F32": 1}, True, "F" * 10**6))
    offsets = {
        "reversed": [end, begin], "negative": [-(end - begin), 0], "one": [end], "three": [begin, begin, end],
        "none": [], "equal": [begin, begin], "a byte later": [begin + 1, end + 1], "a byte longer": [begin, end + 1],
        "a byte shorter": [begin, end - 1], "over another": [0, end - begin], "outside": [len(data), len(data) + end - begin],
        "fractions": [begin + 0.0, end + 0.0], "booleans": [False, True], "texts": [str(begin), str(end)],
        "2^64": [begin + 2**64, end + 2**64], "an object": {"begin": begin, "end": end}, "nested": [[begin], [end]],
        "200,000 numbers": [begin] * 200_000, "nan": [NAN, end],
    }  # fmt: skip
    yield from ((f"offsets {what}", changed(data_offsets=o)) for what, o in offsets.items())
    for key in ("dtype", "shape", "data_offsets"):
        yield f"no {key}", changed(**{key: None})
    for value in (None, [], "F32", 7, True, {}, [1, 2, 3], {"dtype": "F32"}):
        yield f"an entry {value!r}", packed({**header, "fc.weight": value}, data)


def headers():
    header, data = base()
    text = json.dumps(header).encode()
    for what, other in {
        "a list": b"[]", "null": b"null", "a text": b'"fc.weight"', "a number": b"17", "nothing": b"{}", "space": b"  ",
        "zeros": bytes(64), "two objects": b"{}{}", "a comma at the end": text[:-1] + b",}", "single quotes":
        text.replace(b'"', b"'"), "a comment": b"/* x */" + text, "UTF-16": text.decode().encode("utf-16"),
        "no UTF-8": text.replace(b"fc.weight", b"fc.w\xff\xfeght"), "NaN": text[:-1] + b', "x": NaN}',
        "Infinity": text[:-1] + b', "x": -Infinity}', "a name twice": text[:-1] + b"," + text[1:],
        "deep lists": b"[" * 100_000, "deep objects": b'{"a":' * 50_000, "a number of 100,000 digits": b'{"x": ' + b"9" * 100_000
        + b"}", "a text that does not end": text[:-30] + b'"', "a control character": text.replace(b"fc.", b"fc\n"),
    }.items():  # fmt: skip
        yield f"header is {what}", packed(other, data)
    for what, length in {
        "0": 0, "1": 1, "a byte short": len(text) - 1, "a byte long": len(text) + 1, "the file": len(text) + len(data) + 8,
        "100,000,001": 100_000_001, "2^31": 2**31, "2^63": 2**63, "2^64 - 1": 2**64 - 1,
    }.items():  # fmt: skip
        yield f"length is {what}", packed(text, data, length)
    yield "a byte more", packed(header, data + b"\0")
    yield "a byte less", packed(header, data[:-1])
    yield "no tensors' bytes", packed(header)
    yield "a gigabyte more in a hole", None


def names():
    header, data = base()
    fc = header["fc.weight"]
    rest = {k: v for k, v in header.items() if k != "fc.weight"}
    others = (
        "",
        "fc.Weight",
        "fc.weight ",
        "fc",
        "\x1b[2Jfc.weight",
        "fc.weight\0",
        "fc\u202eweight",
        "module.",
        "x" * 10**6,
    )
    for name in others:
        yield f"fc.weight is called {name[:20]!r}", packed({**rest, name: fc}, data)
    end = len(data)
    for name in ("fc.extra", "x" * 10**6, "\x1b]0;title\x07", "fc.weight.weight"):
        yield (
            f"{name[:20]!r} besides",
            packed({**header, name: {"dtype": "U8", "shape": [1], "data_offsets": [end, end + 1]}}, data + b"\0"),
        )
    many = {f"layer{i}": {"dtype": "U8", "shape": [0], "data_offsets": [end, end]} for i in range(100_000)}
    yield "100,000 tensors besides", packed({**header, **many}, data)
    yield "100,000 other tensors", packed({k: {**v, "data_offsets": [0, 0]} for k, v in many.items()})
    for gone in ("fc.weight", "conv1.weight", "bn1.running_var", "layer2.0.conv1.weight"):
        kept = {k: np.asarray(x) for k, x in tensors().items() if k != gone}
        out = io.BytesIO()
        np.savez(out, **kept)
        yield f"{gone} is missing", _safetensors_of(kept)


def _safetensors_of(arrays):
    header, data = {}, b""
    for name, x in arrays.items():
        kind = {"f": "F32", "i": "I64"}[x.dtype.kind]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.tobytes()
    return packed(header, data)


def safetensors_cases():
    name = "net.safetensors"
    header, data = base()
    good = packed(header, data)
    for what, part in harness.cuts(good, 30).items():
        yield case(f"cut to {what}", name, part)
    rng = np.random.default_rng(SEED)
    count = len(good) - len(data)
    bad = ((w, d + data) for w, d in harness.flips(good[:count], rng) if not _same_header(d, header))
    yield from (case(f"{w} flipped", name, d) for w, d in islice(bad, 90))
    for what, file in (*entries(), *headers(), *names()):
        if file is None:
            yield Case(f"{name}, {what}", lambda folder: load(_holed(folder / "net.safetensors", good)), (name,))
        else:
            yield case(what, name, file.replace(f'"{NAN}"'.encode(), b"NaN").replace(b"=", b"="))


def _same_header(data, header):
    try:
        return json.loads(data[8:]) == header and int.from_bytes(data[:8], "little") == len(data) - 8
    except ValueError:
        return False


def _holed(path, data):
    with path.open("wb") as f:
        f.write(data)
        f.truncate(len(data) + 2**30)
    return path


# --- npz ---


def npy(descr="<f4", shape=(3, 8), body=None, version=1, header=None):
    """One .npy file with any header."""
    text = header or repr({"descr": descr, "fortran_order": False, "shape": shape})
    text = text.encode("latin1") + b"\n"
    size = struct.pack("<H", len(text)) if version == 1 else struct.pack("<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + (bytes(96) if body is None else body)


def npz(changes=None, method=zipfile.ZIP_STORED, leave=()):
    """The good archive with some entries of any bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, x in tensors().items():
            if f"{name}.npy" not in (changes or {}) and name not in leave:
                one = io.BytesIO()
                np.save(one, x)
                z.writestr(f"{name}.npy", one.getvalue())
        for name, data in (changes or {}).items():
            z.writestr(name, data)
    return out.getvalue()


def bombs():
    """Archives of some MB that are gigabytes of zeros, in the entry fc.weight and in one that nobody asks for."""
    block = zlib.compressobj(9, wbits=-15)
    part = block.compress(bytes(2**20)) + block.flush(zlib.Z_FULL_FLUSH)
    for what, mb in (("3.9 GB", 3900), ("800 MB", 800)):
        numbers = mb * 2**18
        head = npy(shape=(numbers,), body=b"")
        first = zlib.compressobj(9, wbits=-15)
        data = first.compress(head) + first.flush(zlib.Z_FULL_FLUSH) + part * mb + b"\x03\0"
        for name in ("fc.weight.npy", "other.npy"):
            size = len(head) + mb * 2**20
            yield f"{what} of zeros as {name}", with_raw_entry(name, data, size, 8)


def with_raw_entry(name, data, size, method, flags=0, crc=0, claimed=None):
    """The good archive, fc.weight replaced by an entry whose headers say anything."""
    good = npz(leave=("fc.weight",))
    at = good.rindex(b"PK\5\6")
    count, directory_size, directory_at = struct.unpack("<HII", good[at + 10 : at + 20])
    raw, text = name.encode(), name.encode()
    fields = struct.pack("<HHHHHIII", 20, flags, method, 0, 33, crc, len(data) if claimed is None else claimed, size)
    local = b"PK\3\4" + fields + struct.pack("<HH", len(raw), 0) + text + data
    entry = (
        b"PK\1\2"
        + struct.pack("<H", 20)
        + fields
        + struct.pack("<HHHHHII", len(raw), 0, 0, 0, 0, 0, directory_at)
        + text
    )
    directory = good[directory_at : directory_at + directory_size] + entry
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count + 1, count + 1, len(directory), directory_at + len(local), 0)
    return good[:directory_at] + local + directory + end


def npz_entries():
    canary = str(harness.CANARY)
    runs = f"__import__('os').system(': > {canary}')"
    good = npy()
    for what, data in {
        "objects": npy("|O", (1,), pickles()["system, protocol 4"]), "objects of no shape": npy("|O", (), pickles()["eval, protocol 2"]),
        "a field of objects": npy("[('x', '|O')]", (1,), pickles()["system, protocol 2"]).replace(b"\"[('x', '|O')]\"", b"[('x', '|O')]"),
        "a pickle": pickles()["open, protocol 4"],
        "code for a shape": npy(header="{'descr': '<f4', 'fortran_order': False, 'shape': (" + runs + ",)}"),
        "code for a header": npy(header=runs), "code for a dtype": npy(header="{'descr': " + runs + ", 'fortran_order': False, 'shape': (3,)}"),
        "a shape of 4 TB": npy(shape=(2**40,)), "a shape of 2^63": npy(shape=(2**63,)), "a shape of 2^62 and zero": npy(shape=(2**62, 0), body=b""),
        "a negative shape": npy(shape=(-3, -8)), "a shape of -1": npy(shape=(-1,)), "a shape of floats": npy(shape=(3.0, 8.0)),
        "a shape that is text": npy(shape="3x8"), "a shape of booleans": npy(shape=(True, 24)), "33 axes": npy(shape=(1,) * 31 + (3, 8)),
        "70 axes": npy(shape=(1,) * 68 + (3, 8)), "20,000 axes": npy(shape=(1,) * 20_000), "one row less": npy(body=bytes(64)),
        "a byte more": npy(body=bytes(97)), "no body": npy(body=b""), "another shape": npy(shape=(8, 3)), "texts": npy("<U1", (24,)),
        "dates": npy("<M8[s]", (12,)), "void": npy("|V4", (24,)), "complex numbers": npy("<c8", (12,)), "no dtype": npy("", (24,)),
        "a dtype of nonsense": npy("<q9", (24,)), "a dtype of a gigabyte": npy("|V1000000000", (1,)), "a dtype of no bytes": npy("|V0", (3, 8), b""),
        "version 3": npy(version=3), "version 9": npy(version=9), "no magic": b"NUMPY" + good[5:], "nothing": b"", "magic alone": good[:6],
        "half a header": good[:40], "a header of 4 GB": good[:6] + b"\2\0" + struct.pack("<I", 2**32 - 1) + good[10:], "a header of no dict": npy(header="[1, 2]"),
        "a header that lacks shape": npy(header="{'descr': '<f4', 'fortran_order': False}"), "a header with a key more": npy(header=
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 8), 'x': 1}"), "a header of deep brackets": npy(header="(" * 20_000, version=2),
        "fortran order of text": npy(header="{'descr': '<f4', 'fortran_order': 'no', 'shape': (3, 8)}"), "a number of 10,000 digits": npy(header=
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 10_000 + ",)}", version=2),
        "a zip": npz()[:4000],
    }.items():  # fmt: skip
        yield f"fc.weight is {what}", npz({"fc.weight.npy": data})
    for name in ("\x1b[2J.npy", "other.npy", "../../fc.weight.npy", "/etc/passwd", "x" * 60_000 + ".npy", ".npy"):
        yield f"{name[:20]!r} besides", npz({name: good})
    for gone in ("fc.weight", "conv1.weight", "bn1.running_var"):
        yield f"{gone} is missing", npz(leave=(gone,))
    data = good
    for what, file in {
        "encrypted": with_raw_entry("fc.weight.npy", data, len(data), 0, flags=1),
        "by an unknown method": with_raw_entry("fc.weight.npy", data, len(data), 99),
        "by deflate64": with_raw_entry("fc.weight.npy", data, len(data), 9),
        "of a wrong checksum": with_raw_entry("fc.weight.npy", data, len(data), 0, crc=1),
        "longer than it is": with_raw_entry("fc.weight.npy", data, len(data) + 999, 0, crc=zlib.crc32(data)),
        "said to have 4 GB": with_raw_entry("fc.weight.npy", data, 2**32 - 2, 8),
        "deflated noise": with_raw_entry("fc.weight.npy", np.random.default_rng(0).bytes(99), len(data), 8),
        "reaching out of the file": with_raw_entry("fc.weight.npy", data, len(data), 0, claimed=2**31),
        "twice": _twice(data),
        "called in ESC": with_raw_entry("fc\x1b[2J.npy", data, len(data), 0, crc=zlib.crc32(data)),
    }.items():  # fmt: skip
        yield f"fc.weight is {what}", file
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for i in range(20_000):
            z.writestr(f"{i}.npy", b"")
    yield "20,000 empty entries", out.getvalue()
    yield "an empty archive", b"PK\5\6" + bytes(18)
    yield "a bare array", npy()
    yield from bombs()


def _twice(data):
    file = with_raw_entry("fc.weight.npy", data, len(data), 0, crc=zlib.crc32(data))
    return (
        file.replace(b"bn1.bias.npy", b"fc.weight.np") if len("bn1.bias.npy") == len("fc.weight.np") else file + b"\0"
    )


def npz_cases():
    name = "net.npz"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        good = npz(method=method)
        for what, part in harness.cuts(good, 16).items():
            yield case(f"method {method}, cut to {what}", name, part)
        rng = np.random.default_rng(SEED)
        bad = ((w, d) for w, d in harness.flips(good, rng) if not same_as_numpy_reads(d))
        yield from (case(f"method {method}, {w} flipped", name, d) for w, d in islice(bad, 40))
    yield from (case(what, name, file) for what, file in npz_entries())


def same_as_numpy_reads(data):
    """Whether numpy gets the good file's arrays from the bytes."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            read = {name: found[name] for name in found.files}
    except Exception:
        return False
    good = tensors()
    return read.keys() == good.keys() and all(np.array_equal(read[k], good[k]) for k in good)


# --- pickles, and files that are not what their names say ---


def containers(data):
    """Name -> file that holds a pickle as torch's formats of several years do."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("archive/data.pkl", data)
        z.writestr("archive/version", "3\n")
        z.writestr("archive/data/0", bytes(96))
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    return {"bare": data, "zip": out.getvalue(), "legacy": magic + pickle.dumps({"little_endian": True}, 2) + data}


def pickle_cases():
    suffixes = ("pth", "pt", "bin")
    for i, (what, data) in enumerate(pickles().items()):
        for container, file in containers(data).items():
            yield case(f"{container} pickle: {what}", f"net.{suffixes[i % 3]}", file)
        yield case(f"pickle: {what}", "net.safetensors", data)
        yield case(f"pickle: {what}", "net.npz", data)
        yield case(f"zip pickle: {what}", "net.npz", containers(data)["zip"])
    for what, data in {
        "nothing": b"",
        "text": b"weights\n",
        "zeros": bytes(999),
        "noise": np.random.default_rng(0).bytes(999),
    }.items():
        for suffix in (*suffixes, "safetensors", "npz"):
            yield case(what, f"net.{suffix}", data)
    good = packed(*base())
    yield case("safetensors inside", "net.npz", good)
    yield case("npz inside", "net.safetensors", npz())
    for name in ("net", "net.h5", "net.onnx", "net.pkl", "net.tar", "net.ckpt", "net.safetensors.gz", "net.NPY"):
        yield case("of a kind that nobody reads", name, good)
    for name in ("net.safetensors", "net.npz", "net.pth"):
        for what, make in harness.irregular(name).items():
            yield Case(f"{name} is {what}", lambda folder, make=make: load(make(folder)), (name,))
        yield Case(f"{name} is missing", lambda folder, name=name: load(folder / name), (name,))
        yield Case(
            f"{name} below a file", lambda folder, name=name: load(harness.write("f", b"")(folder) / name), (name,)
        )
    for source in (
        "hf://",
        "hf://owner",
        "hf:///repo",
        "hf://owner/",
        "\0.npz",
        "a\0b.safetensors",
        "x" * 5000 + ".npz",
    ):
        yield Case(
            f"source {source[:20]!r}", lambda folder, source=source: load(source), (source[:40].replace("\0", "\\x00"),)
        )


PARTS = {"safetensors": safetensors_cases, "npz": npz_cases, "pickles": pickle_cases}


@functools.cache
def cases(part):
    return list({c.name: c for c in PARTS[part]()}.values())


def test_the_means_are_sound(tmp_path):
    """The good files are taken, and every pickle leaves the canary behind where Python unpickles it."""
    for name, data in (("net.safetensors", packed(*base())), ("net.npz", npz())):
        assert load(harness.write(name, data)(tmp_path))
    for data in pickles().values():
        pickle.loads(data)
        assert harness.CANARY.exists()
        harness.CANARY.unlink()


@pytest.mark.full
@pytest.mark.parametrize("part", PARTS)
def test_malformed_weights(part, tmp_path):
    harness.hold(cases(part), tmp_path)
