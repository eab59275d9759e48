"""Images channel by channel: probabilities sum to one, cached decoding equals whole images, mixtures by hand."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logsumexp

from recvis_jax import generation, models, trees
from recvis_jax.errors import BadRequest
from recvis_jax.models import logistics

RNG = np.random.default_rng(0)
SIZES = dict(width=8, depth=1, heads=2, hidden=8)
# Blocks of 2 rows and of 1 pixel of 2 channels.
LOCAL = dict(kind="local_2d", h=2, w=4, block=(2, 2), memory=(1, 2))
NETS = {
    "categorical": dict(shape=(2, 1, 2), levels=3),
    "mixture": dict(shape=(2, 1, 2), levels=3, mixtures=2, pre_norm=True, sparse=dict(kind="strided", stride=2)),
    "enlarging": dict(shape=(2, 2, 2), levels=2, encoder_depth=1, factor=2, sparse=LOCAL),
}


@pytest.fixture(scope="module", params=NETS)
def net(request):
    model = models.create("image_transformer", **SIZES | NETS[request.param])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *model.shape)), train=False))
    return model, jax.tree.map(lambda x: jnp.asarray(RNG.normal(0, 0.7, x.shape), x.dtype), shapes)


def test_probabilities_sum_to_one_and_cached_decoding_equals_whole_images(net):
    """All images of four tokens of three values; of eight tokens of two, all that the model is told the same of."""
    model, variables = net
    tokens = np.array(list(itertools.product(range(model.levels), repeat=model.pixels)))
    images = jnp.asarray(tokens / (model.levels - 1), jnp.float32).reshape(-1, *model.shape)
    given = None
    if model.encoder_depth:  # the small image is the same wherever the encoder's tokens are
        told = np.asarray(model.tokens_of(model.small(images)))
        images = images[(told == told[37]).all(1)]
        given = {"small": model.small(images)}
    forward = jax.jit(partial(model.apply, train=False))
    logits, acts = forward(variables, images)
    p = jnp.take_along_axis(jax.nn.log_softmax(logits), acts["targets"][..., None], -1).sum((1, 2))
    if not model.encoder_depth:
        assert jnp.exp(p).sum() == pytest.approx(1, abs=1e-5)
    before = jnp.pad(acts["targets"][:, :-1], ((0, 0), (1, 0)), constant_values=model.levels)

    @jax.jit
    def one_by_one(variables):
        step, cache = generation.decoder(model, variables, len(images), model.pixels, given)
        return jax.lax.scan(lambda cache, token: step(cache, token)[::-1], cache, before.T)[1].swapaxes(0, 1)

    np.testing.assert_allclose(one_by_one(variables), logits, atol=1e-5)
    back = model.images_of(acts["targets"][:, np.argsort(model.order)], *model.shape[:2])
    np.testing.assert_allclose(back, images, atol=1e-6)


def test_a_mixture_is_that_of_the_paper():
    """The masses of 256 values by differences of the distribution function, in float64."""
    x = RNG.normal(0, 1, (5, 9)).astype(np.float32)
    x[0, 6:] = -9  # scales are at least e^-7
    found = np.asarray(logistics.log_probabilities(jnp.asarray(x), 256), np.float64)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, atol=1e-5)
    w, m, s = np.split(x.astype(np.float64), 3, axis=-1)
    edges = np.concatenate([[-np.inf], np.linspace(-1, 1, 256)[:-1] + 1 / 255, [np.inf]])[:, None]
    below = expit((edges - m[:, None]) * np.exp(-np.maximum(s, -7))[:, None])
    weights = np.exp(w - logsumexp(w, axis=-1, keepdims=True))
    expected = (np.diff(below, axis=1) * weights[:, None]).sum(-1)
    np.testing.assert_allclose(np.exp(found), expected, atol=1e-6)
    assert np.isfinite(found).all()


def test_the_middle_of_imagenet_is_that_of_the_paper():
    """Child et al. 2019 say 152 million for 48 layers of 512, and 59 million for the halved CIFAR-10 net."""
    model = models.create("sparse_transformer_b", shape=(64, 64, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    layer = 12 * 512**2 + 4 * 512 + 2048 + 512 + 4 * 512
    embeddings = (256 * 3 + 1 + 64 + 64 + 3) * 512
    assert trees.count(shapes["params"]) == 48 * layer + embeddings + 2 * 512 + 512 * 256 + 256
    assert 151e6 < trees.count(shapes["params"]) < 153e6


@pytest.mark.parametrize(
    "kw, words",
    [
        (dict(shape=(2, 0, 1)), "takes \\(rows, columns, channels\\)"),
        (dict(levels=1), "levels=1, mixtures=0"),
        (dict(shape=(6, 8, 1), encoder_depth=1), "6x8 are not 4 times as large"),
    ],
)
def test_refusals(kw, words):
    with pytest.raises(BadRequest, match=words):
        models.create("image_transformer", **SIZES | kw)
