"""The pointing game on maps whose best place is known."""

import numpy as np

from recvis_jax.vis import pointing


def test_points_on_boxes_hit():
    """Against the definition, pixel by pixel, of boxes drawn at random."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 13, (20, 2, 2)), axis=1) + np.array([[0, 0], [1, 1]])
    boxes = [b[None].astype(float) for b in corners.reshape(20, 4)]
    objects = pointing.covered(boxes, (13, 14))
    maps = rng.random((20, 13, 14))
    found = pointing.hits(maps, objects)
    for (box,), one, hit in zip(boxes, maps, found, strict=True):
        y, x = np.unravel_index(one.argmax(), one.shape)
        assert hit == (box[0] <= y < box[2] and box[1] <= x < box[3])
    assert 0 < found.sum() < 20
    sizes = [(b[0, 2] - b[0, 0]) * (b[0, 3] - b[0, 1]) for b in boxes]
    np.testing.assert_allclose(objects.sum((1, 2)), sizes)


def test_several_boxes_and_a_tolerance():
    boxes = [np.array([[0.0, 0.0, 2.0, 2.0], [6.0, 6.0, 8.0, 8.0]]), np.zeros((0, 4))]
    exact, wider = pointing.covered(boxes, (9, 9)), pointing.covered(boxes, (9, 9), 1)
    assert exact[0].sum() == 8 and wider[0].sum() == 9 + 16 and not exact[1].any() and not wider[1].any()
    at = np.zeros((1, 9, 9))
    at[0, 5, 5] = 1
    assert not pointing.hits(at, exact[:1])[0] and pointing.hits(at, wider[:1])[0]
    assert not pointing.hits(np.zeros((1, 9, 9)), np.ones((1, 9, 9), bool))[0]  # a blank map says nothing


def test_classes_count_alike():
    hit, classes = np.array([1, 1, 1, 0, 0]), np.array([2, 2, 2, 2, 7])
    assert pointing.mean_over_classes(hit, classes) == (0.75 + 0) / 2
