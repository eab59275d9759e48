"""Folders of images as data sets, against stock tfds, Pillow and files made here."""

import functools
import io
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import programs
import pytest
import tensorflow_datasets as tfds

from recvis_jax import errors, reading
from recvis_jax.data import builders, folder, folder_set, image_file, sources, writing

RNG = np.random.default_rng(0)


def stock(name: str, root: Path):
    kwargs = {"file_format": "array_record"}
    return tfds.data_source(name, data_dir=str(root), builder_kwargs=kwargs, download=False)


@pytest.fixture
def lines():
    """Collects what `prepare` says."""
    return []


# Folders of images.


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 6), **options) -> bytes:
    """Writes a random picture in the format of the suffix and returns the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)
    image.save(path, **options)
    return path.read_bytes()


def examples(root: Path, name: str, split: str = "train") -> dict[str, dict]:
    return {e["id"].decode("utf-8", "surrogateescape"): e for e in stock(name, root)[split]}


def test_folder_with_odd_names(tmp_path, lines):
    source = tmp_path / "Мои Pictures 2"
    kept = {
        "кошка/a b.JPG": picture(source / "кошка" / "a b.JPG"),
        "кошка/same.png": picture(source / "кошка" / "same.png", size=(5, 9)),
        "Dog, big/same.png": picture(source / "Dog, big" / "same.png"),
        "Dog, big/deeper/ünï.jpeg": picture(source / "Dog, big" / "deeper" / "ünï.jpeg", mode="L"),
    }
    (source / "Dog, big" / os.fsdecode(b"\xff.jpg")).write_bytes(kept["кошка/a b.JPG"])
    for name in ("notes.txt", ".DS_Store", ".hidden.png"):
        (source / "кошка" / name).write_text("x")
    (source / ".git").mkdir()
    picture(source / "loose.png")
    directory = builders.prepare("folder", tmp_path / "data", source, say=lines.append)
    assert directory == tmp_path / "data" / "pictures_2" / "1.0.0"
    assert builders.summary(directory) == ("pictures_2", "1.0.0", {"train": 5}, ("Dog, big", "кошка"))
    read = examples(tmp_path / "data", "pictures_2")
    assert set(read) == {*kept, "Dog, big/" + os.fsdecode(b"\xff.jpg")}
    for name, data in kept.items():
        expected = PIL.Image.open(io.BytesIO(data)).convert("RGB")
        close = 0 if name.endswith("png") else 4  # two jpeg decoders may differ a little
        np.testing.assert_allclose(read[name]["image"].astype(int), np.asarray(expected).astype(int), atol=close)
        assert read[name]["label"] == ("кошка" in name)
    assert "ignored 1 images outside any class folder" in lines[0]
    assert "ignored 1 files that are not images" in lines[1] and "notes.txt" in lines[1]
    assert lines[2] == "ignored 2 hidden files"


def test_bytes_of_jpeg_and_png_are_kept(tmp_path, lines):
    raw = {f"a/{n}": picture(tmp_path / "set" / "a" / n) for n in ("1.jpg", "2.png")}
    raw["b/3.png"] = picture(tmp_path / "set" / "b" / "3.png", mode="L")
    directory = builders.prepare("folder", tmp_path / "data", tmp_path / "set", folder_name="mine", say=lines.append)
    source = tfds.builder_from_directory(directory).as_data_source(
        split="train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert {e["id"].decode(): e["image"] for e in source} == raw
    assert lines == []


SIXTEEN = (np.arange(48).reshape(6, 8) * 1365).astype(np.uint16)
UNUSUAL = {
    "rgba.png": "RGBA",
    "la.png": "LA",
    "palette.png": "P",
    "bits.png": "1",
    "cmyk.jpg": "CMYK",
    "grey.bmp": "L",
    "a.bmp": "RGB",
    "a.gif": "P",
    "a.webp": "RGB",
    "a.tiff": "RGB",
    "a.ppm": "RGB",
    "a.avif": "RGB",
}


def test_unusual_images_read_as_three_channels_of_eight_bits(tmp_path, lines):
    folder = tmp_path / "set" / "a"
    for name, mode in UNUSUAL.items():
        picture(folder / name, mode)
    PIL.Image.fromarray(SIXTEEN).save(folder / "sixteen.png")
    PIL.Image.fromarray(SIXTEEN).save(folder / "sixteen.tif")
    import cv2

    cv2.imwrite(str(folder / "sixteen_rgb.png"), np.stack([SIXTEEN, SIXTEEN[::-1], SIXTEEN // 2], -1))
    picture(folder / "key.png", transparency=(1, 2, 3))
    PIL.Image.open(folder / "a.bmp").quantize(4).save(folder / "palette2.png", bits=2)
    PIL.Image.open(folder / "a.webp").save(folder / "really_webp.jpg", format="WEBP", lossless=True)
    builders.prepare("folder", tmp_path / "data", tmp_path / "set", folder_name="mine", say=lines.append)
    read = examples(tmp_path / "data", "mine")
    count = len(UNUSUAL) + 6
    assert len(read) == count
    assert f"{count} images were stored as png, not being 8-bit grey or RGB jpeg/png" in lines
    high = (SIXTEEN >> 8).astype(np.uint8)
    for name, example in read.items():
        if name in ("a/sixteen.png", "a/sixteen.tif"):
            expected = np.repeat(high[..., None], 3, -1)
        elif name == "a/sixteen_rgb.png":
            expected = np.stack([(SIXTEEN // 2 >> 8).astype(np.uint8), high[::-1], high], -1)  # OpenCV writes BGR
        else:
            expected = np.asarray(PIL.Image.open(tmp_path / "set" / name).convert("RGB"))
        assert example["image"].dtype == np.uint8
        np.testing.assert_array_equal(example["image"], expected, err_msg=name)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_grey_levels(bits, tmp_path):
    """Packed grey pixels, whether their bytes are kept or not, read as Pillow reads them."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (
        b"".join(b"\0" + bytes(RNG.integers(0, 256, bits, np.uint8)) for _ in range(5)) + b"\0" + bits * b"\xff"
    )  # 8 pixels a row
    header = struct.pack(">IIBBBBB", 8, 6, bits, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path = tmp_path / "few.png"
    path.write_bytes(data)
    image = image_file.load(path)
    decoded = tfds.features.Image(shape=(None, None, 3)).decode_example_np(image.data)
    np.testing.assert_array_equal(decoded, np.asarray(PIL.Image.open(path).convert("L").convert("RGB")))
    assert len(np.unique(decoded)) > 1 and decoded.max() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(orientation, tmp_path, lines):
    """As Pillow's own `exif_transpose` turns them, in every format that may carry an orientation."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    kinds = ("jpg", "png", "webp", "tif", "avif")
    raw = {f"a/1.{k}": picture(tmp_path / "set" / "a" / f"1.{k}", exif=exif) for k in kinds}
    builders.prepare("folder", tmp_path / "data", tmp_path / "set", folder_name="mine", say=lines.append)
    for name, example in examples(tmp_path / "data", "mine").items():
        with PIL.Image.open(io.BytesIO(raw[name])) as image:
            image.load()
            upright = np.asarray(PIL.ImageOps.exif_transpose(image).convert("RGB"))
        assert upright.shape == ((8, 6, 3) if orientation > 4 else (6, 8, 3))
        np.testing.assert_array_equal(example["image"], upright, err_msg=name)
    turned = [x for x in lines if x.startswith("5 images were turned by their EXIF orientation")]
    assert len(turned) == (orientation > 1)
    kept = [image_file.load(tmp_path / "set" / name).data == data for name, data in raw.items()]
    assert kept == ([True, True, False, False, False] if orientation == 1 else [False] * 5)


@pytest.fixture
def damaged(tmp_path):
    """A folder of 12 good and 8 bad images: returns it and the bad ones."""
    source = tmp_path / "damaged"
    for k in range(12):
        picture(source / "ab"[k % 2] / f"{k}.png", size=(40, 30))
    jpeg, png = picture(source / "a" / "short.jpg", size=(64, 64)), picture(source / "a" / "short.png", size=(64, 64))
    (source / "a/short.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (source / "a/short.png").write_bytes(png[: len(png) // 2])
    (source / "b/zero.JPG").touch()
    (source / "b/text.jpeg").write_text("hello")
    (source / "b/phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (source / "b/gone.png").symlink_to(tmp_path / "nowhere.png")
    PIL.Image.fromarray(RNG.random((4, 4), np.float32)).save(source / "b/float.tiff")
    flipped = bytearray(picture(source / "a/crc.png", size=(64, 64)))
    flipped[len(flipped) // 2] ^= 255
    (source / "a/crc.png").write_bytes(flipped)
    bad = ["a/short.jpg", "a/short.png", "a/crc.png", "b/zero.JPG", "b/text.jpeg", "b/phone.heic", "b/gone.png"]
    return source, [*bad, "b/float.tiff"]


def test_bad_images_fail_all_named_and_leave_nothing(damaged, tmp_path, lines):
    source, bad = damaged
    with pytest.raises(errors.BadRequest) as e:
        builders.prepare("folder", tmp_path / "data", source, say=lines.append)
    text = str(e.value)
    assert text.startswith("8 of 20 images cannot be read") and "--on_error=skip" in text
    assert all(str(source / b) in text for b in bad) and "zero bytes" in text and "No such file" in text
    assert "phone.heic (HEIC, not an image in a supported format" in text and "; export it as jpeg)" in text
    assert list((tmp_path / "data").iterdir()) == []


def test_bad_images_are_skipped_if_asked(damaged, tmp_path, lines):
    source, bad = damaged
    directory = builders.prepare("folder", tmp_path / "data", source, on_error="skip", say=lines.append)
    assert len(examples(tmp_path / "data", "damaged")) == 12
    assert len([x for x in lines if x.startswith("skipped /")]) == 8 and "skipped 8 of 20 images" in lines
    assert set(writing.recorded(directory)["skipped"]) == {f"train/{b}" for b in bad}
    builders.prepare("folder", tmp_path / "data", source, say=lines.append)
    assert "already prepared" in lines[-1]


def test_many_bad_images_are_counted(tmp_path, lines):
    for k in range(30):
        (tmp_path / "set" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "a" / f"{k:02}.jpg").touch()
    with pytest.raises(errors.BadRequest, match=r"^30 of 30 .*19.jpg \(zero bytes\) and 10 more"):
        builders.prepare("folder", tmp_path / "data", tmp_path / "set", folder_name="mine", say=lines.append)
    picture(tmp_path / "set" / "b" / "good.png")
    with pytest.raises(errors.BadRequest, match="classes without a readable image: a"):
        builders.prepare(
            "folder", tmp_path / "data", tmp_path / "set", folder_name="mine", on_error="skip", say=lines.append
        )
    assert list((tmp_path / "data").iterdir()) == []


def test_splits(tmp_path, lines):
    source = tmp_path / "set"
    for split, classes in {"Train": "abc", "valid": "ab", "test": "abc"}.items():
        for c in classes:
            picture(source / split / c / "1.png")
    directory = builders.prepare("folder", tmp_path / "data", source, folder_name="mine", say=lines.append)
    found = builders.summary(directory)
    assert list(found.splits.items()) == [("train", 3), ("validation", 2), ("test", 3)] and found.class_names == tuple(
        "abc"
    )
    assert lines == ["validation has no images of c"]
    picture(source / "test" / "dog" / "1.png")
    with pytest.raises(errors.BadRequest, match="test that train does not have: dog"):
        builders.prepare("folder", tmp_path / "data", source, folder_name="mine", say=lines.append)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("car", "train", "test"):
        picture(tmp_path / name / "1.png")
    assert folder.scan(tmp_path).classes == ("car", "test", "train")


def make(tmp_path: Path, *paths: str) -> Path:
    source = tmp_path / "set"
    source.mkdir(parents=True)
    for path in paths:
        if path.endswith("/"):
            (source / path).mkdir(parents=True)
        else:
            picture(source / path)
    return source


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "no class folders"),
        (("a.png", "b.png"), "no class folders, its images are directly in it"),
        (("a/1.png", "b/"), "classes without images: b"),
        (("a/", "b/"), "holds no images"),
        (("train/a/1.png", "val/"), "beside them val"),
        (("train/a/1.png", "masks/1.png"), "beside them masks"),
        (("train/a/1.png", "val/a/1.png", "valid/a/1.png"), "the same split under two names: val, valid"),
        (("pictures/a/1.png", "pictures/b/1.png"), "did you mean --source=.*set/pictures"),
        ((" a/1.png", "b/1.png"), "cannot be a class name"),
    ],
)
def test_folders_that_will_not_do(paths, message, tmp_path, lines):
    source = make(tmp_path, *paths)
    with pytest.raises(errors.BadRequest, match=message):
        builders.prepare("folder", tmp_path / "data", source, folder_name="mine", say=lines.append)


def test_requests_that_will_not_do(tmp_path, lines):
    picture(tmp_path / "set" / "a" / "1.png")
    for arguments, message in [
        ({"name": "folder", "source": tmp_path / "none"}, "does not exist"),
        ({"name": "folder", "source": tmp_path / "set" / "a" / "1.png"}, "is not a folder"),
        ({"name": "folder"}, "needs --source"),
        ({"name": "folder", "source": tmp_path / "set", "folder_name": "My set"}, "--name=My set is not a valid name"),
        ({"name": "folder", "source": tmp_path / "set", "folder_name": "mnist"}, "is a data set of tfds"),
        ({"name": "folder", "source": tmp_path / "set", "folder_name": "imagenette"}, "such as my_imagenette"),
        ({"name": "fashon_mnist"}, "Did you mean 'fashion_mnist'"),
        ({"name": "mnist", "folder_name": "x"}, "--name is for --dataset=folder"),
        ({"name": "mnist", "on_error": "ignore"}, "--on_error"),
        ({"name": "mnist", "data_dir": "gs://bucket/data"}, "not a local folder"),
    ]:
        with pytest.raises(errors.BadRequest, match=message):
            builders.prepare(**{"data_dir": tmp_path / "data", "say": lines.append, **arguments})


def test_a_folder_that_changed(tmp_path, lines):
    source, root = make(tmp_path, "a/1.png", "b/2.png"), tmp_path / "data"
    builders.prepare("folder", root, source, folder_name="mine", say=lines.append)
    builders.prepare("folder", root, source, folder_name="mine", say=lines.append)
    assert "already prepared" in lines[-1] and "2 examples" in lines[-1]
    picture(source / "b" / "2.png")  # the same name and size, other pixels
    with pytest.raises(errors.BadRequest, match="another data set of the same name, 2 examples; use --overwrite"):
        builders.prepare("folder", root, source, folder_name="mine", say=lines.append)
    picture(source / "b" / "3.png")
    builders.prepare("folder", root, source, folder_name="mine", overwrite=True, say=lines.append)
    assert set(examples(root, "mine")) == {"a/1.png", "b/2.png", "b/3.png"}
    assert [p.name for p in root.iterdir()] == ["mine"]


def test_order_does_not_depend_on_shards(tmp_path, monkeypatch, lines):
    source = make(tmp_path, *(f"{c}/{k}.png" for c in "ab" for k in range(9)))
    builders.prepare("folder", tmp_path / "one", source, folder_name="mine", say=lines.append)
    monkeypatch.setattr(folder_set, "_shards", lambda found, split: 4)
    directory = builders.prepare("folder", tmp_path / "four", source, folder_name="mine", say=lines.append)
    assert len(list(directory.glob("*array_record*"))) == 4
    assert list(examples(tmp_path / "one", "mine")) == list(examples(tmp_path / "four", "mine"))


def test_shards_of_large_folders():
    images = {"train": tuple(map(str, range(1_281_167))), "validation": tuple(map(str, range(50_000)))}
    found = folder.Folder((), {}, images, 150 * 10**9, ())
    assert folder_set._shards(found, "train") == 1024 and folder_set._shards(found, "validation") == 32


def test_killed_in_between(tmp_path, lines):
    """A killed preparation leaves nothing that looks like a data set, and the next one clears up after it."""
    for k in range(40):
        picture(tmp_path / "pictures" / "ab"[k % 2] / f"{k}.png")
    root = tmp_path / "data"
    program = f"""
import os, time
from recvis_jax.data import builders, image_file
load = image_file._load
def slow(path, *rest):
    if path.stem == "39":
        os.write(1, b"writing\\n")
        time.sleep(60)
    return load(path, *rest)
image_file._load = slow
builders.prepare("folder", {str(root)!r}, {str(tmp_path / "pictures")!r})
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        waiting = threading.Thread(
            target=builders.prepare, args=("folder", root, tmp_path / "pictures"), kwargs={"say": lines.append}
        )
        waiting.start()
        while not lines:
            time.sleep(0.01)
        assert lines == [f"waiting for another preparation in {root}"]
        assert list(root.glob("*/*/dataset_info.json")) == [] and [p.name for p in root.iterdir()] == [
            ".incomplete-pictures"
        ]
        process.send_signal(signal.SIGKILL)
        process.wait()
    waiting.join()
    assert [p.name for p in root.iterdir()] == ["pictures"]
    assert len(stock("pictures", root)["train"]) == 40


# What a folder may hold besides images.


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A stand-in for Ghostscript on the path: returns the file that it would leave behind."""
    tools, mark = tmp_path / "tools", tmp_path / "gs was started"
    tools.mkdir()
    for name in ("gs", "gswin64c", "gswin32c", "convert", "magick", "dcraw"):
        (tools / name).write_text(f"#!/bin/sh\necho $0 >> '{mark}'\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return mark


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n%!\n64 64 scale\nshowpage\n%%EOF\n"


def test_what_is_no_image_starts_nothing(canary, program, tmp_path, lines):
    """EPS under any name, and files that are not regular: neither run nor waited for."""
    source = make(tmp_path, "a/good.png", "b/good.png")
    (source / "a/cat.jpg").write_bytes(EPS)
    (source / "a/cat.png").write_bytes(b"\xc5\xd0\xd3\xc6" + (32).to_bytes(4, "little") + bytes(24) + EPS)
    (source / "b/doc.jpeg").write_bytes(b"%PDF-1.4\n")
    os.mkfifo(source / "b/pipe.jpg")
    (source / "b/zero.png").symlink_to("/dev/zero")
    (source / "b/null.png").symlink_to("/dev/null")
    (source / "b/folder.png").mkdir()
    (source / "b/loop").symlink_to(source / "b")
    (source / "b/up").symlink_to("/")
    (source / "b/self.png").symlink_to("self.png")
    with (source / "b/huge.png").open("wb") as f:
        f.truncate(2**40)
    builders.prepare("folder", tmp_path / "data", source, folder_name="mine", on_error="skip", say=lines.append)
    assert set(examples(tmp_path / "data", "mine")) == {"a/good.png", "b/good.png"}
    said = {Path(x.split(" (")[0]).name: x for x in lines if x.startswith("skipped /")}
    assert set(said) == {
        "cat.jpg", "cat.png", "doc.jpeg", "pipe.jpg", "zero.png", "null.png", "self.png", "huge.png",
    }  # fmt: skip
    assert "PostScript, not an image in a supported format: jpeg, png" in said["cat.jpg"]
    assert "a named pipe, not a regular file" in said["pipe.jpg"]
    assert "a device, not a regular file" in said["zero.png"]
    assert "1,099,511,627,776 bytes; at most" in said["huge.png"]
    env = {"RECVIS_DATA_DIR": str(tmp_path / "data"), "PATH": os.environ["PATH"]}
    got = program("prepare", "--dataset=folder", f"--source={source}", "--name=other", **env)
    assert got.code == 2 and got.err.startswith("error: 8 of 10 images cannot be read: ") and got.err.count("\n") == 1
    assert not canary.exists()


@pytest.mark.parametrize("source", ["/proc", "/proc/self/fd", "/sys", "/sys/class", "/dev/fd"])
def test_what_the_kernel_makes_up_is_not_read(source, tmp_path, lines):
    with pytest.raises(errors.BadRequest, match=r"belongs to the kernel \((proc|sysfs)\), not a folder of images"):
        builders.prepare("folder", tmp_path, source, folder_name="mine", say=lines.append)


def test_limits_of_a_folder(tmp_path, monkeypatch):
    source = make(tmp_path, "a/1.png", "b/c/d/e/1.png")
    with monkeypatch.context() as m:
        m.setitem(reading.LIMITS, "depth", 2)
        with pytest.raises(errors.BadRequest, match="set/b holds folders nested more than 2 deep"):
            folder.scan(source)
    monkeypatch.setitem(reading.LIMITS, "entries", 2)
    with pytest.raises(errors.BadRequest, match="set/b holds more than 2 files and folders"):
        folder.scan(source)


# Names.


def test_names_that_print_alike(tmp_path, lines):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    source = make(tmp_path, f"{composed}/1.png", f"{decomposed}/2.png")
    with pytest.raises(errors.BadRequest, match=r"print alike, 'caf.*\(U\+0301; U\+00E9\): join or rename"):
        folder.scan(source)


def test_one_class_written_in_two_forms(tmp_path, lines):
    """Splits made on a Mac and elsewhere: the class is the same, and has the composed name."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    names = (f"train/{decomposed}/1.png", "train/tea/1.png", f"test/{composed}/2.png", "test/tea/2.png")
    source = make(tmp_path, *names)
    directory = builders.prepare("folder", tmp_path / "data", source, folder_name="mine", say=lines.append)
    assert builders.summary(directory).class_names == (composed, "tea")
    for split, form in (("train", decomposed), ("test", composed)):
        found = examples(tmp_path / "data", "mine", split)
        assert {name: e["label"] for name, e in found.items()} == {
            f"{form}/{'1' if split == 'train' else '2'}.png": 0, f"tea/{'1' if split == 'train' else '2'}.png": 1,
        }  # fmt: skip


def test_classes_of_almost_one_name_are_said(tmp_path):
    source = make(tmp_path, "Cat/1.png", "cat/2.png", "\uff23at/3.png", "dog/4.png")
    (note,) = folder.scan(source).notes
    assert note == "note: Cat and cat and \uff23at are two classes with similar names"
    source = make(tmp_path / "other", "train/Cat/1.png", "test/cat/1.png")
    with pytest.raises(errors.BadRequest, match=r"that train does not have: cat\. Did you mean 'Cat'"):
        folder.scan(source)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "\x07bell", "a\u202egnp", "a\u2028b", "a\x85b", "a\u2066b"])
