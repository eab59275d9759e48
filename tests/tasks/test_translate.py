"""Translation: the loss by its formula, searches by enumeration, and a tiny run from texts to texts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import recvis_jax as rv
from recvis_jax import models, translating
from recvis_jax.data import text
from recvis_jax.errors import BadRequest
from recvis_jax.tasks import translate
from recvis_jax.vis import attention

SIZES = dict(width=16, heads=2, encoder_depth=1, decoder_depth=1, hidden=32)


@pytest.fixture(scope="module")
def data():
    return rv.data.open("libreoffice_de", mock=60, val="validation[:20]", text=dict(tokens=270, most=30))


@pytest.fixture(scope="module")
def run(data):
    """A run of a few steps, which translates badly."""
    model = models.create("transformer_base", vocabulary=data.info.vocabulary.size, dropout=0.0, **SIZES)
    objective = rv.task(model, data, "translate")
    return rv.fit(model, data, optax.adam(3e-3), steps=4, batch_size=16, task=objective, progress=False)


def test_the_loss_is_smoothed_cross_entropy_over_tokens(data, run):
    objective = translate(run.run.model, fields=data.info.fields, vocabulary=data.info.vocabulary, label_smoothing=0.2)
    batch = next(iter(data.batches(8)))
    terms, _, measured = jax.jit(objective.loss)(run.params, {}, batch, jax.random.key(0))
    logits, _ = jax.jit(lambda v, b: run.run.model.apply(v, b, train=False))(run.variables, batch)
    targets = optax.smooth_labels(jax.nn.one_hot(batch["target"], logits.shape[-1]), 0.2)
    expected = jnp.where(batch["target_mask"], optax.softmax_cross_entropy(logits, targets), 0).sum(-1)
    np.testing.assert_allclose(terms["loss"], expected, rtol=1e-5)
    np.testing.assert_array_equal(objective.counts(batch)["loss"], batch["target_mask"].sum(-1))
    assert measured["token_accuracy"][0].shape == (8,)
    objective = translate(run.run.model, fields=data.info.fields, vocabulary=data.info.vocabulary, decode=False)
    found = jax.jit(objective.predict)(run.params, {}, batch)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"])
    np.testing.assert_allclose(found["loss"], jnp.where(batch["target_mask"], plain, 0).sum(-1), rtol=1e-5)


def test_evaluation_reports_texts(run):
    found = run.evaluate("val")
    assert set(found) == {"loss", "token_accuracy", "bleu", "chrf"}
    assert 0 <= found["bleu"] <= 100 and 0 < found["loss"] < 10


def test_translations_do_not_depend_on_their_neighbours(run):
    texts = ["bade", "fi go lu", "ma ne pi so tu ba de"]
    together = run.translate(texts, beams=1)
    assert run.translate(texts, beams=1, batch_size=2) == together
    seen = translating.attended(run.run, run.params, {}, "bade", "edab", "cross", head=1)
    assert list(seen.maps) == ["layer 0, head 1"] and seen.rows[0] == "<start>" and seen.columns[-1] == "<end>"
    assert seen.maps["layer 0, head 1"].shape == (len(seen.rows), len(seen.columns))
    for call, words in (
        (lambda: run.translate([" "]), "text 1 is empty"),
        (lambda: run.translate(["ok", "漢" * 40]), "text 2 has 121 tokens; the model was trained on at most 30"),
        (lambda: translating.attended(run.run, run.params, {}, "a", "b", "cross", layer=3), "there is no layer 3"),
        (lambda: attention.of_sequences({}, "self"), "unknown attention 'self'"),
        (lambda: run.generate(2), "cannot draw images"),
    ):
        with pytest.raises(BadRequest, match=words):
            call()


def test_beams_find_the_likeliest_of_all_translations():
    """Against all sequences of up to 3 tokens, of a net whose texts have 3 tokens beside the end."""
    vocabulary = text.Vocabulary("characters")
    tiny = type("Tiny", (), {"size": 6, "decode": vocabulary.decode})()
    field = rv.data.fields.Field("source", "tokens", (None,), "int32", 3)
    model = models.create("transformer_base", vocabulary=6, dropout=0.0, **SIZES)
    objective = translate(model, fields=[field, field._replace(name="target")], vocabulary=tiny)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), shapes)["params"]
    source = {"source": jnp.array([[4, 5, 2]]), "source_mask": jnp.ones((1, 3), bool)}
    rows = [r for n in range(3) for r in itertools.product((3, 4, 5), repeat=n)]
    rows = [(*r, 2, 2, 2)[:3] for r in rows] + list(itertools.product((3, 4, 5), repeat=3))
    targets = jnp.asarray(sorted(set(rows)))
    batch = {k: jnp.repeat(v, len(targets), 0) for k, v in source.items()}
    batch |= {"target": targets, "target_mask": jnp.ones(targets.shape, bool)}
    logits = jax.jit(lambda p, b: model.apply({"params": p}, b, train=False)[0])(params, batch)
    logits = jnp.where((jnp.arange(6) >= 2), logits, -1e9)
    p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(targets)[..., None], -1)[..., 0]
    before = np.cumsum(np.asarray(targets) == 2, 1) - (np.asarray(targets) == 2)
    length = (before == 0).sum(1)
    scores = np.where(before == 0, p, 0).sum(1) / ((5 + length) / 6) ** 0.6
    found = jax.jit(lambda p: objective.generate(p, {}, None, **source, beams=27))(params)
    assert found[0].tolist()[:3] == np.asarray(targets)[scores.argmax()].tolist()


@pytest.mark.parametrize(
    "kw, words",
    [
        (dict(vocabulary=None), "needs texts and their translations"),
        (dict(label_smoothing=1.0), "label_smoothing=1.0 is outside"),
        (dict(beams=0), "beams=0 and task.alpha"),
    ],
)
def test_refusals(kw, words, data, run):
    with pytest.raises(BadRequest, match=words):
        translate(run.run.model, **{"fields": data.info.fields, "vocabulary": data.info.vocabulary} | kw)
    with pytest.raises(BadRequest, match="not Linear"):
        translate(models.create("linear", num_classes=3), fields=data.info.fields, vocabulary=data.info.vocabulary)
    small = models.create("transformer_base", vocabulary=100, **SIZES)
    with pytest.raises(BadRequest, match="vocabulary=100 is less than"):
        translate(small, fields=data.info.fields, vocabulary=data.info.vocabulary)
