"""Few-shot accuracy against scikit-learn's ridge regression on the same few examples."""

import functools

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import fewshot as module
from recvis_jax.evaluation.fewshot import draw, fewshot, ridge


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    return x[:1000], y[:1000], x[1000:], y[1000:]


def scikit_learns(x, y, l2):
    """Outputs of a ridge regression on the few, as a function of features."""
    scaler = StandardScaler().fit(x.astype(np.float64))
    model = Ridge(alpha=l2, solver="svd").fit(scaler.transform(x), 2 * np.eye(10)[y] - 1)
    return lambda a: model.predict(scaler.transform(a))


@pytest.mark.parametrize("shots", [1, 5, 25])  # 10 and 50 examples in the dual form, 250 in the primal one
@pytest.mark.parametrize("l2", [0.1, 10.0, 2.0**10])
def test_agrees_with_scikit_learn(shots, l2):
    train, labels, test, test_labels = digits()
    few = draw(labels, shots, 3, num_classes=10)
    kernels, biases = ridge(train[few], labels[few], np.array([l2], np.float32), 10)
    want = scikit_learns(train[few], labels[few], l2)(test)
    np.testing.assert_allclose(test @ kernels[0] + biases[0], want, atol=1e-4 * np.abs(want).max())
    got = fewshot(train, labels, test, test_labels, num_classes=10, shots=(shots,), seeds=(3,), l2=l2)
    assert got == {shots: [pytest.approx(np.mean(want.argmax(1) == test_labels), abs=1.5 / len(test))]}


def test_every_l2_is_solved_by_the_same_decomposition():
    train, labels, _, _ = digits()
    few = draw(labels, 5, 0, num_classes=10)
    l2s = np.array([100.0, 1.0], np.float32)
    kernels, biases = ridge(train[few], labels[few], l2s, 10)
    for i in range(2):
        kernel, bias = ridge(train[few], labels[few], l2s[i : i + 1], 10)
        np.testing.assert_allclose(kernels[i], kernel[0], atol=1e-6)
        np.testing.assert_allclose(biases[i], bias[0], atol=1e-5)


def test_draws_are_balanced_nested_and_repeatable():
    _, labels, _, _ = digits()
    some = {n: draw(labels, n, 7, num_classes=10) for n in (1, 5, 25)}
    for n, few in some.items():
        np.testing.assert_array_equal(np.bincount(labels[few]), n)
        np.testing.assert_array_equal(few, draw(labels, n, 7, num_classes=10))
        assert len(set(few.tolist())) == 10 * n
    assert set(some[1]) < set(some[5]) < set(some[25])
    assert set(some[25]) != set(draw(labels, 25, 8, num_classes=10))
    # An example more of one class leaves the others' as they are.
    more = draw(np.append(labels, 0), 5, 7, num_classes=10)
    np.testing.assert_array_equal(more[5:], some[5][5:])


def test_seeds_and_shots():
    train, labels, test, test_labels = digits()
    got = fewshot(train, labels, test, test_labels, num_classes=10, shots=(1, 10))
    assert list(got) == [1, 10] and all(len(a) == 3 and isinstance(a[0], float) for a in got.values())
    assert len(set(got[1])) > 1 and 0.2 < np.mean(got[1]) < np.mean(got[10]) < 1
    assert fewshot(train, labels, test, test_labels, num_classes=10, shots=(1,), seeds=(2, 0)) == {
        1: [got[1][2], got[1][0]]
    }


def test_l2_is_chosen_on_validation_data_for_every_draw():
    train, labels, test, test_labels = digits()
    l2s, half = (0.01, 30.0, 1e4), len(test) // 2
    val, kw = (test[:half], test_labels[:half]), dict(num_classes=10, shots=(5,), seeds=4)
    got = fewshot(train, labels, test[half:], test_labels[half:], l2=l2s, val=val, **kw)
    want = []
    for seed in range(4):
        few = draw(labels, 5, seed, num_classes=10)
        fits = [scikit_learns(train[few], labels[few], l2) for l2 in sorted(l2s, reverse=True)]
        best = fits[np.argmax([np.mean(f(val[0]).argmax(1) == val[1]) for f in fits])]
        want.append(np.mean(best(test[half:]).argmax(1) == test_labels[half:]))
    np.testing.assert_allclose(got[5], want, atol=1.5 / half)


def test_blocks_of_the_test_data_add_up(monkeypatch):
    train, labels, test, test_labels = digits()
    kw = dict(num_classes=10, shots=(1,), seeds=2)
    want = fewshot(train, labels, test, test_labels, **kw)
    monkeypatch.setattr(module, "_ROWS", 100)
    assert fewshot(train, labels, test, test_labels, **kw) == want


def test_memory_maps(tmp_path):
    train, labels, test, test_labels = digits()
    file = np.memmap(tmp_path / "x", np.float32, "w+", shape=train.shape)
    file[:] = train
    kw = dict(num_classes=10, shots=(5,), seeds=1)
    assert fewshot(file, labels, test, test_labels, **kw) == fewshot(train, labels, test, test_labels, **kw)


X, Y = np.eye(6, dtype=np.float32), np.arange(6) % 2
BAD = X.copy()
BAD[4, 4] = np.inf


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shots": (4,)}, "class 0 has 3 training examples; 4 shots"),
        ({"num_classes": 3}, "class 2 has 0 training examples; 1 shots"),
        ({"shots": (0,)}, "shots is 0"),
        ({"seeds": (-1,)}, "seed is -1"),
        ({"seeds": 0}, "at least one of each"),
        ({"shots": ()}, "at least one of each"),
        ({"l2": 0.0}, "l2 is 0.0"),
        ({"l2": ()}, r"l2 is \(\)"),
        ({"l2": (1.0, 2.0)}, "l2 has 2 values; give `val`"),
        ({"train": BAD}, "training features of example 4"),
        ({"test": BAD}, "test features of example 4"),
        ({"test": X[:, 1:]}, "test features have 5 numbers each, the training features 6"),
        ({"test_labels": Y - 1}, "test label -1 of example 0"),
        ({"train_labels": Y[1:]}, "6 training features, but 5 training labels"),
        ({"val": (X[1:], Y)}, "5 validation features, but 6 validation labels"),
    ],
)
def test_bad_requests(change, message):
    kw = dict(train=X, train_labels=Y, test=X, test_labels=Y, num_classes=2, shots=(1,), seeds=1)
    with pytest.raises(BadRequest, match=message) as e:
        fewshot(**{**kw, **change})
    assert "\n" not in str(e.value)
