"""Images that are none, are damaged, claim too much, or would start a program."""

import functools
import io
import os
import struct
import warnings
import zlib
from itertools import islice
from pathlib import Path

import cv2
import harness
import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import pytest
from harness import Case

from recvis_jax import errors
from recvis_jax.data import builders, image_file, sources

SEED = 0


def load(path):
    """As `predict` does."""
    found = image_file.load(path)
    if found.data is None:
        raise errors.BadRequest(f"{path} cannot be read: {found.problem}.")


def case(what, name, data):
    make = harness.write(name, data)
    return Case(f"{name}, {what}", lambda folder: load(make(folder)), (name,))


@functools.cache
def picture(mode="RGB", size=(40, 24)):
    rng = np.random.default_rng(SEED)
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (*size[::-1], 3), np.uint8), (5, 5), 2)
    return PIL.Image.fromarray(pixels).convert(mode)


@functools.cache
def encoded(kind, mode="RGB", **options):
    out = io.BytesIO()
    picture(mode).save(out, kind, **options)
    return out.getvalue()


def kinds():
    """Name -> (bytes of a good picture, suffix)."""
    return {
        "jpeg": (encoded("JPEG", quality=90), "jpg"),
        "grey jpeg": (encoded("JPEG", "L"), "jpeg"),
        "progressive jpeg": (encoded("JPEG", progressive=True), "jpg"),
        "cmyk jpeg": (encoded("JPEG", "CMYK"), "jpg"),
        "png": (encoded("PNG"), "png"),
        "grey png": (encoded("PNG", "L"), "png"),
        "palette png": (encoded("PNG", "P"), "png"),
        "16-bit png": (_png16(), "png"),
        "alpha png": (encoded("PNG", "RGBA"), "png"),
        "gif": (encoded("GIF", "P"), "gif"),
        "bmp": (encoded("BMP"), "bmp"),
        "webp": (encoded("WEBP"), "webp"),
        "lossless webp": (encoded("WEBP", lossless=True), "webp"),
        "tiff": (encoded("TIFF"), "tif"),
        "deflated tiff": (encoded("TIFF", compression="tiff_adobe_deflate"), "tiff"),
        "ppm": (encoded("PPM"), "ppm"),
        "pgm": (encoded("PPM", "L"), "pgm"),
    }


def _png16():
    out = io.BytesIO()
    PIL.Image.fromarray(np.arange(40 * 24, dtype=np.uint16).reshape(24, 40) * 61).save(out, "PNG")
    return out.getvalue()


# --- damage, found by means that are not ours ---


def pixels_equal(a, b):
    """Whether Pillow decodes both to the same pixels."""
    try:
        with PIL.Image.open(io.BytesIO(a)) as x, PIL.Image.open(io.BytesIO(b)) as y:
            return x.size == y.size and x.convert("RGBA").tobytes() == y.convert("RGBA").tobytes()
    except Exception:
        return False


def libjpeg_complains(data):
    """Whether OpenCV's libjpeg refuses the bytes, or warns of them, which it does on the error stream itself."""
    read, write = os.pipe()
    kept = os.dup(2)
    os.dup2(write, 2)
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    finally:
        os.dup2(kept, 2)
        os.close(write), os.close(kept)
    with open(read, "rb") as f:
        return found is None or b"Corrupt JPEG data" in f.read()


def png_checks(data):
    """Whether every chunk of a png has the checksum that the format asks for, and the last is IEND."""
    at, last = 8, b""
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        if zlib.crc32(body).to_bytes(4, "big") != data[at + 8 + length : at + 12 + length]:
            return False
        at, last = at + 12 + length, body[:4]
    return data[:8] == b"\x89PNG\r\n\x1a\n" and at == len(data) and last == b"IEND"


def cut():
    for kind, (data, suffix) in kinds().items():
        for what, part in harness.cuts(data, 11).items():
            if not pixels_equal(part, data):  # the last byte of a file may be no loss
                yield case(f"{kind} cut to {what}", f"cat.{suffix}", part)


