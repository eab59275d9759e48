"""Translations of texts by a trained model, and their attention weights."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax import build, drawing, errors
from recvis_jax.data import text
from recvis_jax.data.text import Vocabulary
from recvis_jax.training import distributed
from recvis_jax.vis import attention

_STEP = 16  # lengths are padded to multiples of it, so that there are few programs


class Attended(NamedTuple):
    """Attention weights of one text and its translation.

    Attributes:
      maps: {layer and head: weights (n m)}; their rows sum to 1.
      rows, columns: labels of the n queries and of the m keys.
    """

    maps: dict[str, np.ndarray]
    rows: list[str]
    columns: list[str]


def translate(
    run: build.Run,
    params: Any,
    model_state: Any,
    texts: Sequence[str],
    *,
    beams: int = 4,
    alpha: float = 0.6,
    cut: bool = False,
    batch_size: int = 64,
    say: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[str]:
    """Returns the translations of texts; each depends only on its own text.

    Args:
      run: one whose task is "translate".
      params, model_state: its variables.
      texts: in the run's source language.
      beams: width of the beam search; 1 is greedy.
      alpha: of the length penalty, see `generation.beam_search`.
      cut: whether texts longer than those of training are cut; otherwise they are an error.
      batch_size: number of texts translated at a time.
      say: called with (what, texts done, all texts).

    Raises:
      BadRequest: the run does not translate; a text is empty, or longer than those of training.
    """
    vocabulary, generate = vocabulary_of(run), run.task.generate
    if not texts:
        return []
    tokens = [_tokens(run, vocabulary, given, f"text {i}", cut) for i, given in enumerate(texts, 1)]
    if beams < 1 or alpha < 0:
        raise errors.BadRequest(f"beams={beams} and alpha={alpha}; they are at least 1 and 0.")
    assert generate is not None

    @jax.jit
    def some(params: Any, model_state: Any, source: jax.Array, mask: jax.Array) -> jax.Array:
        return generate(params, model_state, None, source=source, source_mask=mask, beams=beams, alpha=alpha)

    out = [""] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
    most = _most(run)
    size, place = drawing.over_devices(run, min(batch_size, len(texts)))
    for first in range(0, len(texts), size):
        rows = order[first : first + size]
        width = min(most, -(-max(len(tokens[i]) for i in rows) // _STEP) * _STEP)
        source = np.zeros((size, width), np.int32)
        mask = np.arange(width) < np.array([len(tokens[i]) for i in rows] + [1] * (size - len(rows)))[:, None]
        for k, i in enumerate(rows):
            source[k, : len(tokens[i])] = tokens[i]
        found = distributed.onto_host(some(params, model_state, place(source), place(mask)))
        for k, i in enumerate(rows):
            out[i] = vocabulary.decode(found[k])
        say("translating", min(len(texts), first + size), len(texts))
    return out


def too_long(run: build.Run, texts: Sequence[str]) -> set[int]:
    """Returns which texts have more tokens than those of training."""
    vocabulary = vocabulary_of(run)
    return {i for i, tokens in enumerate(text.sentences(vocabulary, texts)) if len(tokens) > _most(run)}


def attended(
    run: build.Run, params: Any, model_state: Any, source: str, target: str, kind: str, layer: int = -1, head: int = -1
) -> Attended:
    """Returns the attention weights of a text and its translation.

    Args:
      run, params, model_state: see `translate`.
      source, target: the texts.
      kind: "encoder" (the source to itself), "decoder" (the translation to itself) or "cross" (to the source).
      layer, head: numbers from 0; -1 for all.

    Raises:
      BadRequest: an unknown kind, layer or head.
    """
    vocabulary = vocabulary_of(run)
    a = _tokens(run, vocabulary, source, "the text")
    (b,) = text.sentences(vocabulary, [target])
    there = [jnp.ones((1, len(x)), bool) for x in (a, b)]
    batch = {"source": a[None], "source_mask": there[0], "target": b[None], "target_mask": there[1]}
    acts = run.model.apply({"params": params, **model_state}, batch, train=False)[1]
    weights = attention.of_sequences(acts, kind)
    for name, given, count in (("layer", layer, len(weights)), ("head", head, weights[0].shape[1])):
        if not -1 <= given < count:
            raise errors.BadRequest(f"there is no {name} {given} of the {kind} attention; it has 0 to {count - 1}.")
    layers = range(len(weights)) if layer < 0 else [layer]
    heads = range(weights[0].shape[1]) if head < 0 else [head]
    maps = {f"layer {i}, head {j}": np.asarray(weights[i][0, j], np.float32) for i in layers for j in heads}
    of_source, of_target = vocabulary.pieces(a), vocabulary.pieces([text.START, *b[:-1]])
    rows = of_source if kind == "encoder" else of_target
    return Attended(maps, rows, of_target if kind == "decoder" else of_source)


def vocabulary_of(run: build.Run) -> Vocabulary:
    """Returns the vocabulary of a run that translates; `BadRequest` for any other."""
    found = run.data.info.vocabulary
    if found is None or run.task.generate is None:
        raise errors.BadRequest(
            f"{type(run.model).__name__} of this run cannot translate: its task is not 'translate'."
        )
    return found


def _most(run: build.Run) -> int:
    return next(f.most for f in run.data.info.fields if f.name == "source") or 0


def _tokens(run: build.Run, vocabulary: Vocabulary, given: str, what: str, cut: bool = False) -> np.ndarray:
    if not given.strip():
        raise errors.BadRequest(f"{what} is empty.")
    (found,) = text.sentences(vocabulary, [given])
    if len(found) > _most(run) and cut:
        return np.append(found[: _most(run) - 1], found[-1])
    if len(found) > _most(run):
        raise errors.BadRequest(
            f"{what} has {len(found):,} tokens; the model was trained on at most {_most(run)}: {errors.shown(given)}."
        )
    return found
