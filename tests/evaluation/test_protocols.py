"""What every protocol of `probes` keeps: it learns, repeats itself, tells its progress, chooses without test data."""

import functools

import numpy as np
import pytest
from sklearn.datasets import load_digits

from recvis_jax import errors
from recvis_jax.evaluation import forest, probes, several


@functools.cache
def sets():
    """Three classes of digits: training, validation and test data."""
    x, y = load_digits(n_class=3, return_X_y=True)
    x = (x / 16).astype(np.float32)
    return probes.Set(x[:200], y[:200]), probes.Set(x[200:300], y[200:300]), probes.Set(x[300:], y[300:])


def several_classes():
    """The same, where an image is even or not, and 2 or more, which some do not say."""
    out = []
    for x, y in sets():
        hot = np.stack([y % 2 == 0, y >= 2], 1).astype(np.float32)
        hot[::7, 1] = -1
        out.append(probes.Set(x, hot))
    return out


@pytest.mark.full
@pytest.mark.parametrize("protocol", probes.PROTOCOLS)
def test_protocols(protocol):
    train, val, test = sets()
    told = []
    found = probes.run([protocol], train, val, test, num_classes=3, say=lambda *how_far: told.append(how_far))
    assert all(r.score > 0.9 or "shot" in r.name for r in found) and found[-1].metric == "accuracy"
    assert told and {t[0] for t in told} == {protocol} and told[-1][1] == told[-1][2]
    assert [t[1] for t in told] == sorted(t[1] for t in told)
    # The same once more, whatever the order of the test data.
    turned = probes.Set(test.values[::-1], test.labels[::-1])
    again = probes.run([protocol], train, val, turned, num_classes=3)
    assert [(r.name, r.score, r.details) for r in again] == [(r.name, r.score, r.details) for r in found]


@pytest.mark.parametrize("protocol", probes.PROTOCOLS)
def test_few_examples_of_each_class_are_drawn_anew(protocol):
    train, val, test = sets()
    found = probes.run([protocol], train, val, test, num_classes=3, per_class=5, seeds=2)
    assert {r.seed for r in found} == {0, 1} and all(r.score > 0.6 or r.name == "1-shot" for r in found)


@pytest.mark.parametrize("protocol", probes.PROTOCOLS)
def test_several_classes_an_example(protocol):
    train, val, test = several_classes()
    if protocol not in probes.SEVERAL:
        with pytest.raises(errors.BadRequest, match=f"^{protocol} needs one class per image; linear, svm allow"):
            probes.run([protocol], train, val, test, num_classes=2)
        return
    (found,) = probes.run([protocol], train, val, test, num_classes=2)
    assert found.metric == "mean_average_precision" and 0.95 < found.score <= 1
    assert found.record().keys() == {"name", "mean_average_precision", "seed", "details"}
    fit, chosen_on = probes.hold_out(train, 2)
    assert len(chosen_on.labels) == 20 and len(fit.labels) == 180
    with pytest.raises(errors.BadRequest, match="if an image has one class"):
        probes.run([protocol], train, val, test, num_classes=2, per_class=3)


def test_mean_average_precision_by_hand():
    scores = np.array([[0.9, 0.1], [0.8, 0.9], [0.7, 0.3], [0.6, 0.2]], np.float32)
    labels = np.array([[1, -1], [0, 1], [1, 0], [0, 0]])
    first = (6 * 1 + 5 * 2 / 3) / 11  # recall up to 0.5 at precision 1, beyond it at 2/3
    assert several.mean_average_precision(scores, labels) == pytest.approx((first + 1) / 2)


def test_forests_choose_how_many_features_a_split_looks_at(monkeypatch):
    train, val, _ = sets()
    found = forest.fit(*train, *val, num_classes=3, trees=21, fractions=(0.01, 1.0, 100.0))
    assert set(found.val_accuracy) == {1, 8, 64} and len(found.forest.estimators_) == 21
    assert found.val_accuracy[found.looked_at] == max(found.val_accuracy.values())
    with pytest.raises(errors.BadRequest, match="trees is 0"):
        forest.fit(*train, *val, num_classes=3, trees=0)
    monkeypatch.setattr(forest, "LARGEST", 2**15)
    with pytest.raises(errors.BadRequest, match=r"up to 0 MB; 200 of 64 numbers"):
        forest.fit(*train, *val, num_classes=3)
