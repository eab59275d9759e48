"""A path of penalties, strongest first: each fit starts from the one before, and validation data decide.

Also the checks that all linear classifiers share.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import cached

Fit = TypeVar("Fit")


class Choice(NamedTuple):
    """What `choose` chose.

    Attributes:
      fit: the one with the best penalty, fitted again if asked for.
      penalty: the best one.
      scores: on validation data, by penalty in the order of fitting.
      fits: by penalty.
      warning: one line with all warnings of the path, or empty.
    """

    fit: Any
    penalty: float
    scores: dict[float, float]
    fits: dict[float, Any]
    warning: str


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


def choose(
    path: Sequence[float],
    name: str,
    load: Callable[[bool], Any],
    solve: Callable[[Any, float, Any], Any],
    score: Callable[[Any], float],
    *,
    refit: bool,
    patience: int | None,
    say: cached.Progress,
) -> Choice:
    """Walks a path, and fits the best penalty again on all data if asked for.

    Args:
      path, score, patience, say: see `walk`.
      name: of the penalty, for notes.
      load: whether to add the validation data to the training data -> the examples.
      solve: (examples, penalty, the fit to start from or None) -> a fit with a `warning`.
      refit: whether to fit again on training and validation data.
    """
    examples = load(False)

    def fit(penalty: float, before: Any) -> Any:
        return solve(examples, penalty, before)

    fits, scores, best = walk(path, fit, score, patience=patience, last=int(refit), say=say)
    notes = [f"{name}={penalty:g}: {found.warning}" for penalty, found in fits.items() if found.warning]
    notes += at_the_end(path, best, name)
    chosen = fits[best]
    if refit:
        del examples  # frees its features on the device
        chosen = solve(load(True), best, chosen)
        notes += [f"refit: {chosen.warning}"] if chosen.warning else []
    say(len(path), len(path))
    return Choice(chosen, best, scores, fits, "; ".join(notes))


def check_ends(max_iter: int, tol: float) -> None:
    """Raises `BadRequest` for steps or a tolerance out of range."""
    if max_iter < 1 or not tol > 0:
        raise BadRequest(f"max_iter is {max_iter} and tol is {tol}; they take numbers of at least 1 and above 0.")


def check_start(init: Any, d: int, k: int) -> None:
    """Raises `BadRequest` for a linear layer to start from that does not fit d features and k classes."""
    if init is None:
        return
    kernel, bias = np.shape(init.kernel), np.shape(init.bias)
    if (kernel, bias) != ((d, k), (k,)):
        raise BadRequest(f"init has a kernel {kernel} and a bias {bias}; they must be {(d, k)}, {(k,)}.")


def at_the_end(path: Sequence[float], best: float, name: str) -> list[str]:
    """Returns a note if the best is at an end of the tried range."""
    if len(path) > 1 and best in (path[0], path[-1]):
        return [f"the best {name}={best:g} is at the end of the tried range; a wider range may be better"]
    return []