def test_class_names_that_move_the_cursor(name, tmp_path):
    with pytest.raises(errors.BadRequest, match="cannot be a class name: it has control characters") as e:
        folder.scan(make(tmp_path, f"{name}/1.png", "b/1.png"))
    assert str(e.value).isprintable()


def test_names_of_files_are_printed_as_escapes(program, tmp_path):
    source = make(tmp_path, "a/1.png", "b/2.png", "b/\x1b]0;title\x07.png")
    (source / "b/\x1b[2J\n.png").write_bytes(b"x")
    (source / "\x1b[2J.txt").touch()
    for flags in ((), ("--on_error=skip",)):
        got = program("prepare", "--dataset=folder", f"--source={source}", f"--data_dir={tmp_path / 'data'}", *flags)
        assert got.code == (0 if flags else 2)
        assert "\\x1b[2J\\n.png (not an image" in got.out + got.err
        assert all(line.isprintable() for line in (got.out + got.err).splitlines())
    assert len(examples(tmp_path / "data", "set")) == 3


# The same picture twice.


def copies(tmp_path, *pairs: str) -> Path:
    """A folder with splits and classes a and b, and copies "from>to" of pictures in it."""
    source = make(tmp_path, *(f"{s}/{c}/{i}.png" for s in ("train", "val", "test") for c in "ab" for i in range(2)))
    for pair in pairs:
        old, new = pair.split(">")
        with PIL.Image.open(source / old) as image:
            image.save(source / new)  # in the format of the name: of the pixels, not of the bytes
    return source


