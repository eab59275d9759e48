"""Device augmentation moves boxes, masks, points, maps and frames with their images: to the number as the host does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import errors
from recvis_jax.data import augment, augment_fields, fields, geometry
from recvis_jax.data.augment_images import Window
from recvis_jax.data.fields import Field

H, W = 12, 16
FIELDS = (
    Field("image", "image", (H, W, 3), "uint8"),
    Field("boxes", "boxes", (None, 4), "float32", most=3),
    Field("labels", "label", (None,), "int32", most=3, padding=-1, of="boxes"),
    Field("masks", "masks", (None, H, W), "bool", most=3, of="boxes"),
    Field("points", "points", (None, 2, 3), "float32", most=3, of="boxes", pairs=((0, 1),)),
    Field("frame", "frame", (4,), "float32"),
    Field("classes", "map", (H, W), "uint8", padding=255),
)


def scene():
    boxes = np.float32([[2, 3, 6, 9], [10, 0, 16, 4]])
    masks = np.zeros((2, H, W), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    image = np.repeat(masks.any(0)[..., None] * np.uint8(200), 3, 2)
    points = np.stack([[[x0 + 0.5, y0 + 0.5, 2], [x1 - 0.5, y0 + 0.5, 1]] for x0, y0, x1, y1 in boxes])
    return {
        "image": image, "boxes": boxes, "labels": np.int32([0, 1]), "masks": masks, "points": np.float32(points),
        "frame": np.float32([0, 0, W, H]), "classes": masks[0] + 2 * masks[1].astype(np.uint8),
    }  # fmt: skip


def batch(count=1):
    return fields.stack([scene()] * count, FIELDS) | {"slot": np.arange(count, dtype=np.int32)}


# (top, left, height, width, mirrored, size) of windows in turn, and the same as views of the host.
VIEWS = {
    "flip": [(0, 0, H, W, True, (H, W))],
    "crop": [(4, 4, 8, 12, False, (8, 12))],
    "beyond the edge": [(-3, 5, H, W, False, (H, W))],
    "twice as large": [(2, 4, 4, 8, True, (8, 16))],
    "in turn": [(4, 0, 8, W, False, (8, W)), (0, 0, 8, W, True, (8, W)), (-2, 4, 8, W, False, (8, W))],
}


@pytest.mark.parametrize("visible", [0.0, 0.6])
@pytest.mark.parametrize("name", VIEWS)
def test_as_on_the_host(name, visible):
    rows = VIEWS[name]
    one = [np.float32] * 4 + [bool]
    windows = [Window(*(jnp.asarray([v], t) for v, t in zip(r[:5], one, strict=True)), r[5]) for r in rows]
    views = [geometry.View((x, y, x + w, y + h), size, mirrored) for y, x, h, w, mirrored, size in rows]
    declared = [f for f in FIELDS if f.name != "image"]
    found = augment_fields.follow({k: jnp.asarray(v) for k, v in batch().items()}, windows, declared, visible)
    expected = geometry.follow(scene(), views, declared, visible)
    kept = np.asarray(found["boxes_mask"][0])
    for field in declared:
        value = np.asarray(found[field.name])[0]
        np.testing.assert_allclose(value[kept] if field.of or field.most else value, expected[field.name], atol=1e-5)
        if field.most:  # what was dropped is as if it had never been there
            np.testing.assert_array_equal(value[~kept], np.full_like(value[~kept], field.padding))


def test_a_pipeline_moves_all_of_an_example_together():
    run = jax.jit(augment.parse("pad_crop(3)|flip|color_jitter(0.2)", None, FIELDS, 0.2))
    out = jax.device_get(run(jax.random.key(1), {k: jnp.asarray(v) for k, v in batch(8).items()}))
    moved = 0
    for i in range(8):
        bright = out["image"][i].max(-1) > 0.3
        np.testing.assert_array_equal(bright & out["masks"][i].any(0), out["masks"][i].any(0))
        for k in np.flatnonzero(out["boxes_mask"][i]):
            mask, box = out["masks"][i, k], out["boxes"][i, k]
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            np.testing.assert_array_equal(box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            np.testing.assert_array_equal(out["classes"][i] == k + 1, mask)
            seen = out["points"][i, k][out["points"][i, k, :, 2] > 0]
            assert (seen[:, :2] > box[:2]).all() and (seen[:, :2] < box[2:]).all()
            if len(seen) == 2:
                assert seen[0, 0] < seen[1, 0], "left stays left"
        moved += not np.array_equal(out["boxes"][i], batch()["boxes"][0])
        assert (out["labels"][i][~out["boxes_mask"][i]] == -1).all()
    assert moved >= 6
    same = run(jax.random.key(1), {k: jnp.asarray(v)[4:] for k, v in batch(8).items()})
    np.testing.assert_array_equal(same["boxes"], out["boxes"][4:], err_msg="it depends on key and slot alone")


def test_what_boxes_cannot_follow_is_refused():
    for text, what in (("rotate(10)", "rotate"), ("mixup(0.2)", "mixup")):
        with pytest.raises(errors.BadRequest, match=f"{what} works on images alone: boxes, masks, points, frame"):
            augment.parse(text, 3, FIELDS)
    augment.parse("rotate(10)", 3, fields.image_and_label((8, 8, 1), 3))
