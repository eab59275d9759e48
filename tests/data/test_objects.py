"""Pictures with objects as tfds's own sets hold them, and made-up examples of any declaration."""

import numpy as np
import pytest

from recvis_jax import errors
from recvis_jax.data import fields, mock, objects
from recvis_jax.data.fields import Field


class Feature:
    """What is looked at of a feature of tfds."""

    def __init__(self, shape=()):
        self.shape = shape


# The features of tfds's coco/2017, by name.
INSIDE = {"area": Feature(), "bbox": Feature((4,)), "id": Feature(), "is_crowd": Feature(), "label": Feature()}
OUTSIDE = {"image": Feature((None, None, 3)), "image/filename": Feature(), "image/id": Feature(), "objects": None}
IMAGE = np.zeros((40, 80, 3), np.uint8)


def row(count):
    """Objects of rising size; the largest is a crowd."""
    ends = np.linspace(0.1, 1, count, dtype=np.float32)
    return {
        "image/id": 77,
        "objects": {
            "bbox": np.stack([0 * ends, 0 * ends, ends, ends], 1), "label": np.arange(count) % 80,
            "is_crowd": np.arange(count) == count - 1, "area": ends * 100,
        },
    }  # fmt: skip


def test_tfds_names_are_read():
    declared = objects.there(INSIDE, OUTSIDE)
    assert [f.name for f in declared] == [
        "image", "boxes", "labels", "crowd", "area", "image_id", "size", "frame",
    ]  # fmt: skip
    found = objects.reader(declared, False, "coco")(row(3), IMAGE)
    np.testing.assert_allclose(found["boxes"][1], [0, 0, 44, 22], rtol=1e-6)  # 0.55 of 80 columns and of 40 rows
    assert found["crowd"].tolist() == [False, False, True] and found["image_id"] == 77
    assert fields.stack([found], declared)["boxes"].shape == (1, 100, 4)


def test_more_objects_than_expected():
    declared = objects.there(INSIDE, OUTSIDE)
    with pytest.raises(errors.BadRequest, match="a picture has 101 objects, but 100 are expected at most; set data"):
        objects.reader(declared, False, "coco")(row(101), IMAGE)
    few = objects.choose(declared, (), 2, "coco")
    found = objects.reader(few, True, "coco")(row(5), IMAGE)
    assert found["labels"].tolist() == [2, 3], "the largest but for the crowd, in their order"


EVERY = (
    Field("image", "image", (None, None, 3), "uint8"),
    *objects.declare(5, masks=True, points=2)[1:],
    Field("words", "tokens", (None,), "int32", most=7, padding=-1),
    Field("classes", "map", (None, None), "uint8", padding=255),
    Field("clip", "video", (2, None, None, 3), "uint8"),
    Field("score", "number", (), "float32"),
    Field("label", "label", (), "int32"),
)


@pytest.mark.parametrize("seed", range(3))
def test_made_up_examples_fit_any_declaration(seed):
    fields.check(EVERY)
    one, again = (mock.example(EVERY, 4, np.random.default_rng(seed)) for _ in range(2))
    batch = fields.stack([one], EVERY)
    h, w = one["image"].shape[:2]
    boxes = one["boxes"]
    assert (boxes[:, :2] < boxes[:, 2:]).all() and (boxes >= 0).all() and (boxes <= [w, h, w, h]).all()
    assert one["masks"].shape[1:] == one["classes"].shape == (h, w) and one["labels"].max(initial=0) < 4
    for mask, (x0, y0, x1, y1) in zip(one["masks"], boxes, strict=True):
        assert mask.sum() == (x1 - x0) * (y1 - y0)
    for name, value in batch.items():
        np.testing.assert_array_equal(value, fields.stack([again], EVERY)[name], err_msg=name)
