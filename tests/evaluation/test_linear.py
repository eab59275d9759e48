"""Logistic regression against scikit-learn's on the same features, and against what its objective says of itself."""

import functools

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import linear
from recvis_jax.evaluation import softmax_regression as regression


@functools.cache
def digits():
    """Training and validation data of 64 features, three of which are constant in training."""
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    return x[:1200], y[:1200], x[1200:], y[1200:]


def objective(kernel, bias, x, y, l2):
    """Mean cross-entropy and penalty, in float64."""
    z = x.astype(np.float64) @ kernel.astype(np.float64) + bias
    z -= z.max(1, keepdims=True)
    return np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]) + l2 / 2 * np.sum(kernel.astype(np.float64) ** 2)


def scikit_learns(x, y, l2):
    model = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-9, max_iter=10_000, solver="newton-cg")
    model.fit(x.astype(np.float64), y)
    return model, model.coef_.T, model.intercept_


# The kernel is determined up to tol / l2: where l2 is weak, as close an agreement takes a smaller tolerance, and at the
# weakest only loss and predictions are asked for.
@pytest.mark.parametrize("l2, tol", [(1.0, 1e-6), (0.01, 1e-6), (1e-3, 2e-7), (1e-4, 1e-6)])
@pytest.mark.parametrize("standardise", [True, False])
def test_agrees_with_scikit_learn(l2, tol, standardise):
    x, y, val, _ = digits()
    if standardise:
        scaler = StandardScaler().fit(x.astype(np.float64))
        seen, seen_val = scaler.transform(x), scaler.transform(val)
        scale = scaler.scale_
    else:
        x, val = x / 4, val / 4
        seen, seen_val, scale = x, val, np.ones(64)
    model, kernel, bias = scikit_learns(seen, y, l2)
    got = linear.fit(x, y, num_classes=10, l2=l2, standardise=standardise, tol=tol)
    assert not got.warning and got.gradient <= tol and got.l2 == l2
    assert got.kernel.dtype == got.bias.dtype == np.float32

    ours = got.kernel * scale[:, None]
    want = objective(kernel, bias, seen, y, l2)
    assert got.loss == pytest.approx(want, rel=1e-5)
    ours_bias = got.bias + scaler.mean_ @ got.kernel if standardise else got.bias
    assert objective(ours, ours_bias, seen, y, l2) == pytest.approx(want, rel=1e-5)
    np.testing.assert_array_equal(linear.predict(got, val), model.predict(seen_val))
    if l2 >= 1e-3:
        np.testing.assert_allclose(ours, kernel, atol=1e-3 * np.abs(kernel).max())


def test_two_classes_and_a_class_without_examples():
    x, y, _, _ = digits()
    few = y < 2
    got = linear.fit(x[few], y[few], num_classes=3, l2=0.01)
    assert got.kernel.shape == (64, 3) and linear.accuracy(got, x[few], y[few]) == 1
    assert not (linear.predict(got, x) == 2).any()


def test_standardised_fits_do_not_depend_on_scale_and_offset():
    x, y, val, _ = digits()
    a = linear.fit(x, y, num_classes=10, l2=0.01)
    factors = (10.0 ** np.linspace(-3, 3, 64)).astype(np.float32)
    b = linear.fit(x * factors + 5 * factors, y, num_classes=10, l2=0.01)
    assert b.loss == pytest.approx(a.loss, rel=1e-5)
    np.testing.assert_array_equal(linear.predict(a, val), linear.predict(b, (val + 5) * factors))