def test_the_same_picture_in_two_splits(tmp_path, lines):
    source = copies(tmp_path, "train/a/0.png>test/a/x.bmp", "val/b/1.png>train/b/y.tiff", "val/b/1.png>test/b/y.ppm")
    prepare = functools.partial(
        builders.prepare, "folder", tmp_path / "data", source, folder_name="mine", say=lines.append
    )
    with pytest.raises(
        errors.BadRequest, match=r"^2 pictures .* more than one split \(such as test/a/x.bmp = train/a/0"
    ):
        prepare()
    assert list((tmp_path / "data").iterdir()) == []
    prepare(on_duplicate="keep")
    assert "note: 2 pictures are in more than one split" in " ".join(lines)
    assert [len(examples(tmp_path / "data", "mine", s)) for s in ("train", "validation", "test")] == [5, 4, 6]
    with pytest.raises(errors.BadRequest, match="was prepared with --duplicates=keep; use --overwrite"):
        prepare(on_duplicate="drop")
    directory = prepare(on_duplicate="drop", overwrite=True)
    assert "left out 3 copies of pictures" in lines
    dropped = {"train/a/0.png", "train/b/y.tiff", "validation/b/1.png"}
    assert set(writing.recorded(directory)["dropped"]) == dropped
    left = {f"{s}/{n}" for s in ("train", "validation", "test") for n in examples(tmp_path / "data", "mine", s)}
    assert len(left) == 12 and not left & dropped


