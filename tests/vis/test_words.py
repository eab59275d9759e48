"""The patches nearest to words, in any order of reading; and that they are drawn."""

import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax.vis import plot, vocabulary


@pytest.mark.parametrize("size", [1, 4, 7])
def test_the_nearest_places_are_found_in_any_batches(size):
    rng = np.random.default_rng(0)
    x, mask, words = rng.normal(size=(9, 5, 3)), rng.random((9, 5)) < 0.8, rng.normal(size=(4, 3))

    def score(flat):
        return -jnp.sum((flat[:, None] - words) ** 2, axis=-1)

    batches = [(x[i : i + size].astype(np.float32), mask[i : i + size]) for i in range(0, 9, size)]
    found = vocabulary.nearest(score, batches, count=3)
    squares = np.where(mask[..., None], ((x[:, :, None] - words) ** 2).sum(-1), np.inf)  # images, places, words
    order = squares.min(1).argsort(0)[:3].T
    np.testing.assert_array_equal(found.images, order)
    for k in range(4):
        np.testing.assert_array_equal(found.places[k], [squares[i, :, k].argmin() for i in order[k]])


def test_patches_go_on_beyond_the_border():
    image = np.arange(12.0).reshape(3, 4, 1)
    found = vocabulary.patch(image, np.array([0.0, 0.0]), side=4, size=4)[..., 0]
    np.testing.assert_array_equal(found[:3, :3], np.full((3, 3), [[0, 0, 0]]))
    assert found[3, 3] == image[1, 1, 0]


def test_pictures_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    assert plot.mosaic(rng.random((3, 5, 8, 8, 3)), tmp_path / "a.png", "$ words")
    assert plot.histograms(rng.random((2, 8, 8, 1)), rng.normal(size=(2, 30)), tmp_path / "b.png", "$")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))
