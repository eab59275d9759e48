"""Metrics against scikit-learn and cases worked by hand, and the same numbers however the examples are batched."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import metrics
from recvis_jax.evaluation.metrics import METRICS, Metric, accumulate

K = 6
N = 48


def make_data(seed=0, ties=True):
    """Logits with many ties, classes and multi-hot labels of which some are ignored (-1, NaN)."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(-3, 4, size=(N, K)) / 2 if ties else rng.normal(size=(N, K))
    multi_hot = rng.choice([0, 1, -1, np.nan], p=[0.6, 0.3, 0.05, 0.05], size=(N, K))
    return logits.astype(np.float32), rng.integers(0, K, N).astype(np.int32), multi_hot.astype(np.float32)


def run(metric, logits, labels, sizes=(N,), pad=None, garbage=np.nan, key="logits"):
    """Runs a metric over batches of the given sizes; with `pad`, each is filled up to that size with garbage."""
    update, states, start = jitted(metric.update), [], 0
    for size in sizes:
        rows = slice(start, start := start + size)
        x, y, mask = logits[rows], labels[rows], np.ones(size, bool)
        if pad:
            x = np.concatenate([x, np.full((pad - size, *x.shape[1:]), garbage, x.dtype)])
            junk = garbage if y.dtype.kind == "f" else 255
            y = np.concatenate([y, np.full((pad - size, *y.shape[1:]), junk, y.dtype)])
            mask = np.arange(pad) < size
        states.append({"m": update({key: jnp.asarray(x)}, {"label": jnp.asarray(y), "mask": jnp.asarray(mask)})})
    assert start == len(logits)
    return accumulate({"m": metric}, iter(states))


@functools.cache
def jitted(update):
    return jax.jit(update)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.clip(labels, 0, K - 1))


LOGITS, LABELS, MULTI_HOT = make_data()
CASES = {
    "accuracy": (metrics.accuracy(), LABELS),
    "top_3": (metrics.top_k(3), LABELS),
    "accuracy, soft labels": (metrics.accuracy(), np.abs(LOGITS[::-1])),
    "per_class_accuracy": (metrics.per_class_accuracy(K), LABELS),
    "confusion_matrix": (metrics.confusion_matrix(K), LABELS),
    "voc11": (metrics.mean_average_precision(K), MULTI_HOT),
    "all": (metrics.mean_average_precision(K, "all"), LABELS),
    "mean_absolute_error": (metrics.mean_absolute_error(), LOGITS[::-1]),
    "mean_squared_error": (metrics.mean_squared_error(), LOGITS[::-1]),
    "loss": (metrics.loss(cross_entropy), LABELS),
}
INEXACT = ("mean_absolute_error", "mean_squared_error", "loss")  # float32 sums, in another order


def assert_same(name, got, want):
    assert got.keys() == want.keys()
    for key in want:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-6 if name in INEXACT else 0, err_msg=key)


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
@pytest.mark.parametrize("name", CASES)
def test_the_same_however_batched(name, garbage):
    metric, labels = CASES[name]
    want = run(metric, LOGITS, labels)
    assert np.isfinite(next(iter(want.values()))).all()
    assert_same(name, run(metric, LOGITS, labels, [1] * N), want)
    assert_same(name, run(metric, LOGITS, labels, [20, 20, 8], pad=20, garbage=garbage), want)
    assert_same(name, run(metric, LOGITS, labels, [20, 0, 20, 8], pad=20, garbage=garbage), want)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, N), max_size=8), seed=st.integers(0, 1000))
def test_the_same_for_any_split_and_order(cuts, seed):
    sizes = np.diff(sorted([0, 16, 32, N, *cuts])).tolist()
    order = np.random.default_rng(seed).permutation(N)
    for name, (metric, labels) in CASES.items():
        assert_same(name, run(metric, LOGITS[order], labels[order], sizes, pad=20), whole(name))


@functools.cache
def whole(name):
    return run(CASES[name][0], LOGITS, CASES[name][1])