def test_the_same_picture_under_two_classes(tmp_path, lines):
    source = make(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(3)))
    shutil.copy(source / "a/0.png", source / "b/x.png")
    shutil.copy(source / "a/1.png", source / "a/y.png")
    builders.prepare("folder", tmp_path / "data", source, folder_name="mine", say=lines.append)
    assert len(lines) == 2 and len(examples(tmp_path / "data", "mine")) == 8
    assert lines[0].startswith("note: 1 picture is under more than one class (such as train/a/0.png = train/b/x.png)")
    assert lines[1].startswith("note: 1 picture is more than once in one split (such as train/a/1.png = train/a/y.png)")
    builders.prepare(
        "folder", tmp_path / "data", source, folder_name="mine", on_duplicate="drop", overwrite=True, say=lines.append
    )
    assert set(examples(tmp_path / "data", "mine")) == {"a/1.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png"}


def test_a_class_of_copies_alone(tmp_path, lines):
    source = make(tmp_path, "train/a/0.png", "train/b/0.png", "test/a/1.png", "test/b/1.png")
    shutil.copy(source / "test/a/1.png", source / "train/a/0.png")
    with pytest.raises(errors.BadRequest, match="train has classes whose images are all copies of others: a"):
        builders.prepare("folder", tmp_path, source, folder_name="mine", on_duplicate="drop", say=lines.append)