def flipped():
    rng = np.random.default_rng(SEED)
    for kind, count in (("jpeg", 40), ("grey jpeg", 15), ("progressive jpeg", 25)):
        data, suffix = kinds()[kind]
        bad = ((w, d) for w, d in harness.flips(data, rng) if libjpeg_complains(d))
        yield from (case(f"{kind}, {w} flipped", f"cat.{suffix}", d) for w, d in islice(bad, count))
    for kind in ("png", "grey png", "palette png", "16-bit png", "alpha png"):
        data, _ = kinds()[kind]
        bad = ((w, d) for w, d in harness.flips(data, rng) if not png_checks(d) and not pixels_equal(d, data))
        yield from (case(f"{kind}, {w} flipped", "cat.png", d) for w, d in islice(bad, 18))


def overwritten():
    """A stretch of zeros or noise in the middle, as a broken disk or download leaves it."""
    rng = np.random.default_rng(SEED)
    for kind in ("jpeg", "progressive jpeg", "png", "palette png", "deflated tiff"):
        data, suffix = kinds()[kind]
        for i in range(6):
            at, length = int(rng.integers(8, len(data) - 80)), int(rng.integers(24, 64))
            hole = bytes(length) if i % 2 else rng.bytes(length)
            bad = data[:at] + hole + data[at + length :]
            wrong = {"jpg": libjpeg_complains, "png": lambda d: not png_checks(d)}.get(suffix, _unreadable)
            if wrong(bad):
                yield case(f"{kind}, bytes {at} to {at + length} overwritten", f"cat.{suffix}", bad)


def _unreadable(data):
    try:
        with PIL.Image.open(io.BytesIO(data)) as x:
            x.load()
    except Exception:
        return True
    return False


# --- claims ---


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width, height, bits=8, colour=2, body=b""):
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", body or zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )


