"""Images made by optimisation: their parametrisation by hand, and that what is sought grows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vis import tiny

from recvis_jax import vis
from recvis_jax.errors import BadRequest
from recvis_jax.vis import maximisation, style

APPLY, VARIABLES = tiny.GLOBALS["apply"], tiny.GLOBALS["variables"]
X = jax.nn.sigmoid(tiny.GLOBALS["images"])
LAYER = "stage1/block1"


def test_one_frequency_is_one_wave_of_natural_strength():
    """Of 8 x 12 pixels, frequency 2 / 8 of the rows: sqrt(96) / (1 / 4) / 4, spread over 96 pixels."""
    spectrum = jnp.zeros((1, 8, 7, 1, 2)).at[0, 2, 0, 0, 0].set(1.0)
    found = np.asarray(maximisation.picture(spectrum, 12))[0, ..., 0]
    wave = np.sqrt(96) * 4 / 4 / 96 * np.cos(2 * np.pi * 2 * np.arange(8) / 8)
    np.testing.assert_allclose(np.log(found / (1 - found)), np.repeat(wave[:, None], 12, 1), atol=1e-5)
    colours = maximisation.picture(jnp.zeros((1, 8, 7, 3, 2)).at[0, 0, 0, 0, 0].set(1.0), 12)
    ratio = np.log(colours / (1 - colours))[0, 0, 0]
    np.testing.assert_allclose(ratio / ratio[0], [1, 0.27 / 0.26, 0.27 / 0.26], rtol=1e-4)  # the brightness


@pytest.mark.full
def test_moves():
    np.testing.assert_allclose(maximisation.shaken(jax.random.key(0), X, 0.0), X, atol=1e-5)
    found = np.asarray(maximisation.shaken(jax.random.key(1), X, 1.0))
    assert found.shape == X.shape and np.abs(found - X).max() > 0.01
    np.testing.assert_allclose(maximisation.shaken(jax.random.key(1), jnp.full_like(X, 0.5), 1.0), 0.5, atol=1e-6)


ALIVE = int(np.asarray(vis.activations(APPLY, VARIABLES, X, LAYER)).mean((0, 1, 2)).argmax())  # on images in [0, 1]


@pytest.mark.full
@pytest.mark.parametrize(
    "target", [vis.Unit(LAYER, ALIVE), vis.Channel(LAYER, ALIVE), 4], ids=["unit", "channel", "class"]
)
def test_what_is_sought_grows(target):
    found = vis.maximise(APPLY, VARIABLES, target, tiny.SHAPE, steps=40, count=2)
    score = partial(vis.scores, APPLY, VARIABLES)
    fixed = vis.fixed(APPLY, VARIABLES, found, target)
    assert (np.asarray(score(found, fixed)) > np.asarray(score(jnp.full_like(found, 0.5), fixed)) + 0.02).all()
    assert not np.array_equal(found[0], found[1])
    with pytest.raises(BadRequest, match="name a class"):
        vis.maximise(APPLY, VARIABLES, None, tiny.SHAPE)


def test_a_dream_excites_its_layer():
    square = lambda x: np.square(np.asarray(vis.activations(APPLY, VARIABLES, x, LAYER))).mean((1, 2, 3))  # noqa: E731
    found = vis.deep_dream(APPLY, VARIABLES, X, LAYER, octaves=2, steps=4, jitter=2)
    assert found.shape == X.shape and (square(found) > 1.1 * square(X)).all()
    assert float(found.min()) >= 0 and float(found.max()) <= 1


@pytest.mark.full
def test_gram_matrices_and_a_style():
    maps = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)
    want = sum(np.outer(maps[0, i, j], maps[0, i, j]) for i in range(3) for j in range(4)) / 12
    np.testing.assert_allclose(style.gram(jnp.asarray(maps))[0], want, rtol=1e-5)
    names = dict(style_layers=("stem",), content_layer=LAYER)
    content, other = X[:1], X[1:] ** 3
    found = vis.style_transfer(APPLY, VARIABLES, content, other, steps=12, weight=1e4, **names)
    of = lambda x: np.asarray(style.gram(vis.activations(APPLY, VARIABLES, x, "stem")))  # noqa: E731
    assert np.square(of(found) - of(other)).mean() < 0.3 * np.square(of(content) - of(other)).mean()


def test_a_layer_is_inverted():
    found = vis.invert(APPLY, VARIABLES, X, "stem", steps=150, rate=0.1)
    value = lambda x: np.asarray(vis.activations(APPLY, VARIABLES, x, "stem"))  # noqa: E731
    missed = np.square(value(found) - value(X)).sum() / np.square(value(X)).sum()
    assert missed < 0.1
    np.testing.assert_allclose(vis.invert(APPLY, VARIABLES, X[1:], "stem", steps=5)[0],
                               vis.invert(APPLY, VARIABLES, X, "stem", steps=5)[1], atol=1e-4)  # fmt: skip


def test_alignment_is_hsics_and_knows_no_rotation():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 90))
    centre = np.eye(40) - 1 / 40
    hsic = lambda a, b: np.trace(centre @ a @ a.T @ centre @ b @ b.T)  # noqa: E731
    np.testing.assert_allclose(vis.linear_cka(x, y), hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)), rtol=1e-9)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    np.testing.assert_allclose(vis.linear_cka(x @ turn * 3 + 1, y), vis.linear_cka(x, y), rtol=1e-9)
    np.testing.assert_allclose(vis.linear_cka(x, y[:, :6]), vis.linear_cka(y[:, :6], x), rtol=1e-9)
    with pytest.raises(BadRequest, match="of 40 and of 39"):
        vis.linear_cka(x, y[1:])


def test_calibrated_predictions_have_no_error():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 20_000)
    labels = (rng.random(20_000) > p).astype(int)
    assert vis.reliability(np.stack([p, 1 - p], 1), labels).error < 0.02
    sure = np.stack([np.full(1000, 0.99), np.full(1000, 0.01)], 1)
    found = vis.reliability(sure, np.arange(1000) % 2)
    assert found.error == pytest.approx(0.49) and found.counts.sum() == 1000