# The program, and what it says is next.


def prepared(program, source: Path, data: Path, *flags: str) -> tuple[list[str], str]:
    """Prepares a folder: returns the words of the command that is next, and all that was printed."""
    got = program("prepare", "--dataset=folder", f"--source={source}", *flags, RECVIS_DATA_DIR=str(data))
    assert got.code == 0 and not got.err, got
    line = got.out.splitlines()[-1]
    return shlex.split(line.removeprefix("next: ")) if line.startswith("next: ") else [], got.out


def test_program(program, tmp_path):
    source = make(tmp_path, "a/1.png", "b/2.png")
    words, text = prepared(program, source, tmp_path / "data", "--name=mine")
    assert f"mine 1.0.0 in {tmp_path / 'data/mine/1.0.0'}" in text and "2 classes: a, b" in text
    assert words[:4] == ["python", "-m", "recvis_jax.train", "--config=configs/folder/resnet18.py:name=mine"]
    (source / "a" / "1.png").write_bytes(b"")
    flags = ("--dataset=folder", f"--source={source}", "--name=other", f"--data_dir={tmp_path / 'data'}")
    got = program("prepare", *flags)
    assert got.code == 2 and len(got.err.splitlines()) == 1
    assert got.err.startswith("error: 1 of 2 images cannot be read") and "a/1.png (zero bytes)" in got.err
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["mine"]


