"""Files of `pickle.dump` that hold arrays: read by an interpreter of our own, which makes arrays and calls nothing.

A pickle is a program. This reads the few of its instructions that dicts, lists and numpy's arrays are written with;
whatever else a file asks for is refused.
"""

import math
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recvis_jax import reading
from recvis_jax.errors import BadRequest, brief, printable, shown

_RECONSTRUCT, _ARRAY, _DTYPE = (f"<{name}>" for name in ("_reconstruct", "ndarray", "dtype"))
_NAMES = {
    "numpy.core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy ndarray": _ARRAY,
    "numpy dtype": _DTYPE,
}
_VALUES = (
    "BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "NONE", "NEWTRUE", "NEWFALSE",
)  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1")


class _Refused(ValueError):
    """What a file asks for that is no array; the message is the reason."""


class _Name(str):
    """A name of a module that a file refers to."""


class _Unfinished:
    """An array or type before its state is known; `found` is what it becomes."""

    def __init__(self, code: str = ""):
        self.code = code
        self.found: Any = None


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a pickle by name: the keys and places that lead to each, joined by '/'.

    Args:
      path: of the file.

    Raises:
      BadRequest: the file is damaged, too large, or asks for more than dicts, lists and arrays of numbers.

    Example:
      >>> import pickle
      >>> _ = Path("x.pkl").write_bytes(pickle.dumps({"conv1": [np.ones((3, 2), np.float32), np.zeros(2)]}, protocol=3))
      >>> {name: x.shape for name, x in read(Path("x.pkl")).items()}
      {'conv1/0': (3, 2), 'conv1/1': (2,)}
    """
    name = printable(path)
    reading.regular(path, "weights bytes")
    try:
        with path.open("rb") as file:
            found = dict(_arrays(_interpreted(file), (), {}))
    except OSError as e:
        raise BadRequest(f"{name} cannot be read ({e.strerror}).") from None
    except _Refused as e:
        raise BadRequest(f"{name} is a pickle with {e}; only dicts, lists and arrays of numbers are read.") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise BadRequest(f"{name} is damaged, or no pickle ({brief(e, 120)}).") from None
    if not found:
        raise BadRequest(f"{name} holds no array.")
    return found


def _interpreted(file: Any) -> Any:
    """Returns the value that a pickle describes."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        out = stack[start:]
        del stack[start:]
        return out

    for step, (op, arg, _) in enumerate(pickletools.genops(file)):
        name = op.name
        if step > reading.LIMITS["pickle steps"]:
            raise _Refused(f"more than {reading.LIMITS['pickle steps']:,} instructions")
        if name in _VALUES:
            stack.append(_CONSTANTS.get(name, arg))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [stack.pop()]
            _of(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            if not all(type(key) in (str, int) for key in items[::2]):  # hashing nested tuples may never end
                raise _Refused("keys that are neither text nor whole numbers")
            _of(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_named(arg))
        elif name == "STACK_GLOBAL":
            module, thing = stack[-2:]
            stack[-2:] = [_named(f"{module} {thing}")]
        elif name == "REDUCE":
            function, arguments = stack[-2:]
            stack[-2:] = [_begun(function, arguments)]
        elif name == "BUILD":
            state = stack.pop()
            _finish(stack[-1], state)
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"the instruction {name}")
    raise ValueError("it has no end")


def _of(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _Refused(f"items for a {type(value).__name__}")
    return value


def _named(name: str) -> _Name:
    if name not in _NAMES:
        raise _Refused(f"{shown(name)} in it")
    return _Name(_NAMES[name])


def _begun(function: Any, arguments: Any) -> _Unfinished:
    if function == _RECONSTRUCT and isinstance(function, _Name):
        return _Unfinished()
    if function == _DTYPE and isinstance(function, _Name):
        if arguments[0] not in _NUMBERS:
            raise _Refused(f"arrays of {shown(arguments[0])}")
        return _Unfinished(arguments[0])
    raise _Refused(f"a call of {shown(function)}")


def _finish(value: Any, state: Any) -> None:
    if not isinstance(value, _Unfinished) or value.found is not None:
        raise _Refused("a state of what has none")
    if value.code:  # (version, byte order, ...)
        if state[1] not in ("<", ">", "|", "="):
            raise _Refused(f"a byte order {shown(state[1])}")
        value.found = np.dtype(("<" if state[1] in ("|", "=") else state[1]) + value.code)
        return
    _, shape, dtype, fortran, data = state
    if not isinstance(dtype, _Unfinished) or not isinstance(data, bytes) or len(shape) > reading.LIMITS["axes"]:
        raise _Refused("an array that is not of numbers")
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.found.itemsize != len(data):
        raise ValueError(f"an array of shape {shown(shape)} has {len(data):,} bytes")
    value.found = np.frombuffer(data, dtype.found).reshape(shape, order="F" if fortran else "C")


def _arrays(value: Any, where: tuple[str, ...], count: dict[str, int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays in nested dicts and lists with their names; what is no array is left out."""
    count["steps"] = count.get("steps", 0) + 1
    if len(where) > reading.LIMITS["depth"] or count["steps"] > reading.LIMITS["tensors"]:
        raise _Refused("too many lists in one another")
    if isinstance(value, _Unfinished) and isinstance(value.found, np.ndarray):
        yield "/".join(where), value.found
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _arrays(inner, (*where, str(key)), count)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _arrays(inner, (*where, str(i)), count)
