"""HOG is VLFeat's in both variants, and what flips with the image."""

import doctest

import jax.numpy as jnp
import numpy as np
import pytest
import vlfeat_filters as vlfeat
from images import noise

from recvis_jax.classical import hog, local
from recvis_jax.errors import BadRequest


@pytest.mark.every
@pytest.mark.parametrize(
    "shape, cell, directions, variant, interpolate",
    [
        ((33, 47, 3), 8, 9, "dalal_triggs", False),
        ((40, 35, 1), 5, 6, "dalal_triggs", True),
        ((28, 28, 1), 4, 9, "uoctti", False),
        ((31, 20, 3), 8, 9, "uoctti", True),
    ],
)
def test_hog_is_vlfeats(shape, cell, directions, variant, interpolate):
    image = noise(*shape)
    theirs = vlfeat.hog(image, cell, directions, variant == "uoctti", interpolate)
    ours = hog.hog(jnp.asarray(image)[None], cell=cell, directions=directions, variant=variant, interpolate=interpolate)
    assert theirs.shape[:2] == hog.grid(*shape[:2], cell=cell)
    # Bilinear shares near 0 are the arc cosine of almost 1 in VLFeat, which has half of float32's digits.
    difference = np.abs(ours.descriptors[0] - theirs.reshape(-1, theirs.shape[-1]))
    assert difference.max() < (2e-3 if interpolate else 1e-5) and difference.mean() < 2e-5
    at = local.pixels(ours, *shape[:2])[0, 0]
    np.testing.assert_allclose(at, (cell - 1) / 2, atol=1e-5)


def test_what_is_flipped_is_flipped():
    image, (rows, columns) = noise(32, 40), (4, 5)
    here, there = (
        np.asarray(hog.hog(jnp.asarray(x.copy())[None, ..., None], interpolate=True).descriptors)
        for x in (image, image[:, ::-1])
    )
    cells = here.reshape(rows, columns, 2, 2, 9)[:, ::-1, :, ::-1][..., (9 - np.arange(9)) % 9]
    np.testing.assert_allclose(there.reshape(cells.shape), cells, atol=1e-5)


def test_flat_images_have_zeros():
    for variant in ("dalal_triggs", "uoctti"):
        found = hog.hog(jnp.full((2, 16, 16, 1), 0.4), variant=variant)
        assert not found.descriptors.any() and all(np.isfinite(field).all() for field in found)


@pytest.mark.parametrize(
    "shape, kw, says",
    [
        ((1, 7, 30, 1), {}, "images of 7 x 30 pixels are smaller than a cell"),
        ((1, 2, 2, 1), dict(cell=1), "at least 3"),
        ((1, 8, 8, 1), dict(cell=0), "cell is 0"),
        ((1, 8, 8, 1), dict(directions=0), "directions is 0"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(shape, kw, says):
    with pytest.raises(BadRequest, match=says):
        hog.hog(jnp.zeros(shape), **kw)


def test_examples_of_docstrings():
    failed, tried = doctest.testmod(hog)
    assert tried and not failed