def jpeg_of(width, height, kind="jpeg"):
    """A small jpeg whose frame header claims another size."""
    data = bytearray(kinds()[kind][0])
    marker = b"\xff\xc2" if "progressive" in kind else b"\xff\xc0"
    at = bytes(data).index(marker)
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_of(width, height):
    data = bytearray(encoded("BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def gif_of(width, height):
    data = bytearray(encoded("GIF", "P"))
    data[6:10] = struct.pack("<HH", width, height)
    at = bytes(data).index(b",\0\0\0\0")
    data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def tiff_of(width, height):

    out = io.BytesIO()
    picture().save(out, "TIFF")
    data = out.getvalue()
    for tag, value in ((256, width), (257, height)):
        at = data.index(struct.pack("<H", tag))
        data = data[:at] + struct.pack("<HHII", tag, 4, 1, value) + data[at + 12 :]
    return data


def claims():
    huge = ((65500, 2700), (65500, 65500), (65535, 1300), (20000, 20000), (9500, 9500))
    for w, h in huge:
        for kind in ("jpeg", "progressive jpeg", "grey jpeg"):
            yield case(f"{kind} that claims {w}x{h}", "cat.jpg", jpeg_of(w, h, kind))
        yield case(f"gif that claims {w}x{h}", "cat.gif", gif_of(w, h))
        yield case(f"ppm that claims {w}x{h}", "cat.ppm", f"P6 {w} {h} 255\n".encode() + bytes(99))
        yield case(f"pbm that claims {w}x{h}", "cat.pbm", f"P4 {w} {h}\n".encode() + bytes(99))
    for w, h in (*huge, (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (1, 2**31 - 1), (2**32 - 1, 4), (100_000, 100_000)):
        yield case(f"png that claims {w}x{h}", "cat.png", png_of(w, h))
        yield case(f"tiff that claims {w}x{h}", "cat.tif", tiff_of(w, h))
    for w, h in (*huge, (2**31 - 1, 2**31 - 1), (2**31 - 1, -1), (-5, 7)):
        yield case(f"bmp that claims {w}x{h}", "cat.bmp", bmp_of(w, h))
    for w, h in ((0, 0), (0, 7), (7, 0)):
        yield case(f"png of {w}x{h}", "cat.png", png_of(w, h))
        yield case(f"bmp of {w}x{h}", "cat.bmp", bmp_of(w, h))
        yield case(f"gif of {w}x{h}", "cat.gif", gif_of(w, h))
        yield case(f"tiff of {w}x{h}", "cat.tif", tiff_of(w, h))
        yield case(f"ppm of {w}x{h}", "cat.ppm", f"P6 {w} {h} 255\n".encode())
        yield case(f"jpeg of {w}x{h}", "cat.jpg", jpeg_of(w, h))
    # Whole and honest, and far too large: 200 kB that are 1.6 or 0.4 gigapixels.
    for side, bits in ((40_000, 1), (20_000, 1)):
        row = bytes(1 + side // 8)
        packed = zlib.compressobj(9)
        body = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
        yield case(f"png that is {side}x{side}", "cat.png", png_of(side, side, bits, 0, body))
    for bits, colour in ((3, 0), (16, 3), (8, 5), (8, 255), (0, 2)):
        yield case(f"png of {bits} bits and colour type {colour}", "cat.png", png_of(8, 8, bits, colour))


# --- other things under an image's name ---

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
0 0 20 20 rectfill showpage
%%EOF
"""


def impostors():
    rng = np.random.default_rng(SEED)
    eps = {
        "eps": EPS,
        "ps": EPS.replace(b" EPSF-3.0", b""),
        "eps with a preview": b"\xc5\xd0\xd3\xc6"
        + struct.pack("<IIIIII", 30, len(EPS), 0, 0, 0, 0)
        + b"\xff\xff"
        + EPS,
        "eps with carriage returns": EPS.replace(b"\n", b"\r"),
        "eps of a huge box": EPS.replace(b"0 0 20 20\n", b"0 0 99999 99999\n"),
    }
    others = {
        "nothing": b"",
        "a space": b" ",
        "a zero": b"\0",
        "zeros": bytes(4096),
        "ones": b"\xff" * 4096,
        "noise": rng.bytes(4096),
        "text": b"This is not an image.\n" * 20,
        "html": b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8"/></svg>',
        "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
        "a shell script": b"#!/bin/sh\n: > " + str(harness.CANARY).encode() + b"\n",
        "msl": b'<?xml version="1.0"?><image><read filename="/etc/passwd"/></image>',
        "mvg": b"push graphic-context\nviewbox 0 0 640 480\nfill 'url(https://127.0.0.1/x\"|: > x\")'\npop graphic-context",
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(200),
        "emf": b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(200),
        "zip": b"PK\3\4" + bytes(60),
        "gzip": b"\x1f\x8b\x08" + bytes(60),
        "elf": b"\x7fELF" + bytes(60),
        "a pickle": b"cposix\nsystem\n(V: > " + str(harness.CANARY).encode() + b"\ntR.",
        "npy": b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 58 + b"\n",
        "mp4": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(200),
        "heic without a picture": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        "avif without a picture": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(100),
        "webp without a picture": b"RIFF\x1a\0\0\0WEBPVP8L\r\0\0\0\x2f\0\0\0\x10\x07\x10\x11\x11\x88\x88\xfe",
        "jpeg without a picture": b"\xff\xd8\xff\xd9",
        "jpeg with a header alone": encoded("JPEG")[:20] + b"\xff\xd9",
        "gif without a picture": b"GIF89a\x08\0\x08\0\0\0\0;",
        "png without a picture": b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
        "png without pixels": png_of(8, 8).replace(chunk(b"IDAT", zlib.compress(bytes(99))), b""),
        "png of too few pixels": png_of(64, 64),
        "png with a palette missing": png_of(8, 8, 8, 3, zlib.compress(bytes(72))),
        "tiff of nothing": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
        "tiff whose directory is itself": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "tiff whose directory is outside": b"II*\0\xff\xff\xff\x7f",
        "bmp of a header alone": encoded("BMP")[:54],
        "ppm of words": b"P6 many rows 255\n" + bytes(99),
        "ppm of a huge number": b"P6 " + b"9" * 5000 + b" 4 255\n",
        "ppm of colour zero": b"P6 8 8 0\n" + bytes(192),
    }
    for what, data in eps.items():
        for name in ("cat.jpg", "cat.png", "cat.tif", "cat.eps"):
            yield case(what, name, data)
    for what, data in others.items():
        for name in ("cat.jpg", "dog.png", "bird.webp")[: 1 if "without" in what or what in ("nothing",) else 3]:
            yield case(what, name, data)


def irregular():
    for name in ("cat.jpg", "dog.png"):
        for what, make in harness.irregular(name).items():
            yield Case(f"{name} is {what}", lambda folder, make=make: load(make(folder)), (name,))


@functools.cache
def cases():
    made = [f for part in (cut, flipped, overwritten, claims, impostors, irregular) for f in part()]
    return list({c.name: c for c in made}.values())


# --- tests ---


def test_the_means_are_sound():
    """Good pictures are taken, the checks find the damage they are for, and Ghostscript's stand-in tells on Pillow."""
    for data, suffix in kinds().values():
        assert not (libjpeg_complains if suffix in ("jpg", "jpeg") else _unreadable)(data)
        assert suffix != "png" or png_checks(data)
    assert libjpeg_complains(encoded("JPEG")[:-40]) and not png_checks(encoded("PNG")[:-4])
    PIL.EpsImagePlugin.gs_binary = None  # it remembers that there was none
    with warnings.catch_warnings(), pytest.raises(Exception), PIL.Image.open(io.BytesIO(EPS)) as eps:  # noqa: B017
        eps.load()
    assert harness.CANARY.exists()
    harness.CANARY.unlink()


@pytest.mark.parametrize("kind", kinds())
def test_good_pictures_are_taken(kind, tmp_path):
    data, suffix = kinds()[kind]
    path = tmp_path / f"cat.{suffix}"
    path.write_bytes(data)
    found = image_file.load(path)
    pixels = sources.decode(found.data, 3, "cat")
    assert found.problem == "" and pixels.shape == (24, 40, 3)


def test_malformed_images(tmp_path):
    harness.hold(cases(), tmp_path)


def test_a_folder_of_malformed_images(tmp_path):
    """`prepare` names each of them, leaves all out where it is told to, and starts nothing."""
    (tmp_path / "pets/a").mkdir(parents=True)
    (tmp_path / "pets/b").mkdir()
    for i in range(4):
        good = picture().rotate(90 * i, expand=True)
        good.save(tmp_path / f"pets/{'ab'[i % 2]}/good{i}.png")
    chosen = [c for c in cases() if not c.names[0].endswith(".eps") and not c.name.endswith("a folder")][::9]
    for i, c in enumerate(chosen):  # each writes its own file first, whatever is made of it
        own = tmp_path / "made" / str(i)
        own.mkdir(parents=True)
        harness.faults(c, own)
        (own / c.names[0]).rename(tmp_path / "pets/b" / f"bad{i:03}{Path(c.names[0]).suffix}")
    lines = []
    ask = functools.partial(
        builders.prepare, "folder", str(tmp_path / "data"), str(tmp_path / "pets"), folder_name="pets"
    )
    with pytest.raises(errors.BadRequest, match=rf"{len(chosen)} of {len(chosen) + 4} .*bad000") as e:
        ask(on_error="fail", say=lines.append)
    assert len(harness.printed(e.value)) < harness.LINE and not list(tmp_path.glob("data/pets/*/*"))
    target = ask(on_error="skip", say=lines.append)
    missed = [i for i in range(len(chosen)) if not any(f"bad{i:03}" in line for line in lines)]
    assert not missed and not harness.CANARY.exists()
    assert builders.summary(target).splits == {"train": 4}
