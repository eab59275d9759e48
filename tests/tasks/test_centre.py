"""Centre points: the map that is learnt against plain loops, the focal loss by hand, and boxes read back."""

import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax.tasks.centre import focal_loss, heat_map, peaks, radius


def test_the_radius_keeps_the_overlap():
    """In each of the three cases the moved box overlaps the true one at least as much; in one of them exactly so."""
    for w, h in ((10.0, 10.0), (30.0, 8.0), (4.0, 50.0)):
        r = float(radius(jnp.float32(w), jnp.float32(h), 0.6))
        one_way = (w - r) * (h - r) / (2 * w * h - (w - r) * (h - r))
        inward, outward = (w - 2 * r) * (h - 2 * r) / (w * h), w * h / ((w + 2 * r) * (h + 2 * r))
        assert min(one_way, inward, outward) == pytest.approx(0.6, abs=1e-4)


def test_the_map_is_the_largest_gaussian_of_each_class():
    placed = np.float32([[3.5, 4.25, 8, 8], [5.5, 4.5, 8, 8], [9.9, 0.1, 3, 4], [2, 2, 9, 9]])
    labels, valid = np.array([0, 0, 1, 1]), np.array([True, True, True, False])
    given = map(jnp.asarray, (placed, labels, valid))
    got = np.asarray(heat_map(*given, size=(8, 10, 2), overlap=0.7))
    expected = np.zeros((8, 10, 2))
    for (x, y, w, h), k, v in zip(placed, labels, valid, strict=True):
        r = int(max(0, float(radius(jnp.float32(w), jnp.float32(h), 0.7))))
        for i in range(8):
            for j in range(10):
                d = np.array([i - int(y), j - int(x)])
                if v and np.abs(d).max() <= r:
                    expected[i, j, k] = max(expected[i, j, k], np.exp(-(d**2).sum() / (2 * ((2 * r + 1) / 6) ** 2)))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert (got == 1).sum() == 3


def test_the_focal_loss_is_the_papers():
    rng = np.random.default_rng(0)
    logits, heat = np.float32(rng.normal(size=(2, 3, 4, 2))), np.float32(rng.random((2, 3, 4, 2)) * 0.9)
    heat[:, 1, 2, 0] = 1
    p = 1 / (1 + np.exp(-logits.astype(float)))
    cells = np.where(heat == 1, (1 - p) ** 2 * np.log(p), (1 - heat) ** 4 * p**2 * np.log(1 - p))
    np.testing.assert_allclose(focal_loss(jnp.asarray(logits), jnp.asarray(heat)), -cells.sum((1, 2, 3)), rtol=1e-5)


def test_boxes_are_read_back_from_a_perfect_map():
    placed = np.float32([[3.5, 4.25, 6, 3], [7.75, 1.5, 2, 2]])  # centres and sizes in places
    heat = np.zeros((1, 8, 10, 2), np.float32)
    sizes, offsets = np.zeros((1, 8, 10, 2), np.float32), np.zeros((1, 8, 10, 2), np.float32)
    for k, (x, y, w, h) in enumerate(placed):
        i, j = int(y), int(x)
        heat[0, i, j, k], heat[0, i, j - 1, k] = 0.9 - 0.1 * k, 0.5  # a neighbour that is no maximum
        sizes[0, i, j], offsets[0, i, j] = (4 * w, 4 * h), (x - j, y - i)
    logits = np.log(np.maximum(heat, 1e-6) / (1 - np.maximum(heat, 1e-6)))
    got = peaks(*map(jnp.asarray, (logits, sizes, offsets)), 4, 3)
    np.testing.assert_allclose(got["scores"][0, :2], [0.9, 0.8], atol=1e-5)
    assert got["labels"][0, :2].tolist() == [0, 1] and got["scores"][0, 2] < 1e-5
    corners = np.concatenate([placed[:, :2] - placed[:, 2:] / 2, placed[:, :2] + placed[:, 2:] / 2], 1)
    np.testing.assert_allclose(got["boxes"][0, :2], 4 * corners, atol=1e-5)
