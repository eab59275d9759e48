"""Random forests, by scikit-learn; the number of features that a split considers is chosen on validation data."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from recvis_jax import errors
from recvis_jax.evaluation import cached
from recvis_jax.evaluation.cached import Features, Labels

FRACTIONS = (0.5, 1.0, 2.0)  # times the square root of the number of features
TREES = 100

LARGEST = 2**32  # bytes of training features, which are in memory

_TOGETHER = 20  # trees grown between two reports of progress


class Chosen(NamedTuple):
    """What `fit` chose.

    Attributes:
      forest: scikit-learn's.
      looked_at: number of features that a split considers.
      val_accuracy: by that number, for forests that did not see the validation data.
    """

    forest: Any
    looked_at: int
    val_accuracy: dict[int, float]


def fit(
    features: Features,
    labels: Labels,
    val_features: Features,
    val_labels: Labels,
    *,
    num_classes: int,
    trees: int = TREES,
    fractions: Sequence[float] = FRACTIONS,
    refit: bool = False,
    seed: int = 0,
    say: cached.Progress = cached.silent,
) -> Chosen:
    """Grows forests whose splits consider few or many features, and picks the best on validation data.

    Trees are grown until their leaves are pure, on bootstrap samples; the same seed gives the same forest on any number
    of cores.

    Args:
      features, labels: to fit on (n d), (n); in memory, float32.
      val_features, val_labels: to choose on.
      num_classes: k.
      trees: number of trees of each forest.
      fractions: numbers of features that a split considers, relative to the square root of d.
      refit: grows the chosen forest again on training and validation data together.
      seed: for the draws.
      say: called with the number of trees grown, and the total.

    Raises:
      BadRequest: scikit-learn is missing, numbers out of range, and what the checks of features and labels refuse.

    Reference:
      Breiman, 2001, "Random forests".
    """
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError as e:
        raise errors.BadRequest("forest needs scikit-learn: pip install 'recvis_jax[classifiers]'.") from e
    features, labels = cached.check(features, labels, num_classes)
    val = cached.check(val_features, val_labels, num_classes, "validation", features.shape[1])
    if trees < 1 or not fractions or not all(np.isfinite(f) and f > 0 for f in fractions):
        raise errors.BadRequest(f"trees is {trees} and fractions is {fractions}; they take numbers above 0.")
    width = features.shape[1]
    if (size := 4 * len(features) * width) > LARGEST:
        raise errors.BadRequest(
            f"a forest takes training features of up to {LARGEST >> 20:,} MB; {len(features):,} of {width:,} numbers "
            f"are {size >> 20:,} MB. Use fewer examples (--per_class) or a narrower layer."
        )
    numbers = sorted({min(width, max(1, round(f * width**0.5))) for f in fractions})
    total, done = (len(numbers) + refit) * trees, 0
    say(0, total)

    def grow(x: np.ndarray, y: np.ndarray, looked_at: int) -> Any:
        nonlocal done
        forest = RandomForestClassifier(0, max_features=looked_at, n_jobs=-1, random_state=seed, warm_start=True)
        for count in (*range(_TOGETHER, trees, _TOGETHER), trees):
            forest.set_params(n_estimators=count).fit(x, y)
            say(done + count, total)
        done += trees
        return forest

    x, x_val = cached.block(features, 0, len(features)), cached.block(val[0], 0, len(val[0]))
    accuracies, best = {}, None
    for looked_at in numbers:
        forest = grow(x, labels, looked_at)
        accuracies[looked_at] = float(np.mean(forest.predict(x_val) == val[1]))
        if best is None or accuracies[looked_at] > accuracies[best[0]]:
            best = looked_at, forest
    assert best is not None
    if refit:
        best = best[0], grow(np.concatenate([x, x_val]), np.concatenate([labels, val[1]]), best[0])
    return Chosen(best[1], best[0], accuracies)


def predict(chosen: Chosen, features: Features) -> Int[np.ndarray, " n"]:
    """Returns the classes of features (n d)."""
    features = cached.check_features(features, "given", chosen.forest.n_features_in_)
    return chosen.forest.predict(cached.block(features, 0, len(features))).astype(np.int32)