def test_accuracy_and_top_k_are_scikit_learns():
    logits, labels, _ = make_data(1, ties=False)
    for k in (1, 2, 5):
        want = sk.top_k_accuracy_score(labels, logits, k=k, labels=range(K))
        assert run(metrics.top_k(k), logits, labels)[f"top_{k}"] == pytest.approx(want, abs=1e-12)
    want = sk.accuracy_score(labels, logits.argmax(1))
    assert run(metrics.accuracy(), logits, labels) == {"accuracy": pytest.approx(want, abs=1e-12)}
    # The output may be called a prediction, and may be rough.
    assert run(metrics.accuracy(), logits, labels, key="prediction") == run(metrics.accuracy(), logits, labels)
    assert run(metrics.accuracy(), logits.astype(jnp.bfloat16), labels)["accuracy"] == pytest.approx(want, abs=0.05)


def test_ties_go_to_the_lower_index():
    labels = np.arange(K, dtype=np.int32)
    constant = np.zeros((K, K), np.float32)
    for k in (1, 2, 5):
        assert run(metrics.top_k(k), constant, labels, [K])[f"top_{k}"] == k / K
    assert run(metrics.accuracy(), LOGITS, LABELS)["accuracy"] == np.mean(LOGITS.argmax(1) == LABELS)
    want = np.mean([y in np.asarray(jax.lax.top_k(x, 3)[1]) for x, y in zip(LOGITS, LABELS, strict=True)])
    assert run(metrics.top_k(3), LOGITS, LABELS)["top_3"] == want


def test_nan_scores_are_wrong_answers():
    logits = np.eye(K, dtype=np.float32)
    labels = np.arange(K, dtype=np.int32)
    logits[2, 2] = np.nan  # argmax would call this right
    logits[3, 0] = np.nan
    assert run(metrics.accuracy(), logits, labels, [K])["accuracy"] == 4 / 6
    assert run(metrics.top_k(K), logits, labels, [K])[f"top_{K}"] == 4 / 6
    np.testing.assert_array_equal(
        run(metrics.per_class_accuracy(K), logits, labels, [K])["per_class_accuracy"], [1, 1, 0, 0, 1, 1]
    )
    got = run(metrics.confusion_matrix(K), logits, labels, [K])
    np.testing.assert_array_equal(got["confusion_matrix"], np.diag([1, 1, 0, 0, 1, 1]))
    assert got["without_prediction"] == 2
    nothing = run(metrics.mean_average_precision(K, "all"), np.full((K, K), np.nan, np.float32), labels, [K])
    assert nothing["mean_average_precision"] == 0
    # Class 0: its positive (score 1) comes after the NaN of row 3, at precision 1/2. Class 2: never found.
    got = run(metrics.mean_average_precision(K, "all"), logits, labels, [K])["mean_average_precision_per_class"]
    np.testing.assert_allclose(got, [1 / 2, 1, 0, 1, 1, 1])
    assert np.isnan(run(metrics.loss(cross_entropy), logits, labels, [K])["loss"])


def test_confusion_matrix_and_per_class_accuracy_are_scikit_learns():
    got = run(metrics.confusion_matrix(K), LOGITS, LABELS)
    want = sk.confusion_matrix(LABELS, LOGITS.argmax(1), labels=range(K))
    np.testing.assert_array_equal(got["confusion_matrix"], want)
    assert got["confusion_matrix"].dtype == np.int64 and got["without_prediction"] == 0
    per_class = run(metrics.per_class_accuracy(K), LOGITS, LABELS)
    np.testing.assert_allclose(per_class["per_class_accuracy"], np.diag(want) / want.sum(1), rtol=1e-12)
    balanced = sk.balanced_accuracy_score(LABELS, LOGITS.argmax(1))
    assert per_class["mean_per_class_accuracy"] == pytest.approx(balanced)


def test_a_class_without_examples_is_left_out():
    logits, labels = np.eye(3, dtype=np.float32)[[0, 1, 1]], np.array([0, 1, 0], np.int32)
    got = run(metrics.per_class_accuracy(3), logits, labels, [3])
    np.testing.assert_array_equal(got["per_class_accuracy"], [0.5, 1, np.nan])
    assert got["mean_per_class_accuracy"] == 0.75
    got = run(metrics.mean_average_precision(3, "all"), logits, labels, [3])
    np.testing.assert_allclose(got["mean_average_precision_per_class"], [(1 + 2 / 3) / 2, 1 / 2, np.nan])
    assert got["mean_average_precision"] == pytest.approx((5 / 6 + 1 / 2) / 2)