def test_program_refuses(program):
    for flags, message in ((["--dataset=folder", "--sorce=x"], "'source'"), ([], "--dataset is missing")):
        got = program("prepare", *flags)
        assert got.code == 2 and message in got.err and len(got.err.splitlines()) == 1
    assert "--on_error" in program("prepare", "--help").out


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        (("train", "val", "test"), {"train": "train", "val": "validation", "test": "test"}),
        (("Training", "valid"), {"train": "train", "val": "validation", "test": ""}),
        (("train", "testing"), {"train": "train[:90%]", "val": "train[90%:]", "test": "test"}),
        (("train",), {"train": "train[:90%]", "val": "train[90%:]", "test": ""}),
        (("test",), None),
    ],
)
def test_what_is_next_uses_every_split(given, keys, program, tmp_path):
    """The words, as a shell takes them, say what config.data comes to; a name with spaces and umlauts is one word."""
    where = tmp_path / "my pictures \u00e4\u00f6"
    source = make(where, *(f"{s}/{c}/{i}.png" for s in given for c in "ab" for i in range(6)))
    words, text = prepared(program, source, tmp_path, f"--data_dir={where / 'my data'}", "--name=mine")
    if keys is None:
        assert not words and "mine has no training images" in text
        return
    module = runpy.run_path(str(programs.ROOT / "configs/folder/resnet18.py"))
    config = module["get_config"]("name=mine")
    for word in words[5:]:
        key, value = word.removeprefix("--config.").split("=", 1)
        config.update_from_flattened_dict({key: int(value) if value.isdigit() else value})
    assert {k: config.data[k] for k in keys} == keys
    for split in filter(None, keys.values()):
        assert sources.open_split("mine", split, data_dir=config.data.data_dir).length > 0
    length = sources.open_split("mine", keys["train"], data_dir=config.data.data_dir).length
    assert length // 2 < config.batch_size <= length, "no larger than the data, and not much smaller"


