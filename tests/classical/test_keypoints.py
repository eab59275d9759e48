"""Descriptors at interest points are OpenCV's, those of dense SIFT where upright, and turn with the image."""

import doctest

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from images import noise

from recvis_jax.classical import keypoints, sift
from recvis_jax.errors import BadRequest

IMAGE = np.round(noise(90, 110, seed=1) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def found():
    points = keypoints.detect(IMAGE[None], most=40)
    return points, keypoints.describe(jnp.asarray(IMAGE[None] / 255.0, jnp.float32), points)


def test_descriptors_are_opencvs(found):
    points, ours = found
    detector = cv2.SIFT_create(nfeatures=40, enable_precise_upscale=True)
    theirs = sorted(detector.detect(IMAGE), key=lambda p: -p.response)[:40]
    n = int(points.mask.sum())
    assert 20 <= n == len(theirs)
    _, expected = detector.compute(IMAGE, theirs)
    expected = expected.reshape(n, 16, 8)[..., -np.arange(8) % 8].reshape(n, 128)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    # OpenCV rounds the centre of a point to a pixel, and its numbers to 1/512.
    assert np.median((ours.descriptors[0, :n] * expected).sum(-1)) > 0.98
    at_pixels = points._replace(positions=points.positions.copy())
    for i, point in enumerate(theirs):
        octave = ((point.octave & 255) ^ 128) - 128
        zoom = 2.0**octave
        at_pixels.positions[0, i] = np.round(np.array(point.pt) / zoom) * zoom
    ours = keypoints.describe(jnp.asarray(IMAGE[None] / 255.0, jnp.float32), at_pixels).descriptors[0, :n]
    cosines = (ours * expected).sum(-1)
    print("cosines", np.sort(cosines)[:5], np.median(cosines), "max difference", np.abs(ours - expected).max())
    assert np.median(cosines) > 0.9995 and cosines.min() > 0.99


def test_points_are_padded(found):
    points, ours = found
    assert not ours.descriptors[~points.mask].any() and np.isfinite(ours.descriptors).all()
    few = keypoints.detect(np.stack([IMAGE, np.full_like(IMAGE, 9)]), most=3)
    assert few.mask.tolist() == [[True] * 3, [False] * 3]


@pytest.mark.full
def test_an_upright_point_is_dense_sift():
    image = jnp.asarray(noise(60, 60, seed=2))[None]
    scale = 4 / 3 * 1.2  # bins of 4.8 pixels; the third level of the first octave is smoothed by 1.6
    at = keypoints.Points(
        np.full((1, 1, 2), 30.0, np.float32),
        np.full((1, 1), scale, np.float32),
        np.zeros((1, 1), np.float32),
        np.ones((1, 1), bool),
    )
    ours = keypoints.describe(image, at).descriptors[0, 0]
    level = keypoints.pyramid(image)[2]  # of twice as many pixels, and a bin there is 9.6 wide: dense takes 10
    dense = sift.dense(level, step=1, bin_size=10, window="gaussian", first=45).descriptors[0, 0]
    assert float(ours @ dense) > 0.99


def test_descriptors_turn_with_the_image(found):
    points, ours = found
    n, h = int(points.mask.sum()), IMAGE.shape[0]
    x, y = points.positions[0, :, 0], points.positions[0, :, 1]
    turned = np.rot90(IMAGE, -1)  # to the right
    at = points._replace(positions=np.stack([h - 1 - y, x], -1)[None], angles=points.angles + np.float32(np.pi / 2))
    there = keypoints.describe(jnp.asarray(turned[None] / 255.0, jnp.float32), at).descriptors[0, :n]
    cosines = (ours.descriptors[0, :n] * there).sum(-1)
    assert np.median(cosines) > 0.995, np.sort(cosines)[:5]  # pixels between pixels lie to the right and below


def test_what_cannot_be_is_said_in_a_line(found):
    points, _ = found
    with pytest.raises(BadRequest, match="images of 7 x 30 pixels are too small"):
        keypoints.describe(jnp.zeros((1, 7, 30)), points)
    with pytest.raises(BadRequest, match="there are 2 images, but points of 1"):
        keypoints.describe(jnp.zeros((2, 90, 110)), points)
    with pytest.raises(BadRequest, match="most is 0"):
        keypoints.detect(IMAGE[None], most=0)


def test_examples_of_docstrings():
    failed, tried = doctest.testmod(keypoints)
    assert tried and not failed
