"""Vocabularies: texts as numbers of tokens and back, learnt from the training split alone.

Tokens 0, 1 and 2 are padding, start and end; then come the 256 bytes, then the learnt tokens. Text that a vocabulary
has not seen is encoded as bytes, so every text can be encoded, and decoding gives it back unchanged.
"""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from recvis_jax import errors
from recvis_jax.data import bpe

Kind = Literal["bpe", "characters"]
KINDS: tuple[Kind, ...] = ("bpe", "characters")
PAD, START, END = 0, 1, 2
_FIRST = 3  # token of the first byte
LEAST = _FIRST + 256  # tokens of a vocabulary that has learnt nothing
MOST = 1_000_000
Tokens = Iterable[int | np.integer]
_WORDS = 200_000  # whose pieces are remembered


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of texts.

    Attributes:
      kind: "bpe" for merged bytes, see `data.bpe`; "characters" for whole characters.
      merges: of "bpe", in order.
      characters: of "characters", the most frequent first.

    Example:
      >>> vocabulary = learn(["new file", "new folder"], "bpe", 300)
      >>> vocabulary.decode(vocabulary.encode("new Füße"))
      'new Füße'
    """

    kind: Kind
    merges: tuple[bpe.Pair, ...] = ()
    characters: tuple[str, ...] = ()

    def __reduce__(self) -> tuple:
        return Vocabulary, (self.kind, self.merges, self.characters)  # without cached values

    @property
    def size(self) -> int:
        """Number of tokens, including the three special ones."""
        return LEAST + len(self.merges) + len(self.characters)

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the vocabulary."""
        return hashlib.sha256(json.dumps(as_json(self)).encode()).hexdigest()[:16]

    @functools.cached_property
    def spelt(self) -> tuple[bytes, ...]:
        """The bytes of every token; empty for special tokens."""
        pieces = bpe.spelt(self.merges)
        return (b"", b"", b"", *pieces, *(c.encode() for c in self.characters))

    @functools.cached_property
    def _ranks(self) -> dict[bpe.Pair, int]:
        return {pair: i for i, pair in enumerate(self.merges)}

    @functools.cached_property
    def _numbers(self) -> dict[str, tuple[int, ...]]:
        return {c: (LEAST + i,) for i, c in enumerate(self.characters)}

    @functools.cached_property
    def _known(self) -> dict[str, tuple[int, ...]]:
        return {}  # word -> its tokens

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Returns the tokens of a text, int32, without start and end.

        Raises:
          BadRequest: the text holds half of a surrogate pair.
        """
        try:
            if self.kind == "characters":
                found = [t for c in text for t in self._numbers.get(c) or self._bytes(c)]
            else:
                found = [t for word in bpe.words(text) for t in self._word(word)]
        except UnicodeEncodeError as e:
            raise errors.BadRequest(
                f"character {e.start + 1} of a text is {e.object[e.start]!a}, half of a surrogate pair, "
                "which is not a character."
            ) from None
        return np.asarray(found, np.int32)

    def decode(self, tokens: Tokens) -> str:
        """Returns the text of tokens up to the first end; invalid UTF-8 becomes U+FFFD.

        Raises:
          BadRequest: a token that the vocabulary does not have.
        """
        return b"".join(self._until_end(tokens)).decode("utf-8", "replace")

    def pieces(self, tokens: Tokens) -> list[str]:
        """Returns a label for each token, for figures: spaces as ␣, parts of characters as bytes.

        Example:
          >>> learn([], "bpe", 259).pieces([3 + bpe.PIECES[b] for b in "a ü".encode()])
          ['a', '␣', 'c3', 'bc']
        """
        names = {START: "<start>", END: "<end>", PAD: "<pad>"}
        out = []
        for t in map(int, tokens):
            try:
                out.append(names.get(t) or self._spelling(t).decode().replace(" ", "␣"))
            except UnicodeDecodeError:
                out.append(self._spelling(t).hex(" "))
        return out

    def unknown(self, text: str) -> str:
        """Returns the characters of a text that training did not have, in order and once each.

        Example:
          >>> learn(["abc"], "characters", 300).unknown("cab ä")
          'ä'
        """
        known = set(self.characters) | {s.decode("utf-8", "replace") for s in self.spelt}
        if self.kind == "bpe":  # a character may be part of a merged piece
            known |= {c for s in self.spelt for c in s.decode("utf-8", "ignore")}
        return "".join(dict.fromkeys(c for c in text if c not in known))

    def _word(self, word: str) -> tuple[int, ...]:
        found = self._known.get(word)
        if found is None:
            found = tuple(_FIRST + p for p in bpe.encode(word.encode(), self._ranks))
            if len(self._known) < _WORDS:
                self._known[word] = found
        return found

    def _bytes(self, character: str) -> tuple[int, ...]:
        return tuple(_FIRST + bpe.PIECES[b] for b in character.encode())

    def _spelling(self, token: int) -> bytes:
        if not 0 <= token < self.size:
            raise errors.BadRequest(f"token {token} is outside a vocabulary of {self.size:,}.")
        return self.spelt[token]

    def _until_end(self, tokens: Tokens) -> Iterator[bytes]:
        for token in map(int, tokens):
            if token == END:
                return
            yield self._spelling(token)


def learn(texts: Iterable[str], kind: str, tokens: int) -> Vocabulary:
    """Learns a vocabulary from the texts of a training split; the order of the texts does not matter.

    Args:
      texts: of the training split.
      kind: one of `KINDS`.
      tokens: maximum number of tokens, including the special ones and the 256 bytes.

    Raises:
      BadRequest: an unknown kind, or fewer tokens than bytes.

    Example:
      >>> learn(["aab"], "characters", 300).characters
      ('a', 'b')
    """
    errors.choose(dict.fromkeys(KINDS), kind, "vocabulary")
    if not LEAST <= tokens <= MOST:
        raise errors.BadRequest(
            f"a vocabulary of {tokens:,} tokens; it has from {LEAST} (every byte, padding, start and end) to {MOST:,}."
        )
    if kind == "bpe":
        return Vocabulary("bpe", merges=bpe.learn(texts, tokens - LEAST))
    counts = Counter(c for text in texts for c in text)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    return Vocabulary("characters", characters=tuple(ranked[: tokens - LEAST]))


def as_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns a vocabulary as JSON types; see `of_json`.

    Example:
      >>> as_json(learn(["aab"], "characters", 300))
      {'kind': 'characters', 'learnt': 'ab'}
    """
    learnt: Any = "".join(vocabulary.characters)
    if vocabulary.kind == "bpe":
        learnt = [list(pair) for pair in vocabulary.merges]
    return {"kind": vocabulary.kind, "learnt": learnt}


