"""Reads pipelines such as `'random_resized_crop(224)|randaugment(2, m=9)|flip'`.

A pipeline is a sequence of operations joined by `|`. An operation is a name, or a call whose arguments are Python
literals. The text is parsed with `ast` and never evaluated. An operation is made by a *builder*: a function that checks
its arguments with the functions at the end of this file and returns what the caller composes.
"""

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from recvis_jax.errors import BadRequest, check_kwargs, choose, nearest, shown


class Step(NamedTuple):
    """One operation of a pipeline: its name and what its builder returned."""

    name: str
    built: Any


def parse(
    spec: str | None,
    operations: Mapping[str, Callable[..., Any]],
    kind: str,
    elsewhere: Mapping[str, str] | None = None,
) -> list[Step]:
    """Reads `spec` and builds its operations in order.

    Args:
      spec: the pipeline; None, an empty string or blanks mean no operations.
      operations: the builders by name.
      kind: what the operations are, for messages ("host operation").
      elsewhere: names that exist in other pipelines, each with a sentence that says where.

    Returns:
      One `Step` per operation.

    Raises:
      BadRequest: the text is not a pipeline, an operation or argument is unknown (the message suggests the nearest
        name), or a value has the wrong type or range (the message shows the signature of the operation).
    """
    if spec is None:
        return []
    if not isinstance(spec, str):
        raise BadRequest(f"a pipeline of {kind}s is a string such as 'flip|...', not {shown(spec)}.")
    if not spec.strip():
        return []
    return [_build(node, spec, operations, kind, elsewhere or {}) for node in _nodes(spec)]


def signature(builder: Callable[..., Any], name: str) -> str:
    """Returns the signature of an operation as written in a pipeline, without annotations."""
    parameters = inspect.signature(builder).parameters.values()
    defaults = ((p.name, p.default) for p in parameters)
    return f"{name}({', '.join(n if d is inspect.Parameter.empty else f'{n}={_short(d)}' for n, d in defaults)})"


def _nodes(spec: str) -> list[ast.expr]:
    """Splits `a|b(1)|c` into its expressions; Python reads it as `(a|b(1))|c`."""
    try:
        node = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise BadRequest(
            f"{shown(spec, 200)} is not a pipeline ({reason}); write it as 'color_jitter(0.4)|flip(p=0.5)'."
        ) from None
    nodes: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        nodes.append(node.right)
        node = node.left
    return [node, *reversed(nodes)]


def _build(
    node: ast.expr, spec: str, operations: Mapping[str, Callable[..., Any]], kind: str, elsewhere: Mapping[str, str]
) -> Step:
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if not isinstance(call.func, ast.Name):
        text = ast.get_source_segment(spec.strip(), node)
        raise BadRequest(f"{text!r} in {spec!r} is not an operation; write name or name(arguments).")
    name = call.func.id
    if name in elsewhere and name not in operations:
        raise BadRequest(f"{name!r} in {spec!r} is not a {kind}: {elsewhere[name]}")
    builder = choose(operations, name, kind)
    usage = f" Signature: {signature(builder, name)}."
    args = [_literal(a, name, usage) for a in call.args]
    kwargs: dict[str, Any] = {}
    valid = inspect.signature(builder).parameters
    for keyword in call.keywords:
        key = keyword.arg or "**"
        if key not in valid:
            raise BadRequest(f"{name} has no argument {key!r}.{nearest(key, valid)}{usage}")
        if key in kwargs:
            raise BadRequest(f"{name}: {key} is given twice.{usage}")
        kwargs[key] = _literal(keyword.value, name, usage)
    try:
        bound = inspect.signature(builder).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise BadRequest(f"{name}: {error}.{usage}") from None
    try:
        check_kwargs(builder, bound, name)
    except BadRequest as error:
        raise BadRequest(f"{error}{usage}") from None
    try:
        return Step(name, builder(**bound))
    except BadRequest as error:
        raise BadRequest(f"{name}: {error}{usage}") from None


def _literal(node: ast.expr, name: str, usage: str) -> Any:
    try:
        return _tuples(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        text = ast.unparse(node)
        raise BadRequest(f"{name}: {text!r} is not a number, string, tuple or other Python literal.{usage}") from None


def _tuples(value: Any) -> Any:
    """Converts lists to tuples; leaves other values unchanged."""
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"({', '.join(map(_short, value))})" if isinstance(value, tuple) else repr(value)


MOST_PIXELS = 16_384  # rows or columns
MOST_JITTER = 100.0  # factors of brightness, contrast, ...
MOST_RATIO = 1000.0  # width / height


def number(value: Any, name: str, low: float, high: float = math.inf, above: bool = False) -> float:
    """Returns `value` as a finite float in [low, high], or in (low, high] with `above`; else raises BadRequest."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300
    if not good or not low <= value <= high or (above and value == low):
        valid = f"above {low:g}" if above else "" if low == -math.inf else f"from {low:g}"
        valid += "" if high == math.inf else f" to {high:g}"
        raise BadRequest(f"{name} is {shown(value)}; it takes a finite number {valid}".rstrip() + ".")
    return float(value)


def whole(value: Any, name: str, low: int, high: float = math.inf) -> int:
    """Returns `value` as an int in [low, high]; else raises BadRequest."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadRequest(
            f"{name} is {shown(value)}; it takes a whole number from {low}{'' if high == math.inf else f' to {high}'}."
        )
    return value


def interval(value: Any, name: str, high: float = math.inf, low: float = 1e-4) -> tuple[float, float]:
    """Returns `value` as (first, last) with low <= first <= last <= high; else raises BadRequest."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise BadRequest(f"{name} is {shown(value)}; it takes a pair (first, last).")
    first, last = (number(v, name, low, high) for v in value)
    if first > last:
        raise BadRequest(f"{name} is {shown(value)}; its first number exceeds its last.")
    return first, last


def size(value: Any, name: str = "size") -> tuple[int, int]:
    """Returns `value`, a whole number or (height, width), as (height, width) in pixels; else raises BadRequest."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise BadRequest(f"{name} is {shown(value)}; it takes a whole number or (height, width).")
        return whole(value[0], name, 1, MOST_PIXELS), whole(value[1], name, 1, MOST_PIXELS)
    return (whole(value, name, 1, MOST_PIXELS),) * 2


def option(value: Any, name: str, valid: tuple[str, ...]) -> str:
    """Returns `value` if it is among the words `valid`; else raises BadRequest with the nearest."""
    if value not in valid:
        raise BadRequest(f"{name} is {shown(value)}.{nearest(value, valid)} It takes one of: {', '.join(valid)}.")
    return value
