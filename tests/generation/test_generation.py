"""Cached decoding equals whole sequences; sampling and beam search against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import generation, models
from recvis_jax.errors import BadRequest
from recvis_jax.generation.beam import penalty
from recvis_jax.generation.sampling import likeliest

SMALL = dict(colours=3, pixels=5, width=16, depth=2, heads=2)
SPARSE = {
    "full": None,
    "strided": dict(kind="strided", stride=2),
}


@pytest.fixture(scope="module", params=SPARSE)
def net(request):
    model = models.create("igpt_s", **SMALL, sparse=SPARSE[request.param])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32), train=False))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.7, x.shape), x.dtype), shapes)


def chain(table):
    """A decoder whose scores depend on the last token alone, with a cache that remembers each sequence."""
    table = jnp.asarray(table, jnp.float32)

    def step(cache, tokens):
        seen, at = cache
        return table[tokens], (seen.at[:, at].set(tokens), at + 1)

    return step


def test_cached_decoding_equals_whole_sequences(net):
    model, variables = net
    tokens = jnp.asarray([[3, 0, 2, 1, 1], [3, 1, 1, 0, 2]])
    whole, _ = model.apply(variables, tokens, train=False)
    step, cache = generation.decoder(model, variables, batch=2, length=5)
    for i in range(5):
        logits, cache = jax.jit(step)(cache, tokens[:, i])
        np.testing.assert_allclose(logits, whole[:, i], atol=1e-5)


def test_probabilities_of_all_images_sum_to_one(net):
    """All 2x2 images of three colours."""
    model, variables = net
    images = np.array(list(itertools.product(range(3), repeat=4)))
    tokens = np.concatenate([np.full((81, 1), 3), images[:, :-1]], 1)
    logits, _ = model.apply(variables, jnp.asarray(tokens), train=False)
    p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), images[:, :, None], -1).sum((1, 2))
    assert np.exp(p).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.full
def test_samples_do_not_depend_on_the_batch_and_have_their_probability(net):
    model, variables = net

    def draw(examples):
        step, cache = generation.decoder(model, variables, batch=len(examples), length=4)
        return generation.sample(step, cache, generation.keys(7, jnp.asarray(examples)), 3, 4)

    tokens, p = draw([0, 1, 2, 5])
    np.testing.assert_array_equal(draw([5])[0][0], tokens[3])
    before = jnp.concatenate([jnp.full((4, 1), 3), tokens[:, :-1]], 1)
    whole, _ = model.apply(variables, before, train=False)
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(whole)), np.asarray(tokens)[:, :, None], -1).sum((1, 2))
    np.testing.assert_allclose(p, expected, rtol=1e-4)


def test_given_tokens_stay_and_the_likeliest_are_taken_at_temperature_zero():
    step = chain(np.log([[0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]))
    cache = jnp.zeros((2, 5), jnp.int32), jnp.int32(0)
    known = jnp.array([[True, False, False, False]] * 2)
    given = jnp.array([[2, 9, 9, 9], [1, 9, 9, 9]])
    told = []
    tokens, p = generation.sample(
        step, cache, generation.keys(0, jnp.arange(2)), 3, 4, temperature=0, given=given, known=known, tell=told.append
    )
    jax.effects_barrier()
    assert sorted(told) == [0, 0.25, 0.5, 0.75]
    assert tokens.tolist() == [[2, 0, 1, 2], [1, 2, 0, 1]]
    np.testing.assert_allclose(p, np.log([0.7 * 0.6 * 0.6, 0.6 * 0.7 * 0.6]), rtol=1e-5)


def test_frequencies_follow_the_temperature():
    step = chain(np.log([[0.2, 0.8], [0.2, 0.8]]))
    keys = generation.keys(1, jnp.arange(4000))
    cache = jnp.zeros((4000, 2), jnp.int32), jnp.int32(0)
    for temperature in (1.0, 2.0):
        p = 0.8 ** (1 / temperature) / (0.8 ** (1 / temperature) + 0.2 ** (1 / temperature))
        tokens, _ = generation.sample(step, cache, keys, 0, 2, temperature=temperature)
        assert np.asarray(tokens).mean() == pytest.approx(p, abs=4 * (p * (1 - p) / 8000) ** 0.5)


def test_greedy_search_is_a_beam_of_one():
    table = np.random.default_rng(1).normal(size=(6, 5))
    cache = jnp.zeros((1, 4), jnp.int32), jnp.int32(0)
    keys = generation.keys(0, jnp.arange(1))
    greedy, p = generation.sample(chain(table), cache, keys, 5, 3, temperature=0, end=4)
    found = generation.beam_search(chain(table), cache, 1, 5, 4, 3, beams=1, alpha=0.0)
    assert found.tokens[0].tolist() == greedy.tolist()
    np.testing.assert_allclose(found.scores[0], p, rtol=1e-5)


def test_likeliest_tokens():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))

    def kept(**kw):
        return np.isfinite(np.asarray(likeliest(logits, **kw)))[0].tolist()

    assert kept(top_k=2) == [False, True, False, True]
    assert kept(top_p=0.65) == [False, True, False, True]
    assert kept(top_p=0.75) == [False, True, True, True]
    assert kept(top_p=0.01) == [False, True, False, False]
    assert kept() == [True] * 4


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_beam_search_equals_enumeration(alpha):
    """A vocabulary of five, of which 4 ends. With as many beams as there are prefixes nothing is lost."""
    rng, length, beams = np.random.default_rng(3), 3, 25
    table = np.log(rng.dirichlet(np.full(5, 0.5), (2, 6)).astype(np.float32))  # by position's parity and last token

    def step(cache, tokens):
        return jnp.asarray(table)[cache % 2, tokens], cache + 1

    def score(sequence):
        before, total = 5, 0.0
        for at, token in enumerate(sequence):
            total, before = total + table[at % 2, before, token], token
        return total / float(penalty(len(sequence), alpha))

    found = generation.beam_search(step, jnp.int32(0), 1, 5, 4, length, beams=beams, alpha=alpha)
    ended = [(*s, 4) for n in range(length) for s in itertools.product(range(4), repeat=n)]
    cut = list(itertools.product(range(4), repeat=length))
    ranked = sorted(((score(s), s) for s in [*ended, *cut]), reverse=True)[:beams]
    np.testing.assert_allclose(found.scores[0], [s for s, _ in ranked], rtol=1e-4)
    best = ranked[0][1]
    assert tuple(found.tokens[0, 0, : len(best)].tolist()) == best


def test_the_cache_follows_its_sequence():
    """Scores depend on all tokens seen, as a cache remembers them."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)

    def step(cache, tokens):
        cache = cache * 1.5 + tokens[:, None]
        return jnp.sin(cache * weights[tokens % 6]) * 2, cache

    beams, length = 3, 4
    found = generation.beam_search(step, jnp.zeros((2 * beams, 1)), 2, 5, 4, length, beams=beams)
    for i in range(2):
        for sequence, total in zip(found.tokens[i], found.scores[i], strict=True):
            cache, before, p = jnp.zeros((1, 1)), 5, 0.0
            tokens = sequence.tolist()
            tokens = tokens[: tokens.index(4) + 1] if 4 in tokens else tokens
            for token in tokens:
                logits, cache = step(cache, jnp.array([before]))
                p, before = p + jax.nn.log_softmax(logits)[0, token], token
            np.testing.assert_allclose(p / penalty(len(tokens), 0.6), total, rtol=1e-4)


def test_refusals():
    with pytest.raises(BadRequest, match="does not generate"):
        generation.decoder(models.create("lenet5", num_classes=3), {}, 1, 3)
    with pytest.raises(BadRequest, match="top_p=0"):
        generation.sample(chain(np.zeros((2, 2))), None, generation.keys(0, jnp.arange(1)), 0, 2, top_p=0.0)
    with pytest.raises(BadRequest, match="beams=0"):
        generation.beam_search(chain(np.zeros((2, 2))), None, 1, 0, 1, 2, beams=0)
    with pytest.raises(BadRequest, match="9 tokens; the model has 5 positions"):
        tokens, model = jnp.zeros((1, 9), jnp.int32), models.create("igpt_s", **SMALL)
        jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, train=False))
