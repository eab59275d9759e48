"""The rules of the diagnosis on curves made by formulas: what is said of each, and what is not."""

import math

import numpy as np
import pytest

from recvis_jax.evaluation import diagnosis, symptoms
from recvis_jax.evaluation.symptoms import Curve, Evidence, Measured, Pictures

STEPS = np.arange(1, 41) * 25
T = STEPS / 1000  # from 0 to 1


def curve(loss, accuracy=None):
    nothing = np.full(len(STEPS), np.nan)
    return Curve(STEPS, np.asarray(loss, float) + 0 * T, nothing if accuracy is None else accuracy + 0 * T)


def fall(to, speed=12.0, start=2.3):
    return to + (start - to) * np.exp(-speed * T)


def evidence(train, val, accuracies, **kw):
    """Evidence of a training of ten classes with 10,000 images, of which 2,000 are for validation."""
    a, b = accuracies
    given = dict(
        steps=(1000, 1000), classes=10, chance_loss=math.log(10), train_examples=10_000, val_examples=2000,
        clean_train=Measured(a, 2000), clean_val=Measured(b, 2000), ended="done",
    )  # fmt: skip
    return Evidence(train, val, **(given | kw))


def pictures(**kw):
    given = dict(
        compared=(2000, 2000), copies=0.0, near=0.0, expected=1.0, vote=0.9, own_vote=0.9, further=0.5, darker=0.0,
        flatter=0.0,
    )  # fmt: skip
    return Pictures(**(given | kw))


DRAWN = np.random.default_rng(0).multinomial(400, [0.01] * 100)
GOOD = (curve(fall(0.02)), curve(fall(0.08)), (0.99, 0.97))
CASES = {
    "good": (evidence(*GOOD), ["fine"]),
    "good, images seen": (evidence(*GOOD, pictures=pictures()), ["fine"]),
    "overfitting": (evidence(curve(fall(0.01)), curve(fall(0.5) + 0.4 * T), (1.0, 0.8)), ["overfitting"]),
    "too sure": (evidence(curve(fall(0.01)), curve(fall(0.1) + 0.2 * T), (0.99, 0.97)), ["overfitting"]),
    "underfitting": (evidence(curve(fall(0.9)), curve(fall(0.92)), (0.7, 0.69)), ["underfitting"]),
    "still falling": (evidence(curve(fall(0, 1)), curve(fall(0, 1)), (0.7, 0.69)), ["stopped too early"]),
    "falling by its schedule": (
        evidence(curve(fall(0.3) - 0.2 * (T > 0.76)), curve(fall(0.3) - 0.2 * (T > 0.76)), (0.97, 0.96),
                 rates=[0.1] * 30 + [0.001] * 10), ["fine"],
    ),
    "restless": (
        evidence(curve(fall(0.9)), curve(fall(0.9) * np.exp(0.5 * (np.arange(40) % 2))), (0.7, 0.7)), ["rate too high"],
    ),
    "blown up": (evidence(curve(fall(0.9, start=500)), curve(fall(0.9)), (0.7, 0.7)), ["rate too high"]),
    "dead": (
        evidence(curve(2.303), curve(2.303), (0.1, 0.1), pictures=pictures()), ["rate too high"],
    ),
    "failed": (evidence(*GOOD, failed="Loss is nan at step 7."), ["diverged"]),
    "no number": (evidence(curve(np.where(T < 1, 1.0, np.nan)), curve(1.0), (0.5, 0.5)), ["diverged"]),
    "grown": (evidence(curve(0.5 + 50 * T), curve(0.5 + 50 * T), (0.2, 0.2)), ["diverged"]),
    "by heart": (
        evidence(curve(fall(0.01)), curve(2.3 + 4 * T), (1.0, 0.1), pictures=pictures(vote=0.1, own_vote=0.1)),
        ["labels shuffled"],
    ),
    "by heart, images not seen": (evidence(curve(fall(0.01)), curve(2.3 + 4 * T), (1.0, 0.1)), ["labels shuffled"]),
    "few copies": (evidence(*GOOD, pictures=pictures(near=0.001)), ["fine"]),
    "copies": (evidence(*GOOD, pictures=pictures(near=0.05, copies=0.05)), ["shared images"]),
    "copies among a part": (
        evidence(*GOOD, pictures=pictures(near=0.01, copies=0.01, expected=0.1)), ["shared images"],
    ),
    "other images": (evidence(*GOOD, pictures=pictures(further=0.95)), ["validation unrepresentative"]),
    "darker images": (evidence(*GOOD, pictures=pictures(darker=-1.4)), ["validation unrepresentative"]),
    "other classes": (
        evidence(*GOOD, train_counts=np.full(10, 1000), val_counts=np.array([700, 700, 600] + 7 * [0])),
        ["validation unrepresentative"],
    ),
    "classes by a fair draw": (
        evidence(*GOOD, train_counts=np.full(100, 20), val_counts=DRAWN),
        ["fine"],
    ),
    "test is worse": (evidence(*GOOD, test=Measured(0.88, 2000)), ["validation unrepresentative"]),
    "few validation images": (evidence(*GOOD, val_examples=30), ["validation too small"]),
    "no validation": (evidence(GOOD[0], symptoms.NO_CURVE, (0.99, 0), clean_val=None, val_examples=0), ["fine"]),
    "nothing": (Evidence(symptoms.NO_CURVE, symptoms.NO_CURVE, (0, 0)), ["fine"]),
    "a few steps": (
        Evidence(
            Curve(np.arange(1, 7), np.array([3.07, 3.07, 2.46, 2.43, 2.34, 2.30]), np.linspace(0.09, 0.2, 6)),
            Curve(np.array([6]), np.array([2.37]), np.array([0.103])), (6, 6), classes=10, chance_loss=math.log(10),
            train_examples=2000, val_examples=1000,
        ), ["nothing learnt"],
    ),
    "a regression": (Evidence(curve(fall(0.1)), curve(fall(0.12)), (1000, 1000)), ["fine"]),
    "a regression that overfits": (Evidence(curve(fall(0.1)), curve(fall(0.2) + T), (1000, 1000)), ["overfitting"]),
}  # fmt: skip


@pytest.mark.every
@pytest.mark.parametrize("case", CASES)
def test_what_is_found(case):
    known, names = CASES[case]
    found = diagnosis.diagnose(known)
    assert [f.name for f in found] == names, found
    for f in found:
        assert f.title.endswith((".", ":")) and len(f.title) < 120
        assert not f.why or f.why.endswith("."), f.why


def test_more_than_one_thing_may_be_wrong():
    known = evidence(curve(fall(0.01)), curve(fall(0.5) + 0.4 * T), (1.0, 0.8), pictures=pictures(copies=0.1, near=0.1))
    assert [f.name for f in diagnosis.diagnose(known)] == ["shared images", "overfitting"]


def test_the_interval_of_an_accuracy():
    """Against Wilson's formula solved by hand: the ends p fulfil |p - q| = z sqrt(p (1 - p) / n)."""
    for q, n in ((0.9, 100), (0.5, 20), (1.0, 30)):
        width, z = symptoms.half_width(q, n), 1.96
        ends = np.roots([1 + z**2 / n, -(2 * q + z**2 / n), q**2]).real
        assert width == pytest.approx(abs(ends[0] - ends[1]) / 2, abs=1e-6)
