"""Image files that claim, hide or lack something, against Pillow and bytes made by hand."""

import gzip
import io
import os
import resource
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest

from recvis_jax import errors, reading
from recvis_jax.data import download, image_file, image_header, sources

RNG = np.random.default_rng(0)
# Something smooth, as photographs are: codes of every length occur.
PICTURE = (np.hypot(*np.mgrid[:60, :80]) * 2.5 + RNG.normal(0, 8, (60, 80))).clip(0, 255).astype(np.uint8)
PICTURE = np.stack([PICTURE, PICTURE.T.repeat(2, 1)[:60, :80].repeat(1, 0), 255 - PICTURE], -1)


def encoded(kind: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(PICTURE).save(out, kind, **options)
    return out.getvalue()


def load(data: bytes, tmp_path) -> image_file.Image:
    (tmp_path / "x.jpg").write_bytes(data)
    return image_file.load(tmp_path / "x.jpg")


KINDS = {
    "jpeg": dict(kind="JPEG"),
    "progressive": dict(kind="JPEG", progressive=True),
    "png": dict(kind="PNG"),
    "bmp": dict(kind="BMP"),
    "gif": dict(kind="GIF"),
    "webp": dict(kind="WEBP"),
    "lossless": dict(kind="WEBP", lossless=True),
    "tiff": dict(kind="TIFF"),
    "ppm": dict(kind="PPM"),
    "avif": dict(kind="AVIF"),
}


@pytest.mark.parametrize("name", KINDS)
def test_size_is_read_from_the_header(name):
    assert image_header.size(encoded(**KINDS[name])) == (None if name in ("tiff", "ppm", "avif") else (80, 60))
    assert image_file.is_readable_kind(encoded(**KINDS[name]))


def test_pillows_warnings_about_metadata_reach_nobody(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description of some length"
    data = encoded(exif=exif.tobytes()[:-8])
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.warns(UserWarning, match="Truncated File Read"), PIL.Image.open(tmp_path / "x.jpg") as image:
        image.getexif()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_file.upright_size(tmp_path / "x.jpg") == (60, 80)
        assert image_file.is_readable_kind(data) and image_file.load(tmp_path / "x.jpg").data


@pytest.mark.parametrize("name", KINDS)
def test_too_many_pixels_are_refused_before_they_are_decoded(name, tmp_path, monkeypatch):
    data = encoded(**KINDS[name])
    assert load(data, tmp_path).data
    monkeypatch.setitem(reading.LIMITS, "image pixels", 4799)
    monkeypatch.setattr(PIL.Image.Image, "load", None)
    monkeypatch.setattr("cv2.imdecode", None)
    assert load(data, tmp_path).problem == "has 80 x 60 pixels; at most 4,799 are decoded"
    with pytest.raises(errors.BadRequest, match=r"^example 3 has 80 x 60 pixels; at most 4,799 are decoded\."):
        sources.decode(data, 3, "example 3")


def claims(width: int, height: int) -> bytes:
    """A jpeg whose header says another size than its data are of."""
    data = bytearray(encoded())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bombs() -> dict[str, bytes]:
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(width, height, *chunks):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")

    packed = zlib.compress(bytes(2**24), 9)
    webp = bytearray(encoded("WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", 16383 | 16383 << 14)
    gif = bytearray(encoded("GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp = bytearray(encoded("BMP"))
    bmp[18:26] = struct.pack("<ii", 30000, -30000)
    tags = {256: 80, 257: 60, 258: 8, 259: 5, 262: 1, 277: 1, 322: 40000, 323: 40000, 324: 200, 325: 10}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    scans = encoded(progressive=True)
    at = scans.rindex(b"\xff\xda")
    return {
        "868 bytes of jpeg": claims(65500, 2700),
        "jpeg below the limit": claims(8000, 8000),
        "png": png(60000, 60000, chunk(b"IDAT", packed)),
        "text": png(8, 6, chunk(b"zTXt", b"a\0\0" + packed), chunk(b"IDAT", packed[:9])),
        "profile": png(8, 6, chunk(b"iCCP", b"a\0\0" + packed), chunk(b"IDAT", packed[:9])),
        "webp": bytes(webp),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "ppm": b"P6 90000 90000 255\n" + bytes(99),
        "tiles": b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + fields + bytes(99),
        "scans": scans[:at] + 200 * scans[at:-2] + b"\xff\xd9",
    }


@pytest.mark.parametrize("name", bombs())
def test_small_files_do_not_become_large_images(name, tmp_path):
    data = bombs()[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = load(data, tmp_path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert found.data is None and found.problem and len(found.problem) < 200 and found.problem.isprintable()
    assert grown < 100_000, "kilobytes"


def test_what_is_claimed_is_named(tmp_path):
    found = bombs()
    problem = "has 65,500 x 2,700 pixels; at most 80,000,000 are decoded"
    assert load(found["868 bytes of jpeg"], tmp_path).problem == problem
    assert "bytes cannot hold: premature end of data" in load(found["jpeg below the limit"], tmp_path).problem
    assert load(found["tiles"], tmp_path).problem == "has tiles of 40,000 x 40,000 pixels"
    assert load(found["scans"], tmp_path).problem.endswith("scans; at most 100 are decoded")


def test_what_ends_too_early_is_named(tmp_path):
    for options in (KINDS["jpeg"], KINDS["progressive"], KINDS["png"], KINDS["bmp"], KINDS["gif"], KINDS["ppm"]):
        data = encoded(**options)
        for share in (0.5, 0.9, 0.98):
            text = load(data[: int(len(data) * share)], tmp_path).problem
            assert "premature end of data" in text or "damaged" in text, (options, share, text)
    for name in ("webp", "tiff", "avif"):
        data = encoded(**KINDS[name])
        assert load(data[: len(data) * 4 // 5], tmp_path).problem.startswith(f"damaged {name}")


def bits(data: bytes, first: int, last: int, count: int = 40) -> list[bytes]:
    """Copies of `data` with one bit changed between two places."""
    out = []
    for k in np.random.default_rng(1).integers(first * 8, last * 8, count).tolist():
        changed = bytearray(data)
        changed[k // 8] ^= 1 << k % 8
        out.append(bytes(changed))
    return out


def test_damaged_data_of_jpegs_are_found(tmp_path, capfd):
    """Wherever libjpeg notices, which Pillow keeps to itself; codes fall in step again after most single bits."""
    for options in (KINDS["jpeg"], KINDS["progressive"]):
        data = encoded(**options)
        start = data.index(b"\xff\xda") + 20
        found = [load(d, tmp_path) for d in bits(data, start, len(data) - 2)]
        problems = {f.problem for f in found if f.data is None}
        assert problems and all(p.startswith("damaged jpeg: ") for p in problems)
    half = len(data) // 2
    zeros = [load(data[:half] + bytes(n) + data[half + n :], tmp_path) for n in (8, 40, 200)]
    assert all(f.data is None for f in zeros), "stretches of zeros, as a disk may leave them"
    assert capfd.readouterr() == ("", ""), "nothing of it reaches the terminal by itself"


def test_every_changed_bit_of_a_png_is_found(tmp_path):
    data = encoded("PNG")
    assert all(load(d, tmp_path).data is None for d in bits(data, data.index(b"IDAT"), len(data)))


def test_harmless_oddities_of_jpegs_are_taken(tmp_path):
    """Zeros before the end, and whatever follows it: cameras and phones write such."""
    data = encoded()
    odd = {
        "zeros": data[:-2] + bytes(9) + data[-2:],
        "video": data + b"ftypmp42" + b"\xff\xda" * 500,
        "comment": data[:2] + b"\xff\xfe\x07\xd2" + b"\xff\xda" * 1000 + data[2:],
    }
    for name, changed in odd.items():
        found = load(changed, tmp_path)
        assert found.data == changed and found.pixels == load(data, tmp_path).pixels, (name, found.problem)


def test_complaints_do_not_swallow_what_python_writes(tmp_path, capfd):
    with image_file._complaints() as said:
        print("a warning", file=__import__("sys").stderr)
        os.write(2, b"Corrupt JPEG data: premature end of data segment\nlibpng warning: x\n")
    assert said == ["Corrupt JPEG data: premature end of data segment"]
    load(encoded(), tmp_path)
    assert "libpng" not in capfd.readouterr().err


def test_many_at_once_are_as_one_by_one(tmp_path):
    data = encoded()
    broken = next(d for d in bits(data, data.index(b"\xff\xda") + 20, len(data) - 2) if load(d, tmp_path).problem)
    paths = [tmp_path / f"{k}.jpg" for k in range(6)]
    for path, content in zip(paths, (data, broken, encoded("PNG"), data[:500], b"", data), strict=True):
        path.write_bytes(content)
    assert list(image_file.load_all(paths)) == [image_file.load(p) for p in paths]


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("suffix", ["pgm", "png", "tif"])
def test_grey_of_16_bits_keeps_its_high_byte(depth, suffix, tmp_path):
    import cv2

    values = np.arange(48).reshape(6, 8) * (5 if depth == 8 else 1365)
    cv2.imwrite(str(tmp_path / f"x.{suffix}"), values.astype(f"uint{depth}"))
    found = image_file.load(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(sources.decode(found.data, 1, "x")[..., 0], values >> (depth - 8))


@pytest.mark.parametrize("suffix", ["eps", "pdf", "psd", "ico", "tga", "jp2", "icns", "dds"])
def test_other_formats_of_pillow_are_not_read(suffix, tmp_path, monkeypatch):
    """Whatever a file is called, and though Pillow would read it."""
    path = tmp_path / f"x.{suffix}"
    try:
        PIL.Image.fromarray(PICTURE).save(path)
    except (ValueError, KeyError, OSError):
        path.write_bytes(b"8BPS\0\1" + bytes(40))
    monkeypatch.setattr("subprocess.Popen", None)
    found = load(path.read_bytes(), tmp_path)
    assert found.data is None and "not an image in a supported format" in found.problem
    with pytest.raises(errors.BadRequest, match=r"^example 1 does not decode as an image"):
        sources.decode(path.read_bytes(), 3, "example 1")


def test_archives_are_unpacked_within_limits(tmp_path, monkeypatch):
    file = download.RawFile("x.gz", "0", (), gzipped=True)
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(2**20)))
    monkeypatch.setitem(reading.LIMITS, "archive bytes", 2**16)
    with pytest.raises(ValueError, match=r"x\.gz unpacks to more than 65,536 bytes, the limit"):
        download.content(tmp_path / "x.gz", file)
    (tmp_path / "x.gz").write_bytes(bytes(2**17))
    with pytest.raises(ValueError, match=r"x\.gz has 131,072 bytes; at most 65,536 are read"):
        download.content(tmp_path / "x.gz", file)
