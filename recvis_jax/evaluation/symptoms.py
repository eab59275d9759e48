"""What a diagnosis knows of a training: curves, accuracies, a comparison of its images, and derived quantities."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Curve(NamedTuple):
    """The records of a split during training, at increasing steps.

    Attributes:
      steps: (n) of the records.
      loss: (n), NaN in records without a loss.
      accuracy: (n) in [0, 1], NaN in records without an accuracy.
    """

    steps: Int[np.ndarray, " _"]
    loss: Float[np.ndarray, " _"]
    accuracy: Float[np.ndarray, " _"]


NO_CURVE = Curve(np.zeros(0, int), np.zeros(0), np.zeros(0))


class Measured(NamedTuple):
    """Accuracy of a checkpoint on a split in evaluation mode: without augmentation and dropout.

    Attributes:
      accuracy: in [0, 1].
      examples: number of examples measured.
    """

    accuracy: float
    examples: int


class Pictures(NamedTuple):
    """What was found in the images themselves, without any model.

    Attributes:
      compared: numbers of training and validation images that were compared.
      copies: share of validation images with exactly the same pixels as a compared training image.
      near: share of validation images that are copies or near copies.
      expected: share of the training images that were compared; only this share of all copies can be seen.
      vote: share of validation images whose class is that of most of their five nearest training images.
      own_vote: the same for training images among the other training images; None if not measured.
      further: probability that a validation image is further away from the training images than a training image is.
      darker, flatter: difference from the training images in mean and in contrast, in standard deviations.
    """

    compared: tuple[int, int]
    copies: float
    near: float
    expected: float
    vote: float
    own_vote: float | None
    further: float
    darker: float
    flatter: float


class Evidence(NamedTuple):
    """Everything known about a training.

    Attributes:
      train, val: curves; `NO_CURVE` for no validation.
      steps: (made, planned).
      failed: the message that it failed with, if it did.
      classes: number of classes; 0 for other objectives.
      chance_loss: loss of a model that predicts the frequencies of the classes; NaN if unknown.
      rates: learning rates of the training records; empty if they are not recorded.
      train_examples, val_examples: sizes of the splits.
      train_counts, val_counts: examples of each class (k) in the part of the splits that was read; None if none was.
      clean_train, clean_val, test: accuracies of the kept checkpoint.
      pictures: None if the images are not available.
      ended: "done", "early stop", "interrupted" or "" for a run that has not ended.
    """

    train: Curve
    val: Curve
    steps: tuple[int, int]
    failed: str = ""
    classes: int = 0
    chance_loss: float = math.nan
    rates: Sequence[float] = ()
    train_examples: int = 0
    val_examples: int = 0
    train_counts: Int[np.ndarray, " _"] | None = None
    val_counts: Int[np.ndarray, " _"] | None = None
    clean_train: Measured | None = None
    clean_val: Measured | None = None
    test: Measured | None = None
    pictures: Pictures | None = None
    ended: str = ""


def half_width(accuracy: float, examples: int) -> float:
    """Returns half the width of Wilson's 95 % interval of an accuracy.

    Example:
      >>> round(half_width(0.9, 100), 4)
      0.0596
    """
    z = 1.96
    spread = math.sqrt(accuracy * (1 - accuracy) / examples + z**2 / (4 * examples**2))
    return z * spread / (1 + z**2 / examples)


def last(curve: Curve, name: str = "loss") -> float:
    """The last finite value of a curve, NaN for none."""
    values = getattr(curve, name)
    values = values[np.isfinite(values)]
    return float(values[-1]) if len(values) else math.nan


def finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the finite losses."""
    known = np.isfinite(curve.loss)
    return curve.steps[known], curve.loss[known]


def smooth(loss: np.ndarray) -> np.ndarray:
    """A running median of five values; of fewer at the ends."""
    return np.array([np.median(loss[max(0, i - 2) : i + 3]) for i in range(len(loss))])


def train_accuracy(e: Evidence) -> Measured | None:
    """Training accuracy: measured in evaluation mode if possible, else the last one that training recorded."""
    if e.clean_train:
        return e.clean_train
    known = e.train.accuracy[np.isfinite(e.train.accuracy)]
    return Measured(float(known[-max(1, len(known) // 10) :].mean()), e.train_examples or 1) if len(known) else None


def val_accuracy(e: Evidence) -> Measured | None:
    """Validation accuracy of the kept checkpoint, else the best that was recorded."""
    if e.clean_val:
        return e.clean_val
    known = e.val.accuracy[np.isfinite(e.val.accuracy)]
    return Measured(float(known.max()), e.val_examples) if len(known) and e.val_examples else None


def chance(e: Evidence) -> float:
    """Accuracy of always predicting the most frequent class, or of guessing."""
    counts = e.val_counts if e.val_counts is not None else e.train_counts
    return float(counts.max() / counts.sum()) if counts is not None and counts.sum() else 1 / max(1, e.classes)


def by_chance(share: float, chance: float, examples: int) -> bool:
    """Whether a share of right answers is within three standard errors of guessing, or lower."""
    return share <= chance + 3 * math.sqrt(chance * (1 - chance) / max(1, examples))


def falling(e: Evidence) -> tuple[float, float] | None:
    """The fall of a loss at the end, relative to its whole fall and to what is left; None if it cannot be determined.

    The end is the last quarter, or the last tenth if the learning rate had fallen to almost zero: then the loss fell in
    the last quarter because of the rate.
    """
    steps, loss = finite(e.val)
    curve = e.val
    if len(loss) < 3:
        curve = e.train
        steps, loss = finite(curve)
        loss = smooth(loss)
    if len(loss) < 3:
        return None
    decayed = len(e.rates) > 1 and e.rates[-1] < 0.1 * max(e.rates)
    at = steps[0] + (0.9 if decayed else 0.75) * (steps[-1] - steps[0])
    before, end, first = float(np.interp(at, steps, loss)), float(loss[-1]), float(loss[0])
    if not math.isnan(e.chance_loss):
        first = max(first, e.chance_loss)  # the first evaluation may come late in learning
    if first <= end:
        return 0.0, 0.0
    return (before - end) / (first - end), (before - end) / max(end, 1e-12)


def restless(e: Evidence) -> float:
    """How much the loss fluctuates around its trend in the last half: standard deviation of its logarithm.

    The validation loss is always measured on the same examples; that of training also has the noise of its batches, so
    it is used only if there are too few validation losses.
    """
    loss = finite(e.val)[1]
    if len(loss) < 6 or 0 < e.val_examples < 100:
        return 0.0
    half = np.log(np.maximum(loss[len(loss) // 2 :], 1e-12))
    if len(half) < 4:
        return 0.0
    return float(np.median(np.abs(np.diff(half))) / 0.954)  # the median step of normal noise is 0.954 deviations
