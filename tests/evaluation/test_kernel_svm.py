"""Kernels against scikit-learn's and ten-line formulas; machines against scikit-learn's on these kernels."""

import functools

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import pairwise
from sklearn.svm import SVC

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import kernel_svm


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    x = (x / x.sum(1, keepdims=True)).astype(np.float32)
    return x[:300], y[:300], x[300:700], y[300:700]


@pytest.mark.parametrize("kernel", kernel_svm.KERNELS)
def test_kernels(kernel):
    x, _, other, _ = digits()
    gamma = 3.0
    a, b = x[:, None].astype(np.float64), other[None].astype(np.float64)
    want = {
        "chi2": lambda: pairwise.chi2_kernel(x, other, gamma),
        "intersection": lambda: gamma * np.minimum(a, b).sum(-1),
        "rbf": lambda: pairwise.rbf_kernel(x, other, gamma),
    }[kernel]()
    np.testing.assert_allclose(kernel_svm.gram(x, other, kernel, gamma), want, atol=2e-6)


def test_the_machine_is_scikit_learns():
    x, y, val, val_labels = digits()
    found = kernel_svm.fit_path(x, y, val, val_labels, num_classes=10, kernels=["rbf"], cs=(1.0, 10.0))
    assert found.kernel == "rbf" and found.landmarks == 0 and found.machine.gamma > 0
    for c in (1.0, 10.0):
        want = SVC(C=c, gamma=found.machine.gamma).fit(x, y)
        assert found.val_accuracy["rbf", c] == pytest.approx(want.score(val, val_labels), abs=0.005)
    assert np.mean(kernel_svm.predict(found.machine, val) == val_labels) == max(found.val_accuracy.values()) > 0.8


def test_kernels_are_chosen_among_those_that_the_features_allow():
    x, y, val, val_labels = digits()
    told = []
    kw = dict(num_classes=10, cs=(10.0,), refit=True, say=lambda *how_far: told.append(how_far))
    found = kernel_svm.fit_path(x, y, val, val_labels, **kw)
    assert {k for k, _ in found.val_accuracy} == {"chi2", "intersection", "rbf"}
    assert told[0] == (0, 3) and told[-1] == (3, 3) and len(found.machine.examples) == 700
    found = kernel_svm.fit_path(x - 0.1, y, val, val_labels, **kw)
    assert {k for k, _ in found.val_accuracy} == {"rbf"}
    with pytest.raises(BadRequest, match="chi2 needs features >= 0"):
        kernel_svm.fit_path(x - 0.1, y, val, val_labels, num_classes=10, kernels=["chi2"])


@pytest.mark.full
def test_many_examples_are_compared_with_landmarks(monkeypatch):
    """With all examples as landmarks the map has the kernel as its inner products; with some it comes near."""
    x, y, val, val_labels = digits()
    kw = dict(num_classes=10, kernels=["chi2"], cs=(10.0,))
    whole = kernel_svm.fit_path(x, y, val, val_labels, **kw).val_accuracy["chi2", 10.0]
    monkeypatch.setattr(kernel_svm, "LARGEST", 299)
    every = kernel_svm.fit_path(x, y, val, val_labels, **kw, landmarks=300)
    kernel = kernel_svm.gram(x, x, "chi2", every.machine.gamma)
    mapped = kernel @ every.machine.turn
    ratio = np.trace(mapped @ mapped.T) / np.trace(kernel)
    np.testing.assert_allclose(mapped @ mapped.T, kernel * ratio, atol=2e-3)
    some = kernel_svm.fit_path(x, y, val, val_labels, **kw, landmarks=100)
    assert every.landmarks == 300 and some.landmarks == 100 == len(some.machine.examples)
    for found in (every, some):
        assert found.val_accuracy["chi2", 10.0] == pytest.approx(whole, abs=0.03)
        assert np.mean(kernel_svm.predict(found.machine, val) == val_labels) == found.val_accuracy["chi2", 10.0]


def test_bad_requests():
    x, y = np.eye(6, dtype=np.float32), np.arange(6) % 2
    for change, message in (
        ({"labels": 0 * y}, "all training examples have the same class"),
        ({"kernels": ["ch2"]}, "unknown kernel 'ch2'"),
        ({"cs": (0.0,)}, r"c is \[0.0\]"),
        ({"landmarks": 0}, "landmarks is 0"),
        ({"val_features": x[:, 1:]}, "validation features have 5 numbers each, the training features 6"),
    ):
        with pytest.raises(BadRequest, match=message):
            kernel_svm.fit_path(**{**dict(features=x, labels=y, val_features=x, val_labels=y, num_classes=2), **change})
