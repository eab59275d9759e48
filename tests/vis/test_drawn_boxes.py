"""Boxes drawn over pictures: which pixels they cover."""

import numpy as np
import pytest

from recvis_jax import errors
from recvis_jax.vis import boxes


def test_a_box_covers_its_first_and_last_pixel_and_no_other_rows():
    out = boxes.over(np.zeros((8, 10, 1), np.uint8), np.float32([[2, 3, 7, 6]]), np.array([0]))
    drawn = out.any(2)
    expected = np.zeros((8, 10), bool)
    expected[3:6, 2:7] = True
    expected[4, 3:6] = False
    np.testing.assert_array_equal(drawn, expected)
    assert tuple(out[3, 2]) == boxes.colour(0) == (255, 64, 64)


@pytest.mark.full
def test_masks_points_and_scale():
    image = np.full((6, 6, 3), 100, np.uint8)
    mask = np.zeros((1, 6, 6), bool)
    mask[0, 2:4, 2:4] = True
    points = np.float32([[[4.5, 4.5, 2], [0, 0, 0]]])
    out = boxes.over(image, np.float32([[0, 0, 6, 6]]), masks=mask, points=points, scale=3)
    assert out.shape == (18, 18, 3)
    np.testing.assert_array_equal(out[7, 7], (50 + np.array(boxes.colour(0)) * 0.5).astype(int))
    assert tuple(out[13, 13]) == boxes.colour(0) and (out[3, 3] == 100).all()
    with pytest.raises(errors.BadRequest, match="2 labels for 1 boxes"):
        boxes.over(image, np.float32([[0, 0, 6, 6]]), np.array([1, 2]))
    with pytest.raises(errors.BadRequest, match=r"masks of \(5, 6\) over an image of \(6, 6\)"):
        boxes.over(image, np.float32([[0, 0, 6, 6]]), masks=mask[:, :5])
