"""Byte-pair encoding: the most frequent pairs of neighbouring pieces are merged, from bytes up to whole words.

Pieces are numbers: 0 to 255 are bytes, in the order of the public byte-level alphabet, and merge i creates the piece
256 + i. Of equally frequent pairs, the one with the smaller numbers is merged first, as in Hugging Face's `tokenizers`.
The result depends only on the texts.
"""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

Pair = tuple[int, int]

# Letters, digits or other marks, each with one leading space; and other white space. Every character matches.
WORDS = re.compile(r" ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\s+(?!\S)|\s+")
_SHOWN = [
    *range(33, 127),
    *range(161, 173),
    *range(174, 256),
]  # bytes that represent themselves in that alphabet; the others follow
BYTES = (*_SHOWN, *(b for b in range(256) if b not in _SHOWN))  # piece -> byte
PIECES = tuple(sorted(range(256), key=BYTES.__getitem__))  # byte -> piece


def words(text: str) -> list[str]:
    """Splits a text into words, which no piece crosses; joined, they give the text back.

    Example:
      >>> words("Save 12 files, now!")
      ['Save', ' 12', ' files', ',', ' now', '!']
    """
    return WORDS.findall(text)


def learn(texts: Iterable[str], merges: int, least: int = 2) -> tuple[Pair, ...]:
    """Returns the merges learnt from texts, in order.

    Args:
      texts: those of the training split.
      merges: maximum number of merges.
      least: smallest number of occurrences of a pair to be merged.

    Reference: Sennrich et al. 2016, "Neural machine translation of rare words with subword units", algorithm 1; on
    bytes: Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.2.

    Example:
      >>> [piece.decode() for piece in list(spelt(learn(["low low lower"], 9)))[256:]]
      ['lo', 'low', ' low']
    """
    counts = Counter(word for text in texts for word in words(text))
    spelt = [[PIECES[b] for b in word.encode()] for word in counts]
    often = list(counts.values())
    found: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for i, pieces in enumerate(spelt):
        for pair in pairwise(pieces):
            found[pair] += often[i]
            where[pair].add(i)
    heap = [(-n, pair) for pair, n in found.items()]
    heapq.heapify(heap)
    out: list[Pair] = []
    while heap and len(out) < merges:
        n, pair = heapq.heappop(heap)
        if -n != found[pair]:  # its count has changed; the new one is also in the heap
            continue
        if -n < least:
            break
        new, changed = 256 + len(out), set[Pair]()
        out.append(pair)
        for i in where.pop(pair):
            old = spelt[i]
            for p in pairwise(old):
                found[p] -= often[i]
                where[p].discard(i)
                changed.add(p)
            spelt[i] = merged(old, pair, new)
            for p in pairwise(spelt[i]):
                found[p] += often[i]
                where[p].add(i)
                changed.add(p)
        for p in changed:
            if found[p]:
                heapq.heappush(heap, (-found[p], p))
    return tuple(out)


def merged(pieces: Sequence[int], pair: Pair, new: int) -> list[int]:
    """Replaces each occurrence of a pair, from left to right.

    Example:
      >>> merged([1, 1, 1, 2], (1, 1), 300)
      [300, 1, 2]
    """
    out, i = [], 0
    while i < len(pieces):
        if i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(pieces[i])
            i += 1
    return out


def encode(word: bytes, ranks: Mapping[Pair, int]) -> list[int]:
    """Returns the pieces of a word; merges are applied in the order in which they were learnt.

    Args:
      word: in UTF-8.
      ranks: pair -> index of its merge.

    Example:
      >>> merges = learn(["low low lower"], 9)
      >>> len(encode(b"lowest", {pair: i for i, pair in enumerate(merges)}))
      4
    """
    pieces = [PIECES[b] for b in word]
    while len(pieces) > 1:
        best = min(pairwise(pieces), key=lambda pair: ranks.get(pair, 1 << 30))
        if best not in ranks:
            break
        pieces = merged(pieces, best, 256 + ranks[best])
    return pieces


def spelt(merges: Sequence[Pair]) -> Iterator[bytes]:
    """Yields the bytes of every piece, in order.

    Example:
      >>> list(spelt([(0, 1)]))[-1]
      b'!"'
    """
    out = [bytes([b]) for b in BYTES]
    yield from out
    for a, b in merges:
        out.append(out[a] + out[b])
        yield out[-1]
