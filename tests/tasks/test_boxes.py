"""Arithmetic of boxes and the matching, against numpy by hand and scipy's assignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from recvis_jax.errors import BadRequest
from recvis_jax.tasks import boxes, matching


def random_boxes(rng, n):
    corner = rng.random((n, 2))
    return jnp.float32(np.concatenate([corner, corner + 0.05 + rng.random((n, 2))], -1))


def test_forms_are_inverse():
    given = random_boxes(np.random.default_rng(0), 9)
    np.testing.assert_allclose(boxes.corners(boxes.centred(given)), given, atol=1e-6)
    part = jnp.array([[3.0, 2, 13, 22]])
    np.testing.assert_allclose(boxes.absolute(boxes.relative(given[None], part), part)[0], given, atol=1e-5)
    np.testing.assert_allclose(boxes.relative(part[None], part)[0, 0], [0, 0, 1, 1])


def test_overlaps_count_cells():
    """Boxes of whole numbers are sets of cells of a grid."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = (np.sort(rng.choice(12, (2, 2), replace=False), 0) for _ in range(2))
        a, b = (np.concatenate([x[0], np.maximum(x[1], x[0] + 1)]) for x in (a, b))
        cells = np.zeros((2, 13, 13), bool)
        for mask, (x0, y0, x1, y1) in zip(cells, (a, b), strict=True):
            mask[y0:y1, x0:x1] = True
        union, shared = (cells[0] | cells[1]).sum(), (cells[0] & cells[1]).sum()
        ys, xs = np.nonzero(cells.any(0))
        hull = (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
        iou, giou = boxes.overlaps(jnp.float32(a), jnp.float32(b))
        assert iou == pytest.approx(shared / union, abs=1e-6)
        assert giou == pytest.approx(shared / union - (hull - union) / hull, abs=1e-6)


def test_boxes_without_area_have_finite_overlaps_and_gradients():
    point = jnp.array([0.5, 0.5, 0.5, 0.5])
    value, grad = jax.value_and_grad(lambda b: sum(boxes.overlaps(b, point)))(point)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_crowds_and_points_are_no_targets_and_the_frame_bounds_the_picture():
    found = [[0, 0, 4, 4], [1, 1, 3, 3], [2, 2, 2, 5], [0, 0, 0, 0]]
    batch = {
        "image": np.zeros((1, 8, 10, 3)), "boxes": np.float32([found]),
        "boxes_mask": np.array([[True, True, True, False]]), "labels": np.array([[2, 1, 1, -1]]),
        "crowd": np.array([[False, True, False, False]]), "frame": np.float32([[-2, 0, 6, 12]]),
    }  # fmt: skip
    true = boxes.targets(batch)
    assert true.valid.tolist() == [[True, False, False, False]] and true.labels.tolist() == [[2, 0, 0, 0]]
    assert boxes.region(batch).tolist() == [[0, 0, 6, 8]]
    pixels = boxes.valid_pixels(batch)[0]
    assert pixels[:, :6].all() and not pixels[:, 6:].any()


@pytest.mark.parametrize("seed", range(3))
def test_suppression_is_that_of_the_plain_loop(seed):
    rng = np.random.default_rng(seed)
    found = random_boxes(rng, 30)
    scores, labels = jnp.float32(rng.permutation(30) + 1), jnp.asarray(rng.integers(0, 2, 30))
    kept = []
    for i in np.argsort(-np.asarray(scores)):
        iou = [boxes.overlaps(found[i], found[j])[0] for j in kept if labels[j] == labels[i]]
        if not iou or max(iou) <= 0.2:
            kept.append(i)
    got = boxes.suppressed(found, scores, labels, 0.2)
    np.testing.assert_array_equal(np.flatnonzero(got), sorted(kept))
    assert 2 < len(kept) < 30


@pytest.mark.parametrize("seed", range(3))
def test_soft_suppression_is_that_of_the_plain_loop(seed):
    rng = np.random.default_rng(seed)
    found = random_boxes(rng, 12)
    first, labels = np.float32(rng.random(12)), rng.integers(0, 2, 12)
    scores, left = first.copy(), list(range(12))
    while left:
        best = max(left, key=lambda i: scores[i])
        left.remove(best)
        for i in left:
            if labels[i] == labels[best]:
                scores[i] *= np.exp(-(float(boxes.overlaps(found[i], found[best])[0]) ** 2) / 0.5)
    got = boxes.softened(found, jnp.asarray(first), jnp.asarray(labels), 0.5)
    np.testing.assert_allclose(got, scores, rtol=1e-5)
    assert (scores < first).any()


assign = jax.jit(jax.vmap(matching.assign))


@pytest.mark.parametrize("q, n", [(9, 5), (6, 6)])
def test_the_least_cost_is_scipys(q, n):
    rng = np.random.default_rng(q)
    cost, valid = np.float32(rng.normal(size=(40, q, n))), np.arange(n) < rng.integers(0, n + 1, (40, 1))
    cost[0] = 1.0  # all the same
    got = np.asarray(assign(cost, valid))
    for c, v, given in zip(cost, valid, got, strict=True):
        assert len(set(given.tolist())) == n, "no prediction is given twice"
        rows, columns = linear_sum_assignment(c[:, v])
        assert c[given[v], np.flatnonzero(v)].sum() == pytest.approx(c[:, v][rows, columns].sum(), abs=1e-5)


def test_costs_that_are_not_finite_end():
    cost = np.full((1, 4, 3), np.nan, np.float32)
    assert len(set(np.asarray(assign(cost, np.ones((1, 3), bool)))[0].tolist())) == 3
    with pytest.raises(BadRequest, match="3 objects cannot each have a prediction of their own of 2"):
        matching.assign(jnp.zeros((2, 3)), jnp.ones(3, bool))
