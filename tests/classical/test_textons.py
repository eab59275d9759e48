"""Filter banks respond as SciPy's convolution does, and patches are cut out of the image."""

import doctest

import jax.numpy as jnp
import numpy as np
import pytest
from images import noise
from scipy import ndimage

from recvis_jax.classical import local, patches, textons
from recvis_jax.errors import BadRequest


def test_responses_are_scipys():
    image, bank = noise(30, 21), textons.filters("lm")[[0, 20, 37, 47]]
    ours = textons.respond(jnp.asarray(image)[None], bank)[0]
    theirs = [ndimage.convolve(image.astype(np.float64), f.astype(np.float64), mode="reflect") for f in bank]
    np.testing.assert_allclose(ours, np.stack(theirs), atol=1e-6)


@pytest.mark.parametrize("bank", ["mr8", "lm"])
def test_filters_are_scaled_and_no_two_the_same(bank):
    every = textons.filters(bank).astype(np.float64)
    np.testing.assert_allclose(every.sum(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(np.abs(every).sum(axis=(1, 2)), 1, atol=1e-6)
    flat = every.reshape(len(every), -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.abs(flat @ flat.T - np.eye(len(flat))).max() < 0.999


def test_mr8_stays_when_the_image_turns():
    image = noise(24, 36)
    kw = dict(weber=True)
    here, there = (
        np.asarray(textons.textons(jnp.asarray(x.copy())[None, ..., None], **kw).descriptors).reshape(*x.shape, 8)
        for x in (image, np.rot90(image))
    )
    np.testing.assert_allclose(there, np.rot90(here), atol=2e-3)


def test_light_and_contrast_change_nothing_and_flat_images_are_zeros():
    image = noise(20, 20)
    images = jnp.asarray(np.stack([image, 0.2 + 0.5 * image, np.full_like(image, 0.7)]))
    found = textons.textons(images[..., None], step=5)
    np.testing.assert_allclose(found.descriptors[0], found.descriptors[1], atol=1e-4)
    assert not found.descriptors[2].any() and all(np.isfinite(field).all() for field in found)


def test_patches_are_those_of_the_image():
    image = noise(13, 17, 3)
    found = patches.patches(jnp.asarray(image)[None], size=5, step=4, normalise=False)
    x, y = np.asarray(local.pixels(found, 13, 17))[0, 5]
    np.testing.assert_allclose((x, y), (6, 6), atol=1e-5)  # the second of the second row of four
    np.testing.assert_array_equal(found.descriptors[0, 5], image[4:9, 4:9].ravel())
    scaled = patches.patches(jnp.asarray(image)[None], size=5, step=4, floor=0.0).descriptors
    np.testing.assert_allclose(scaled.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(-1), 1, atol=1e-4)
    flat = patches.patches(jnp.full((1, 8, 8, 1), 0.3))
    np.testing.assert_allclose(flat.descriptors, 0, atol=1e-5)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: textons.textons(jnp.zeros((1, 9, 9, 1)), step=0), "step is 0"),
        (lambda: patches.patches(jnp.zeros((1, 5, 9, 1))), "images of 5 x 9 pixels are smaller than a patch of 6 x 6"),
        (lambda: patches.patches(jnp.zeros((1, 9, 9, 1)), size=0), "size is 0"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(call, says):
    with pytest.raises(BadRequest, match=says):
        call()


@pytest.mark.parametrize("module", [textons, patches])
def test_examples_of_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed
