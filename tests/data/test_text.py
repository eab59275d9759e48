"""Vocabularies: any Unicode comes back, merges are those of `tokenizers`, and nothing depends on the order of texts."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recvis_jax.data import bpe, text
from recvis_jax.errors import BadRequest

TEXTS = [
    "Save the file",
    "Save all files",
    "Die Datei speichern",
    "Alle Dateien speichern",
    "über 12 Größen",
    "aaaa aaa",
] * 3
BOTH = {kind: text.learn(TEXTS, kind, 320) for kind in text.KINDS}


@pytest.mark.parametrize("kind", text.KINDS)
@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_unicode_comes_back(kind, written):
    vocabulary = BOTH[kind]
    tokens = vocabulary.encode(written)
    assert vocabulary.decode(tokens) == written
    assert (tokens >= 3).all() and (tokens < vocabulary.size).all()
    assert "".join(bpe.words(written)) == written
    assert vocabulary.decode([*tokens, text.END, 70]) == written


@pytest.mark.parametrize("kind", text.KINDS)
def test_vocabularies_are_deterministic_and_come_back_from_json(kind):
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    assert text.learn(shuffled, kind, 320) == BOTH[kind]
    again = text.of_json(text.as_json(BOTH[kind]), "here")
    assert again == BOTH[kind] and again.digest == BOTH[kind].digest
    assert text.learn(TEXTS[:-1], kind, 300).digest != BOTH[kind].digest


def test_merges_are_those_of_tokenizers():
    tokenizers = pytest.importorskip("tokenizers")
    other = tokenizers.Tokenizer(tokenizers.models.BPE())
    pattern = tokenizers.Regex(bpe.WORDS.pattern)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Split(pattern, "isolated"), byte_level]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + 150, min_frequency=2, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    rng = random.Random(1)
    words = ["speichern", "Datei", "Größe", "öffnen", "file", "files", "open", "Save", "12", "345", "…", "%1", "(x)"]
    corpus = [" ".join(rng.choices(words, k=5)) for _ in range(200)]
    other.train_from_iterator(corpus, trainer)
    ours = text.learn(corpus, "bpe", text.LEAST + 150)
    assert ours.size - text.LEAST == other.get_vocab_size() - 256
    for written in [*corpus[:50], "Neues Öffnen: 1234 Dateigrößen\n\n  漢字 _x"]:
        assert [t - 3 for t in ours.encode(written)] == other.encode(written).ids


def test_pieces_for_figures():
    shown = BOTH["bpe"].pieces([text.START, *BOTH["bpe"].encode("Save ü"), text.END])
    assert shown[0] == "<start>" and shown[-1] == "<end>" and "".join(shown[1:-1]).startswith("Save␣")
    assert BOTH["characters"].unknown("Save 漢字漢") == "漢字"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: text.learn([], "word", 300), "unknown vocabulary 'word'"),
        (lambda: text.learn([], "bpe", 12), "it has from 259"),
        (lambda: BOTH["bpe"].encode("a\ud800"), "half of a surrogate pair"),
        (lambda: BOTH["bpe"].decode([5000]), "token 5000 is outside a vocabulary of"),
        (lambda: text.of_json({"kind": "bpe", "learnt": [[0, 256]]}, "data.json"), "data.json is damaged"),
        (lambda: text.of_json({"kind": "characters", "learnt": "aa"}, "data.json"), "data.json is damaged"),
        (lambda: text.of_json({"kind": "characters", "learnt": "\ud800"}, "data.json"), "data.json is damaged"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(BadRequest, match=words):
        call()
