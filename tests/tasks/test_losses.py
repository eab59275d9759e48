"""Losses against numbers worked by hand, numpy's formulas in float64, and their known gradients."""

import inspect

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from recvis_jax.errors import BadRequest
from recvis_jax.tasks import losses
from recvis_jax.tasks.losses import LOSSES, huber, l1, l2, sigmoid_cross_entropy, softmax_cross_entropy

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(6, 4)) * 3, jnp.float32)
LABELS = jnp.asarray([0, 3, 1, 2, 2, 0], jnp.int32)
ONE_HOT = np.eye(4)[np.asarray(LABELS)]
SOFT = jnp.asarray(RNG.dirichlet(np.ones(4), size=6), jnp.float32)
MULTI_HOT = jnp.asarray(RNG.integers(0, 2, size=(6, 4)), jnp.float32)


def numpy_softmax(logits, targets):
    return -(np.asarray(targets, np.float64) * log_softmax(np.asarray(logits, np.float64), axis=1)).sum(1)


def numpy_sigmoid(logits, targets):
    x, t = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    return -t * np.log(expit(x)) - (1 - t) * np.log(expit(-x))


def test_softmax_by_hand():
    # Probabilities 1/4, 3/4: -log p of the class.
    logits = jnp.log(jnp.array([[1.0, 3.0], [1.0, 3.0]]))
    np.testing.assert_allclose(softmax_cross_entropy(logits, jnp.array([0, 1])), [np.log(4), np.log(4 / 3)], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["classes", "soft"])
