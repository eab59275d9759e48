"""Scores of translations: BLEU and chrF of whole corpora, equal to sacrebleu's, as functions and as metrics."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation.metrics import Metric

# sacrebleu's signatures of these scores; `version` is the release that they were compared with.
SIGNATURES = {
    "bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
    "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0",
}
_ORDER, _CHARACTERS, _BETA = 4, 6, 2.0
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_RULES = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),  # marks but for . , - '
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),  # a full stop or comma after anything but a digit
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),  # or before anything but a digit
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # a dash after a digit
)


def words(text: str) -> list[str]:
    """Splits a text into words as WMT's script mteval-v13a does.

    Example:
      >>> words("Save 1.5 files, now!")
      ['Save', '1.5', 'files', ',', 'now', '!']
    """
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for name, character in _ENTITIES:
        text = text.replace(name, character)
    text = f" {text} "
    for pattern, spaced in _RULES:
        text = pattern.sub(spaced, text)
    return text.split()


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Returns the BLEU score of a corpus, from 0 to 100: n-grams of up to 4 words, one reference, case kept.

    The geometric mean of the precisions times the brevity penalty; precisions of zero are smoothed ("exp").

    Args:
      hypotheses, references: detokenised texts, in pairs.

    Raises:
      BadRequest: different numbers of texts.

    Reference: Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation"; Post 2018, "A
    call for clarity in reporting BLEU scores".

    Example:
      >>> round(bleu(["the cat sat on the mat"], ["the cat sat on a mat"]), 2)
      53.73
    """
    _check(hypotheses, references)
    right, tried, lengths = np.zeros(_ORDER, int), np.zeros(_ORDER, int), np.zeros(2, int)
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        a, b = words(hypothesis), words(reference)
        lengths += len(a), len(b)
        for n in range(1, _ORDER + 1):
            found, wanted = _grams(a, n), _grams(b, n)
            right[n - 1] += sum((found & wanted).values())
            tried[n - 1] += sum(found.values())
    if not right.any() or not lengths[0]:
        return 0.0
    logs, missing = [], 1.0
    for r, t in zip(right, tried, strict=True):
        if not t:
            return 0.0
        missing *= 1 if r else 2
        logs.append(math.log(r / t if r else 1 / (missing * t)))
    brevity = min(0.0, 1 - lengths[1] / lengths[0])
    return 100 * math.exp(brevity + sum(logs) / _ORDER)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Returns the chrF2 score of a corpus, from 0 to 100: n-grams of up to 6 characters, without spaces.

    Args:
      hypotheses, references: texts, in pairs.

    Raises:
      BadRequest: different numbers of texts.

    Reference: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation".

    Example:
      >>> round(chrf(["the cat sat on the mat"], ["the cat sat on a mat"]), 2)
      72.08
    """
    _check(hypotheses, references)
    counts = np.zeros((_CHARACTERS, 3))  # of the hypothesis, of the reference, of both
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        a, b = ("".join(text.split()) for text in (hypothesis, reference))
        for n in range(1, _CHARACTERS + 1):
            found, wanted = _grams(a, n), _grams(b, n)
            of_b = sum(wanted.values())
            counts[n - 1] += (sum(found.values()) if of_b else 0, of_b, sum((found & wanted).values()))
    known = counts[(counts[:, :2] > 0).all(1)]
    if not len(known):
        return 0.0
    precision, recall = (known[:, 2] / known[:, 0]).mean(), (known[:, 2] / known[:, 1]).mean()
    if not precision + recall:
        return 0.0
    return float(100 * (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall))


def translations(decode: Callable[[Int[np.ndarray, " n"]], str], most: int) -> Metric:
    """BLEU and chrF of the translations of a whole split, reported as 'bleu' and 'chrf'.

    Args:
      decode: tokens -> text.
      most: length to which rows of all batches are padded.

    Returns:
      A metric of the outputs 'hypothesis' and 'reference', tokens (b n) with an end token.
    """

    def update(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        rows = {k: jnp.asarray(outputs[k]) for k in ("hypothesis", "reference")}
        rows = {k: jnp.pad(x, ((0, 0), (0, most - x.shape[1]))) for k, x in rows.items()}
        return {**rows, "mask": jnp.asarray(batch["mask"], bool)}

    def compute(state: Mapping[str, Any]) -> dict[str, float | np.ndarray]:
        kept = np.asarray(state["mask"], bool)
        texts = [[decode(row) for row in np.asarray(state[k])[kept]] for k in ("hypothesis", "reference")]
        return {"bleu": bleu(*texts), "chrf": chrf(*texts)}

    return Metric(update, "concat", compute)


def per_token(key: str, name: str) -> Metric:
    """The mean over all tokens of the outputs' `key` (b), sums over an example's tokens, reported as `name`.

    The outputs' 'tokens' (b) is the number of tokens of each example.
    """

    def update(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        mask = jnp.asarray(batch["mask"], bool)
        return {k: jnp.where(mask, jnp.asarray(outputs[k], jnp.float32), 0).sum() for k in (key, "tokens")}

    def compute(state: Mapping[str, Any]) -> dict[str, float | np.ndarray]:
        return {name: float(state[key] / state["tokens"]) if state["tokens"] else math.nan}

    return Metric(update, "sum", compute)


def _grams(units: Sequence[str], n: int) -> Counter:
    return Counter(_windows(units, n))


def _windows(units: Sequence[str], n: int) -> Iterable[Any]:
    if isinstance(units, str):
        return (units[i : i + n] for i in range(len(units) - n + 1))
    return zip(*(units[i:] for i in range(n)), strict=False)


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise BadRequest(
            f"{len(hypotheses):,} translations and {len(references):,} references; give one reference per translation."
        )
