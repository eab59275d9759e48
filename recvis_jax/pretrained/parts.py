"""Finds a model's tensors in a file: removes prefixes of wrappers, and prefers averaged weights to raw ones."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from recvis_jax.errors import BadRequest, brief

# Parts of names that wrappers (for several devices, compilation, saving memory) insert at any depth.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# Names of averaged weights: model_ema, state_dict_ema, ema_model, teacher, average_model, swa_model.
_AVERAGED = re.compile(r"(^|[._/])(ema|teacher|avg|average|averaged|swa)(?=$|[._/])", re.IGNORECASE)
_COUNTS = {"n_averaged"}  # torch.optim.swa_utils.AveragedModel's own tensor
_MOST = 16  # prefixes to try


class View(Mapping[str, Any]):
    """A checkpoint, or a part of it, under other names.

    Args:
      source: name -> array, read when accessed.
      names: new name -> name in the source.
    """

    def __init__(self, source: Mapping[str, Any], names: Mapping[str, str]):
        self._source = source
        self._names = names

    def __getitem__(self, name: str) -> Any:
        return self._source[self._names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an array, without reading it if the source supports that."""
        return shape_of(self._source, self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def shape_of(source: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Returns the shape of one array of a checkpoint, without reading it if the checkpoint supports that."""
    return source.shape_of(name) if hasattr(source, "shape_of") else np.shape(source[name])


def renamed(source: Mapping[str, Any], names: Iterable[str], rename: Callable[[str], str]) -> View:
    """Returns the tensors `names` of a checkpoint, renamed by `rename`.

    Raises:
      BadRequest: two different tensors get the same name.
    """
    found: dict[str, str] = {}
    for name in names:
        new = rename(name)
        if new not in found:
            found[new] = name
        elif not _equal(source, found[new], name):
            raise BadRequest(f"{brief(found[new])!r} and {brief(name)!r} in the checkpoint are both {brief(new)!r}.")
    return View(source, found)


def _equal(source: Mapping[str, Any], a: str, b: str) -> bool:
    shape = shape_of(source, a)
    if shape != shape_of(source, b) or math.prod(shape) > 2**26:
        return False
    return np.array_equal(np.asarray(source[a]), np.asarray(source[b]))


def unwrapped(name: str, own: Iterable[str] = ()) -> str:
    """Returns a name without the parts that wrappers insert, except those that are the model's `own`."""
    drop = _WRAPPERS.difference(own)
    return ".".join(part for part in name.split(".") if part not in drop)


def substitute(name: str, renames: Sequence[tuple[str, str]]) -> str:
    """Applies each of `renames` (regular expression, replacement) in turn."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


class Found(NamedTuple):
    """A set of weights in a checkpoint.

    Attributes:
      prefix: of its names, including the dot or slash at the end; may be empty.
      known: how many of the wanted names it has.
      names: names of the checkpoint in the same table, without other sets of weights.
      others: prefixes of other sets of weights.
      rename: name in the checkpoint -> the wanted name; for all other names, the name without wrappers.
    """

    prefix: str
    known: int
    names: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    rename: Callable[[str], str] = str


def find(
    names: Iterable[str],
    wanted: set[str],
    renames: Sequence[tuple[str, str]],
    tables: Sequence[str] = ("",),
    part: str = "",
) -> Found:
    """Returns the set of weights that has most of the `wanted` names; among equal ones, an averaged set.

    Args:
      names: of the checkpoint.
      wanted: names that the model has in a library.
      renames: pairs that turn older names of the library into these.
      tables: of the checkpoint; tables without the weights, such as an optimizer's, are left out.
      part: prefix of the requested set; '.' for the set without a prefix.

    Raises:
      BadRequest: there is no such part.
    """
    own = {p for name in wanted for p in name.split(".")}
    short = {name: unwrapped(name, own) for name in names}
    prefixes = _prefixes(short.values(), max(1, len(wanted) // 2))
    hits = {p: _hits(short, p, wanted, renames) for p in prefixes}
    counts = {p: len(set(found.values())) for p, found in hits.items()}
    allowed = [p for p in prefixes if _belongs(p, part, own)]
    if part not in ("", ".") and not allowed:
        there = ", ".join(dict.fromkeys(brief(re.split(r"[./]", s)[0], 30) for s in [*short.values()][:1000]))
        raise BadRequest(f"the checkpoint has no weights {brief(part)!r}; its names begin with {brief(there, 200)}.")
    most = max(counts[p] for p in allowed)
    chosen = min((p for p in allowed if counts[p] == most), key=lambda p: not _AVERAGED.search(p))
    rivals: list[str] = []
    for p in prefixes:
        apart = all(hits[p].keys().isdisjoint(hits[q]) for q in (chosen, *rivals))
        if apart and counts[p] >= max(1, 0.9 * most):
            rivals.append(p)
    others = {name for p in rivals for name in hits[p]}
    begins = tuple(p for p in rivals if p)
    begun = [f"{unwrapped(t)}." if t else "" for t in tables]
    around = max((t for t in begun if t and chosen.startswith(t)), key=len, default="")
    roots = tuple({t.split(".")[0] + "." for t in begun if t}) if "" in begun and not around else ()
    if not around and "" not in begun:
        around = chosen

    def beside(name: str, s: str) -> bool:
        if name in others or s in _COUNTS or not s.startswith(around) or s.startswith(begins):
            return False
        return not (roots and s.startswith(roots))

    def rename(name: str) -> str:
        s = short[name]
        return substitute(s[len(chosen) :], renames) if s.startswith(chosen) else s

    kept = tuple(n for n, s in short.items() if n in hits[chosen] or beside(n, s))
    return Found(chosen, most, kept, tuple(rivals), rename)


def _belongs(prefix: str, part: str, own: set[str]) -> bool:
    """Whether names that begin with `prefix` belong to the requested part."""
    if part in ("", "."):
        return not part or not prefix
    asked = unwrapped(part.rstrip("./"), own)
    return prefix.startswith((f"{asked}.", f"{asked}/"))


def _prefixes(names: Iterable[str], least: int) -> list[str]:
    """Returns prefixes, up to a dot or slash, that at least `least` names share; the empty one first."""
    found: Counter[str] = Counter()
    for name in names:
        ends = [m.end() for m in re.finditer(r"[./]", name[:200])][:8]
        found.update(name[:end] for end in ends)
    often = [p for p, n in found.items() if n >= least]  # in the order of the file
    return ["", *sorted(often, key=lambda p: -found[p])[:_MOST]]


def _hits(
    short: Mapping[str, str], prefix: str, wanted: set[str], renames: Sequence[tuple[str, str]]
) -> dict[str, str]:
    """Returns {name in the checkpoint: wanted name} for names that begin with `prefix`."""
    found = {name: substitute(s[len(prefix) :], renames) for name, s in short.items() if s.startswith(prefix)}
    return {name: new for name, new in found.items() if new in wanted}
