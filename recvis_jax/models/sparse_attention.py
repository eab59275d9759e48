"""Sparse attention in blocks: queries are grouped, and each group gathers only the keys that it needs.

The patterns are those of `attention_patterns`. With a mask, all pairs of tokens are computed and most are discarded;
here a block of b queries that needs m keys costs b m. Local attention over n tokens is thus
linear in n, and the strided and fixed patterns with a stride of sqrt(n) cost n sqrt(n).

The tokens of an image are numbered in the order of generation, which is row by row except for 2-D local attention, see
`times`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from recvis_jax.errors import BadRequest, choose, keywords, shown
from recvis_jax.models import attention_patterns

_NEVER = -1e30  # finite: the difference of two is not NaN


class Blocks(NamedTuple):
    """Groups of queries, and the keys of each group.

    Attributes:
      queries: tokens of each block, every token once; -1 for padding.
      keys: tokens that a block needs; -1 for padding.
      mask: whether a query of a block attends to a key of it.
    """

    queries: Int[np.ndarray, "g q"]
    keys: Int[np.ndarray, "g m"]
    mask: Bool[np.ndarray, "g q m"]


def attend(
    q: Float[Array, "b n k d"], k: Float[Array, "b n k d"], v: Float[Array, "b n k e"], parts: Sequence[Blocks]
) -> Float[Array, "b n k e"]:
    """softmax(Q K^T / sqrt(d)) V over the keys of all parts together, which share no pair of query and key.

    Equal to `operations.attention` with the union of the parts' masks; a query without any key gets zeros.

    Args:
      q, k, v: n tokens and k heads.
      parts: see `blocks`.

    Example: equal to attention with a mask
      >>> from recvis_jax.operations import attention
      >>> x = jax.random.normal(jax.random.key(0), (2, 8, 1, 4))
      >>> dense = attention(x, x, x, jnp.asarray(attention_patterns.local_1d(8, 2, 3)))[0]
      >>> bool(jnp.allclose(attend(x, x, x, blocks("local_1d", 8, block=2, memory=3)[0]), dense, atol=1e-5))
      True
    """
    found = [_part(q, k, v, part) for part in parts]
    top = jnp.stack([m for _, _, m in found]).max(0)
    scaled = [(out * w[..., None], total * w) for out, total, m in found for w in [jnp.exp(m - top)]]
    out, total = (sum(x[i] for x in scaled) for i in (0, 1))
    return (out / jnp.maximum(total, 1e-30)[..., None]).astype(v.dtype)


def _part(q: Array, k: Array, v: Array, part: Blocks) -> tuple[Array, Array, Array]:
    """Returns sums of exp(score) v (b n k e) and of exp(score) (b n k), both over exp(m), and m (b n k)."""
    queries = q[:, np.maximum(part.queries, 0)] * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    keys, values = (x[:, np.maximum(part.keys, 0)] for x in (k, v))
    scores = jnp.einsum("bgqkd,bgmkd->bgkqm", queries, keys, preferred_element_type=jnp.float32)
    there = part.mask & (part.keys >= 0)[:, None]
    scores = jnp.where(there[None, :, None], scores, _NEVER)
    top = jnp.maximum(scores.max(-1), _NEVER / 2)
    e = jnp.exp(scores - top[..., None])
    out = jnp.einsum("bgkqm,bgmke->bgqke", e.astype(v.dtype), values, preferred_element_type=jnp.float32)
    back = np.empty(q.shape[1], np.int64)  # where each token's query is among the blocks'
    flat = part.queries.reshape(-1)
    back[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    moved = (jnp.moveaxis(x, 3, 2) for x in (e.sum(-1), top))  # b g k q -> b g q k
    return tuple(x.reshape(len(x), -1, *x.shape[3:])[:, back] for x in (out, *moved))  # type: ignore[return-value]


def blocks(kind: str, n: int, *, merged: bool = False, **kw: Any) -> tuple[tuple[Blocks, ...], ...]:
    """Returns the parts of each kind of heads: one kind or, for "strided" and "fixed" without `merged`, two.

    Args:
      kind: one of `KINDS`: "local_1d", "local_2d", "strided" or "fixed".
      n: number of tokens.
      merged: for patterns with two kinds of heads, whether every head uses the union of both.
      **kw: arguments of the function of that name in `attention_patterns`, except n.

    Raises:
      BadRequest: an unknown kind or invalid arguments.

    Example:
      >>> [b.keys.shape for parts in blocks("strided", 64, stride=8) for b in parts]
      [(8, 16), (8, 8)]
    """
    made = choose(KINDS, kind, "pattern")(n, **kw)
    if not merged:
        return tuple((one,) for one in made)
    return (tuple(_apart(made, n)),)


def order(sparse: Any, n: int) -> Int[np.ndarray, " n"]:
    """Returns the index of the pixel (row by row) that is generated at each time; `sparse` None is full attention.

    Example:
      >>> order({"kind": "local_2d", "h": 2, "w": 4, "block": (2, 2), "memory": (1, 1)}, 8).tolist()
      [0, 1, 4, 5, 2, 3, 6, 7]
    """
    if not isinstance(sparse, Mapping) or sparse.get("kind") != "local_2d":
        return np.arange(n)
    return np.argsort(times(sparse["h"], sparse["w"], tuple(sparse["block"])))


def of_sequence(sparse: Any, n: int) -> tuple[tuple[Blocks, ...], ...]:
    """Returns `blocks` with tokens numbered in the order of generation.

    Args:
      sparse: `kind` and the other arguments of `blocks`.
      n: number of tokens.
    """
    made, time = blocks(n=n, **_arguments(sparse)), np.append(np.argsort(order(sparse, n)), -1)
    return tuple(
        tuple(part._replace(queries=time[part.queries], keys=time[part.keys]) for part in parts) for parts in made
    )


def masks_of_sequence(sparse: Any, n: int) -> Bool[np.ndarray, "s n n"]:
    """Returns `dense` with tokens numbered in the order of generation; arguments as for `of_sequence`."""
    by_time = order(sparse, n)
    return dense(n=n, **_arguments(sparse))[:, by_time][:, :, by_time]


def _arguments(sparse: Any) -> dict[str, Any]:
    if not isinstance(sparse, Mapping):
        raise BadRequest(f"sparse attention is {shown(sparse)}; it takes a dict with its kind.")
    found = {k: tuple(v) if isinstance(v, list) else v for k, v in sparse.items()}  # of a config that was JSON
    kind = choose(KINDS, found.get("kind", ""), "pattern")
    takes = {"kind", "merged", *keywords(kind)} - {"n", "causal"}
    for name in found:
        if name not in takes:
            raise BadRequest(
                f"sparse attention of kind {found['kind']!r} takes {', '.join(sorted(takes))}, no {name!r}."
            )
    if missing := [k for k, p in keywords(kind).items() if p.default is p.empty and k not in found and k != "n"]:
        raise BadRequest(f"sparse attention of kind {found['kind']!r} lacks {', '.join(missing)}.")
    return found


def dense(kind: str, n: int, merged: bool = False, **kw: Any) -> Bool[np.ndarray, "s n n"]:
    """Returns the masks of the same kinds of heads, for decoding and tests."""
    makers = {
        "local_1d": attention_patterns.local_1d,
        "strided": attention_patterns.strided,
        "fixed": attention_patterns.fixed,
    }
    mask = attention_patterns.local_2d(**kw) if kind == "local_2d" else choose(makers, kind, "pattern")(n, **kw)
    mask = mask[None] if mask.ndim == 2 else mask
    return np.asarray(mask.any(0, keepdims=True)) if merged else mask


def _apart(made: Sequence[Blocks], n: int) -> list[Blocks]:
    """Removes pairs of tokens from all parts but the first that has them."""
    seen, out = np.zeros((n, n), bool), []
    for part in made:
        rows, columns = part.queries[:, :, None], part.keys[:, None, :]
        mask = part.mask & (rows >= 0) & (columns >= 0) & ~seen[rows, columns]
        g, i, j = np.nonzero(mask)
        seen[part.queries[g, i], part.keys[g, j]] = True
        out.append(part._replace(mask=mask))
    return out


def _cut(n: int, size: int) -> Int[np.ndarray, "g q"]:
    """Returns the tokens in consecutive blocks, padded with -1."""
    rows = np.arange(-(-n // size) * size).reshape(-1, size)
    return np.where(rows < n, rows, -1)


def _local_1d(n: int, block: int, memory: int, causal: bool = True) -> list[Blocks]:
    attention_patterns.local_1d(1, block, memory)  # refuses invalid values
    queries = _cut(n, block)
    keys = np.arange(len(queries))[:, None] * block + np.arange(-memory, block)
    keys = np.where((keys >= 0) & (keys < n), keys, -1)
    mask = keys[:, None] <= queries[..., None] if causal else np.ones((*queries.shape, keys.shape[1]), bool)
    return [Blocks(queries, keys, mask)]


def _local_2d(
    n: int, h: int, w: int, block: tuple[int, int], memory: tuple[int, int], causal: bool = True
) -> list[Blocks]:
    attention_patterns.local_2d(1, 1, block, memory)
    if n != h * w:
        raise BadRequest(f"{n} tokens are not an image of {h}x{w}.")
    rows, columns = _cut(h, block[0]), _cut(w, block[1])
    queries = _pairs(rows, columns, w)
    tall = _around(rows[:, 0], block[0], memory[0], 0, h)
    wide = _around(columns[:, 0], block[1], memory[1], memory[1], w)
    keys = _pairs(tall, wide, w)
    mask = np.ones((*queries.shape, keys.shape[1]), bool)
    if causal:
        time = times(h, w, block)
        mask = time[np.maximum(keys, 0)][:, None] <= time[np.maximum(queries, 0)][..., None]
    return [Blocks(queries, keys, mask)]


def times(h: int, w: int, block: tuple[int, int]) -> Int[np.ndarray, " n"]:
    """Returns the time at which 2-D local attention generates each pixel: block by block, row by row inside a block.

    Example:
      >>> times(2, 4, (2, 2)).reshape(2, 4).tolist()
      [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    y, x = np.divmod(np.arange(h * w), w)
    out = np.empty(h * w, np.int64)
    out[np.lexsort((x, y, x // block[1], y // block[0]))] = np.arange(h * w)
    return out


def _around(first: np.ndarray, size: int, before: int, after: int, most: int) -> Int[np.ndarray, "g m"]:
    found = first[:, None] + np.arange(-before, size + after)
    return np.where((found >= 0) & (found < most), found, -1)


def _pairs(rows: Any, columns: Any, w: int) -> Int[np.ndarray, "g m"]:
    """Returns the pixels of all combinations of row groups and column groups."""
    y, x = rows[:, None, :, None], columns[None, :, None, :]
    return np.where((y >= 0) & (x >= 0), y * w + x, -1).reshape(len(rows) * len(columns), -1)


def _strided(n: int, stride: int) -> list[Blocks]:
    attention_patterns.strided(1, stride)
    queries = _cut(n, stride)
    before = np.concatenate([np.full((1, stride), -1), queries[:-1]])
    keys = np.concatenate([before, queries], axis=1)
    distance = queries[..., None] - keys[:, None]
    near = Blocks(queries, keys, (distance >= 0) & (distance <= stride))
    of_column = queries.T  # the tokens of a column; the last may be padding
    return [near, Blocks(of_column, of_column, of_column[:, None] <= of_column[..., None])]


def _fixed(n: int, stride: int, summary: int = 1) -> list[Blocks]:
    attention_patterns.fixed(1, stride, summary)
    queries = _cut(n, stride)
    own = Blocks(queries, queries, queries[:, None] <= queries[..., None])
    ends = queries[:, stride - summary :].reshape(1, -1).repeat(len(queries), axis=0)
    return [own, Blocks(queries, ends, ends[:, None] <= queries[..., None])]


KINDS: dict[str, Callable[..., list[Blocks]]] = {
    "local_1d": _local_1d,
    "local_2d": _local_2d,
    "strided": _strided,
    "fixed": _fixed,
}
