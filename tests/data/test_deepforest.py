"""Tiles of photographs of trees: everything is shown, boxes lie where they lay, and the splits share no photograph."""

import zipfile

import cv2
import numpy as np
import pytest

from recvis_jax.data import builders, deepforest, sources, writing
from recvis_jax.data.annotations import Thing
from recvis_jax.errors import BadRequest

BOXES = {"train": [(10, 20, 40, 60), (250, 100, 290, 140)], "val": [(5, 5, 25, 25)], "test": [(200, 240, 220, 262)]}


def xml(name, boxes, size):
    rows = "".join(
        f"<object><name>Tree</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    return (
        f"<annotation><filename>{name}.tif</filename><size><width>{size[1]}</width><height>{size[0]}</height></size>"
        f"{rows}</annotation>"
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel as the package's, of small photographs of noise in which each tree is a flat square."""
    path = tmp_path_factory.mktemp("wheel") / "deepforest-2.1.0-py3-none-any.whl"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for split, names in deepforest.SPLITS.items():
            for name in names:
                size = (270, 300)
                pixels = rng.integers(0, 200, (*size, 3)).astype(np.uint8)
                for x0, y0, x1, y1 in BOXES[split]:
                    pixels[y0:y1, x0:x1] = 255
                archive.writestr(f"deepforest/data/{name}.png", cv2.imencode(".png", pixels)[1].tobytes())
                archive.writestr(f"deepforest/data/{name}.xml", xml(name, BOXES[split], size))
    return path


def test_tiles_are_prepared_with_their_trees(wheel, tmp_path):
    for _ in range(2):  # the second time it is there
        made = builders.prepare("deepforest", tmp_path, wheel, say=lambda line: None)
    found = builders.summary(made)
    assert found.name == "deepforest" and found.class_names == ("Tree",)
    assert found.splits == {"train": 4, "validation": 8, "test": 4}
    source = sources.open_split("deepforest", "train", data_dir=str(tmp_path))
    seen = 0
    for example in source.read(range(source.length)):
        assert example["image"].shape == (256, 256, 3)
        for (x0, y0, x1, y1), crowd in zip(example["boxes"].astype(int), example["crowd"], strict=True):
            assert (example["image"][y0:y1, x0:x1] == 255).all()
            assert crowd == ((x1 - x0) * (y1 - y0) < 600), "the second tree lies on the edge of tiles on the left"
            seen += not crowd
    assert seen == 4, "each whole in two tiles"
    assert "objects" in writing.recorded(made)


def test_tiles_show_everything():
    pixels = np.arange(300 * 470 * 3, dtype=np.uint32).reshape(300, 470, 3).astype(np.uint8)
    shown = np.zeros((300, 470), int)
    for name, tile, _ in deepforest.cut(pixels, ()):
        top, left = map(int, name.split("_"))
        shown[top : top + 256, left : left + 256] += 1
        np.testing.assert_array_equal(tile, pixels[top : top + 256, left : left + 256])
    assert shown.min() == 1
    small = [*deepforest.cut(pixels[:90, :70], (Thing(0, (60.0, 80.0, 100.0, 120.0)),))]
    assert len(small) == 1 and small[0][2][0].box == (60, 80, 70, 90) and small[0][2][0].crowd


def test_a_source_without_the_photographs_is_refused(tmp_path):
    with pytest.raises(BadRequest, match=r"come with a package; --source is .*pip download --no-deps deepforest"):
        builders.prepare("deepforest", tmp_path)
    with pytest.raises(BadRequest, match=r"has no 2019_YELL_2_528000_4978000_image_crop2\.png with its \.xml"):
        builders.prepare("deepforest", tmp_path, tmp_path)
