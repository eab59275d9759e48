"""BLEU and chrF are sacrebleu's, to the last digit that it prints, and do not depend on how a split is batched."""

import random

import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import metrics, translation

WORDS = 'die Datei wird gespeichert, 1.5 (neu) "Öffnen" 3-mal &amp; A/B ... nicht! foo-bar 2.000,50 %1 漢字 <b>'.split()


def corpus(seed, n=40):
    rng = random.Random(seed)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(0, 12))) for _ in range(n)]
    guesses = [" ".join(w for w in r.split() if rng.random() < 0.8) for r in references]
    return [g if rng.random() < 0.8 else " ".join(rng.choices(WORDS, k=4)) for g in guesses], references


CORPORA = {
    **{f"seed {seed}": corpus(seed) for seed in range(4)},
    "the same": (corpus(9)[1], corpus(9)[1]),
    "nothing right": (["aaa bbb"] * 3, ["ccc ddd"] * 3),
    "no four words": (["Datei neu"], ["Datei alt"]),
    "few four words": (["die Datei ist neu", "x"], ["die Datei war alt", "x y"]),
    "nothing said": (["", ""], ["eins", "zwei"]),
}


@pytest.mark.every
@pytest.mark.parametrize("name", CORPORA)
def test_scores_are_those_of_sacrebleu(name):
    sacrebleu = pytest.importorskip("sacrebleu")
    hypotheses, references = CORPORA[name]
    for ours, theirs, key in (
        (translation.bleu, sacrebleu.BLEU(), "bleu"),
        (translation.chrf, sacrebleu.CHRF(), "chrf"),
    ):
        expected = theirs.corpus_score(hypotheses, [references]).score
        assert ours(hypotheses, references) == pytest.approx(expected, abs=1e-9), key
        signature = str(theirs.get_signature()).rpartition("|")[0]
        assert translation.SIGNATURES[key].startswith(signature)


def test_known_numbers():
    """Of sacrebleu 2.6.0, where it is not installed."""
    found = [(translation.bleu(*CORPORA[n]), translation.chrf(*CORPORA[n])) for n in ("few four words", "the same")]
    assert found[1] == (pytest.approx(100), pytest.approx(100))
    # Words: 3 of 5 right, 1 of 3 pairs, 0 of 2 triples, 0 of 1 four: these count as 1/2 and 1/4; 5 words for 6.
    by_hand = 100 * np.exp(1 - 6 / 5) * (3 / 5 * 1 / 3 * (1 / 2) / 2 * (1 / 4) / 1) ** 0.25
    assert found[0][0] == pytest.approx(by_hand)


def test_the_metric_is_of_the_whole_split():
    rows = np.random.default_rng(0).integers(3, 9, (6, 2, 5))
    rows[..., 3:] = 2
    metric = translation.translations(lambda row: " ".join(map(str, row[: list(row).index(2)])), 7)

    def state(some, width, mask):
        pad = np.full((len(some), width - 5), 2)
        a, b = (np.concatenate([some[:, k], pad], 1) for k in (0, 1))
        return {
            "t": metric.update({"hypothesis": jnp.asarray(a), "reference": jnp.asarray(b)}, {"mask": np.array(mask)})
        }

    whole = metrics.accumulate({"t": metric}, [state(rows, 5, [True] * 6)])
    parts = metrics.accumulate(
        {"t": metric},
        [state(rows[:4], 7, [True] * 4), state(np.concatenate([rows[4:], rows[:1]]), 5, [True, True, False])],
    )
    assert parts == whole and set(whole) == {"bleu", "chrf"} and whole["chrf"] > 0


def test_refusals():
    with pytest.raises(BadRequest, match="2 translations and 1 references"):
        translation.bleu(["a", "b"], ["a"])
