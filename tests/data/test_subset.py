"""Sources cut down by class."""

import numpy as np
import pytest

from recvis_jax.data import sources
from recvis_jax.data.subset import subset
from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import fewshot


@pytest.fixture(scope="module")
def digits():
    return sources.open_split("digits", "train")


def labels(source):
    return np.asarray([e["label"] for e in source.read(np.arange(source.length))])


def test_classes_are_renumbered_in_the_order_given(digits):
    part, whole = subset(digits, classes=(7, 3)), labels(digits)
    assert part.num_classes == 2 and part.class_names == ("7", "3")
    assert part.length == np.isin(whole, (3, 7)).sum()
    rows = np.flatnonzero(np.isin(whole, (3, 7)))
    for i in (0, 5, part.length - 1):
        found, original = part.read([i])[0], digits.read(rows[[i]])[0]
        np.testing.assert_array_equal(found["image"], original["image"])
        assert (7, 3)[int(found["label"])] == original["label"]
    assert subset(digits, classes=("7", 3)).digest == part.digest != digits.digest


def test_a_few_of_each_class_by_seed_smaller_ones_within_larger(digits):
    few, more, other = (subset(digits, per_class=n, seed=s) for n, s in ((5, 0), (20, 0), (5, 1)))
    assert (np.bincount(labels(few)) == 5).all() and few.length == 50
    pixels = [{e["image"].tobytes() for e in s.read(np.arange(s.length))} for s in (few, more, other)]
    assert pixels[0] < pixels[1] and pixels[0] != pixels[2]
    assert len({few.digest, more.digest, other.digest}) == 3


def test_training_and_probes_draw_the_same_few(digits):
    few = subset(digits, per_class=4, seed=2)
    rows = np.sort(fewshot.draw(labels(digits), 4, 2, num_classes=10))
    for a, b in zip(few.read(np.arange(40)), digits.read(rows), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_everything_is_the_source_itself(digits):
    assert subset(digits) is digits


@pytest.mark.parametrize(
    ("kw", "words"),
    [
        (dict(classes=(0, 10)), "no class 10"),
        (dict(classes=("sevn",)), "no class 'sevn'"),
        (dict(classes=(1, 1)), "twice"),
        (dict(per_class=10_000), "not 10000"),
        (dict(per_class=-1), "negative"),
    ],
)
def test_refusals(digits, kw, words):
    with pytest.raises(BadRequest, match=words):
        subset(digits, **kw)


def test_labels_that_are_no_classes_are_refused(digits):
    with pytest.raises(BadRequest, match="one class per image"):
        subset(digits._replace(num_classes=0), per_class=3)
