"""Applies tables of names: one table converts another library's checkpoint to ours and back.

A table is a tuple of rows (their name, our name or names, layout):

    ("layer{i}.{j}.conv{k}.weight", "params/stage{i}_block{j+1}/conv{k}/kernel", "conv")
    ("blocks.{i}.attn.qkv.weight", tuple(f"params/block{{i}}/attn/{x}/kernel" for x in QKV), "split_linear")

`{i}` is an integer. In both names it may have an offset, `{j+1}`, and in theirs a format, `{j+1:02d}`. Our names are
the paths of `trees.flatten(variables)`. The first row whose name of ours matches a variable counts. Their names are
computed from ours, so loading and exporting read a table in the same way.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from recvis_jax import trees
from recvis_jax.errors import BadRequest, brief, choose, shown
from recvis_jax.pretrained import parts


class Layout(NamedTuple):
    """How the values of a tensor are arranged in their library and in ours.

    Attributes:
      load: (their array, number of ours) -> our arrays. Raises ValueError if the shape cannot be theirs.
      export: our arrays -> their array.
      derived: their tensor has no counterpart in ours: ignored when loading, created when exporting. A row with such a
        layout names one of our variables only to tell which tensors it belongs to.
    """

    load: Callable[[np.ndarray, int], Sequence[np.ndarray]]
    export: Callable[..., np.ndarray]
    derived: bool = False


def single(load: Callable[[np.ndarray], np.ndarray], export: Callable[[np.ndarray], np.ndarray]) -> Layout:
    """Returns the layout of a tensor that corresponds to one variable of ours."""
    return Layout(lambda x, n: [load(x)], export)


def _transpose(*axes: int) -> Layout:
    return single(lambda x: x.transpose(axes), lambda y: y.transpose(np.argsort(axes)))


def squeeze(axes: int) -> Layout:
    """Returns the layout with `axes` leading axes of size one that ours lacks: (1, 1, i, o) <-> (i, o) for 2."""
    return single(lambda x: np.squeeze(x, tuple(range(axes))), lambda y: y.reshape((1,) * axes + y.shape))


def linear_after_flatten(h: int, w: int) -> Layout:
    """Returns the layout of a linear layer on flattened feature maps of h x w pixels.

    Theirs is flattened with channels first: (out, c h w) <-> (h w c, out).
    """
    return single(
        lambda x: x.reshape(len(x), -1, h, w).transpose(2, 3, 1, 0).reshape(-1, len(x)),
        lambda y: y.reshape(h, w, -1, y.shape[1]).transpose(3, 2, 0, 1).reshape(y.shape[1], -1),
    )


def linear_as_conv(h: int, w: int) -> Layout:
    """Returns the layout of a linear layer that is a convolution in theirs: (out, c, h, w) <-> (h w c, out)."""
    return single(
        lambda x: x.reshape(*x.shape[:2], h, w).transpose(2, 3, 1, 0).reshape(-1, len(x)),
        lambda y: y.reshape(h, w, -1, y.shape[1]).transpose(3, 2, 0, 1),
    )


LAYOUTS: dict[str, Layout] = {
    "": single(lambda x: x, lambda y: y),
    # (out, in, h, w) <-> (h, w, in, out)
    "conv": _transpose(2, 3, 1, 0),
    # (out, in) <-> (in, out)
    "linear": _transpose(1, 0),
    # (out, in, 1, 1) <-> (in, out)
    "conv1x1": linear_as_conv(1, 1),
    # tensors fused along their first axis <-> one variable each
    "split": Layout(lambda x, n: np.split(x, n), lambda *y: np.concatenate(y)),
    # the same for linear layers: (n out, in) <-> n times (in, out)
    "split_linear": Layout(lambda x, n: [p.T for p in np.split(x, n)], lambda *y: np.concatenate([p.T for p in y])),
    # PyTorch's counter of batches in batch norms
    "count": Layout(lambda x, n: [], lambda y: np.zeros((), np.int64), derived=True),
}

# A convolution on images that are blue first, as Caffe's: (h, w, blue green red, d) <-> (h, w, red green blue, d).
BGR = single(lambda x: x[:, :, ::-1], lambda y: y[:, :, ::-1])

Row = tuple[str, str | tuple[str, ...], str | Layout]
Table = tuple[Row, ...]


class Move(NamedTuple):
    """One tensor of theirs, the variables of ours that it holds, and its layout."""

    theirs: str
    ours: tuple[str, ...]
    layout: Layout


class Fit(NamedTuple):
    """A checkpoint in our layout; until `check`, names may be missing and shapes may differ.

    Attributes:
      values: our name -> array in our layout, not always of our shape.
      source: our name -> their name.
      missing: names of theirs that the checkpoint lacks.
      unexpected: names of the checkpoint that our model does not have.
      misshapen: their name -> shape, for tensors whose shape does not even fit their layout.
    """

    values: dict[str, np.ndarray]
    source: dict[str, str]
    missing: list[str]
    unexpected: list[str]
    misshapen: dict[str, tuple[int, ...]]


_PLACEHOLDER = re.compile(r"\{(\w+)([+-]\d+)?(?::(\w+))?\}")


def _pattern(name: str) -> tuple[re.Pattern[str], dict[str, int]]:
    """Returns the regular expression for our names, and the offset of each of its integers."""
    offsets, out, end = {}, "", 0
    for m in _PLACEHOLDER.finditer(name):
        key, offset = m[1], int(m[2] or 0)
        out += re.escape(name[end : m.start()]) + (rf"(?P={key})" if key in offsets else rf"(?P<{key}>\d+)")
        offsets[key], end = offset, m.end()
    return re.compile(out + re.escape(name[end:]) + r"\Z"), offsets


def _fill(name: str, values: Mapping[str, int]) -> str:
    return _PLACEHOLDER.sub(lambda m: format(values[m[1]] + int(m[2] or 0), m[3] or "d"), name)


def plan(table: Table, names: Iterable[str], optional: Iterable[str] = ()) -> list[Move]:
    """Returns the tensors of theirs that hold our variables.

    Args:
      table: rows of (theirs, ours, layout).
      names: path names of our variables.
      optional: further names, which need no row.

    Raises:
      BadRequest: a variable has no row: the other library has no such model.
    """
    optional = set(optional)
    names = [*names, *optional.difference(names)]
    known, rows = set(names), []
    for theirs, ours, layout in table:
        ours = (ours,) if isinstance(ours, str) else ours
        layout = choose(LAYOUTS, layout, "layout") if isinstance(layout, str) else layout
        rows.append((theirs, ours, layout, [_pattern(o) for o in ours]))
    moves: dict[str, Move] = {}
    homeless = []
    for name in names:
        placed = False
        for theirs, ours, layout, patterns in rows:
            if placed and not layout.derived:
                continue
            for pattern, offsets in patterns:
                if not (m := pattern.match(name)):
                    continue
                values = {key: int(text) - offsets[key] for key, text in m.groupdict().items()}
                parts = tuple(_fill(o, values) for o in ours)
                if min(values.values(), default=0) < 0 or not known.issuperset(parts):
                    continue
                move = Move(_fill(theirs, values), parts, layout)
                moves[move.theirs] = move
                placed = placed or not layout.derived
                break
        if not placed and name not in optional:
            homeless.append(name)
    if homeless:
        raise BadRequest(
            f"the table has no name for {len(homeless)} of the model's {len(names)} variables: "
            f"{trees.shorten(homeless, 8)}; the other library has no model of this kind."
        )
    return list(moves.values())


_TENSOR_SLACK, _TENSOR_TIMES = 2**20, 64
_TOTAL_SLACK, _TOTAL_TIMES = 2**26, 4


def fit(
    moves: Sequence[Move],
    source: Mapping[str, Any],
    ignore: str = "",
    template: Mapping[str, Any] | None = None,
    skip: Iterable[str] = (),
) -> Fit:
    """Rearranges the tensors of a checkpoint into our variables; `check` judges the result.

    Args:
      moves: `plan` of the model.
      source: their name -> array; read one at a time, and only the names in `moves`.
      ignore: regular expression of names of theirs that may be left over.
      template: our name -> array or shape. A tensor far larger than its variables is not read, as it may be an attempt
        to fill the memory; it counts as having another shape.
      skip: names of theirs that are not read.

    Raises:
      BadRequest: the tensors, taken together, are far larger than the model; an invalid `ignore`.
    """
    out = Fit({}, {}, [], [], {})
    try:
        leftover = re.compile(ignore) if ignore else None
    except re.error as e:
        raise BadRequest(f"ignore={shown(ignore)} is not a regular expression: {e}.") from None
    needed = {n: math.prod(np.shape(x)) for n, x in (template or {}).items()}
    total, skip = 0, {*skip}
    for theirs, ours, layout in moves:
        if layout.derived or theirs in skip:
            continue
        out.source.update(dict.fromkeys(ours, theirs))
        if theirs not in source:
            out.missing.append(theirs)
            continue
        shape = parts.shape_of(source, theirs)
        size, need = math.prod(shape), sum(needed.get(n, 0) for n in ours)
        if template is not None and size > _TENSOR_TIMES * need + _TENSOR_SLACK:
            out.misshapen[theirs] = shape
            continue
        total += size
        if template is not None and total > _TOTAL_TIMES * sum(needed.values()) + _TOTAL_SLACK:
            raise BadRequest(
                f"the checkpoint's tensors are far larger than the model's {sum(needed.values()):,} values."
            )
        x = np.asarray(source[theirs])
        try:
            out.values.update(zip(ours, layout.load(x, len(ours)), strict=True))
        except ValueError:
            out.misshapen[theirs] = x.shape
    used = {move.theirs for move in moves}
    out.unexpected.extend(n for n in source if n not in used and not (leftover and leftover.search(n)))
    return out


def check(
    found: Fit, template: Mapping[str, Any], where: str, complaints: Sequence[str] = (), remedies: Sequence[str] = ()
) -> None:
    """Raises `BadRequest` unless all names and shapes agree and all values are finite.

    Args:
      found: a checkpoint in our layout.
      template: our name -> array or `ShapeDtypeStruct`.
      where: name of the checkpoint, for the message, which lists a few differences of each kind.
      complaints: what else does not fit.
      remedies: what would help, for the end of the message.
    """
    shapes = [f"{brief(n)} {brief(s)}" for n, s in found.misshapen.items()]
    shapes += [
        f"{'' if found.source[n] == n else f'{brief(found.source[n])} -> '}{n} {np.shape(x)} "
        f"instead of {np.shape(template[n])}"
        for n, x in differing(found, template).items()
    ]
    problems = {
        "missing in it": found.missing,
        "not in the model": found.unexpected,
        "of another shape": shapes,
    }
    lists = [f"{len(v)} {k}: {trees.shorten([brief(n, 150) for n in v], 3)}" for k, v in problems.items() if v]
    if lists or complaints:
        differs = "; ".join([*lists, *complaints])
        helps = "".join(f" {r}." for r in remedies)
        raise BadRequest(f"{where} does not fit the model of {len(template)} variables: {differs}.{helps}")
    for name in [n for n in found.values if n in found.source]:  # a new head has none
        x = found.values[name]
        their, want = brief(found.source[name]), np.dtype(getattr(template[name], "dtype", np.float32))
        if x.dtype.kind in "biuc" and jnp.issubdtype(want, jnp.floating):
            raise BadRequest(f"{where}: {their} -> {name} is {x.dtype} instead of {want}.")
        with np.errstate(over="ignore", invalid="ignore"):
            if jnp.issubdtype(want, jnp.floating) and not np.isfinite(x.astype(want)).all():
                raise BadRequest(f"{where}: {their} holds values that are not finite.")


def differing(found: Fit, template: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns {our name: array} for arrays whose shape differs from the model's."""
    return {n: x for n, x in found.values.items() if np.shape(x) != np.shape(template[n])}


def export(moves: Sequence[Move], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts {our name: array} to {their name: array}, in C order."""
    return {m.theirs: np.array(m.layout.export(*(np.asarray(variables[o]) for o in m.ours)), order="C") for m in moves}
