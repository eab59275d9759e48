"""Tables as text, with aligned columns, for a terminal or in Markdown."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], right: bool = False, between: str = "  ") -> list[str]:
    """Returns the rows as lines with aligned columns.

    Args:
      rows: cells, equally many in every row.
      right: aligns all columns but the first to the right.
      between: separator of columns.

    Example:
      >>> aligned([["layer", "parameters"], ["conv1", "150"]], right=True)
      ['layer  parameters', 'conv1         150']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = [str.rjust if right and i else str.ljust for i in range(len(widths))]
    return [between.join(p(c, w) for p, c, w in zip(pad, row, widths, strict=True)).rstrip() for row in rows]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with the first row as its head; also readable as plain text.

    Example:
      >>> print(markdown([["net", "accuracy"], ["lenet5", "91.0"]]))
      | net    | accuracy |
      | ---    | ---      |
      | lenet5 | 91.0     |
    """
    head, *body = rows
    return "\n".join(f"| {line} |" for line in _even(aligned([head, ["---"] * len(head), *body], between=" | ")))


def _even(lines: list[str]) -> list[str]:
    width = max(map(len, lines))
    return [line.ljust(width) for line in lines]
