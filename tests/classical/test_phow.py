"""PHOW: VLFeat's descriptors of smoothed images, scale by scale and channel by channel."""

import doctest

import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
import vlfeat_filters as vlfeat
from images import noise
from scipy import ndimage

from recvis_jax.classical import colour, local, phow, sampling
from recvis_jax.errors import BadRequest


@pytest.mark.parametrize("sigma", [0.5, 2.3])
def test_smoothing_is_scipys(sigma):
    image = noise(30, 70)
    theirs = ndimage.gaussian_filter(image.astype(np.float64), sigma, mode="nearest", radius=int(np.ceil(4 * sigma)))
    np.testing.assert_allclose(sampling.smooth(jnp.asarray(image)[None], sigma)[0], theirs, atol=1e-6)


@pytest.mark.full
def test_phow_is_vlfeats():
    space, channels = "opponent", 3
    image = noise(40, 52, 3)
    sizes, step = (4, 7), 3
    ours = phow.phow(jnp.asarray(image)[None], sizes=sizes, step=step, space=space)
    planes = np.asarray(colour.convert(jnp.asarray(image)[None], space)[0])
    theirs, at, norms = [], [], []
    for size in sizes:
        sigma = size / 6
        smoothed = [
            ndimage.gaussian_filter(p.astype(float), sigma, mode="nearest", radius=int(np.ceil(4 * sigma)))
            for p in planes.transpose(2, 0, 1)
        ]
        found = [vlfeat.Dense(40, 52, step, size, True, 1.5, (7 - size) * 3 // 2)(p) for p in smoothed]
        theirs.append(np.concatenate([f.descriptors for f in found], axis=1))
        at.append(found[0].positions)
        norms.append(found[0].norms)
    np.testing.assert_allclose(ours.descriptors[0], np.concatenate(theirs), atol=1e-5)
    np.testing.assert_allclose(local.pixels(ours, 40, 52)[0], np.concatenate(at), atol=1e-4)
    np.testing.assert_allclose(ours.norms[0], np.concatenate(norms), rtol=1e-4)
    np.testing.assert_array_equal(ours.scales[0], np.repeat(sizes, [len(n) for n in norms]))
    assert ours.descriptors.shape[-1] == 128 * channels


def test_grey_is_colour_of_three_equal_channels():
    image = jnp.asarray(noise(20, 20))[None, ..., None]
    kw = dict(sizes=(4,), step=8)
    plain, three = (phow.phow(image, space=space, **kw) for space in ("gray", "rgb"))
    np.testing.assert_allclose(three.descriptors, np.tile(plain.descriptors, 3), atol=1e-6)
    np.testing.assert_allclose(three.norms, plain.norms, atol=1e-6)


def test_hsv_is_matplotlibs():
    image = np.random.default_rng(0).random((5, 6, 3)).astype(np.float32)
    image[0, 0], image[0, 1], image[0, 2] = 0, 1, (0.5, 0.5, 0.2)
    ours = colour.convert(jnp.asarray(image)[None], "hsv")[0]
    np.testing.assert_allclose(ours, matplotlib.colors.rgb_to_hsv(image), atol=1e-6)


def test_flat_images_have_zeros():
    images = jnp.broadcast_to(jnp.array([0.0, 0.3, 1.0])[:, None, None, None], (3, 20, 20, 3))
    for space in colour.SPACES:
        assert np.isfinite(colour.convert(images, space)).all()
    found = phow.phow(images, sizes=(4,), step=8, space="opponent", root=True)
    assert not found.descriptors.any() and all(np.isfinite(field).all() for field in found)


@pytest.mark.parametrize(
    "shape, kw, says",
    [
        ((1, 28, 28, 1), {}, "images of 28 x 28 pixels are smaller than a descriptor: 4 bins of 10 pixels"),
        ((1, 40, 40, 1), dict(sizes=()), "sizes is empty"),
        ((1, 40, 40, 1), dict(magnification=0.0), "magnification is 0.0"),
        ((1, 40, 40, 1), dict(space="lab"), "unknown colour space 'lab'. There are: gray, rgb, opponent, hsv"),
        ((1, 40, 40, 2), {}, "images have 2 channels"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(shape, kw, says):
    with pytest.raises(BadRequest, match=says):
        phow.phow(jnp.zeros(shape), **kw)


@pytest.mark.parametrize("module", [colour, phow, sampling])
def test_examples_of_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed
