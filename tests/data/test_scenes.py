"""The scenes of fashion_scenes: what is drawn where the boxes are, the same every time, and read by stock tfds."""

import gzip
import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from recvis_jax import prepare
from recvis_jax.data import builders, download, scenes, sources, writing

RNG = np.random.default_rng(0)
COUNT = 40


def garments(count=30):
    """White bars of as many widths as there are classes, 2 to 20 pixels, on black."""
    labels = np.arange(count) % 10
    pictures = np.zeros((count, 28, 28), np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        picture[4:24, 4 : 6 + 2 * label] = 255
    return pictures, labels


@pytest.fixture(scope="module")
def drawn():
    return [scenes.scene("train", i, *garments()) for i in range(COUNT)]


def test_scenes_are_valid(drawn):
    counts = [len(s.classes) for s in drawn]
    assert set(counts) == {1, 2, 3, 4}
    for s in drawn:
        assert s.image.shape == (96, 96, 1) and s.image.dtype == np.uint8 and s.boxes.shape == (len(s.classes), 4)
        assert (s.boxes >= 0).all() and (s.boxes <= 96).all() and (s.boxes[:, :2] < s.boxes[:, 2:]).all()
        for i, a in enumerate(s.boxes):
            masks = np.zeros((2, 96, 96), bool)
            masks[0, a[0] : a[2], a[1] : a[3]] = True
            for b in s.boxes[:i]:
                masks[1] = False
                masks[1, b[0] : b[2], b[1] : b[3]] = True
                assert (masks[0] & masks[1]).sum() <= 0.1 * min(masks[0].sum(), masks[1].sum())


def test_boxes_fit_what_is_drawn(drawn):
    """The bars of class c are 2 + 2 c by 20 of 28 pixels, grown by one factor; inside brighter than just outside."""
    grown = []
    for s in drawn:
        for (y, x, bottom, right), c in zip(s.boxes, s.classes, strict=True):
            scale = (bottom - y) / 20
            assert abs((right - x) - (2 + 2 * c) * scale) <= 2 + scale
            grown.append(28 * scale)
        if len(s.classes) == 1:
            (y, x, bottom, right), image = s.boxes[0], s.image[..., 0].astype(float)
            around = np.ones((96, 96), bool)
            around[y:bottom, x:right] = False
            assert image[y:bottom, x:right].mean() > image[around].mean() + 20
    assert min(grown) >= 18 and max(grown) <= 60 and max(grown) > 1.8 * min(grown), "of several sizes"


def test_masks_are_what_is_seen_of_the_garments(drawn):
    """Bars: a mask fills its box but for corners and what later ones hide, and no pixel is of two garments."""
    for s in drawn:
        assert s.masks.shape == (len(s.boxes), 96, 96) and s.masks.sum(0).max() == 1
        hidden = np.zeros((96, 96), bool)
        for (y, x, bottom, right), mask in reversed([*zip(s.boxes, s.masks, strict=True)]):
            inside = np.zeros((96, 96), bool)
            inside[y:bottom, x:right] = True
            assert not (mask & ~inside).any() and (inside & ~hidden & ~mask).sum() <= 4
            hidden |= inside


def test_the_pictures_are_those_of_the_first_version(drawn):
    pixels = b"".join(s.image.tobytes() + s.boxes.astype(np.int64).tobytes() for s in drawn)
    assert hashlib.sha256(pixels).hexdigest()[:16] == "83943e102bf04d0e"


def test_scenes_are_a_function_of_split_and_number(drawn):
    again = scenes.scene("train", 7, *garments())
    np.testing.assert_array_equal(again.image, drawn[7].image)
    np.testing.assert_array_equal(again.boxes, drawn[7].boxes)
    assert not np.array_equal(scenes.scene("test", 7, *garments()).image, again.image)
    assert len({s.image.tobytes() for s in drawn}) == COUNT


def test_training_scenes_are_of_garments_that_pretraining_leaves_alone(tmp_path):
    """`train[:30000]` of Fashion-MNIST as it is prepared, and the pool of the scenes, are a partition."""
    numbers = np.arange(60_000)
    pictures = np.uint8(np.stack([numbers // 256, numbers % 256], 1))[:, None]  # the number of a picture is in it
    chosen, labels = scenes.pool("train", pictures, numbers)
    stored = writing.shuffled(range(60_000), "train")  # the order in which prepare stores them
    assert not set(stored[:30_000]) & set(labels) and len(set(labels)) == 30_000
    np.testing.assert_array_equal(chosen[:, 0] @ [256, 1], labels)
    assert scenes.pool("test", pictures, numbers)[0] is pictures


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The data set of few scenes of made-up garments, from raw files; returns its folder."""
    root = tmp_path_factory.mktemp("scenes")
    raw, files = root / "raw", []
    raw.mkdir()
    for prefix, count in (("train", 30), ("t10k", 10)):
        pictures, labels = garments(count)
        for name, array in (("images-idx3", pictures), ("labels-idx1", np.uint8(labels))):
            data = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
            name = f"{prefix}-{name}-ubyte.gz"
            (raw / name).write_bytes(gzip.compress(data, 1))
            files.append(download.RawFile(name, hashlib.sha256(data).hexdigest(), (), gzipped=True))
    with pytest.MonkeyPatch.context() as patch:
        spec = builders.BUILDERS["fashion_mnist"]._replace(files=tuple(files), debian=None)
        patch.setitem(builders.BUILDERS, "fashion_mnist", spec)
        patch.setattr(scenes, "COUNTS", {"train": 12, "test": 5})
        patch.setattr(scenes, "FIRST", 10)
        for _ in range(2):  # the second time it is there
            builders.prepare("fashion_scenes", root / "data", raw)
    return root / "data"


def test_stock_tfds_reads_them(prepared):
    builder = tfds.builder_from_directory(prepared / "fashion_scenes/1.1.0")
    train = builder.as_data_source(split="train")
    order = writing.shuffled(range(12), "train")
    pool = [x[writing.shuffled(range(30), "train")[10:]] for x in garments()]
    assert len(train) == 12 and len(builder.as_data_source(split="test")) == 5
    for number, example in zip(order, train, strict=True):
        s = scenes.scene("train", number, *pool)
        np.testing.assert_array_equal(example["image"], s.image)
        np.testing.assert_array_equal(example["label"], sorted(set(s.classes)))
        np.testing.assert_allclose(example["objects"]["bbox"], s.boxes / 96, atol=1e-6)
        np.testing.assert_array_equal(example["objects"]["label"], s.classes)
    assert builders.summary(prepared / "fashion_scenes/1.1.0").splits == {"train": 12, "test": 5}


def test_they_are_read_with_masks(prepared):
    names = ("image", "masks", "labels", "size", "frame")
    source = sources.open_split("fashion_scenes", "test", data_dir=str(prepared), fields=names, most_objects=4)
    assert [f.name for f in source.fields] == ["image", "boxes", "labels", "masks", "size", "frame"]
    pool = scenes.pool("test", *garments(10))
    for number, example in zip(writing.shuffled(range(5), "test"), source.read(range(5)), strict=True):
        np.testing.assert_array_equal(example["masks"], scenes.scene("test", number, *pool).masks)
    mocked = sources.open_split("fashion_scenes", "test", mock=2, fields=names, most_objects=4)
    assert [f.name for f in mocked.fields] == [f.name for f in source.fields]


def test_they_are_read_as_of_several_labels(prepared):
    source = sources.open_split("fashion_scenes", "train", data_dir=str(prepared))
    assert source.multi_label and source.num_classes == 10 and source.class_names[9] == "Ankle boot"
    for example in source.read(range(12)):
        classes = example["objects"]["label"]
        np.testing.assert_array_equal(np.flatnonzero(example["label"]), np.unique(classes))
        assert example["objects"]["bbox"].shape == (len(classes), 4)
        assert example["label"].dtype == np.float32


def test_mock_scenes_are_alike():
    source = sources.open_split("fashion_scenes", "train", mock=8)
    assert source.multi_label and source.image_shape == (96, 96, 1)
    for example in source.read(range(8)):
        assert example["image"].shape == (96, 96, 1)
        np.testing.assert_array_equal(np.flatnonzero(example["label"]), example["objects"]["label"])


def test_prepare_says_how_to_go_on(tmp_path):
    command = prepare.next_step("fashion_scenes", {"train": 6, "test": 1}, tmp_path, tmp_path)
    assert "configs/fashion_mnist/adaptation.py:run=scratch" in command
