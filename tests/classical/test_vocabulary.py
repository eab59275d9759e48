"""Words, mixtures and components against scikit-learn from the same start; streams, interruptions, bad input."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from recvis_jax import errors
from recvis_jax.classical import gmm, kmeans, pca, storage, stream

DIGITS = load_digits().data.astype(np.float32) / 16  # (1797, 64)
OFFSET = 300.0  # float32 has 2e-5 left of it


def cut(x, sizes=(700, 1, 400, 3000)):
    """Descriptors in batches of uneven lengths."""

    def batches():
        start = 0
        for size in sizes:
            yield x[start : start + size]
            start += size

    return batches


def test_kahan_sums_keep_what_float32_loses():
    @jax.jit
    def total(n):
        return jax.lax.fori_loop(0, n, lambda i, s: stream.add(s, jnp.array(0.1)), stream.zero())

    plain = jax.jit(lambda n: jax.lax.fori_loop(0, n, lambda i, s: s + jnp.array(0.1), 0.0))
    assert float(total(10**6).value) == pytest.approx(1e5, rel=1e-7)
    assert abs(float(plain(10**6)) - 1e5) > 100


@pytest.mark.parametrize("offset", [0.0, OFFSET])
@pytest.mark.parametrize("batches", [lambda x: x, cut], ids=["array", "stream"])
def test_lloyd_reaches_scikit_learns_objective(offset, batches):
    x = DIGITS + np.float32(offset)
    start = x[:: len(x) // 20][:20]
    theirs = KMeans(20, init=start.astype(np.float64), n_init=1, max_iter=300, tol=0).fit(x.astype(np.float64))
    ours = kmeans.fit(batches(x), 20, start=start, passes=300, tol=0, rows=512)
    found = ((x.astype(np.float64)[:, None] - np.asarray(ours.centers)) ** 2).sum(-1).min(1).mean()
    assert found == pytest.approx(theirs.inertia_ / len(x), rel=1e-3)
    assert float(ours.inertia) == pytest.approx(found, rel=1e-3) and bool(ours.done)
    assert float(ours.counts.sum()) == len(x)


def test_plus_plus_is_as_good_as_scikit_learns():
    def spread(centers):
        return ((DIGITS[:, None] - np.asarray(centers)) ** 2).sum(-1).min(1).mean()

    ours = np.mean([spread(kmeans.plus_plus(jax.random.key(i), jnp.asarray(DIGITS), 30)) for i in range(8)])
    theirs = np.mean([spread(kmeans_plusplus(DIGITS, 30, random_state=i)[0]) for i in range(8)])
    uniform = np.mean([spread(np.random.default_rng(i).choice(DIGITS, 30)) for i in range(8)])
    assert ours < 1.03 * theirs and ours < 0.97 * uniform


def test_mini_batches_come_near_lloyd():
    whole = kmeans.fit(DIGITS, 20, passes=100, rows=512)
    batches = kmeans.fit(cut(DIGITS), 20, mini_batch=True, passes=4, rows=256)
    found = ((DIGITS[:, None] - np.asarray(batches.centers)) ** 2).sum(-1).min(1).mean()
    assert found < 1.05 * float(whole.inertia)
    assert float(batches.counts.sum()) == int(batches.passes) * len(DIGITS)


@pytest.mark.parametrize("mini_batch", [False, True])
def test_empty_words_move_to_the_farthest_descriptors(mini_batch):
    x = np.array([[0.0], [0.1], [10.0], [10.1], [50.0]], np.float32)
    start = np.array([[0.0], [500.0], [900.0]], np.float32)
    words = kmeans.fit(x, 3, start=start, mini_batch=mini_batch, passes=30, tol=0)
    if mini_batch:
        assert (np.asarray(words.counts) > 0).all()
    else:
        np.testing.assert_allclose(np.sort(words.centers, axis=0), [[0.05], [10.05], [50.0]], rtol=1e-6)


def test_fewer_different_descriptors_than_words_end():
    x = np.repeat(np.array([[0.0, 1.0], [2.0, 3.0]], np.float32), 10, axis=0)
    words = kmeans.fit(x, 5, passes=1000)
    assert int(words.passes) < 10 and float(words.inertia) == 0 and np.isfinite(words.centers).all()
    mixture = gmm.fit(x, 5, passes=3)
    assert all(np.isfinite(a).all() for a in mixture[:3])
    assert np.isfinite(gmm.posteriors(mixture, jnp.asarray(x))).all()


@pytest.mark.full
@pytest.mark.parametrize("offset", [0.0, OFFSET])
@pytest.mark.parametrize("batches", [lambda x: x, cut], ids=["array", "stream"])
def test_expectation_maximisation_reaches_scikit_learns_likelihood(offset, batches):
    y = PCA(12).fit_transform(DIGITS).astype(np.float32)
    x = y + np.float32(offset)
    words = kmeans.fit(y, 8, passes=5, rows=512)
    first = gmm.fit(x, 8, start=words._replace(centers=words.centers + offset), passes=0, rows=512)
    weights = np.asarray(first.weights, np.float64)
    theirs = GaussianMixture(
        8, covariance_type="diag", weights_init=weights / weights.sum(),
        means_init=np.asarray(first.means, np.float64),
        precisions_init=1 / np.asarray(first.variances, np.float64), max_iter=20, tol=0, reg_covar=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge
        theirs.fit(x.astype(np.float64))
    ours = gmm.fit(batches(x), 8, start=first, passes=20, tol=-1e9, floor=1e-8, rows=512)
    wanted = theirs.score(x.astype(np.float64))
    found = float(jax.nn.logsumexp(gmm.log_densities(ours, jnp.asarray(x)), axis=1).mean())
    assert found == pytest.approx(wanted, rel=1e-3)
    assert float(ours.weights.sum()) == pytest.approx(1, abs=1e-5)
    reference = GaussianMixture(8, covariance_type="diag")
    reference.weights_, reference.means_ = (np.asarray(a, np.float64) for a in ours[:2])
    reference.covariances_ = np.asarray(ours.variances, np.float64)
    reference.precisions_cholesky_ = 1 / np.sqrt(reference.covariances_)
    assert reference.score(x.astype(np.float64)) == pytest.approx(found, rel=1e-3)


def test_variances_have_a_floor():
    x = np.concatenate([np.zeros((500, 2)), 9 + np.random.default_rng(0).normal(size=(500, 2))]).astype(np.float32)
    x = np.concatenate([x, np.ones((1000, 1), np.float32)], axis=1)  # a number that never varies
    mixture = gmm.fit(x, 2, floor=1e-3, passes=100, rows=512)
    least = np.asarray(mixture.variances).min(0)
    np.testing.assert_allclose(least[:2], 1e-3 * x.var(0)[:2], rtol=1e-3)
    assert np.isfinite(gmm.log_densities(mixture, jnp.asarray(x))).all()


@pytest.mark.parametrize("offset", [0.0, OFFSET])
@pytest.mark.parametrize("whiten", [False, True])
def test_components_are_scikit_learns(offset, whiten):
    x = DIGITS[:, 10:30] + np.float32(offset)
    theirs = PCA(5, whiten=whiten, svd_solver="full").fit(x.astype(np.float64))
    found = pca.fit(cut(x), 5, whiten=whiten, rows=512)
    wanted = theirs.transform(x.astype(np.float64))
    ours = np.asarray(pca.project(found, jnp.asarray(x)))
    signs = np.sign((wanted * ours).sum(0)) * (np.sqrt(1 - 1 / len(x)) if whiten else 1)
    # What x itself has lost to float32 at that offset, and no more.
    np.testing.assert_allclose(ours * signs, wanted, atol=2e-4 if offset else 2e-5)
    np.testing.assert_allclose(found.variances, theirs.explained_variance_ * (len(x) - 1) / len(x), rtol=1e-4)
    if whiten:
        np.testing.assert_allclose(ours.var(0), 1, rtol=1e-3)


def test_what_never_varies_is_not_blown_up():
    x = np.concatenate([DIGITS[:, 10:12], np.ones((len(DIGITS), 2), np.float32)], axis=1)
    found = pca.project(pca.fit(x, 4, whiten=True), jnp.asarray(x))
    assert np.isfinite(found).all() and np.abs(found[:, 2:]).max() < 0.1


LEARN = {
    "k-means": lambda x, **kw: kmeans.fit(x, 10, tol=0, passes=6, rows=512, **kw),
    "mini-batches": lambda x, **kw: kmeans.fit(x, 10, tol=0, passes=4, rows=256, mini_batch=True, **kw),
    "mixture": lambda x, **kw: gmm.fit(x, 6, tol=-1e9, passes=6, rows=512, **kw),
}


@pytest.mark.parametrize("name", LEARN)
def test_learning_is_repeatable_goes_on_and_does_not_see_batches(name, tmp_path):
    fit, states = LEARN[name], []
    whole = fit(DIGITS, keep=states.append)
    assert [int(s.passes) for s in states] == list(range(1, len(states) + 1))
    storage.save(tmp_path / "half.safetensors", states[2], {"seed": 0})
    half = storage.load(tmp_path / "half.safetensors", type(whole), {"seed": 0})
    for other in (fit(DIGITS), fit(cut(DIGITS)), fit(cut(DIGITS, [100] * 20)), fit(DIGITS, start=half)):
        for a, b in zip(whole, other, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert not np.array_equal(states[2][0], whole[0])


def test_samples_are_uniform_and_do_not_see_batches():
    x = np.arange(3000, dtype=np.float32)[:, None]
    drawn, n = stream.sample(x, 100, seed=1)
    again, _ = stream.sample(cut(x, [7] * 500), 100, seed=1)
    assert n == 3000 and len(drawn) == 100
    np.testing.assert_array_equal(drawn, again)
    means = [stream.sample(x, 100, seed=s)[0].mean() for s in range(200)]
    assert np.mean(means) == pytest.approx(1499.5, abs=4 * 866 / np.sqrt(100 * 200))
    assert stream.sample(x, 5000, seed=1)[0].shape == (3000, 1)


def test_saved_vocabularies_are_checked(tmp_path):
    path = tmp_path / "a" / "words.safetensors"
    words = kmeans.fit(DIGITS, 5, passes=2)
    storage.save(path, words, {"k": 5})
    with pytest.raises(errors.BadRequest, match="holds no Mixture"):
        storage.load(path, gmm.Mixture)
    with pytest.raises(errors.BadRequest, match="learnt from something else"):
        storage.load(path, kmeans.Words, {"k": 6})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(errors.BadRequest, match="damaged or truncated"):
        storage.load(path, kmeans.Words)
    with pytest.raises(errors.BadRequest, match="cannot be read"):
        storage.load(tmp_path / "nothing", kmeans.Words)


BAD = {
    "fewer descriptors than words": (lambda: kmeans.fit(DIGITS[:4], 5), "4 descriptors are too few for 5 words"),
    "fewer than components": (lambda: gmm.fit(DIGITS[:4], 5), "4 descriptors are too few for 5"),
    "from words": (lambda: kmeans.fit(DIGITS[:4], 5, start=DIGITS[:5]), "4 descriptors are too few for 5 words"),
    "none": (lambda: kmeans.fit(lambda: iter(()), 5), "there are no descriptors to learn from"),
    "none for PCA": (lambda: pca.fit(lambda: iter(()), 5), "there are no descriptors to learn from"),
    "another width": (
        lambda: kmeans.fit(DIGITS, 5, start=DIGITS[:5, :3]), "descriptors have 64 numbers, the words 3",
    ),
    "another width than the mixture": (
        lambda: gmm.fit(DIGITS, 5, start=gmm.fit(DIGITS[:, :3], 5, passes=1)), "have 64 numbers, the components 3",
    ),
    "another number": (lambda: kmeans.fit(DIGITS, 5, start=DIGITS[:4]), "but k is 5"),
    "widths that change": (
        lambda: kmeans.fit(lambda: iter([DIGITS, DIGITS[:, :5]]), 5), r"have shape \(1797, 5\); it must be \(n, 64\)",
    ),
    "no matrix": (lambda: kmeans.fit(DIGITS[0], 5), r"have shape \(64,\); it must be \(n, d\)"),
    "not finite": (lambda: kmeans.fit(np.full((9, 2), np.nan), 5), "not all finite"),
    "no word": (lambda: kmeans.fit(DIGITS, 0), "k is 0"),
    "many components": (lambda: pca.fit(DIGITS, 65), "ask for 1 to 64"),
    "another width than the components": (
        lambda: pca.project(pca.fit(DIGITS, 5), jnp.ones((2, 3))), "have 3 numbers, the components 64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    call, text = BAD[name]
    with pytest.raises(errors.BadRequest, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
