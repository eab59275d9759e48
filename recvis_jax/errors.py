"""The two kinds of errors of a program, and helpers for their messages.

The user can fix a `BadRequest` (exit code 2); a `Failure` happened while running (exit code 1). Both are printed as
one line, without a traceback unless `--debug` is given. So a message says what was wrong, where, and what would be
right.
"""

import collections.abc
import contextlib
import difflib
import inspect
import re
import shlex
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from recvis_jax.ranges import RANGES


class BadRequest(ValueError):
    """The request cannot be served as it stands: a wrong name, type, value or file."""


class Failure(RuntimeError):
    """A valid request failed while it ran: a full disk, a non-finite loss, no usable checkpoint."""


def printable(text: object) -> str:
    """Makes `text` safe for a terminal or a log: control characters and the like are written as escapes.

    Names of classes and files come from outside: an escape sequence could move the cursor, set the title or hide what
    follows. Line feeds are escaped, too. Bytes of file names that are not UTF-8 become U+FFFD.

    Example:
      >>> printable("cat" + chr(27) + "[2J.jpg")
      'cat\\\\x1b[2J.jpg'
      >>> printable("Äpfel und Bäume")
      'Äpfel und Bäume'
    """
    text = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_lines(text: str) -> str:
    """Like `printable`, but keeps line feeds and tabs."""
    return "".join(c if c in "\n\t" else printable(c) for c in text) if not text.isprintable() else text


def brief(text: object, length: int = 80) -> str:
    """Returns a text for use in a message: printable, and cut to `length` characters.

    Example:
      >>> brief("a" * 9, 4)
      'aaaa...'
    """
    text = str(text)
    return f"{printable(text[:length])}..." if len(text) > length else printable(text)


def shown(value: object, length: int = 80) -> str:
    """Returns the `repr` of a value for use in a message, cut to `length` characters.

    Example:
      >>> print(shown("it's"))
      "it's"
    """
    try:
        return brief(repr(value), length)
    except (ValueError, RecursionError):  # an int with more digits than Python prints, or endless nesting
        return f"of type {type(value).__name__}, too long to be shown"


def command(*words: object) -> str:
    """Returns a command that can be pasted into a shell: words with spaces and the like are quoted.

    Example:
      >>> command("python", "-m", "recvis_jax.prepare", "--source=my pictures")
      "python -m recvis_jax.prepare '--source=my pictures'"
    """
    return printable(shlex.join(map(str, words)))


@contextlib.contextmanager
def at(key: str) -> Iterator[None]:
    """Puts a config's key, such as "config.data.augment", before errors raised inside, unless they name it already."""
    try:
        yield
    except BadRequest as e:
        if re.search(rf"\b{re.escape(key.rpartition('.')[2])}\b", str(e)):
            raise
        raise BadRequest(f"{key}: {e}") from e


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest of `valid`, or an empty string if none is close."""
    close = difflib.get_close_matches(str(name), [str(v) for v in valid], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def choose(table: Mapping[str, Any], name: str, kind: str) -> Any:
    """Looks up `name` in `table`; for an unknown name, `BadRequest` has the nearest name and the whole list."""
    if not isinstance(name, str) or name not in table:
        near = nearest(brief(name), table)
        raise BadRequest(f"unknown {kind} {shown(name)}.{near} There are: {', '.join(sorted(table))}.")
    return table[name]


def keywords(fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters that `fn` (a function, class or partial) takes by keyword, by name."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = {k: p for k, p in inspect.signature(fn).parameters.items() if p.kind in kinds}
    hidden = ("parent", "name") if "parent" in found else ()  # attributes of every linen module
    return {k: p for k, p in found.items() if k not in hidden}


def check_kwargs(
    fn: Callable[..., Any],
    kwargs: Mapping[str, Any],
    where: str,
    extra: Iterable[str] = (),
    given: Iterable[str] = (),
) -> None:
    """Checks names and plain types of `kwargs` against the signature of `fn`, their ranges, and that none is missing.

    Args:
      fn: will be called with `kwargs`.
      kwargs: the keyword arguments from a config.
      where: the config section, for the message ("optim").
      extra: further names that are valid in the section although `fn` does not take them.
      given: parameters of `fn` that come from elsewhere and so are not valid in the section.

    Raises:
      BadRequest: an unknown name (the message has the nearest valid one), a value of the wrong type or outside
        `RANGES`, or a missing name that has no default.
    """
    if not isinstance(kwargs, Mapping):
        raise BadRequest(f"{where} is {shown(kwargs)}, of type {type(kwargs).__name__}; it takes a dict.")
    parameters = {k: p for k, p in keywords(fn).items() if k not in set(given)}
    valid = [*extra, *parameters]
    for name, value in kwargs.items():
        if name in extra:
            continue
        if name not in parameters:
            raise BadRequest(
                f"unknown key {where}.{brief(name)}.{nearest(name, valid)} "
                f"Valid keys in {where}: {', '.join(sorted(valid))}."
            )
        hint = parameters[name].annotation
        if not _fits(value, hint):
            kind = type(value).__name__
            raise BadRequest(f"{where}.{name} is {shown(value)}, of type {kind}; it takes {_show(hint)}.")
        check_range(name, value, f"{where}.{name}")
    missing = [k for k, p in parameters.items() if p.default is inspect.Parameter.empty and k not in kwargs]
    if missing:
        raise BadRequest(f"{where} lacks {', '.join(missing)}. Valid keys in {where}: {', '.join(sorted(valid))}.")


_ANY = 10**300  # larger numbers overflow in arithmetic
_LONGEST = 1000  # characters of a string


def check_range(name: str, value: Any, where: str) -> None:
    """Checks that a number, or all numbers of a tuple or section, are finite and in `RANGES[name]` if that exists.

    Strings have at most a thousand characters and no zero byte.

    Raises:
      BadRequest: a value is not valid; the message begins with `where`.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_range(str(key), inner, f"{where}.{brief(key)}")
        return
    valid = RANGES.get(name)
    for number in _leaves(value):
        if isinstance(number, str):
            if len(number) > _LONGEST or "\0" in number:
                why = "with a zero byte" if "\0" in number else f"of {len(number):,} characters"
                raise BadRequest(f"{where} is {shown(number)}, {why}; it takes text of at most {_LONGEST:,}.")
        elif not (valid.holds(number) if valid else -_ANY < number < _ANY):
            raise BadRequest(
                f"{where} is {shown(value)}; it takes {f'numbers {valid}' if valid else 'finite numbers'}."
            )


def _leaves(value: Any) -> Iterator[Any]:
    """Yields the numbers and strings in nested tuples."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from _leaves(inner)


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` fits a plain annotation; any other annotation accepts everything."""
    if isinstance(hint, str) or hint is inspect.Parameter.empty or hint is Any:
        return True
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is type(None) or hint is None:
        return value is None
    if origin in (tuple, list, collections.abc.Sequence) or hint in (tuple, list):
        return isinstance(value, (tuple, list)) and _elements_fit(value, origin, typing.get_args(hint))
    if origin is dict or hint is dict:
        return isinstance(value, Mapping)
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    return True


def _elements_fit(value: tuple | list, origin: Any, hints: tuple) -> bool:
    if not hints:
        return True
    if origin is tuple and hints[-1] is not Ellipsis:
        return len(value) == len(hints) and all(map(_fits, value, hints))
    return all(_fits(x, hints[0]) for x in value)


def _show(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_show(h) for h in typing.get_args(hint))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    if origin in (tuple, list, collections.abc.Sequence):
        return f"a tuple of {_show(typing.get_args(hint)[0])}"
    return getattr(hint, "__name__", str(hint))