def of_json(found: Any, where: str) -> Vocabulary:
    """Returns the vocabulary that `as_json` wrote.

    Raises:
      BadRequest: it is not a vocabulary; the message names `where`.

    Example:
      >>> vocabulary = learn(["new file", "new folder"], "bpe", 300)
      >>> of_json(as_json(vocabulary), "data.json") == vocabulary
      True
    """
    try:
        kind, learnt = found["kind"], found["learnt"]
        if kind == "characters" and type(learnt) is str and len(set(learnt)) == len(learnt) <= MOST:
            learnt.encode()
            return Vocabulary("characters", characters=tuple(learnt))
        good = kind == "bpe" and len(learnt) <= MOST - LEAST
        for i, (a, b) in enumerate(learnt):
            good = good and type(a) is type(b) is int and 0 <= a < 256 + i and 0 <= b < 256 + i
        if not good:
            raise ValueError
        return Vocabulary("bpe", merges=tuple((a, b) for a, b in learnt))
    except (ValueError, TypeError, KeyError):
        raise errors.BadRequest(f"{where} is damaged: its 'vocabulary' is invalid.") from None


def sentences(vocabulary: Vocabulary, texts: Sequence[str]) -> list[Int[np.ndarray, " n"]]:
    """Returns the tokens of texts, each with the end token.

    Example:
      >>> [len(s) for s in sentences(learn(["ab"], "characters", 300), ["ab", ""])]
      [3, 1]
    """
    return [np.append(vocabulary.encode(text), np.int32(END)) for text in texts]