@pytest.mark.parametrize("ties", [True, False])
def test_average_precision_over_all_thresholds_is_scikit_learns(ties):
    for seed in range(4):
        logits, labels, multi_hot = make_data(seed, ties)
        got = run(metrics.mean_average_precision(K, "all", name="map"), logits, multi_hot)
        want = []
        for x, y in zip(logits.T, multi_hot.T, strict=True):
            kept = (y == 0) | (y == 1)
            want.append(sk.average_precision_score(y[kept], x[kept]))
        np.testing.assert_allclose(got["map_per_class"], want, rtol=1e-12)
        assert got["map"] == pytest.approx(np.mean(want))
        got = run(metrics.mean_average_precision(K, "all"), logits, labels)
        want = sk.average_precision_score(np.eye(K)[labels], logits, average="macro")
        assert got["mean_average_precision"] == pytest.approx(want)


def voc11(hits, ignored=0):
    """Average precision of one class whose examples come in this order, best first, behind `ignored` others."""
    labels = np.array([-1.0] * ignored + list(hits), np.float32)[:, None]
    scores = -np.arange(len(labels), dtype=np.float32)[:, None]
    return run(metrics.mean_average_precision(1), scores, labels, [len(labels)])["mean_average_precision"]


def test_voc_eleven_points_by_hand():
    # Found at ranks 1 and 4 of 5, so precision 1 up to recall 1/2 (six points), 2/4 up to recall 1 (five points).
    assert voc11([1, 0, 0, 1, 0]) == pytest.approx((6 * 1 + 5 * 0.5) / 11)
    # The precision is that at this recall or beyond: 1/2, then 2/3 and 3/4, of which the best is 3/4 throughout.
    assert voc11([0, 1, 1, 1]) == pytest.approx(3 / 4)
    assert voc11([1, 0, 0, 1, 0], ignored=3) == voc11([1, 0, 0, 1, 0])
    # Recalls that are exactly i/10: three found, ten missed, seven found. 0.1 * 3 > 3 / 10 would lose a point.
    assert voc11([1] * 3 + [0] * 10 + [1] * 7) == pytest.approx((4 * 1 + 7 * 10 / 20) / 11)
    assert np.isnan(voc11([0, 0]))


def test_equal_scores_enter_the_ranking_together():
    # One threshold for both: precision 1/2 at recall 1, whichever comes first.
    for labels in ([1, 0], [0, 1]):
        labels = np.array(labels, np.float32)[:, None]
        for mode in ("voc11", "all"):
            got = run(metrics.mean_average_precision(1, mode), np.zeros((2, 1), np.float32), labels, [2])
            assert got["mean_average_precision"] == 0.5


def test_errors_of_regression():
    x = np.array([1.0, 2.0, 4.0], np.float32)
    y = np.array([2, 2, 1], np.int32)
    for output, label in ((x, y), (x[:, None], y), (x, y[:, None]), (x[:, None], y[:, None])):
        assert run(metrics.mean_absolute_error(), output, label, [2, 1])["mean_absolute_error"] == pytest.approx(4 / 3)
        assert run(metrics.mean_squared_error(), output, label, [2, 1])["mean_squared_error"] == pytest.approx(10 / 3)
    got = run(metrics.mean_squared_error(), LOGITS, LOGITS[::-1])["mean_squared_error"]
    assert got == pytest.approx(sk.mean_squared_error(LOGITS[::-1], LOGITS), rel=1e-6)


def test_mean_loss_is_not_the_mean_of_batch_means():
    got = run(metrics.loss(cross_entropy, name="nll"), LOGITS, LABELS, [47, 1])
    log_p = np.log(np.exp(LOGITS.astype(float)) / np.exp(LOGITS.astype(float)).sum(1, keepdims=True))
    assert got == {"nll": pytest.approx(-log_p[np.arange(N), LABELS].mean(), rel=1e-6)}


def test_counts_stay_exact_beyond_float32():
    metric = metrics.accuracy()
    state = {"sum": np.int32(2**24 + 1), "count": np.int32(2**25 + 1), "misfits": np.int32(0)}
    got = accumulate({"a": metric}, [{"a": state}] * 300)
    assert got["accuracy"] == (2**24 + 1) / (2**25 + 1)