@pytest.mark.full
def test_fewer_examples_than_dimensions_are_fitted_in_what_they_span():
    """The same minimum as in all dimensions, and as scikit-learn's; whatever the start has of other directions goes."""
    x, y, _, _ = digits()
    rng = np.random.default_rng(0)
    x, y = np.hstack([x[:40], rng.normal(size=(40, 36)).astype(np.float32)]), y[:40]  # 40 x 100
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    scale = np.where(std > 0, std, 1)
    few = regression.load([(x, y)], mean, scale)
    assert few.basis.shape == (100, 40) and few.features.shape == (1, 40, 40)
    blocks = jnp.asarray(((x - mean) / scale).T[None], jnp.float32)
    every = regression.Data(blocks, few.labels, few.n, *regression._spectrum(blocks, 40))
    start = regression.Parameters(jnp.asarray(rng.normal(size=(10, 100)), jnp.float32), jnp.zeros(10))
    for l2 in (1.0, 0.01):
        a, b = (regression.minimise(data, start, l2, 1e-6, 1000) for data in (few, every))
        assert float(a.loss) == pytest.approx(float(b.loss), rel=1e-5) and float(a.gradient) <= 1e-6
        np.testing.assert_allclose(a.parameters.kernel, b.parameters.kernel, atol=3e-5 * (1 + 1 / l2))
        _, kernel, _ = scikit_learns((x - mean) / scale, y, l2)
        np.testing.assert_allclose(a.parameters.kernel.T, kernel, atol=3e-3 * np.abs(kernel).max())


@pytest.mark.full
def test_a_constant_feature_is_left_out():
    x, y, _, _ = digits()
    constant = np.full((len(x), 1), 1234.567, np.float32)
    a = linear.fit(x, y, num_classes=10, l2=0.01)
    b = linear.fit(np.hstack([x, constant]), y, num_classes=10, l2=0.01)
    np.testing.assert_allclose(b.kernel[:-1], a.kernel, atol=1e-3 * np.abs(a.kernel).max())
    np.testing.assert_allclose(b.kernel[-1], 0, atol=1e-7)
    nothing = linear.fit(constant, y, num_classes=10, l2=0.01, standardise=False)  # the classes' frequencies are left
    want = -np.sum(np.bincount(y) / len(y) * np.log(np.bincount(y) / len(y)))
    assert nothing.loss == pytest.approx(want, rel=1e-5)


def test_a_start_nearby_saves_steps_and_ends_at_the_same_place():
    x, y, _, _ = digits()
    for standardise in (True, False):
        fit = functools.partial(linear.fit, x, y, num_classes=10, standardise=standardise)
        cold = fit(l2=0.01)
        again, near = fit(l2=0.01, init=cold), fit(l2=0.01, init=fit(l2=0.015))
        assert again.iterations < cold.iterations / 10 and near.iterations < cold.iterations
        np.testing.assert_allclose(near.kernel, cold.kernel, atol=1e-3 * np.abs(cold.kernel).max())


def test_it_says_when_it_has_not_converged():
    x, y, _, _ = digits()
    got = linear.fit(x, y, num_classes=10, l2=1e-3, max_iter=3)
    assert got.iterations == 3 and got.gradient > 1e-6
    assert got.warning.startswith("the allowed 3 steps left a gradient of") and "tolerance of 1e-06" in got.warning
    got = linear.fit(x, y, num_classes=10, l2=1e-3, tol=1e-12)
    assert got.iterations < 1000 and got.gradient < 1e-6 and "float32 allowed no progress" in got.warning


def test_path_chooses_on_validation_data():
    x, y, val, val_labels = digits()
    l2s = (1e-4, 1.0, 1e-1, 1e-2, 1e-3)
    chosen = linear.fit_path(x, y, val, val_labels, num_classes=10, l2s=l2s, patience=None, tol=1e-6)
    assert list(chosen.val_accuracy) == sorted(l2s, reverse=True) == list(chosen.iterations)
    for l2 in l2s:
        alone = linear.fit(x, y, num_classes=10, l2=l2)
        assert chosen.val_accuracy[l2] == pytest.approx(linear.accuracy(alone, val, val_labels), abs=0.5 / len(val))
    assert chosen.val_accuracy[chosen.l2] == max(chosen.val_accuracy.values()) > 0.88
    assert chosen.l2 == max(l2 for l2, a in chosen.val_accuracy.items() if a == max(chosen.val_accuracy.values()))
    assert linear.accuracy(chosen.classifier, val, val_labels) == chosen.val_accuracy[chosen.l2]
    assert chosen.classifier.l2 == chosen.l2 and not chosen.warning


