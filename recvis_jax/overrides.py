"""Overrides of a config's keys on the command line: `--config.optim.lr=0.1`, applied in the order typed.

  --config.KEY=VALUE   sets a key, or adds it with its parent sections; `--config.KEY VALUE` does the same
  --config.KEY         sets it to True
  --noconfig.KEY       sets a switch to False; removes any other key, so that its default is used

A value is a Python literal: None, True, 3, 3.0, 1e-3, "text", (1, 2), {"a": 1}; anything else is text. Its type is the
one typed, whatever the file has: `eval_every=50` is 50 steps, and 50.0 is 50 epochs. Later words override earlier
ones. This module imports nothing that is slow to load.
"""

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from recvis_jax import errors

# Keys that take text: for these a number is text, too, as in data.name=2024. A test compares this with the functions.
TEXTS = frozenset(
    "activation adam augment auxiliary_layer cache checkpoint_dir compile data_dir decay dtype eval_transform freeze "
    "head ignore image_key init_from kind label_key layer layer_blocks library loss name of_run pool positions "
    "sampling schedule shape sharding shortcut source statistics strategy target test too_long train transform val "
    "views".split()
)
# Keys that take several values: text is split at commas, as in metrics=accuracy,top_5.
LISTS = frozenset("classes metrics protocols".split())
# Sections that may be given as one word, and the key that this word sets.
SHORT = {"init_from": "source", "sharding": "strategy"}


class Override(NamedTuple):
    """A word of the command line.

    Attributes:
      key: path of the key, such as ("optim", "lr").
      text: its value as typed; None for `--config.KEY` without a value.
      negated: whether it was `--noconfig.KEY`.
    """

    key: tuple[str, ...]
    text: str | None
    negated: bool = False

    def __str__(self) -> str:
        """Returns the word as typed on a command line."""
        value = "" if self.text is None else f"={self.text}"
        return f"--{'no' if self.negated else ''}config.{'.'.join(self.key)}{value}"


def split(words: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Splits a command line into its other words and the overrides, each in order.

    Raises:
      BadRequest: `--config.` is not followed by a key.
    """
    rest: list[str] = []
    found: list[Override] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*rest, word, *left], found
        match = re.match(r"--?(no)?config\.([^=]*)(?:=(.*))?$", word, re.DOTALL)
        if not match:
            rest.append(word)
            continue
        negated, path, text = match.groups()
        key = tuple(path.split("."))
        if not all(re.fullmatch(r"[A-Za-z_]\w*", part) for part in key):
            raise errors.BadRequest(
                f"{errors.brief(word)} names no key; write --config.KEY=VALUE, such as --config.optim.lr=0.1."
            )
        if negated and text is not None:
            raise errors.BadRequest(f"{errors.brief(word)} takes no value; --noconfig.KEY alone removes a key.")
        if text is None and not negated and left and (not left[0].startswith("-") or _is_number(left[0])):
            text = left.pop(0)
        found.append(Override(key, text, bool(negated)))
    return rest, found


def apply(config: Any, found: Sequence[Override], section: Callable[[], Any] = dict) -> None:
    """Applies the overrides of the command line to a config, one by one.

    Args:
      config: a `ConfigDict` or nested dicts; changed in place.
      found: the overrides.
      section: makes an empty section.

    Raises:
      BadRequest: a key is below a value that is not a section.
    """
    for one in found:
        *parents, last = one.key
        node = config
        for i, name in enumerate(parents):
            inner = node.get(name)
            if isinstance(inner, str) and inner and name in SHORT:
                node[name] = section()
                node[name][SHORT[name]] = inner
            elif inner is None or inner == "" or (isinstance(inner, (tuple, list)) and not inner):
                node[name] = section()
            elif not _is_section(inner):
                at = ".".join(("config", *parents[: i + 1]))
                raise errors.BadRequest(f"{errors.brief(one)}: {at} is {errors.shown(inner)}, which has no keys.")
            node = node[name]
        now = node.get(last)
        if one.negated:
            if last in node and not isinstance(now, bool):
                del node[last]
            else:
                node[last] = False
            continue
        value = value_of(one.text, last)
        if last in SHORT and _is_section(now) and isinstance(value, str) and value:
            now[SHORT[last]] = value  # keeps the rest of the section
        else:
            _set(node, last, value)


def _set(node: Any, name: str, value: Any) -> None:
    """Sets a key with exactly the given type; references to it in the file follow."""
    node[name] = value
    if type(node[name]) is not type(value) and not _is_section(value):  # ConfigDict turns ints into floats
        del node[name]
        node[name] = value


def value_of(text: str | None, name: str) -> Any:
    """Returns the typed value of the key `name`; None stands for a key without a value, which is True."""
    if text is None:
        return True
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = {"true": True, "false": False}.get(text, text) if name not in TEXTS else text
    if name in TEXTS and isinstance(value, (int, float, complex, bytes)) and not isinstance(value, bool):
        return text
    if name in LISTS and isinstance(value, str):
        return tuple(value_of(part, "") for part in value.split(",") if part)
    return value


def _is_section(value: Any) -> bool:
    return hasattr(value, "items")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
