"""Receptive fields: which pixels an entry of an array depends on, traced through the equations of a jaxpr.

An array's field is a pair of `Axis`, for the image's rows and columns: entry i of dimension `dim` depends on pixels i
`jump` + `low` to i `jump` + `high`, including pixels beyond the edges. An array without a field does not depend on the
image. If the rules cannot follow the place, the field is everything, so it is never too small.

Reference: Araujo et al. 2019, "Computing receptive fields of convolutional neural networks", for the arithmetic.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

EVERYTHING = "everything"


class Axis(NamedTuple):
    """Position of the entries of an array along one axis of the image; `dim` is None if the dimension is gone."""

    dim: Any
    jump: int = 1
    low: int = 0
    high: int = 0

    def window(self, before: int, reach: int, stride: int) -> "Axis":
        """Returns the axis of windows of `reach` + 1 entries; the first window begins `before` the first entry."""
        low, high = self.low - before * self.jump, self.high + (reach - before) * self.jump
        return Axis(self.dim, self.jump * stride, low, high)


Field = tuple[Axis, Axis] | None


def follow(equation: Any, given: Sequence[Field]) -> list[Any]:
    """Returns the field of each output of an equation, or `EVERYTHING`, from those of its inputs."""
    shapes = [v.aval.shape for v in equation.invars]
    fields = [(f, shape) for f, shape in zip(given, shapes, strict=True) if f is not None]
    if not fields:
        return [None] * len(equation.outvars)
    if all(a.dim is None for f, _ in fields for a in f):
        return [_union([f for f, _ in fields])] * len(equation.outvars)
    rule = _RULES.get(equation.primitive.name, _elementwise)
    return [rule(equation.params, given, shapes, v.aval.shape) for v in equation.outvars]


def pools(given: Sequence[Field], found: Field) -> bool:
    """Whether an equation increases the distance between entries, or reduces all places to one."""
    if found is None:
        return False
    pairs = [(new, old) for f in given if f is not None for new, old in zip(found, f, strict=True)]
    return any(new.jump > old.jump if new.dim is not None else old.dim is not None for new, old in pairs)


def _union(fields: Sequence[tuple[Axis, Axis]]) -> tuple[Axis, Axis]:
    rows, columns = zip(*fields, strict=True)
    low_high = [(min(a.low for a in axis), max(a.high for a in axis)) for axis in (rows, columns)]
    first = fields[0]
    return tuple(a._replace(low=low, high=high) for a, (low, high) in zip(first, low_high, strict=True))  # type: ignore


def _each(field: tuple[Axis, Axis], change: Callable[[Axis], Axis | None]) -> Any:
    """Changes the axes that still have a dimension; EVERYTHING if one cannot be followed."""
    axes = [a if a.dim is None else change(a) for a in field]
    return EVERYTHING if None in axes else tuple(axes)


def _moved(field: tuple[Axis, Axis], place: Mapping[int, int]) -> Any:
    return _each(field, lambda a: a._replace(dim=place[a.dim]) if a.dim in place else None)


def _alone(given: Sequence[Field]) -> tuple[Axis, Axis] | None:
    found = [f for f in given if f is not None]
    return found[0] if len(found) == 1 else None


def _elementwise(params: Any, given: Any, shapes: Any, out: tuple[int, ...]) -> Any:
    """Elementwise operations, including all primitives without their own rule that keep the shape."""
    del params
    fields = [(f, shape) for f, shape in zip(given, shapes, strict=True) if f is not None]
    first = fields[0][0]
    alike = all(s == out for _, s in fields) and all(
        (a.dim, a.jump) == (b.dim, b.jump) for f, _ in fields for a, b in zip(f, first, strict=True)
    )
    return _union([f for f, _ in fields]) if alike else EVERYTHING


def _convolution(params: Any, given: Any, shapes: Any, out: Any) -> Any:
    del out
    field, numbers, kernel = given[0], params["dimension_numbers"], shapes[1]
    if field is None or given[1] is not None or set(params["lhs_dilation"]) != {1}:
        return EVERYTHING
    places = numbers.lhs_spec[2:]

    def change(a: Axis) -> Axis | None:
        if a.dim not in places:
            return None
        i = places.index(a.dim)
        reach = (kernel[numbers.rhs_spec[2 + i]] - 1) * params["rhs_dilation"][i]
        window = a.window(params["padding"][i][0], reach, params["window_strides"][i])
        return window._replace(dim=numbers.out_spec[2 + i])

    return _each(field, change)


def _reduce_window(params: Any, given: Any, shapes: Any, out: Any) -> Any:
    del shapes, out
    field = _alone(given)
    if field is None:
        return EVERYTHING

    def change(a: Axis) -> Axis:
        reach = (params["window_dimensions"][a.dim] - 1) * params["window_dilation"][a.dim]
        return a.window(params["padding"][a.dim][0], reach, params["window_strides"][a.dim])

    return _each(field, change)


def _slice(params: Any, given: Any, shapes: Any, out: Any) -> Any:
    del out
    steps = params["strides"] or (1,) * len(shapes[0])
    return _each(given[0], lambda a: a.window(-params["start_indices"][a.dim], 0, steps[a.dim]))


def _pad(params: Any, given: Any, shapes: Any, out: Any) -> Any:
    del shapes, out
    config = params["padding_config"]
    return _each(given[0], lambda a: None if config[a.dim][2] else a.window(int(config[a.dim][0]), 0, 1))


def _transpose(params: Any, given: Any, shapes: Any, out: Any) -> Any:
    del shapes, out
    return _moved(given[0], {old: new for new, old in enumerate(params["permutation"])})


def _broadcast(params: Any, given: Any, shapes: Any, out: Any) -> Any:
    del shapes, out
    return _moved(given[0], dict(enumerate(params["broadcast_dimensions"])))


def _reshape(params: Any, given: Any, shapes: Any, out: tuple[int, ...]) -> Any:
    """Keeps a dimension that has the same length and as many entries before it."""
    del params

    def starts(shape: tuple[int, ...]) -> list[tuple[int, int]]:
        before, found = 1, []
        for n in shape:
            found.append((before, n))
            before *= n
        return found

    old, new = starts(shapes[0]), starts(out)
    return _moved(given[0], {d: new.index(start) for d, start in enumerate(old) if start in new})


def _reduce(params: Any, given: Any, shapes: Any, out: Any) -> Any:
    del out
    left = [d for d in range(len(shapes[0])) if d not in params["axes"]]

    def change(a: Axis) -> Axis:
        if a.dim in left:
            return a._replace(dim=left.index(a.dim))
        return a._replace(dim=None, high=a.high + (shapes[0][a.dim] - 1) * a.jump)

    return _each(given[0], change)


def _dot_general(params: Any, given: Any, shapes: Any, out: tuple[int, ...]) -> Any:
    (lhs, rhs), (lhs_batch, rhs_batch) = params["dimension_numbers"]
    field = _alone(given)
    if field is None:
        return EVERYTHING
    first = given[0] is not None
    gone, batch, shape = (lhs, lhs_batch, shapes[0]) if first else (rhs, rhs_batch, shapes[1])
    free = [d for d in range(len(shape)) if d not in (*gone, *batch)]
    start = len(batch) if first else len(out) - len(free)
    return _moved(field, {d: i for i, d in enumerate(batch)} | {d: start + i for i, d in enumerate(free)})


def _concatenate(params: Any, given: Any, shapes: Any, out: Any) -> Any:
    del shapes, out
    fields = [f for f in given if f is not None]
    alike = all((a.dim, a.jump) == (b.dim, b.jump) for f in fields for a, b in zip(f, fields[0], strict=True))
    along = any(a.dim == params["dimension"] for a in fields[0])
    return _union(fields) if alike and not along else EVERYTHING


def _mixed(params: Any, given: Any, shapes: Any, out: Any) -> Any:
    del params, given, shapes, out
    return EVERYTHING


_RULES: dict[str, Callable[..., Any]] = {
    "conv_general_dilated": _convolution,
    **dict.fromkeys(("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"), _reduce_window),
    "slice": _slice,
    "pad": _pad,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin"), _reduce),
    "dot_general": _dot_general,
    "concatenate": _concatenate,
    # These keep the shape but mix places.
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cumlogsumexp", "sort", "rev", "fft", "gather", "scatter"), _mixed),
}