def test_path_ends_when_it_gets_worse():
    """Noise features: the weaker the penalty, the worse."""
    rng = np.random.default_rng(0)
    y, val_labels = rng.integers(0, 2, 100), rng.integers(0, 2, 400)
    x, val = (
        np.hstack([(labels + rng.normal(size=n))[:, None], rng.normal(size=(n, 60))]).astype(np.float32)
        for labels, n in ((y, 100), (val_labels, 400))
    )
    kw = dict(num_classes=2, l2s=(1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5))
    every = linear.fit_path(x, y, val, val_labels, **kw, patience=None)
    some = linear.fit_path(x, y, val, val_labels, **kw)
    assert len(every.val_accuracy) == 6 and len(some.val_accuracy) == 3 + list(every.val_accuracy).index(every.l2) < 6
    assert some.l2 == every.l2 and some.classifier.loss == every.classifier.loss
    at_the_end = linear.fit_path(x, y, val, val_labels, num_classes=2, l2s=(every.l2, every.l2 / 10))
    assert "at the end of the tried range" in at_the_end.warning


def test_refit_is_the_fit_of_all_data():
    x, y, val, val_labels = digits()
    got = linear.fit_path(x, y, val, val_labels, num_classes=10, l2s=(0.1, 0.01), refit=True, tol=1e-6)
    want = linear.fit(np.vstack([x, val]), np.hstack([y, val_labels]), num_classes=10, l2=got.l2)
    assert got.classifier.loss == pytest.approx(want.loss, rel=1e-6)
    np.testing.assert_allclose(got.classifier.kernel, want.kernel, atol=1e-3 * np.abs(want.kernel).max())


def test_memory_maps_and_other_floats(tmp_path):
    x, y, val, val_labels = digits()
    file = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
    file[:] = x
    want = linear.fit(x, y, num_classes=10, l2=0.1)
    for a in (file, jnp.asarray(x), x.astype(np.float16), x.astype(np.float64)):
        got = linear.fit(a, y, num_classes=10, l2=0.1)
        np.testing.assert_array_equal(got.kernel, want.kernel)
        assert linear.accuracy(got, val, val_labels) == linear.accuracy(want, jnp.asarray(val), val_labels)


X, Y = np.eye(6, dtype=np.float32), np.arange(6) % 2
BAD = X.copy()
BAD[4, 4] = np.nan


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": BAD}, "training features of example 4 are not all finite"),
        ({"labels": Y + 1}, "label 2 of example 1 is not one of the 2 classes"),
        ({"labels": Y[1:]}, "6 training features, but 5 training labels"),
        ({"features": X[:0], "labels": Y[:0]}, "no training features"),
        ({"l2": -1.0}, "l2 is -1.0"),
        ({"l2": float("inf")}, "l2 is inf"),
        ({"tol": 0.0}, "tol is 0.0"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"init": linear.Classifier(np.zeros((6, 3)), np.zeros(3))}, r"kernel \(6, 3\).*\(6, 2\)"),
    ],
)
def test_bad_requests(change, message):
    with pytest.raises(BadRequest, match=message) as e:
        linear.fit(**{**dict(features=X, labels=Y, num_classes=2, l2=1.0), **change})
    assert "\n" not in str(e.value)


def test_bad_requests_of_path_and_prediction():
    kw = dict(num_classes=2, l2s=(1.0,))
    with pytest.raises(BadRequest, match="validation features have 5 numbers each, the training features 6"):
        linear.fit_path(X, Y, X[:, 1:], Y, **kw)
    with pytest.raises(BadRequest, match="validation label 7"):
        linear.fit_path(X, Y, X, Y + 7, **kw)
    with pytest.raises(BadRequest, match="l2 is empty"):
        linear.fit_path(X, Y, X, Y, num_classes=2, l2s=())
    with pytest.raises(BadRequest, match="patience is 0"):
        linear.fit_path(X, Y, X, Y, **kw, patience=0)
    classifier = linear.Classifier(np.zeros((6, 2), np.float32), np.zeros(2, np.float32))
    np.testing.assert_array_equal(linear.predict(classifier, X), 0)  # of equal logits the lowest class
    with pytest.raises((BadRequest, jaxtyping.TypeCheckError)):
        linear.predict(classifier, X[:, 1:])
    with pytest.raises(BadRequest, match="example 4"):
        linear.accuracy(classifier, BAD, Y)
