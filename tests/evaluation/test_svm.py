"""Linear support vector machines against scikit-learn's LinearSVC (LIBLINEAR) on the same features."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.svm import LinearSVC

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import cached, one_vs_rest, svm


@functools.cache
def digits():
    """Training and validation data, features of 64 dimensions and length about 1."""
    x, y = load_digits(return_X_y=True)
    x = (x / 60).astype(np.float32)
    return x[:1200], y[:1200], x[1200:], y[1200:]


def liblinears(x, y, c, bias_scale=1.0):
    return LinearSVC(C=c, intercept_scaling=bias_scale, dual=False, tol=1e-10, max_iter=10_000).fit(
        x.astype(np.float64), y
    )


def objectives(kernel, bias, x, targets, c, bias_scale):
    """Of every class, in float64."""
    margins = targets * (x.astype(np.float64) @ kernel.astype(np.float64) + bias)
    losses = np.where(targets != 0, np.maximum(1 - margins, 0) ** 2, 0)
    return (np.sum(kernel.astype(np.float64) ** 2, 0) + (bias / bias_scale) ** 2) / 2 + c * losses.sum(0)


@pytest.mark.parametrize("c, bias_scale, atol", [(0.1, 1.0, 1e-3), (10.0, 1.0, 3e-3), (1.0, 10.0, 3e-3)])
def test_decides_as_liblinear_does(c, bias_scale, atol):
    x, y, val, _ = digits()
    got = svm.fit(x, y, num_classes=10, c=c, bias_scale=bias_scale)
    want = liblinears(x, y, c, bias_scale)
    assert not got.warning and got.gap <= 1e-6
    np.testing.assert_allclose(svm.decide(got, val), want.decision_function(val), atol=atol)
    np.testing.assert_allclose(got.bias, want.intercept_, atol=atol)
    targets = np.where(y[:, None] == np.arange(10), 1, -1)
    best = objectives(want.coef_.T, want.intercept_, x, targets, c, bias_scale)
    np.testing.assert_allclose(objectives(got.kernel, got.bias, x, targets, c, bias_scale), best, rtol=1e-5)
    np.testing.assert_allclose(got.objective, best, rtol=1e-5)


@pytest.mark.full
def test_more_dimensions_than_examples_and_than_all_eigenvectors_are_found_of(monkeypatch):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = (rng.normal(size=(300, 500)) * np.linspace(0.1, 0.01, 500) + np.eye(3, 500)[y] * 0.2).astype(np.float32)
    want = liblinears(x, y, 5.0)
    passes = {}
    for exact in (64, 200, 400, 1024):
        monkeypatch.setattr(one_vs_rest, "_EXACT", exact)
        got = svm.fit(x, y, num_classes=3, c=5.0)
        assert not got.warning
        np.testing.assert_allclose(svm.decide(got, x), want.decision_function(x), atol=1e-3)
        passes[exact] = got.passes
    assert passes[1024] <= passes[64]


def test_chunks_and_features_that_do_not_stay_on_the_device_change_nothing(monkeypatch, tmp_path):
    x, y, val, _ = digits()
    want = svm.decide(svm.fit(x, y, num_classes=10), val)
    file = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
    file[:] = x
    monkeypatch.setattr(one_vs_rest, "_ROWS", 500)  # 1,200 examples: the last chunk is padded
    monkeypatch.setattr(one_vs_rest, "_SAMPLE", 400)
    np.testing.assert_allclose(svm.decide(svm.fit(file, y, num_classes=10), val), want, atol=1e-3)
    monkeypatch.setattr(one_vs_rest, "_KEPT", 0)
    for features in (file, jnp.asarray(x), x.astype(np.float64)):
        np.testing.assert_allclose(svm.decide(svm.fit(features, y, num_classes=10), val), want, atol=1e-3)


def test_several_classes_an_example_and_ignored_entries():
    """Each class's classifier is LIBLINEAR's of the examples that it does not ignore."""
    x, y, val, _ = digits()
    hot = np.stack([y % 2 == 0, y < 3, y == 7], 1).astype(np.float32)
    hot[::5, 1], hot[::7, 2] = -1, np.nan
    got = svm.fit(x, hot, num_classes=3)
    for i in range(3):
        kept = np.isin(hot[:, i], (0, 1))
        want = liblinears(x[kept], hot[kept, i], 1.0).decision_function(val)
        np.testing.assert_allclose(svm.decide(got, val)[:, i], want, atol=1e-3)
    nobody = svm.fit(x, np.full((len(x), 2), -1), num_classes=2)
    assert not nobody.kernel.any() and not nobody.bias.any() and not nobody.warning


@pytest.mark.full
def test_classes_without_examples_and_features_without_information():
    x, y, val, _ = digits()
    few = y < 2
    got = svm.fit(x[few], y[few], num_classes=3)
    assert svm.accuracy(got, x[few], y[few]) == 1 and not (svm.predict(got, val) == 2).any()
    constant = svm.fit(np.zeros((6, 4), np.float32), np.array([0, 0, 0, 0, 1, 1]), num_classes=2)
    assert not constant.kernel.any() and constant.bias[0] > 0 > constant.bias[1]


def test_logistic_loss_is_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    x, y, val, _ = digits()
    targets = cached.check_targets((y == 3).astype(int)[:, None], len(y), 1, "training")
    mean, scale = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1)
    examples = one_vs_rest.Examples([(x, targets)], mean, scale, 100.0)
    start = examples.weights(np.full((64, 1), 0.01), np.ones(1))
    np.testing.assert_allclose(examples.layer(start)[0], 0.01, rtol=1e-5)
    np.testing.assert_allclose(examples.layer(start)[1], 1, rtol=1e-4)
    end = one_vs_rest.minimise(examples, one_vs_rest.LOGISTIC, 0.1, start, tol=1e-6, max_iter=100)
    want = LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000).fit((x - mean) / scale, targets[:, 0])
    got = cached.outputs(*examples.layer(end.weights), val)[:, 0]
    np.testing.assert_allclose(got, want.decision_function((val - mean) / scale), atol=5e-3)


@pytest.mark.full
def test_path_chooses_on_validation_data_and_refits():
    x, y, val, val_labels = digits()
    x, val = 7 * x, 7 * val
    cs = (100.0, 0.1, 10.0, 1.0)
    chosen = svm.fit_path(x, y, val, val_labels, num_classes=10, cs=cs, patience=None, tol=1e-6)
    assert list(chosen.val_score) == sorted(cs) == list(chosen.passes)
    assert chosen.scale == pytest.approx(np.sqrt(np.mean(np.sum(x**2.0, 1))), rel=1e-5)
    for c in cs:
        alone = svm.fit(x / np.float32(chosen.scale), y, num_classes=10, c=c)
        accuracy = svm.accuracy(alone, val / np.float32(chosen.scale), val_labels)
        assert chosen.val_score[c] == pytest.approx(accuracy, abs=0.5 / len(val))
    assert svm.accuracy(chosen.classifier, val, val_labels) == max(chosen.val_score.values()) > 0.9
    again = svm.fit_path(x, y, val, val_labels, num_classes=10, cs=(chosen.c,), refit=True, tol=1e-8)
    both = svm.fit(
        np.vstack([x, val]) / np.float32(chosen.scale), np.hstack([y, val_labels]), num_classes=10, c=chosen.c
    )
    np.testing.assert_allclose(again.classifier.kernel * chosen.scale, both.kernel, atol=2e-3)


def test_a_start_nearby_saves_passes():
    x, y, _, _ = digits()
    cold = svm.fit(x, y, num_classes=10, c=10.0)
    assert svm.fit(x, y, num_classes=10, c=10.0, init=cold).passes < cold.passes / 5


def test_it_says_when_it_has_not_converged():
    x, y, _, _ = digits()
    got = svm.fit(x, y, num_classes=10, c=10.0, max_iter=1)
    assert got.iterations == 1 and got.warning.startswith("the allowed 1 steps left the objective")
    got = svm.fit(x, y, num_classes=10, tol=1e-30)
    assert got.iterations < 100 and "float32 allowed no progress" in got.warning and got.gap < 1e-6


X, Y = np.eye(6, dtype=np.float32), np.arange(6) % 2
BAD = X.copy()
BAD[4, 4] = np.nan


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": BAD}, "training features of example 4 are not all finite"),
        ({"labels": Y + 1}, "label 2 of example 1 is not one of the 2 classes"),
        ({"labels": Y[1:]}, "6 training features, but 5 training labels"),
        ({"labels": np.eye(6, 3)}, r"shape \(6, 3\); for several classes it must be \(6, 2\)"),
        ({"labels": np.full((6, 2), 0.5)}, "labels of example 0 are not made of 1, 0 and -1"),
        ({"features": X[:0], "labels": Y[:0]}, "no training features"),
        ({"c": 0.0}, "c is 0.0"),
        ({"c": float("inf")}, "c is inf"),
        ({"bias_scale": 0.0}, "bias_scale is 0.0"),
        ({"tol": 0.0}, "tol is 0.0"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"init": svm.Classifier(np.zeros((6, 3)), np.zeros(3))}, r"kernel \(6, 3\).*\(6, 2\)"),
    ],
)
def test_bad_requests(change, message):
    with pytest.raises(BadRequest, match=message) as e:
        svm.fit(**{**dict(features=X, labels=Y, num_classes=2), **change})
    assert "\n" not in str(e.value)


def test_bad_requests_of_paths():
    for change, message in (
        ({"cs": ()}, "c is empty"),
        ({"patience": 0}, "patience is 0"),
        ({"val_features": X[:, 1:]}, "validation features have 5 numbers each, the training features 6"),
    ):
        with pytest.raises(BadRequest, match=message):
            svm.fit_path(**{**dict(features=X, labels=Y, val_features=X, val_labels=Y, num_classes=2), **change})
