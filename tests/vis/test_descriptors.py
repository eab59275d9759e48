"""Glyphs of SIFT descriptors lie where their gradients are."""

import doctest

import jaxtyping
import numpy as np
import pytest

from recvis_jax.errors import BadRequest
from recvis_jax.vis import descriptors, plot


def test_glyphs_turn_and_grow_with_the_point():
    one = np.zeros((2, 128), np.float32)
    one[:, 3 * 8 + 2] = 0.3  # top right, downwards
    at, scales = np.array([[10.0, 20.0], [0.0, 0.0]]), np.array([2.0, 4.0])
    found = descriptors.glyphs(one, at, scales, np.array([0.0, np.pi / 2]))
    np.testing.assert_allclose(found.arms[0], [[13, 17], [13, 18]], atol=1e-6)
    np.testing.assert_allclose(found.arms[1], [[6, 6], [4, 6]], atol=1e-6)  # turned to the right: bottom right, left
    assert np.abs(found.grids[10:]).max() == pytest.approx(8)


def test_pictures_are_drawn(tmp_path):
    found = descriptors.glyphs(np.zeros((1, 128)), np.array([[8.0, 8.0]]), np.array([3.0]))
    assert not len(found.arms)
    assert plot.lines_on_image(np.full((16, 16, 1), 0.5), {"gold": found.grids, "red": found.arms}, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_what_does_not_fit():
    with pytest.raises((BadRequest, jaxtyping.TypeCheckError)):
        descriptors.glyphs(np.zeros((1, 128)), np.zeros((2, 2)), np.ones(1))


@pytest.mark.full
def test_examples_of_docstrings():
    failed, tried = doctest.testmod(descriptors)
    assert tried and not failed
