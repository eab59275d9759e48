"""Reads our docstrings as griffe does Google's: `Example:` is a section of executable examples."""

import re

import griffe

_EXAMPLE = re.compile(r"^Example:[ \t]*(.*)$", re.MULTILINE)
_REFERENCE = re.compile(r"^Reference:[ \t]*(\S.*)$", re.MULTILINE)
_SEVERAL = re.compile(r"^ +(?:\w+, )+\w+(?=: )", re.MULTILINE)  # parameters that one line describes
_ABOVE = re.compile(r"(?<=: )>(?=[= ])")  # a bound, which would be a quotation in Markdown


class Docstrings(griffe.Extension):
    """Writes the sections of every docstring as griffe knows them."""

    def on_instance(self, *, node, obj, agent, **kwargs) -> None:
        """Changes the text of one object's docstring before it is parsed."""
        if obj.docstring:
            obj.docstring.value = sections(obj.docstring.value)


def sections(text: str) -> str:
    """Returns a docstring whose sections griffe renders.

    Example:
      >>> sections("Adds.\\n\\nExample: of two\\n  >>> 1 + 1\\n  2")
      'Adds.\\n\\nExamples: of two\\n  >>> 1 + 1\\n  2'
      >>> sections("Adds.\\n\\nArgs:\\n  a, b: > 0.")
      'Adds.\\n\\nArgs:\\n  a,b: \\\\> 0.'
      >>> sections("Adds.\\n\\nReference: Peano 1889.")
      'Adds.\\n\\n**Reference:** Peano 1889.'
    """
    text = _SEVERAL.sub(lambda found: found[0].replace(", ", ","), _ABOVE.sub(r"\\>", text))
    text = _EXAMPLE.sub(lambda found: f"Examples: {found[1]}".rstrip(), text)
    return _REFERENCE.sub(r"**Reference:** \1", text)