def test_a_folder_of_one_class(program, tmp_path):
    """Said when it is prepared, as pretraining may want it; refused where a classifier is to be trained on it."""
    source = make(tmp_path, *(f"only/{i}.png" for i in range(12)))
    words, text = prepared(program, source, tmp_path / "data", "--name=mine")
    assert "note: there is only one class, only: a classifier has nothing to distinguish" in text
    assert "  1 class: only" in text
    got = program(
        "train",
        *words[3:],
        f"--workdir={tmp_path / 'run'}",
        RECVIS_DATA_DIR=str(tmp_path / "data"),
        JAX_PLATFORMS="cpu",
    )
    assert got.code == 2 and "mine has only one class, only: a classifier has nothing to distinguish" in got.err
    assert not (tmp_path / "run").exists()


def test_val_is_validation(tmp_path, lines):
    source = make(tmp_path, *(f"{s}/{c}/{i}.png" for s in ("train", "val") for c in "ab" for i in range(2)))
    builders.prepare("folder", tmp_path / "data", source, folder_name="mine", say=lines.append)
    open_split = functools.partial(sources.open_split, "mine", data_dir=str(tmp_path / "data"))
    assert open_split("val").parts == open_split("validation").parts == (("validation", 0, 4),)
    assert open_split("train+val[:50%]").parts == (("train", 0, 4), ("validation", 0, 2))
    with pytest.raises(errors.BadRequest, match="mine has no split 'tset'; its splits: train, validation"):
        open_split("tset")


