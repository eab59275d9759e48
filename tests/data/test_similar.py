"""Copies and neighbours of real digits, against distances computed pair by pair."""

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from recvis_jax.data import similar


@pytest.fixture(scope="module")
def digits():
    raw = load_digits()
    order = np.random.default_rng(0).permutation(1797)
    return (raw.images * (255 / 16)).astype(np.uint8)[order, ..., None], raw.target[order]


def test_neighbours_are_those_of_all_pairs(digits):
    a, b = similar.look(digits[0][:40]), similar.look(digits[0][40:140])
    found = similar.neighbours(a, b)
    all_pairs = np.linalg.norm(a.small[:, None] - b.small[None], axis=-1)
    np.testing.assert_allclose(found.distance, np.sort(all_pairs, 1)[:, :5], atol=1e-3)
    np.testing.assert_array_equal(found.places[:, 0], all_pairs.argmin(1))
    own = similar.neighbours(b, b, itself=True)
    assert (own.places != np.arange(100)[:, None]).all() and own.distance.min() > 0.01


def part(looks, places):
    digests = tuple(looks.digests[i] for i in places)
    return similar.Looks(looks.small[places], looks.large[places], looks.light[places], digests)


def test_few_real_digits_are_taken_for_copies_of_each_other(digits):
    """Of 1,750 digits, each against the 1,447 outside its part, two: a four and a one that another nearly equals.

    Seen side by side their strokes are the same; they differ by 0.8 and 0.4 of 16 grey levels in the mean.
    """
    looks, taken = similar.look(digits[0]), []
    for mine in np.arange(1750).reshape(5, 350):
        others = np.setdiff1d(np.arange(1797), mine)
        a, b = part(looks, mine), part(looks, others)
        near = similar.near_copies(a, b, similar.neighbours(a, b))
        assert not similar.copies(a, b).any()
        taken += [(mine[i], others[near[i]]) for i in np.flatnonzero(near >= 0)]
    assert len(taken) <= 2, taken
    for i, j in taken:
        assert digits[1][i] == digits[1][j]
        assert np.abs(digits[0][i].astype(float) - digits[0][j]).mean() * 16 / 255 < 1, (i, j)


def test_parts_of_one_set_look_alike(digits):
    a, b = similar.look(digits[0][:350]), similar.look(digits[0][350:])
    found = similar.neighbours(a, b)
    assert abs(similar.further(found, similar.neighbours(b, b, itself=True)) - 0.5) < 0.05
    assert (similar.vote(found, digits[1][350:], 10) == digits[1][:350]).mean() > 0.95


CHANGES = {
    "the same": lambda x: x,
    "darker": lambda x: (0.6 * x + 20).astype(np.uint8),
    "noisy": lambda x: (x + np.random.default_rng(0).normal(0, 8, x.shape)).clip(0, 255).astype(np.uint8),
    "larger": lambda x: cv2.resize(x, (24, 24), interpolation=cv2.INTER_AREA)[..., None],
    "in colour": lambda x: np.repeat(x, 3, -1),
    "float": lambda x: (x / 255).astype(np.float32),
}


@pytest.mark.every
@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(change, digits):
    among = similar.look(digits[0][:1400])
    of = similar.look(CHANGES[change](x) for x in digits[0][:300])
    near = similar.near_copies(of, among, similar.neighbours(of, among))
    assert (near == np.arange(300)).mean() > 0.98, change
    assert similar.copies(of, among).all() == (change == "the same")


def test_sets_that_look_different_lie_further(digits):
    among, of = similar.look(digits[0][:1000]), similar.look(255 - x for x in digits[0][1000:1200])
    assert similar.further(similar.neighbours(of, among), similar.neighbours(among, among, itself=True)) > 0.99


def test_few_and_flat_images():
    flat = similar.look([np.full((6, 6, 1), 9, np.uint8)] * 2 + [np.zeros((4, 9, 3), np.uint8)])
    found = similar.neighbours(flat, flat, itself=True)
    assert similar.near_copies(flat, flat, found, itself=True).tolist() == [-1, 0, -1]
    none = similar.look([])
    assert similar.neighbours(flat, none).places.shape == (3, 0)
    assert (similar.near_copies(flat, none, similar.neighbours(flat, none)) == -1).all()