@pytest.mark.parametrize("name", ["accuracy", "top_3", "per_class_accuracy", "confusion_matrix", "all"])
@pytest.mark.parametrize("wrong", [-1, K])
def test_labels_outside_the_classes_are_refused(name, wrong):
    labels = LABELS.copy()
    labels[[3, 7]] = wrong
    with pytest.raises(BadRequest, match="labels of 2"):
        run(CASES[name][0], LOGITS, labels)


def test_soft_labels_have_no_average_precision():
    with pytest.raises(BadRequest, match="ignored"):
        run(metrics.mean_average_precision(K), LOGITS, np.full((N, K), 0.5, np.float32))


def test_shapes_that_do_not_fit_are_named():
    for metric in (metrics.accuracy(), metrics.mean_average_precision(K), metrics.mean_absolute_error()):
        with pytest.raises(BadRequest, match=rf"\({N - 1},\).*\({N}, {K}\)"):
            metric.update({"logits": LOGITS}, {"label": LABELS[1:], "mask": np.ones(N, bool)})
    for metric in (metrics.per_class_accuracy(K + 1), metrics.confusion_matrix(5), metrics.mean_average_precision(7)):
        with pytest.raises(BadRequest, match=rf"\({N}, {K}\)"):
            metric.update({"logits": LOGITS}, {"label": LABELS, "mask": np.ones(N, bool)})
    with pytest.raises(BadRequest, match="features"):
        metrics.accuracy().update({"features": LOGITS}, {"label": LABELS, "mask": np.ones(N, bool)})
    with pytest.raises(BadRequest, match="top_k"):
        metrics.top_k(0)
    with pytest.raises((BadRequest, jaxtyping.TypeCheckError), match="voc11"):
        metrics.mean_average_precision(K, "voc12")


def test_accumulate():
    batch = {"label": LABELS, "mask": np.ones(N, bool)}
    table = {"a": metrics.accuracy(), "b": metrics.top_k(2), "map": metrics.mean_average_precision(K, "all")}
    state = {name: metric.update({"logits": LOGITS}, batch) for name, metric in table.items()}
    got = accumulate(table, [state, state])
    assert set(got) == {"accuracy", "top_2", "mean_average_precision", "mean_average_precision_per_class"}
    assert got["accuracy"] == np.mean(LOGITS.argmax(1) == LABELS)
    with pytest.raises(BadRequest, match="no batch"):
        accumulate(table, [])
    with pytest.raises(BadRequest, match=r"'b'.*accuracy"):
        accumulate({"a": metrics.accuracy(), "b": metrics.accuracy()}, [{"a": state["a"], "b": state["a"]}])
    nothing = {"a": metrics.accuracy().update({"logits": LOGITS}, batch | {"mask": np.zeros(N, bool)})}
    assert np.isnan(accumulate({"a": metrics.accuracy()}, [nothing])["accuracy"])


def test_a_generator_is_read_one_batch_ahead():
    """Otherwise the device would idle while the host adds up."""
    log = []
    metric = Metric(lambda o, b: None, "sum", lambda s: {"n": float(s)})

    class Part:
        def __init__(self, i):
            self.i = i

        def __array__(self, dtype=None, copy=None):
            log.append(f"read {self.i}")
            return np.asarray(self.i, dtype)

    def states():
        for i in range(3):
            log.append(f"make {i}")
            yield {"m": Part(i)}

    assert accumulate({"m": metric}, states()) == {"n": 3.0}
    assert log == ["make 0", "make 1", "read 0", "make 2", "read 1", "read 2"]


def test_rows_of_concat_metrics_can_be_gathered():
    metric = metrics.mean_average_precision(K)
    assert metric.merge == "concat"
    state = jax.eval_shape(metric.update, {"logits": LOGITS}, {"label": LABELS, "mask": np.ones(N, bool)})
    assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), state) == {
        "scores": ((N, K), "float32"),
        "labels": ((N, K), "float32"),
        "mask": ((N,), "bool"),
    }


def test_table_names_every_constructor():
    arguments = {"top_k": (5,), "loss": (cross_entropy,)}
    for name in ("per_class_accuracy", "confusion_matrix", "mean_average_precision"):
        arguments[name] = (K,)
    for name, constructor in METRICS.items():
        assert constructor is getattr(metrics, name)
        assert isinstance(constructor(*arguments.get(name, ())), Metric)
