"""Filters are weights as pictures."""

import numpy as np
import pytest

from recvis_jax.vis import filters


def test_weights_become_grey_values():
    kernel = np.random.default_rng(0).normal(size=(5, 5, 3, 7)).astype(np.float32)
    found = filters.pictures(kernel, (32, 32, 3))
    assert found.shape == (7, 5, 5, 3) and found.min() >= 0 and found.max() <= 1
    for i in range(7):
        np.testing.assert_allclose(
            (found[i] - 0.5) * 2 * np.abs(kernel[..., i]).max(), kernel[..., i], rtol=1e-4, atol=1e-6
        )


def test_of_many_the_largest_in_their_order():
    kernel = np.ones((8 * 8, 100), np.float32) * np.arange(100)
    assert len(filters.pictures(kernel, (8, 8, 1), most=10)) == 10


@pytest.mark.parametrize("shape", [(1, 1, 3, 8), (3, 3, 64, 8), (100, 10), (3, 3, 2, 8), (5,)])
def test_other_weights_are_no_pictures(shape):
    assert filters.pictures(np.ones(shape, np.float32), (32, 32, 3)) is None
