"""A path of penalties, strongest first: each fit starts from the one before, and validation data decide."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import cached

Fit = TypeVar("Fit")


def check_patience(patience: int | None) -> None:
    """Raises `BadRequest` for a patience below 1."""
    if patience is not None and patience < 1:
        raise BadRequest(f"patience is {patience}; it takes a number of penalties of at least 1, or None.")


def walk(
    path: Sequence[float],
    fit: Callable[[float, Fit | None], Fit],
    score: Callable[[Fit], float],
    *,
    patience: int | None = 2,
    last: int = 0,
    say: cached.Progress = cached.silent,
) -> tuple[dict[float, Fit], dict[float, float], float]:
    """Fits all penalties of a path.

    Args:
      path: the penalties, the strongest first.
      fit: (penalty, the fit before or None) -> a fit.
      score: of a fit, on validation data; larger is better. In ties the strongest penalty wins.
      patience: ends the path after this number of penalties in a row that were worse than the best so far; None fits
        all.
      last: share of the progress that is left for later work.
      say: called with the number of penalties fitted, and the total.

    Returns:
      The fits and their scores on validation data, by penalty in the order of fitting, and the best penalty.

    Example:
      >>> fits, scores, best = walk((1.0, 0.1, 0.01), lambda l2, before: l2, lambda fit: -abs(fit - 0.1))
      >>> best, scores[1.0]
      (0.1, -0.9)
    """
    say(0, len(path))
    fits: dict[float, Fit] = {}
    scores: dict[float, float] = {}
    before: Fit | None = None
    for i, penalty in enumerate(path):
        fits[penalty] = before = fit(penalty, before)
        scores[penalty] = score(before)
        say(min(i + 1, len(path) - last), len(path))
        best = max(scores, key=lambda key: scores[key])  # in ties the first, which is the strongest
        if patience is not None and i - path.index(best) >= patience:
            break
    return fits, scores, best


def at_the_end(path: Sequence[float], best: float, name: str) -> list[str]:
    """Returns a note if the best is at an end of the tried range."""
    if len(path) > 1 and best in (path[0], path[-1]):
        return [f"the best {name}={best:g} is at the end of the tried range; a wider range may be better"]
    return []