def test_a_data_set_imports_nothing_of_its_own_choice(tmp_path, monkeypatch, lines):
    """tfds imports the module of every feature that a data set names; only its own are let in."""
    source = make(tmp_path, "a/1.png", "b/2.png")
    directory = builders.prepare("folder", tmp_path / "data", source, folder_name="mine", say=lines.append)
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Image: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = (directory / "features.json").read_text()
    kind = "tensorflow_datasets.core.features.image_feature.Image"
    assert kind in text
    (directory / "features.json").write_text(text.replace(kind, "evil_module.Image"))
    (directory / "recvis_jax.json").unlink()  # whose checksums would tell
    with pytest.raises(errors.BadRequest, match=r"names a feature of a library other than tfds, 'evil_module\.Image'"):
        sources.open_split("mine", "train", data_dir=str(tmp_path / "data"))
    for broken in ("{", "[]", '{"a": NaN}'):
        (directory / "features.json").write_text(broken)
        with pytest.raises(errors.BadRequest, match=r"features\.json \(of a data set\)"):
            sources.open_split("mine", "train", data_dir=str(tmp_path / "data"))
    assert not (tmp_path / "executed").exists()


def test_commands_in_messages_are_quoted(tmp_path):
    where = tmp_path / "my data"
    with pytest.raises(errors.BadRequest) as e:
        sources.open_split("mnist", "train", data_dir=str(where))
    assert f"python -m recvis_jax.prepare --dataset=mnist '--data_dir={where}' --overwrite" in str(e.value)
