"""Geometry of all fields together: numbers worked by hand, and boxes held against masks of the same objects."""

import numpy as np
import pytest

from recvis_jax import errors
from recvis_jax.data import geometry
from recvis_jax.data.fields import Field

FIELDS = (
    Field("image", "image", (None, None, 3), "uint8"),
    Field("boxes", "boxes", (None, 4), "float32", most=5),
    Field("label", "label", (None,), "int32", most=5, of="boxes"),
    Field("masks", "masks", (None, None, None), "bool", most=5, of="boxes"),
    Field("points", "points", (None, 3, 3), "float32", most=5, of="boxes"),
    Field("frame", "frame", (4,), "float32"),
    Field("classes", "map", (None, None), "uint8", padding=255),
    Field("depth", "map", (None, None), "float32"),
)
ROWS = [f.name for f in FIELDS if f.of]


def scene(height=12, width=16):
    """Two rectangles of whole pixels, with everything that one can say of them."""
    boxes = np.float32([[2, 3, 6, 9], [10, 0, 16, 4]])
    masks = np.zeros((2, height, width), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    image = np.repeat(masks.any(0)[..., None] * np.uint8(200), 3, 2)
    points = np.float32([[[2.5, 3.5, 2], [5.5, 8.5, 1], [0, 0, 0]], [[10.5, 0.5, 2], [15.5, 3.5, 2], [12, 2, 2]]])
    return {
        "image": image, "boxes": boxes, "label": np.array([7, 8]), "masks": masks, "points": points,
        "classes": masks[0] * 1 + masks[1] * np.uint8(2), "depth": masks.any(0) * np.float32(3),
        "frame": np.float32([0, 0, width, height]),
    }  # fmt: skip


def boxes_of(masks):
    """The tightest box around each mask."""
    out = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        out.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return np.float32(out)


VIEWS = {
    "flip": geometry.flip(12, 16),
    "crop": geometry.crop(2, 4, 8, 10),
    "pad": geometry.pad(12, 16, 3, 5),
    "crop beyond the edge": geometry.crop(-2, -3, 20, 30),
    "twice as large": geometry.resize(12, 16, (24, 32)),
    "wider": geometry.resize(12, 16, (12, 48)),
    "crop, resize and flip": geometry.View((0, 0, 16, 8), (16, 32), True),
}


@pytest.mark.parametrize("name", VIEWS)
def test_boxes_masks_and_image_stay_together(name):
    out = geometry.apply(scene(), VIEWS[name], FIELDS)
    assert out["masks"].shape[1:] == out["classes"].shape == out["image"].shape[:2] == VIEWS[name].size
    np.testing.assert_array_equal(out["boxes"], boxes_of(out["masks"]))
    np.testing.assert_array_equal(out["classes"] % 255 > 0, out["masks"].any(0))
    for box, points in zip(out["boxes"], out["points"], strict=True):
        seen = points[points[:, 2] > 0, :2]
        assert (seen >= box[:2]).all() and (seen <= box[2:]).all()


def test_by_hand():
    out = geometry.apply(scene(), geometry.View((4, 2, 12, 6), (8, 16), True), FIELDS)
    # The first box, x 2..6 of y 3..9, shows x 4..6, y 3..6; twice as large 0..4, 2..8; mirrored in 16 columns 12..16.
    np.testing.assert_array_equal(out["boxes"], [[12, 2, 16, 8], [0, 0, 4, 4]])
    assert out["label"].tolist() == [7, 8]
    # (10.5, 0.5) is above the window; (12, 2) is at its right edge, outside.
    assert out["points"][:, :, 2].tolist() == [[0, 0, 0], [0, 0, 0]]
    points = geometry.move_points(np.float32([[[5, 4, 1]]]), geometry.View((4, 2, 12, 6), (8, 16), True))
    assert points.tolist() == [[[14, 4, 1]]]


def test_two_flips_are_none():
    once = geometry.apply(scene(), geometry.flip(12, 16), FIELDS)
    twice = geometry.apply(once, geometry.flip(12, 16), FIELDS)
    for name, value in scene().items():
        np.testing.assert_array_equal(twice[name], value, err_msg=name)


def test_mirrored_pairs_exchange_their_names():
    points = np.float32([[[1, 5, 2], [9, 5, 1], [5, 7, 2]]])
    out = geometry.move_points(points, geometry.flip(12, 16), pairs=[(0, 1)])
    assert out.tolist() == [[[7, 5, 1], [15, 5, 2], [11, 7, 2]]]


@pytest.mark.parametrize("visible, kept", [(0.0, [7, 8]), (0.5, [7]), (0.51, []), (1.0, [])])
def test_boxes_below_the_visible_share_are_dropped_with_all_that_belongs_to_them(visible, kept):
    # Of the first box x 2..6 the window from x = 4 shows 2 / 4; of the second, up to x = 12, 2 / 6.
    out = geometry.apply(scene(), geometry.crop(0, 4, 12, 8), FIELDS, visible=visible)
    assert out["label"].tolist() == kept
    assert all(len(out[name]) == len(kept) for name in ("boxes", "masks", "points"))


def test_no_object_at_all():
    empty = scene() | {name: value[:0] for name, value in scene().items() if name in ("boxes", *ROWS)}
    out = geometry.apply(empty, geometry.crop(1, 1, 5, 6), FIELDS)
    assert out["boxes"].shape == (0, 4) and out["masks"].shape == (0, 5, 6) and out["points"].shape == (0, 3, 3)


def test_classes_are_not_blended_and_padding_has_its_label():
    out = geometry.apply(scene(), geometry.View((-4, -4, 20, 16), (7, 9)), FIELDS)
    assert set(np.unique(out["classes"])) <= {0, 1, 2, 255} and out["classes"][0, 0] == 255
    blended = geometry.move_pixels(scene()["depth"], geometry.resize(12, 16, (6, 8)))
    np.testing.assert_allclose(blended.mean(), scene()["depth"].mean(), rtol=1e-6)


def test_rows_that_do_not_belong_to_a_box():
    bad = scene() | {"label": np.array([1])}
    with pytest.raises(errors.BadRequest, match="1 label for 2 boxes"):
        geometry.apply(bad, geometry.flip(12, 16), FIELDS)
