"""Scores of images by their windows: the paper's formula by hand, the ranking against scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from recvis_jax import errors
from recvis_jax.evaluation import metrics, window_scores

RNG = np.random.default_rng(0)


def test_image_scores_by_hand():
    """Image 0: (0.5^2 + 1) / 2 and (0.5^2 + 0) / 2; image 1: one window; image 2: none that counts."""
    scores = jnp.array([[0.5, 0.5], [1.0, 0.0], [0.2, 0.6], [np.nan, 0.9]])
    image, mask = jnp.array([0, 0, 1, 2]), jnp.array([True, True, True, False])
    sums, counts = window_scores.image_sums(scores, image, mask, 3, power=2)
    np.testing.assert_allclose(sums, [[1.25, 0.25], [0.04, 0.36], [0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(counts, [2, 1, 0])


def test_high_powers_ask_for_the_best_window():
    """0.9 once among nothing beats 0.5 everywhere with the paper's power, not with 1."""
    once, everywhere = [[0.9]] + [[0.0]] * 9, [[0.5]] * 10
    scores, image = jnp.array(once + everywhere), jnp.repeat(jnp.arange(2), 10)
    for power, first in ((1, False), (5, True)):
        sums, _ = window_scores.image_sums(scores, image, jnp.ones(20, bool), 2, power)
        assert bool(sums[0, 0] > sums[1, 0]) == first


def made_up(images=12, each=7, classes=3):
    labels = np.float32(RNG.random((images, classes)) < 0.4)
    labels[0] = 1
    logits = np.float32(RNG.normal(0, 2, (images * each, classes + 1)))
    return labels, logits, np.repeat(np.arange(images), each)


def ranked(metric, logits, image, size):
    """The metric's values by batches of `size`, the last one padded with rubbish."""

    def states():
        for i in range(0, len(logits), size):
            part, of = logits[i : i + size], image[i : i + size]
            spare = size - len(part)
            batch = {"label": np.pad(of, (0, spare)), "mask": np.arange(size) < len(part)}
            padded = np.pad(part, ((0, spare), (0, 0)), constant_values=np.nan)
            yield {"m": metric.update({"logits": padded}, batch)}

    return metrics.accumulate({"m": metric}, states())


@pytest.mark.full
@pytest.mark.parametrize("power", [1.0, 5.0])
def test_ranking_agrees_with_scikit_learn(power):
    labels, logits, image = made_up()
    exact = np.exp(logits.astype(np.float64))
    exact = (exact / exact.sum(1, keepdims=True))[:, :3] ** power  # background has had its share
    scores = exact.reshape(12, 7, 3).mean(1)
    expected = [average_precision_score(labels[:, k], scores[:, k]) for k in range(3)]
    order = RNG.permutation(len(logits))
    for size in (1, 5, 84, 100):
        found = ranked(window_scores.image_ranking(labels, power, "all"), logits[order], image[order], size)
        np.testing.assert_allclose(found["mean_average_precision_per_class"], expected, rtol=1e-6)
        assert found["mean_average_precision"] == pytest.approx(np.mean(expected), rel=1e-6)


def test_images_without_a_class_are_ranked_too():
    """Probabilities of about 1e-9, whose fifth powers are no float32, in the order 2, 0, 1."""
    labels = np.float32([[0, 1], [1, 1], [0, 0]])
    logits = np.float32([[-21, 0, 0], [-22, 0, 0], [-20, 0, 0]])
    found = ranked(window_scores.image_ranking(labels, 5.0, "all"), logits, np.arange(3), 2)
    assert found["mean_average_precision_per_class"][0] == pytest.approx(1 / 3)
    ahead = np.float32([[-21, 0, 0], [-19, 0, 0], [-20, 0, 0]])
    found = ranked(window_scores.image_ranking(labels, 5.0, "all"), ahead, np.arange(3), 2)
    assert found["mean_average_precision_per_class"][0] == 1.0


def test_score_maps_by_hand():
    """A 3x4 image: one window over all of it, one over two columns; the last class of both is 1."""
    scores = jnp.array([[0.2, 1.0], [0.6, 1.0]])
    found = window_scores.score_map(scores, jnp.array([[0, 0, 3, 4], [0, 2, 3, 4]]), 3, 4, power=1)
    np.testing.assert_allclose(found[..., 0], [[0.2, 0.2, 0.4, 0.4]] * 3, rtol=1e-6)
    np.testing.assert_allclose(found[..., 1], np.ones((3, 4)), rtol=1e-6)
    alone = window_scores.score_map(scores[1:], jnp.array([[1, 2, 3, 4]]), 3, 4, power=2)
    np.testing.assert_allclose(alone[..., 0], [[0, 0, 0, 0], [0, 0, 0.36, 0.36], [0, 0, 0.36, 0.36]], rtol=1e-6)


def test_score_maps_are_means_over_covering_windows():
    corners = RNG.integers(0, 10, (30, 2))
    places = np.concatenate([corners, corners + RNG.integers(1, 8, (30, 1))], 1)  # some reach over the edge
    scores = np.float32(RNG.random((30, 3)))
    found = window_scores.score_map(jnp.asarray(scores), jnp.asarray(places), 12, 14, 5.0)
    for y, x in RNG.integers(0, 12, (20, 2)):
        inside = [(t <= y < b) and (left <= x < r) for t, left, b, r in places]
        expected = (scores[inside] ** 5).mean(0) if any(inside) else np.zeros(3)
        np.testing.assert_allclose(found[y, x], expected, rtol=1e-5)


@pytest.mark.full
def test_bad_requests():
    labels, logits, image = made_up()
    with pytest.raises(errors.BadRequest, match="power is 0"):
        window_scores.image_ranking(labels, 0)
    with pytest.raises(errors.BadRequest, match="2 outputs; the images have 3 classes"):
        ranked(window_scores.image_ranking(labels), logits[:, :2], image, 84)
    with pytest.raises(errors.BadRequest, match="2 of 12 images have no windows"):
        ranked(window_scores.image_ranking(labels), logits[:70], image[:70], 70)
