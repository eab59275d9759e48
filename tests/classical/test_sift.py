"""SIFT is VLFeat's, turns with the image, and is zero where there is nothing to see."""

import doctest

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import vlfeat_filters as vlfeat
from images import noise

from recvis_jax.classical import local, sift
from recvis_jax.errors import BadRequest

GEOMETRIES = [  # h, w, step, bin_size, first, window
    (28, 28, 2, 4, 0, "flat"),
    (37, 28, 3, 4, 0, "flat"),
    (40, 91, 4, 6, 3, "flat"),
    (50, 61, 8, 3, 0, "flat"),
    (28, 33, 2, 4, 0, "gaussian"),
    (40, 31, 5, 3, 2, "gaussian"),
]


@pytest.mark.every
@pytest.mark.parametrize("h, w, step, bin_size, first, window", GEOMETRIES)
def test_dense_is_vlfeats(h, w, step, bin_size, first, window):
    image = noise(h, w)
    theirs = vlfeat.Dense(h, w, step, bin_size, window == "flat", 1.5, first)(image)
    ours = sift.dense(
        jnp.asarray(image)[None], step=step, bin_size=bin_size, window=window, window_size=1.5, first=first
    )
    np.testing.assert_allclose(ours.descriptors[0], theirs.descriptors, atol=1e-5)
    np.testing.assert_allclose(local.pixels(ours, h, w)[0], theirs.positions, atol=1e-4)
    np.testing.assert_allclose(ours.norms[0], theirs.norms, rtol=1e-4)
    assert ours.mask.all() and (ours.scales == bin_size).all()


@pytest.mark.parametrize("window", ["flat", "gaussian"])
def test_descriptors_turn_and_flip_with_the_image(window):
    image = noise(41, 29)
    rows, columns = local.grids(41, 29, step=4, bin_size=4)
    find = lambda x: sift.dense(jnp.asarray(x.copy())[None], step=4, bin_size=4, window=window)  # noqa: E731
    here = find(image)
    cells = np.asarray(here.descriptors[0]).reshape(rows.places, columns.places, 4, 4, 8)
    turned = np.roll(np.rot90(np.rot90(cells, axes=(0, 1)), axes=(2, 3)), -2, axis=-1)  # what pointed right points up
    there = np.asarray(find(np.rot90(image)).descriptors[0])
    np.testing.assert_allclose(there, turned.reshape(there.shape), atol=2e-6)
    flipped = cells[:, ::-1, :, ::-1][..., (4 - np.arange(8)) % 8]
    there = np.asarray(find(image[:, ::-1]).descriptors[0])
    np.testing.assert_allclose(there, flipped.reshape(there.shape), atol=2e-6)


def test_a_batch_is_its_images():
    images = jnp.asarray(np.stack([noise(30, 40, seed=i) for i in range(2)]))
    together = sift.dense(images, root=True)
    for i in range(2):
        alone = sift.dense(images[i : i + 1], root=True)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i], b[0], atol=1e-6)
    np.testing.assert_allclose((together.descriptors**2).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("window", ["flat", "gaussian"])
def test_where_nothing_is_to_be_seen_descriptors_are_zeros(window):
    values = jnp.broadcast_to(jnp.array([0.0, 0.3, 1.0])[:, None, None], (3, 30, 30))
    found = sift.dense(values, window=window, root=True)
    for field in found:
        assert np.isfinite(field).all()
    assert not found.descriptors.any() and not found.norms.any()


def test_descriptors_of_low_contrast_are_zeros():
    image = noise(60, 60)
    image[:, 30:] = 0.5 + 0.001 * image[:, 30:]
    plain, kept = (sift.dense(jnp.asarray(image)[None], contrast=c) for c in (0.0, 0.005))
    low = np.asarray(plain.norms[0] < 0.005)
    assert 10 < low.sum() < len(low) - 10
    assert not kept.descriptors[0, low].any()
    np.testing.assert_array_equal(kept.descriptors[0, ~low], plain.descriptors[0, ~low])


@pytest.mark.parametrize(
    "shape, kw, says",
    [
        ((1, 12, 40), {}, "images of 12 x 40 pixels are smaller than a descriptor: .* at least 13 x 13"),
        ((1, 40, 24), dict(bin_size=8), "at least 25 x 25"),
        ((1, 14, 14), dict(first=2), "from pixel 2 need at least 15 x 15"),
        ((1, 40, 40), dict(step=0), "step is 0"),
        ((1, 40, 40), dict(bin_size=0), "bin_size is 0"),
        ((1, 40, 40), dict(window_size=0.0), "window_size is 0.0"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(shape, kw, says):
    with pytest.raises(BadRequest, match=says) as e:
        sift.dense(jnp.zeros(shape), **kw)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("module", [local, sift])
def test_examples_of_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_dense_is_opencvs_within_its_rounding():
    image = np.round(noise(70, 76, seed=5) * 255).astype(np.uint8)
    ours = sift.dense(jnp.asarray(image[None] / 255.0, jnp.float32), step=3, bin_size=6, window="gaussian", first=18)
    # An angle of exactly 0, an even bin, no smoothing beyond what the image has already, and no border within reach.
    points = [cv2.KeyPoint(float(x), float(y), 2 * 6 / 3, 0.0) for x, y in np.asarray(local.pixels(ours, 70, 76)[0])]
    kept, theirs = cv2.SIFT.create(sigma=0.5).compute(image, points)
    assert len(kept) == len(points)
    theirs = theirs.reshape(-1, 16, 8)[..., -np.arange(8) % 8].reshape(len(points), 128)
    theirs /= np.linalg.norm(theirs, axis=-1, keepdims=True)
    inside = [all(27 <= c <= side - 28 for c, side in zip(p.pt, (76, 70), strict=True)) for p in points]
    assert sum(inside) >= 20
    ours = np.asarray(ours.descriptors[0])
    assert np.abs(ours - theirs)[inside].max() < 0.01
    assert (ours * theirs).sum(-1)[inside].mean() > 0.9999
