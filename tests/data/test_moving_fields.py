"""Host transforms move everything that lies in the image: boxes held against the pixels that they are around."""

import pickle

import numpy as np
import pytest

from recvis_jax import errors
from recvis_jax.data import fields, geometry, transform_geometry, transforms
from recvis_jax.data.fields import Field

FIELDS = (
    Field("image", "image", (None, None, 3), "uint8"),
    Field("boxes", "boxes", (None, 4), "float32", most=4),
    Field("labels", "label", (None,), "int32", most=4, of="boxes"),
    Field("masks", "masks", (None, None, None), "bool", most=4, of="boxes"),
    Field("points", "points", (None, 2, 3), "float32", most=4, of="boxes", pairs=((0, 1),)),
    Field("frame", "frame", (4,), "float32"),
    Field("classes", "map", (None, None), "uint8", padding=255),
)
COLOURS = np.uint8([[250, 20, 20], [20, 250, 20]])


def scene(height=40, width=60):
    """A red and a green rectangle on black, with their boxes, masks, and two corners each as points."""
    boxes = np.float32([[6, 4, 22, 20], [30, 12, 54, 36]])
    image, masks = np.zeros((height, width, 3), np.uint8), np.zeros((2, height, width), bool)
    for mask, (x0, y0, x1, y1), colour in zip(masks, boxes.astype(int), COLOURS, strict=True):
        mask[y0:y1, x0:x1] = True
        image[mask] = colour
    points = np.stack([[[x0, y0, 2], [x1 - 1, y0, 1]] for x0, y0, x1, y1 in boxes]).astype(np.float32)
    return {
        "image": image, "boxes": boxes, "labels": np.int32([0, 1]), "masks": masks, "points": points,
        "frame": np.float32([0, 0, width, height]), "classes": masks[0] + 2 * masks[1].astype(np.uint8), "id": "a",
    }  # fmt: skip


def run(text, example=None, seed=0, visible=0.0):
    transform = pickle.loads(pickle.dumps(transforms.parse(text, FIELDS, visible)))
    return transform.fn(np.random.default_rng(seed), example or scene())


SPECS = [
    "flip(1)", "resize(20)", "resize((20, 90))", "resize(80, longest=90)", "random_resize((20, 30, 44))",
    "central_crop((30, 40))", "resize_crop(24, resize=32)", "pad((50, 64))", "resize_pad(64)", "resize_pad((20, 100))",
    "random_resized_crop(32, scale=(0.4, 1))", "random_crop((36, 50), pad=5)", "random_size_crop(20, 50)",
    "random_zoom((40, 60), 90, before=(50,), crop=(20, 50))",
    "random_resize((50, 60))|random_size_crop(30, 60)|flip|resize_pad(64)|color_jitter(0.1)",
]  # fmt: skip


def test_every_moving_operation_is_tested():
    assert all(any(name in spec for spec in SPECS) for name in transform_geometry.OPERATIONS)


@pytest.mark.parametrize("spec", SPECS)
def test_boxes_stay_around_their_pixels(spec):
    for seed in range(4):
        out = run(spec, seed=seed)
        h, w = out["image"].shape[:2]
        assert out["masks"].shape[1:] == out["classes"].shape == (h, w) and out["id"] == "a"
        assert len(out["boxes"]) == len(out["labels"]) == len(out["masks"]) == len(out["points"])
        for box, label, mask, points in zip(*(out[k] for k in ("boxes", "labels", "masks", "points")), strict=True):
            # Where the mask is, the image has the object's colour, but for the rim that resampling blends.
            bright = out["image"][..., label] > 120
            assert (bright ^ mask).sum() <= 0.25 * bright.sum() + 2 * (h + w)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))  # nearest pixels, up to thrice
            if len(rows):
                np.testing.assert_allclose(box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=1.6)
            seen = points[points[:, 2] > 0, :2]
            assert (seen > box[:2] - 1e-3).all() and (seen < box[2:] + 1e-3).all()
            assert ((out["classes"] == label + 1) == mask).all()


@pytest.mark.parametrize("spec", [s for s in SPECS if "flip" not in s])
def test_the_frame_leads_back_to_the_picture(spec):
    """What a detector finds in a transformed image, in pixels of the picture as it was: no more is needed for it."""
    out = run(spec, seed=3)
    x0, y0, x1, y1 = out["frame"]
    back = (out["boxes"] - [x0, y0, x0, y0]) * ([60, 40, 60, 40] / np.array([x1 - x0, y1 - y0] * 2))
    whole = scene()["boxes"][out["labels"]]
    for found, true in zip(back, whole, strict=True):  # clipped boxes lie inside, whole ones are the same
        assert (found >= true - 0.02)[:2].all() and (found <= true + 0.02)[2:].all()
    if "crop" not in spec:
        np.testing.assert_allclose(back, whole, atol=1e-3)


def test_resize_pad_by_hand():
    """60 columns become 30 and 40 rows 20, halves; the rest of 24x30 is padding."""
    out = run("resize_pad((24, 30), fill=9)")
    np.testing.assert_array_equal(out["boxes"], [[3, 2, 11, 10], [15, 6, 27, 18]])
    np.testing.assert_array_equal(out["frame"], [0, 0, 30, 20])
    assert (out["image"][20:] == 9).all() and (out["classes"][20:] == 255).all() and not out["masks"][:, 20:].any()
    np.testing.assert_array_equal(out["image"][3, 4], COLOURS[0])
    np.testing.assert_array_equal(out["points"][0], [[3, 2, 2], [10.5, 2, 1]])


def test_flip_and_crop_by_hand():
    """Mirrored in 60 columns, x 30..54 becomes 6..30; the window from column 10 shows 0..20 of it, from row 20 16."""
    out = run("flip(1)|central_crop((20, 40))")  # rows 10..30, columns 10..50
    np.testing.assert_array_equal(out["boxes"], [[28, 0, 40, 10], [0, 2, 20, 20]])
    assert out["labels"].tolist() == [0, 1]
    # The red one's corners (6, 4) and (21, 4) are above the window; the green one's (53, 12) is at x 7, to its left,
    # and (30, 12) at (20, 2). Left and right have exchanged their places.
    assert out["points"][0].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert out["points"][1].tolist() == [[0, 0, 0], [20, 2, 2]]


@pytest.mark.parametrize("visible, kept", [(0.0, [0, 1]), (0.5, [1]), (0.62, [1]), (0.63, []), (1.0, [])])
def test_the_visible_share_is_that_of_the_whole_pipeline(visible, kept):
    # Of the red box, x 6..22 and y 4..20, the window shows x 10..22 and y 10..20: 120 of 256, in two crops each of
    # which leaves more than half. Of the green one x 30..50 and y 12..30: 360 of 576, 0.625.
    out = run("central_crop((20, 60))|central_crop((20, 40))", visible=visible)
    assert out["labels"].tolist() == kept


def test_nothing_moves_that_is_not_declared():
    out = transforms.parse("flip(1)").fn(np.random.default_rng(0), scene())
    np.testing.assert_array_equal(out["boxes"], scene()["boxes"])


def test_declarations_that_contradict_themselves():
    with pytest.raises(errors.BadRequest, match="'labels' has a row for each of 'boxs', which must be boxes"):
        fields.check([FIELDS[1], FIELDS[2]._replace(of="boxs")])
    with pytest.raises(errors.BadRequest, match="has different numbers of labels and boxes"):
        fields.stack([{**scene(), "labels": [0]}], FIELDS)
    with pytest.raises(errors.BadRequest, match="1 masks for 2 boxes"):
        geometry.follow({**scene(), "masks": scene()["masks"][:1]}, [geometry.flip(40, 60)], FIELDS)
    with pytest.raises(errors.BadRequest, match=r"data\.json is damaged: its 'fields' do not declare fields"):
        fields.of_json([{"name": "image", "kind": "image", "shape": "abc", "dtype": "uint8"}], "data.json")
    assert fields.of_json(fields.as_json(FIELDS), "data.json") == FIELDS


def test_rows_of_boxes_share_their_mask():
    batch = fields.stack([scene(), run("central_crop(8)")], FIELDS[1:3])
    assert set(batch) == {"boxes", "labels", "boxes_mask"}
    assert batch["boxes_mask"].sum(1).tolist() == [2, 1]
