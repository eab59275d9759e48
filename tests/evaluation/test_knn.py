"""Nearest neighbours against scikit-learn's and against votes counted by hand."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import knn

Refused = (BadRequest, jaxtyping.TypeCheckError)  # the annotations may be quicker than the sentence


def digits():
    x, y = load_digits(return_X_y=True)
    return x[:1200].astype(np.float32), y[:1200], x[1200:].astype(np.float32), y[1200:]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(knn, "_BLOCK", 96)  # several, the last of them not full


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_equal_votes_are_scikit_learns(metric, small_blocks):
    train, labels, test, _ = digits()
    train, test = train + 30, test + 30  # a common offset, as features behind a ReLU have
    got = knn.classify(
        train, labels, test, num_classes=10, ks=(20, 1, 5, 100), temperature=None, metric=metric, chunk=100
    )
    assert list(got) == [1, 5, 20, 100]
    for k, classes in got.items():
        other = KNeighborsClassifier(k, metric={"l2": "euclidean"}.get(metric, metric), algorithm="brute")
        want = other.fit(train.astype(np.float64), labels).predict(test.astype(np.float64))
        # Distances of integers are exact in float32 and may be equal: sorting then takes others than we do.
        assert np.mean(classes == want) >= (1 if metric == "cosine" else 0.99)
        assert classes.dtype == np.int32 and classes.shape == test.shape[:1]


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1e-3])
def test_weighted_votes_are_those_of_the_formula(temperature, small_blocks):
    train, labels, test, _ = digits()
    a, b = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    s = b @ a.T
    order = np.argsort(-s, axis=1)
    got = knn.classify(train, labels, test, num_classes=10, ks=(5, 200), temperature=temperature)
    for k in (5, 200):
        near = order[:, :k]
        weight = np.exp((np.take_along_axis(s, near, 1) - 1) / temperature)
        votes = np.stack([(weight * (labels[near] == c)).sum(1) for c in range(10)], axis=1)
        np.testing.assert_array_equal(got[k], votes.argmax(1))


def test_votes_by_hand():
    """Similarities to (1, 0): 1 (class 2), 0.8 (class 0) and 0.6 (class 0)."""
    train = np.array([[0.6, 0.8], [3.0, 0.0], [8.0, 6.0]], np.float32)
    labels, test = np.array([0, 2, 0]), np.array([[5.0, 0.0]], np.float32)

    def winner(k, temperature):
        return knn.classify(train, labels, test, num_classes=3, ks=(k,), temperature=temperature)[k].item()

    assert winner(1, None) == 2
    assert winner(2, None) == 0  # one vote each: the lower class
    assert winner(3, None) == 0
    # Two votes of class 0 against one: exp(-0.2 / T) + exp(-0.4 / T) < 1 where T is below 0.4156.
    assert winner(3, 0.41) == 2
    assert winner(3, 0.42) == 0


def test_equal_neighbours_are_taken_in_order(small_blocks):
    """200 times the same training example, over three blocks: the first k are found."""
    train = np.ones((200, 4), np.float32)
    labels = np.arange(200) // 50
    got = knn.classify(train, labels, train[:3], num_classes=4, ks=(50, 120, 200), temperature=0.07)
    assert {k: set(v.tolist()) for k, v in got.items()} == {50: {0}, 120: {0}, 200: {0}}
    got = knn.classify(train, labels[::-1], train[:3], num_classes=4, ks=(50, 99, 100))
    assert {k: set(v.tolist()) for k, v in got.items()} == {50: {3}, 99: {3}, 100: {2}}


def test_l2_on_the_sphere_is_cosine():
    train, labels, test, _ = digits()
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    one = knn.classify(train, labels, test, num_classes=10, ks=(20,), temperature=0.07)
    two = knn.classify(train, labels, test, num_classes=10, ks=(20,), temperature=0.14, metric="l2")
    np.testing.assert_array_equal(one[20], two[20])


def test_an_example_of_zeros_is_similar_to_nothing():
    train = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], np.float32)
    got = knn.classify(train, np.array([0, 1, 2]), train, num_classes=3, ks=(1,))[1]
    np.testing.assert_array_equal(got, [0, 1, 2])


def test_memory_maps_and_other_floats(tmp_path, small_blocks):
    train, labels, test, _ = digits()
    file = np.memmap(tmp_path / "x", np.float32, "w+", shape=train.shape)
    file[:] = train
    kw = dict(num_classes=10, ks=(5,))
    want = knn.classify(train, labels, test, **kw)[5]
    for a, b in [(file, test), (train.astype(np.float16), jnp.asarray(test)), (train.astype(np.float64), test)]:
        np.testing.assert_array_equal(knn.classify(a, labels, b, **kw)[5], want)


def test_choose_is_the_accuracy_of_every_k():
    train, labels, val, val_labels = digits()
    got = knn.choose(train, labels, val, val_labels, num_classes=10, ks=(1, 5))
    for k, classes in knn.classify(train, labels, val, num_classes=10, ks=(1, 5)).items():
        assert got[k] == np.mean(classes == val_labels) > 0.9


def spoilt(x, value=np.nan):
    x = x.copy()
    x[7, 1] = value
    return x


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ks": (1, 21)}, r"ks is \(1, 21\).*from 1 to the 20 training examples"),
        ({"ks": (0,)}, r"ks is \(0,\)"),
        ({"ks": ()}, r"ks is \(\)"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"train": spoilt(np.ones((20, 3), np.float32))}, "training features of example 7 are not all finite"),
        ({"train": spoilt(np.ones((20, 3)), 1e39)}, "training features of example 7 are not all finite"),
        ({"test": spoilt(np.ones((9, 3), np.float32), np.inf)}, "test features of example 7"),
        ({"test": np.ones((9, 4), np.float32)}, "test features have 4 numbers each, the training features 3"),
        ({"test": np.ones((0, 3), np.float32)}, "no test features"),
        (
            {"train_labels": np.arange(20)},
            "label 2 of example 2 is not one of the 2 classes from 0 to 1; 18 labels",
        ),
        ({"train_labels": np.full(20, -1)}, "label -1 of example 0"),
        ({"train_labels": np.zeros(19, np.int32)}, "20 training features, but 19 training labels"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_bad_requests(change, message):
    kw = dict(train=np.ones((20, 3), np.float32), train_labels=np.arange(20) % 2, test=np.ones((9, 3), np.float32))
    kw |= dict(num_classes=2, ks=(1,))
    with pytest.raises(BadRequest, match=message) as e:
        knn.classify(**{**kw, **change})
    assert "\n" not in str(e.value)


def test_types_that_do_not_fit_are_refused():
    x, y = np.ones((20, 3), np.float32), np.zeros(20, np.int32)
    for args in [(x[0], y, x), (x.astype(int), y, x), (x, y.astype(float), x), (x, y[:, None], x)]:
        with pytest.raises(Refused):
            knn.classify(*args, num_classes=1, ks=(1,))
    with pytest.raises(Refused, match="l3"):
        knn.classify(x, y, x, num_classes=1, ks=(1,), metric="l3")
