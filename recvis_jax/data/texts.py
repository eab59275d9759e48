"""Sources of texts and their translations, prepared, given or artificial, read as tokens of a vocabulary."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from recvis_jax import errors
from recvis_jax.data import DATASETS, data_info, prepared, sources, text
from recvis_jax.data.fields import Field
from recvis_jax.data.sources import Indices, Source
from recvis_jax.data.text import PAD, Vocabulary

SIDES = ("source", "target")


class Texts(NamedTuple):
    """How texts become tokens: the keys of a config's `data.text`.

    Attributes:
      kind: "bpe" or "characters"; the vocabulary is learnt from both sides of the training split.
      tokens: maximum size of the vocabulary.
      of_run: folder of a run whose vocabulary is used instead, for example with `init_from`; empty for none.
      most: maximum number of tokens of a text, including the end token.
      too_long: longer texts are cut, are an error, or their pairs are dropped. Validation and test pairs are never
        dropped: "drop" cuts them.
      source, target: names of the data set's features with the two sides.
    """

    kind: Literal["bpe", "characters"] = "bpe"
    tokens: int = 8000
    of_run: str = ""
    most: int = 128
    too_long: Literal["drop", "cut", "fail"] = "drop"
    source: str = "source"
    target: str = "target"


def open_split(name: str, split: str, how: Texts, *, data_dir: str | None = None, mock: int = 0) -> Source:
    """Opens a split of texts, whose examples are {"source": text, "target": text}.

    Args:
      name: a prepared set of texts.
      split: a tfds split expression.
      how: gives the names of the features.
      data_dir: the folder of prepared data sets; None means `sources.default_data_dir()`.
      mock: if not zero, this many artificial pairs per split instead.

    Raises:
      BadRequest: the data set does not exist, or has no such split or texts.
    """
    if mock:
        return _mock(name, split, mock)
    import tensorflow_datasets as tfds

    builder = prepared.find_builder(tfds, name, Path(data_dir).expanduser() if data_dir else sources.default_data_dir())
    features = builder.info.features
    for key in (how.source, how.target):
        if key not in features.keys() or not isinstance(features[key], tfds.features.Text):
            there = ", ".join(k for k in features.keys() if isinstance(features[k], tfds.features.Text))
            raise errors.BadRequest(
                f"{errors.printable(name)} has no feature {key!r} of text; it has {errors.printable(there) or 'none'}."
            )
    stretches = sources.parts_of(split, {k: v.num_examples for k, v in builder.info.splits.items()}, name)
    expression = tfds.core.ReadInstruction.from_spec(sources.own_names(split, builder.info.splits))
    try:
        data = builder.as_data_source(split=expression)
    except NotImplementedError:
        raise errors.BadRequest(
            f"{errors.printable(name)} is stored as tfrecord, which cannot be read without TensorFlow; prepare it with "
            "--file_format=array_record."
        ) from None

    def read(indices: Indices) -> list[dict[str, Any]]:
        try:
            rows = data.__getitems__([int(i) for i in indices])
            return [{side: row[getattr(how, side)].decode() for side in SIDES} for row in rows]
        except Exception as e:  # array_record and tfds raise all kinds of errors on damaged files
            raise errors.Failure(f"{name}/{split} cannot be read: {errors.printable(prepared.first_line(e))}") from e

    return Source(
        f"{name}/{split}", len(data), read, (0, 0, 0), 0, (), stretches, digest=prepared.digest_of(builder)
    )  # fmt: skip


def of_pairs(name: str, split: str, pairs: Sequence[Any]) -> Source:
    """Makes a split of texts from pairs in memory, with the examples of `open_split`.

    Raises:
      BadRequest: there is none, or one that is not two texts that are not empty.

    Example:
      >>> of_pairs("mine", "train", [("a cat", "eine Katze")]).read([0])
      [{'source': 'a cat', 'target': 'eine Katze'}]
    """
    if not pairs:
        raise errors.BadRequest(f"{name} has no pairs of texts.")
    for i, pair in enumerate(pairs):
        good = isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(t, str) and t.strip() for t in pair)
        if not good:
            raise errors.BadRequest(f"{name}, pair {i}: {errors.shown(pair)} is not a text and its translation.")
    kept = [dict(zip(SIDES, pair, strict=True)) for pair in pairs]
    digest = hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]
    return Source(
        name, len(kept), lambda indices: [dict(kept[i]) for i in np.asarray(indices, int)], (0, 0, 0), 0, (),
        ((split, 0, len(kept)),), digest=digest,
    )  # fmt: skip


def vocabulary_of(train: Source, how: Texts) -> Vocabulary:
    """Returns the vocabulary of a run: learnt from the training split alone, or that of another run.

    Raises:
      BadRequest: an unknown kind, or a folder that is not a run of texts.
    """
    if not how.of_run:
        pairs = train.read(np.arange(train.length))
        return text.learn((pair[side] for pair in pairs for side in SIDES), how.kind, how.tokens)
    folder = Path(how.of_run).expanduser()
    recorded = data_info.read(folder) if folder.is_dir() else None
    if recorded is None or recorded.info.vocabulary is None:
        raise errors.BadRequest(
            f"data.text.of_run={errors.shown(how.of_run)} is not the folder of a run that was trained on texts."
        )
    return recorded.info.vocabulary


def as_tokens(found: Source, vocabulary: Vocabulary, how: Texts, training: bool) -> Source:
    """Encodes a split of texts: {"source": (n), "target": (m)} int32, each with its end token.

    Args:
      found: from `open_split`.
      vocabulary: for the encoding.
      how: gives the maximum length, and what to do with longer texts.
      training: whether it is the training split, whose pairs may be dropped.

    Raises:
      BadRequest: a longer text with `how.too_long` "fail", or no pair is left.
    """
    pairs = found.read(np.arange(found.length))
    encoded = {side: text.sentences(vocabulary, [pair[side] for pair in pairs]) for side in SIDES}
    longest = np.max([[len(s) for s in encoded[side]] for side in SIDES], axis=0)
    long = np.flatnonzero(longest > how.most)
    rows, notes = np.arange(found.length), found.notes
    if len(long):
        if how.too_long == "fail":
            raise errors.BadRequest(
                f"{found.name}: pair {long[0]} has {longest[long[0]]:,} tokens, more than data.text.most={how.most} "
                f"({len(long):,} such pairs); set data.text.too_long to 'drop' or 'cut'."
            )
        drop = how.too_long == "drop" and training
        rows = np.setdiff1d(rows, long) if drop else rows
        done = "left out" if drop else "cut"
        notes = (
            *notes,
            f"{found.name}: {len(long):,} of {found.length:,} pairs have more than {how.most} tokens: {done}",
        )
    if not len(rows):
        raise errors.BadRequest(f"{found.name}: every pair has more than data.text.most={how.most} tokens.")
    kept = [{side: _cut(encoded[side][i], how.most) for side in SIDES} for i in rows]
    return found._replace(
        length=len(kept),
        read=lambda indices: [dict(kept[i]) for i in np.asarray(indices, int)],
        digest=f"{found.digest}-{vocabulary.digest}",
        declared=tuple(Field(side, "tokens", (None,), "int32", how.most, PAD) for side in SIDES),
        notes=notes,
    )


def _cut(tokens: np.ndarray, most: int) -> np.ndarray:
    return tokens if len(tokens) <= most else np.append(tokens[: most - 1], tokens[-1])


_SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "so", "tu")


def _mock(name: str, split: str, count: int) -> Source:
    """Artificial pairs: words of two syllables; the target has them reversed and in reverse order."""
    row = DATASETS.get(name)
    names = row.splits if row else ("train", "validation", "test")
    stretches = sources.parts_of(split, dict.fromkeys(names, count), name)
    rows = sources.rows_of(stretches, names)

    def one(part: int, i: int) -> dict[str, str]:
        rng = np.random.default_rng((part, i))
        picked = rng.integers(0, len(_SYLLABLES), (int(rng.integers(1, 7)), 2))
        words = [_SYLLABLES[a] + _SYLLABLES[b] for a, b in picked]
        return {"source": " ".join(words), "target": " ".join(word[::-1] for word in reversed(words))}

    def read(indices: Indices) -> list[dict[str, Any]]:
        return [one(s, i) for s, i in rows[np.asarray(indices, int)].tolist()]

    return Source(f"mock {name}/{split}", len(rows), read, (0, 0, 0), 0, (), stretches, digest="mock")
