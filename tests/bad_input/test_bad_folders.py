"""Folders of images that are none, names and places that will not do, and prepared data sets that are damaged."""

import functools
import itertools
import os
import shutil

import cv2
import harness
import numpy as np
import pytest
from harness import Case

from recvis_jax import predict
from recvis_jax.data import builders, sources

SEED = 4


@functools.cache
def png(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def tree(folder, *paths):
    """Makes folders (that end in /) and pictures below folder / pets."""
    for i, path in enumerate(paths):
        at = folder / "pets" / path
        if path.endswith("/"):
            at.mkdir(parents=True, exist_ok=True)
        else:
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_bytes(png(i))
    return folder / "pets"


def prepare(folder, source=None, **kw):
    kw = {"folder_name": "pets", "on_error": "fail", "say": lambda line: None} | kw
    data_dir = kw.pop("data_dir", str(folder / "data"))
    return builders.prepare("folder", data_dir, str(folder / "pets" if source is None else source), **kw)


# --- the folder ---

LAYOUTS = {
    "nothing in it": (("./",), ("pets",)),
    "no class folders": (("1.png", "2.png"), ("pets",)),
    "a class without images": (("a/1.png", "b/"), ("b",)),
    "classes without images": (("a/", "b/"), ("pets",)),
    "text in a class": (("a/1.png", "b/1.txt"), ("b",)),
    "hidden images alone": (("a/1.png", "b/.1.png"), ("b",)),
    "a split twice": (("train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"), ("valid", "val")),
    "a split in two spellings": (("train/a/1.png", "Train/a/1.png", "train/b/2.png"), ("Train", "train")),
    "splits beside classes": (("train/a/1.png", "train/b/1.png", "cats/a/1.png"), ("cats",)),
    "a class that train lacks": (("train/a/1.png", "train/b/1.png", "val/c/1.png"), ("c",)),
    "an empty split": (("train/a/1.png", "train/b/1.png", "test/x/"), ("test", "x")),
    "train empty": (("train/a/", "train/b/", "val/a/1.png"), ("train",)),
    "one folder that holds the classes": (("pets/a/1.png", "pets/b/1.png"), ("pets",)),
    "a line feed in a class": (("a/1.png", "b\nc/1.png"), ("b",)),
    "a class that ends in a space": (("a/1.png", "b /1.png"), ("b ",)),
    "a class that begins with a space": (("a/1.png", " b/1.png"), (" b",)),
    "a class of bytes": (("a/1.png", "b\udcff/1.png"), ("b",)),
    "images of no size": (("a/1.png", "b/1.png"), ("b/1.png",)),
}


def folder_cases():
    for what, (paths, names) in LAYOUTS.items():

        def run(folder, paths=paths, what=what):
            source = tree(folder, *paths)
            if what == "images of no size":
                (source / "b/1.png").write_bytes(b"")
            prepare(folder)

        yield Case(what, run, names)
    for place in (
        "/proc",
        "/sys",
        "/dev",
        "/proc/self",
        "/proc/self/fd",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        "/etc/passwd",
        "\0",
        "x" * 5000,
    ):
        yield Case(
            f"source {place[:20]!r}",
            lambda folder, place=place: prepare(folder, place),
            (place[:40].replace("\0", "\\x00"), "--source"),
        )
    for what, make in harness.irregular("pets").items():
        yield Case(f"source is {what}", lambda folder, make=make: (make(folder), prepare(folder)), ("pets",))
        for name in ("a/3.png", "b/0.jpg"):

            def with_one(folder, what=what, name=name):
                source = tree(folder, "a/1.png", "b/1.png", "a/2.png")
                harness.irregular(name.partition("/")[2])[what](source / name[0])
                prepare(folder)

            if what != "a folder":  # which is empty, and holds nothing
                yield Case(f"{name} is {what}", with_one, (name,))
    for target in ("/proc", "/sys", "/dev", "..", ".", "/proc/self/root"):

        def linked(folder, target=target):
            (tree(folder, "a/1.png", "b/1.png") / "a/deep").symlink_to(target)
            prepare(folder)

        yield Case(f"a link to {target} in a class", linked, ("deep", "pets"), True)

    def deep(folder):
        tree(folder, "a/1.png", "b/1.png", "b/" + "x/" * 300 + "1.png")
        prepare(folder)

    yield Case("300 folders in one another", deep, ("x/x", "pets"))


# --- names and places ---


def place_cases():
    for name in (
        "",
        "A",
        "a b",
        "../x",
        "a/b",
        "1a",
        "ü",
        "mnist",
        "_x",
        "a-b",
        "x" * 300,
        "a\n",
        "\x1b[2J",
        "con.",
        "a:1",
    ):

        def named(folder, name=name):
            tree(folder, "a/1.png", "b/1.png")
            prepare(folder, folder_name=name)

        yield Case(f"name {name[:20]!r}", named, ("--name",))
    for place in ("file", "file/below", "/proc/nowhere", "/dev/null", "/dev/null/x", "\0", "x" * 5000, "pipe"):

        def put(folder, place=place):
            tree(folder, "a/1.png", "b/1.png")
            (folder / "file").write_text("")
            os.mkfifo(folder / "pipe")
            prepare(folder, data_dir=place if place[0] in "/\0x" else str(folder / place))

        yield Case(f"data_dir {place[:20]!r}", put, (place[:40].replace("\0", "\\x00"), "--data_dir"))
    for name in ("folders", "", "fashion", "\x1b[2J", "x" * 10**5, "../mnist"):
        yield Case(
            f"dataset {name[:20]!r}",
            lambda folder, name=name: builders.prepare(name, str(folder), None, say=print),
            ("--dataset",),
        )


# --- what was prepared ---


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a prepared set of twelve pictures of three classes."""
    folder = tmp_path_factory.mktemp("prepared")
    tree(folder, *(f"{c}/{i}.png" for c in "abc" for i in range(4)))
    return prepare(folder)


def examples(root):
    found = sources.open_split("pets", "train", data_dir=str(root))
    return found, [(e["image"].tobytes(), int(e["label"])) for e in found.read(range(found.length))]


def prepared_cases(target):
    root = target.parents[1]
    (_, good), rng = examples(root), np.random.default_rng(SEED)

    def read(harm, folder):
        copy = folder / "data"
        shutil.copytree(root, copy)
        harm(copy / target.relative_to(root))
        found, read = examples(copy)
        assert read == good and found.class_names == ("a", "b", "c"), "other examples than were written"

    def put(name, data):
        return lambda at: (at / name).write_bytes(data)

    for path in sorted(p for p in target.iterdir() if p.is_file()):
        name, data = path.name, path.read_bytes()
        harms = {f"cut to {w}": put(name, d) for w, d in harness.cuts(data, 5).items()}
        harms |= {f"{w} flipped": put(name, d) for w, d in itertools.islice(harness.flips(data, rng), 5)}
        harms |= {"zeros": put(name, bytes(len(data))), "noise": put(name, rng.bytes(len(data)))}
        harms["gone"] = lambda at, name=name: (at / name).unlink()
        for what in ("a pipe", "a folder", "a link to nothing"):
            harms[what] = harness.irregular(name)[what]
        for what, harm in harms.items():
            yield Case(f"{name} {what}", functools.partial(read, harm), ("pets",), True)
    text = (target / "features.json").read_text()
    for count in (0, 1, 2, -1):

        def fewer(at, count=count):
            (at / "features.json").write_text(text.replace('"numClasses": "3"', f'"numClasses": "{count}"'))
            (at / "label.labels.txt").write_text("".join(f"{c}\n" for c in "abc"[: max(count, 0)]))

        assert '"numClasses": "3"' in text
        yield Case(f"{count} classes are claimed of 3", functools.partial(read, fewer), ("pets",))


# --- names of classes ---


def class_file_cases():
    outputs = np.float32([1, 2, 3])

    def shown(folder, data):
        path = harness.write("names.txt", data)(folder)
        return predict.show(outputs, predict.class_names(str(path)), 3, "softmax")

    for what, data in {
        "two": b"a\nb\n", "four": b"a\nb\nc\nd\n", "none": b"", "latin": "ä\nö\nü\n".encode("latin1"), "UTF-16": "a\nb\nc\n".encode("utf-16"),
        "zeros": bytes(3000), "a thousand": b"x\n" * 1000, "a png": png(), "one line": b"a b c",
    }.items():  # fmt: skip
        yield Case(f"class names: {what}", functools.partial(shown, data=data), ("names", "names.txt"))
    for what, make in harness.irregular("names.txt").items():
        yield Case(
            f"class names are {what}", lambda folder, make=make: predict.class_names(str(make(folder))), ("names.txt",)
        )
    for name in ("nowhere", "", "/dev/zero", "/proc", "\0", "x" * 5000, "\x1b[2J"):
        yield Case(
            f"class names of {name[:20]!r}",
            lambda folder, name=name: predict.class_names(name),
            (name[:40].replace("\0", "\\x00").replace("\x1b", "\\x1b"),),
        )


PARTS = {"folders": folder_cases, "places": place_cases, "class files": class_file_cases}


@functools.cache
def cases(part):
    return list(PARTS[part]())


@pytest.mark.full
@pytest.mark.parametrize("part", PARTS)
def test_malformed_folders(part, tmp_path):
    harness.hold(cases(part), tmp_path)


@pytest.mark.full
def test_damaged_data_sets(prepared, tmp_path):
    harness.hold(list(prepared_cases(prepared)), tmp_path)