def test_softmax_is_the_formula(labels, smoothing):
    targets = ONE_HOT if labels.ndim == 1 else np.asarray(labels)
    targets = (1 - smoothing) * targets + smoothing / 4
    got = softmax_cross_entropy(LOGITS, labels, label_smoothing=smoothing)
    np.testing.assert_allclose(got, numpy_softmax(LOGITS, targets), rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", [LABELS, SOFT, MULTI_HOT, MULTI_HOT.astype(bool)])
def test_sigmoid_is_the_formula(labels, smoothing, reduction):
    targets = ONE_HOT if labels.ndim == 1 else np.asarray(labels, np.float64)
    targets = (1 - smoothing) * targets + smoothing / 4
    want = getattr(numpy_sigmoid(LOGITS, targets), reduction)(axis=1)
    got = sigmoid_cross_entropy(LOGITS, labels, label_smoothing=smoothing, reduction=reduction)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_sigmoid_of_one_output_is_binary():
    # log odds of log 3: probability 3/4. Smoothing 0.2 gives the targets 0.9 and 0.1, as with two classes.
    logits = jnp.full((2, 1), jnp.log(3.0))
    want = np.array([-np.log(1 / 4), -np.log(3 / 4)])
    for labels in (jnp.array([0, 1]), jnp.array([0.0, 1.0]), jnp.array([[0], [1]])):
        np.testing.assert_allclose(sigmoid_cross_entropy(logits, labels), want, rtol=1e-6)
        smooth = sigmoid_cross_entropy(logits, labels, label_smoothing=0.2)
        np.testing.assert_allclose(smooth, 0.9 * want + 0.1 * want[::-1], rtol=1e-6)
    assert np.isnan(sigmoid_cross_entropy(logits, jnp.array([2, -1]))).all()


def test_sigmoid_leaves_out_entries_of_minus_one():
    labels = MULTI_HOT.at[0, 1].set(-1).at[2].set(-1)
    elementwise = numpy_sigmoid(LOGITS, MULTI_HOT)
    want = elementwise.sum(axis=1)
    want[0] -= elementwise[0, 1]
    want[2] = 0
    np.testing.assert_allclose(sigmoid_cross_entropy(LOGITS, labels), want, rtol=1e-5)
    want[0] *= 4 / 3
    np.testing.assert_allclose(sigmoid_cross_entropy(LOGITS, labels, reduction="mean"), want / 4, rtol=1e-5)
    grad = jax.grad(lambda x: sigmoid_cross_entropy(x, labels, label_smoothing=0.1).sum())(LOGITS)
    assert grad[0, 1] == 0 and not np.asarray(grad[2]).any() and np.asarray(grad[0, 2:]).all()


def test_regression_by_hand():
    predictions, targets = jnp.array([[1.0, 2.0], [0.0, -3.0]]), jnp.array([[1.0, 0.0], [0.5, 0.0]])
    np.testing.assert_allclose(l1(predictions, targets), [1, 1.75])
    np.testing.assert_allclose(l2(predictions, targets), [2, 4.625])  # no factor 1/2
    np.testing.assert_allclose(huber(predictions, targets), [1.5 / 2, (0.125 + 2.5) / 2])
    np.testing.assert_allclose(huber(predictions, targets, delta=2.0), [2 / 2, (0.125 + 4) / 2])
    np.testing.assert_allclose(huber(predictions, targets, delta=100.0), l2(predictions, targets) / 2)


@pytest.mark.parametrize("name", ["l1", "l2", "huber"])
def test_regression_shapes(name):
    fn = LOSSES[name]
    x, t = jnp.arange(5.0), jnp.array([3, 1, 0, 2, 2])
    want = fn(x, t)
    assert want.shape == (5,)
    for a, b in ((x[:, None], t), (x, t[:, None]), (x[:, None], t[:, None]), (x[:, None], t.astype(float))):
        np.testing.assert_array_equal(fn(a, b), want)
    images = jnp.asarray(RNG.normal(size=(2, 3, 4, 1)), jnp.float32)
    np.testing.assert_allclose(fn(images, 0 * images), fn(images.reshape(2, 12), jnp.zeros((2, 12))), rtol=1e-6)
    np.testing.assert_allclose(fn(LOGITS, LABELS), fn(LOGITS, jnp.asarray(ONE_HOT, jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_float32_whatever_comes_in(name):
    rough = LOGITS.astype(jnp.bfloat16)
    got = jax.jit(LOSSES[name])(rough, LABELS)
    assert got.shape == (6,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, LOSSES[name](rough.astype(jnp.float32), LABELS), rtol=1e-6)
    assert jax.grad(lambda x: LOSSES[name](x, LABELS).sum())(rough).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_a_label_out_of_range_is_nan_and_harmless_once_masked(name, dtype):
    fn, labels = LOSSES[name], jnp.asarray([0, 4, 1, 255, 2, 3]).astype(dtype)
    if dtype == jnp.int32:
        labels = labels.at[3].set(-1)
    mask = jnp.array([1, 0, 1, 0, 1, 1], bool)
    np.testing.assert_array_equal(jnp.isnan(jax.jit(fn)(LOGITS, labels)), ~mask)

    def masked(x):
        return jnp.where(mask, fn(x, labels), 0).sum()

    grad = jax.grad(masked)(LOGITS)
    assert jnp.isfinite(grad).all() and (grad[~mask] == 0).all() and (grad[mask] != 0).any(axis=1).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_out_of_range_is_nan_with_smoothing(smoothing):
    labels = LABELS.at[1].set(4)
    for fn in (softmax_cross_entropy, sigmoid_cross_entropy):
        assert np.isnan(fn(LOGITS, labels, label_smoothing=smoothing)).tolist() == [False, True] + [False] * 4
    bad = SOFT.at[2, 0].set(-0.5).at[4, 1].set(jnp.nan)
    for fn in (softmax_cross_entropy, sigmoid_cross_entropy):
        assert np.isnan(fn(LOGITS, bad, label_smoothing=smoothing)).nonzero()[0].tolist() == [2, 4]
        mask = jnp.array([1, 1, 0, 1, 0, 1], bool)
        masked = jax.grad(lambda x, f=fn, m=mask: jnp.where(m, f(x, bad, label_smoothing=smoothing), 0).sum())(LOGITS)
        assert jnp.isfinite(masked).all()
    assert np.isnan(sigmoid_cross_entropy(LOGITS, SOFT.at[0, 0].set(1.5))).nonzero()[0].tolist() == [0]


def test_many_classes_and_narrow_labels():
    logits, labels = jnp.zeros((2, 300)), jnp.array([0, 255], jnp.uint8)
    np.testing.assert_allclose(softmax_cross_entropy(logits, labels), np.log(300), rtol=1e-6)


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["classes", "soft"])
def test_gradients_are_p_minus_y(labels):
    y = ONE_HOT if labels.ndim == 1 else np.asarray(labels)
    grad = jax.grad(lambda x: softmax_cross_entropy(x, labels).sum())(LOGITS)
    np.testing.assert_allclose(grad, softmax(np.asarray(LOGITS), axis=1) - y, atol=1e-6)
    grad = jax.grad(lambda x: sigmoid_cross_entropy(x, labels).sum())(LOGITS)
    np.testing.assert_allclose(grad, expit(np.asarray(LOGITS)) - y, atol=1e-6)
    grad = jax.grad(lambda x: l2(x, labels).sum())(LOGITS)
    np.testing.assert_allclose(grad, 2 * (np.asarray(LOGITS) - y) / 4, atol=1e-6)


def test_extreme_logits_stay_finite():
    logits = jnp.array([[1e4, -1e4, 0.0], [-jnp.inf, 0.0, 0.0]])
    labels = jnp.array([1, 1])
    np.testing.assert_allclose(softmax_cross_entropy(logits, labels), [2e4, np.log(2)], rtol=1e-6)
    # The same distribution as one-hot rows: a class ruled out, with target 0, costs nothing.
    hot = jnp.eye(3)[labels]
    np.testing.assert_allclose(softmax_cross_entropy(logits, hot), [2e4, np.log(2)], rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda x: softmax_cross_entropy(x, hot).sum())(logits)).all()
    assert jnp.isfinite(sigmoid_cross_entropy(logits[:1], labels[:1])).all()


@pytest.mark.parametrize(
    ("name", "labels_shape", "dtype"),
    [
        ("softmax", (5,), jnp.int32),
        ("softmax", (6, 3), jnp.float32),
        ("softmax", (6, 1), jnp.int32),
        ("softmax", (6,), jnp.float32),
        ("sigmoid", (6, 5), jnp.float32),
        ("sigmoid", (6,), jnp.float32),
        ("l1", (4,), jnp.int32),
        ("l2", (6,), jnp.float32),
        ("l2", (6, 1), jnp.float32),
        ("huber", (1, 4), jnp.float32),
    ],
)
def test_shapes_that_do_not_fit_are_named(name, labels_shape, dtype):
    with pytest.raises(BadRequest) as info:
        jax.eval_shape(LOSSES[name], LOGITS, jnp.zeros(labels_shape, dtype))
    assert str((6, 4)) in str(info.value) and str(labels_shape) in str(info.value) and name in str(info.value)


def test_bad_arguments():
    for fn in (softmax_cross_entropy, sigmoid_cross_entropy):
        for smoothing in (-0.1, 1.0, float("nan")):
            with pytest.raises(BadRequest, match="label_smoothing"):
                fn(LOGITS, LABELS, label_smoothing=smoothing)
        with pytest.raises(BadRequest, match="logits"):
            fn(LOGITS[0], LABELS)
    with pytest.raises((BadRequest, jaxtyping.TypeCheckError), match="max"):
        sigmoid_cross_entropy(LOGITS, LABELS, reduction="max")
    with pytest.raises(BadRequest, match="delta"):
        huber(LOGITS, LOGITS, delta=0.0)
    with pytest.raises(BadRequest, match=r"\(\)"):
        l2(jnp.float32(0), jnp.zeros(3))


def test_table_names_every_public_loss():
    functions = {f for f in vars(losses).values() if inspect.isfunction(f) and f.__module__ == losses.__name__}
    assert set(LOSSES.values()) == {f for f in functions if not f.__name__.startswith("_")}
