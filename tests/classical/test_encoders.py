"""Every encoder under one contract, and each against VLFeat, scikit-image or its formula written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vlfeat
from skimage.feature import fisher_vector

from recvis_jax import classical, errors
from recvis_jax.classical import encoding, fisher, gmm, histograms, kmeans, pyramid, vlad

B, N, D, K = 3, 60, 7, 6
LAYOUT = "1x1+2x2+3x1"


def drawn(seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(B, N, D)) + offset).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.random((B, N, 2)), jnp.float32), jnp.asarray(rng.random((B, N)) < 0.7)


def vocabulary(learns, d=D, offset=0.0):
    rng = np.random.default_rng(1)
    centers = jnp.asarray(rng.normal(size=(K, d)) + offset, jnp.float32)
    nothing = jnp.array(0.0), jnp.array(0), jnp.array(True)
    if learns == "words":
        return kmeans.Words(centers, jnp.ones(K), *nothing)
    weights = rng.dirichlet(np.ones(K) * 5)
    return gmm.Mixture(
        jnp.asarray(weights, jnp.float32), centers, jnp.asarray(rng.uniform(0.3, 2, (K, d)), jnp.float32), *nothing
    )


MADE = {
    "hard": {}, "soft": {}, "soft of few": {"neighbours": 3, "pool": "max"}, "llc": {}, "vlad": {},
    "vlad, plain": {"intra": False, "root": True}, "fisher": {}, "fisher, plain": {"root": False, "norm": "none"},
}  # fmt: skip


def make(name):
    return classical.ENCODERS[name.split(",")[0].split(" ")[0]](**MADE[name])


@functools.cache
def compiled(name, layout=LAYOUT):
    return jax.jit(encoding.make(make(name), layout))


def encode(encoder, vocabulary, *local):
    return jax.jit(encoding.make(encoder))(vocabulary, *local)


def test_all_encoders_are_here():
    assert {name.split(",")[0].split(" ")[0] for name in MADE} == set(classical.ENCODERS)


@pytest.mark.parametrize("name", MADE)
class TestContract:
    def test_size_and_type(self, name):
        encoder = make(name)
        found = compiled(name)(vocabulary(encoder.learns), *drawn())
        assert found.shape == (B, encoding.size(encoder, LAYOUT, K, D)) and found.dtype == jnp.float32
        assert found.shape[1] == 8 * encoder.size(K, D) and np.isfinite(found).all()
        assert np.abs(found).max(1).min() > 0

    def test_masked_descriptors_and_their_order_do_not_count(self, name):
        encoder = make(name)
        x, positions, mask = drawn()
        encode, words = compiled(name), vocabulary(encoder.learns)
        found = encode(words, x, positions, mask)
        other = jnp.where(mask[..., None], x, 1e4)
        np.testing.assert_array_equal(encode(words, other, positions, mask), found)
        order = np.random.default_rng(2).permutation(N)
        np.testing.assert_allclose(encode(words, x[:, order], positions[:, order], mask[:, order]), found, atol=2e-6)
        alone = encode(words, x[:1, mask[0]], positions[:1, mask[0]], mask[:1, mask[0]])  # without what is masked
        np.testing.assert_allclose(alone[0], found[0], atol=2e-6)

    def test_no_descriptors_are_zeros(self, name):
        encoder = make(name)
        x, positions, mask = drawn()
        encode = compiled(name)
        assert not np.any(encode(vocabulary(encoder.learns), x, positions, mask & False))
        assert not np.any(encode(vocabulary(encoder.learns), 0 * x, positions, mask & False))

    def test_equal_descriptors_are_finite(self, name):
        encoder = make(name)
        words = vocabulary(encoder.learns)
        center = words.centers[2] if encoder.learns == "words" else words.means[2]
        x, positions, mask = drawn()
        for value in (center, 0 * center):  # exactly a word, as of a constant image
            found = compiled(name)(words, jnp.broadcast_to(value, x.shape), positions, mask)
            assert np.isfinite(found).all()

    def test_repeated_descriptors_change_nothing(self, name):
        """All are means, or are normalised."""
        if name == "vlad, plain":
            pytest.skip("its root is of sums, normalised afterwards: equal too, but for rounding")
        encoder = make(name)
        x, positions, mask = drawn()
        encode, words = compiled(name), vocabulary(encoder.learns)
        half = [a[:, : N // 2] for a in (x, positions, mask)]
        twice = [np.concatenate([a, a], axis=1) for a in half]
        np.testing.assert_allclose(encode(words, *twice), encode(words, *half), atol=5e-6)

    def test_an_offset_of_everything_changes_nothing(self, name):
        encoder = make(name)
        encode = compiled(name)
        here = encode(vocabulary(encoder.learns), *drawn())
        there = encode(vocabulary(encoder.learns, offset=64.0), *drawn(offset=64.0))
        np.testing.assert_allclose(there, here, atol=2e-2 if encoder.root else 1e-3)

    def test_the_pyramid_is_the_regions_side_by_side(self, name):
        encoder = make(name)
        x, positions, mask = drawn()
        words, width = vocabulary(encoder.learns), encoder.size(K, D)
        whole, one = compiled(name)(words, x, positions, mask), compiled(name, "1x1")
        u, v = np.moveaxis(np.asarray(positions), -1, 0)
        inside = [
            v >= 0,
            (v < 0.5) & (u < 0.5),
            (v < 0.5) & (u >= 0.5),
            (v >= 0.5) & (u < 0.5),
            (v >= 0.5) & (u >= 0.5),
        ]
        inside += [v < 1 / 3, (v >= 1 / 3) & (v < 2 / 3), v >= 2 / 3]
        for i, part in enumerate(inside):
            np.testing.assert_allclose(
                whole[:, i * width : (i + 1) * width], one(words, x, positions, mask & part), atol=2e-6
            )

    def test_another_descriptor_size_is_refused(self, name):
        encoder = make(name)
        with pytest.raises(errors.BadRequest, match=r"^descriptors have 7 numbers, the vocabulary's words 5\.$"):
            encoding.make(encoder)(vocabulary(encoder.learns, d=5), *drawn())


def test_hard_assignment_counts():
    x, positions, mask = drawn()
    words = vocabulary("words")
    nearest = ((np.asarray(x)[:, :, None] - np.asarray(words.centers)) ** 2).sum(-1).argmin(-1)
    wanted = np.stack([np.bincount(nearest[i][mask[i]], minlength=K) for i in range(B)])
    plain = encode(histograms.hard(norm="none"), words, x, positions, mask)
    np.testing.assert_array_equal(plain, wanted)
    shares = wanted / wanted.sum(1, keepdims=True)
    np.testing.assert_allclose(encode(histograms.hard(), words, x, positions, mask), shares, rtol=1e-6)
    hellinger = encode(histograms.hard(root=True, norm="l2"), words, x, positions, mask)
    np.testing.assert_allclose(hellinger, np.sqrt(shares), rtol=1e-5)


def test_soft_assignment_by_its_formula():
    x, _, mask = (np.asarray(a) for a in drawn())
    words = vocabulary("words")
    squares = ((x[:, :, None] - np.asarray(words.centers)) ** 2).sum(-1)
    weights = np.exp(-0.7 * squares)
    shares = weights / weights.sum(-1, keepdims=True)
    encoder = histograms.soft(sharpness=0.7, norm="none")
    np.testing.assert_allclose(encode(encoder, words, *drawn()), (shares * mask[..., None]).sum(1), rtol=1e-5)
    few = np.where(squares <= np.sort(squares, -1)[..., 2:3], weights, 0)
    few = (few / few.sum(-1, keepdims=True) * mask[..., None]).max(1)
    encoder = histograms.soft(sharpness=0.7, neighbours=3, pool="max", norm="none")
    np.testing.assert_allclose(encode(encoder, words, *drawn()), few, rtol=1e-5)


def test_linear_codes_minimise_their_objective():
    """By the constrained least squares of the paper, solved with a Lagrange multiplier in float64."""
    x, _, mask = (np.asarray(a, np.float64) for a in drawn())
    words = vocabulary("words")
    centers, wanted = np.asarray(words.centers, np.float64), np.zeros((B, N, K))
    for i in range(B):
        for j in range(N):
            near = np.argsort(((x[i, j] - centers) ** 2).sum(1))[:4]
            basis = centers[near] - x[i, j]
            gram = basis @ basis.T
            gram += 1e-2 * np.trace(gram) * np.eye(4)
            system = np.block([[2 * gram, np.ones((4, 1))], [np.ones((1, 4)), np.zeros((1, 1))]])
            wanted[i, j, near] = np.linalg.solve(system, [0, 0, 0, 0, 1])[:4]
    encoder = histograms.llc(neighbours=4, penalty=1e-2, norm="none", pool="sum")
    np.testing.assert_allclose(encode(encoder, words, *drawn()), (wanted * mask[..., None]).sum(1), atol=1e-4)
    encoder = histograms.llc(neighbours=4, penalty=1e-2, norm="none")
    largest = np.where(mask[..., None] > 0, wanted, -np.inf).max(1)
    np.testing.assert_allclose(encode(encoder, words, *drawn()), largest, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("intra, root", [(False, False), (True, False), (False, True), (True, True)])
def test_vlad_is_its_formula_and_vlfeats(intra, root):
    x, positions, mask = drawn()
    words = vocabulary("words")
    found = encode(vlad.vlad(intra=intra, root=root), words, x, positions, mask)
    for i in range(B):
        of_image = np.asarray(x[i][mask[i]], np.float64)
        nearest = ((of_image[:, None] - np.asarray(words.centers)) ** 2).sum(-1).argmin(1)
        sums = np.stack([(of_image[nearest == k] - np.asarray(words.centers)[k]).sum(0) for k in range(K)])
        sums = np.sign(sums) * np.sqrt(np.abs(sums)) if root else sums
        if intra:
            sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        np.testing.assert_allclose(found[i], sums.ravel() / np.linalg.norm(sums), atol=3e-4 if root else 1e-5)
    for i in range(B):
        of_image = np.asarray(x[i][mask[i]])
        nearest = np.asarray(kmeans.assign(words.centers, jnp.asarray(of_image)))
        theirs = vlfeat.vlad(np.asarray(words.centers), of_image, np.eye(K)[nearest], intra, root)
        np.testing.assert_allclose(found[i], theirs, atol=3e-4 if root else 1e-5)


@pytest.mark.parametrize("improved", [False, True])
def test_fisher_vectors_are_vlfeats(improved):
    x, positions, mask = drawn()
    mixture = vocabulary("mixture")
    encoder = fisher.fisher() if improved else fisher.fisher(root=False, norm="none")
    found = encode(encoder, mixture, x, positions, mask)
    for i in range(B):
        theirs = vlfeat.fisher(*map(np.asarray, mixture[:3]), np.asarray(x[i][mask[i]]), improved)
        # A square root makes of a difference of 1e-7 near zero one of 3e-4.
        np.testing.assert_allclose(found[i], theirs, atol=3e-4 if improved else 2e-6)


@pytest.mark.parametrize("improved", [False, True])
def test_fisher_vectors_are_scikit_images(improved):
    """Its weight terms come first, and its variance part has the other sign."""
    x, positions, mask = drawn()
    mixture = vocabulary("mixture")
    found = encode(fisher.fisher(root=improved, norm="none"), mixture, x, positions, mask)
    from sklearn.mixture import GaussianMixture

    theirs = GaussianMixture(K, covariance_type="diag")
    theirs.weights_, theirs.means_, theirs.covariances_ = (np.asarray(a, np.float64) for a in mixture[:3])
    theirs.precisions_cholesky_ = 1 / np.sqrt(theirs.covariances_)
    for i in range(B):
        of_image = np.asarray(x[i][mask[i]], np.float64)
        wanted = fisher_vector(of_image, theirs)[K:].reshape(2, -1) * np.array([[1], [-1]])
        if improved:
            wanted = np.sign(wanted) * np.sqrt(np.abs(wanted))
        np.testing.assert_allclose(found[i], wanted.ravel(), atol=1e-3 if improved else 1e-5)


@pytest.mark.full
def test_fisher_vectors_are_the_gradient():
    """Of the mean log-likelihood by means and standard deviations, over the root of the approximate information."""
    x, positions, mask = drawn()
    mixture = vocabulary("mixture")

    @functools.partial(jax.jit, static_argnums=2)
    def likelihood(means, deviations, i):
        changed = mixture._replace(means=means, variances=deviations**2)
        return jax.nn.logsumexp(gmm.log_densities(changed, x[i]), axis=1).mean(where=mask[i])

    deviations, weights = jnp.sqrt(mixture.variances), mixture.weights[:, None]
    found = encode(fisher.fisher(root=False, norm="none"), mixture, x, positions, mask)
    for i in range(B):
        by_means, by_deviations = jax.grad(likelihood, (0, 1))(mixture.means, deviations, i)
        wanted = jnp.stack(
            [by_means * deviations / jnp.sqrt(weights), by_deviations * deviations / jnp.sqrt(2 * weights)]
        )
        np.testing.assert_allclose(found[i], wanted.ravel(), atol=2e-5)


def test_lazebniks_weights_make_the_pyramid_match_kernel():
    """The intersection of two such vectors is the sum over levels of new matches, each half as heavy as the finer."""
    layout = "1x1+2x2+4x4"
    words = vocabulary("words")
    found = np.asarray(encoding.make(histograms.hard(norm="none"), layout, "lazebnik")(words, *drawn()))
    intersection = np.minimum(found[0], found[1]).sum()
    x, positions, mask = (np.asarray(a) for a in drawn())
    nearest = np.asarray(kmeans.assign(words.centers, jnp.asarray(x.reshape(-1, D)))).reshape(B, N)
    matches = []
    for side in (1, 2, 4):
        cells = np.minimum(np.floor(positions * side), side - 1).astype(int)
        keys = (nearest * side + cells[..., 1]) * side + cells[..., 0]
        counts = [np.bincount(keys[i][mask[i]], minlength=K * side * side) for i in (0, 1)]
        matches.append(np.minimum(*counts).sum())
    wanted = matches[2] + (matches[1] - matches[2]) / 2 + (matches[0] - matches[1]) / 4
    assert intersection == pytest.approx(wanted, rel=1e-6)
    shares = encoding.make(histograms.hard(), layout, "lazebnik")(words, *drawn())
    np.testing.assert_allclose(shares, found / found.sum(1, keepdims=True), rtol=1e-5)


def test_positions_are_appended():
    x, positions, _ = drawn()
    found = encoding.append_positions(x, positions, 2.0)
    assert found.shape == (B, N, D + 2)
    np.testing.assert_allclose(found[..., D:], 2 * np.asarray(positions) - 1, atol=1e-6)


@pytest.mark.parametrize("text", ["", "1x1+", "0x1", "2", "1x1x1", "1x100", "99x99", "²x1", "1 x 1"])
def test_bad_layouts_are_refused(text):
    with pytest.raises(errors.BadRequest, match="pyramid"):
        pyramid.parse(text)
