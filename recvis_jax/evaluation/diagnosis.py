"""Diagnoses a training in words, from its curves, its model's predictions of single examples, and its images.

Every rule is a function of the evidence that returns a finding or None. `RULES` lists them, the most important first;
the first finding is the headline. A rule ignores evidence that was not measured, so a run without its data is still
diagnosed by its curves. The thresholds are meant for common mistakes, not for differences of a point of accuracy.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Level = Literal["problem", "caution", "fine"]


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


class Finding(NamedTuple):
    """One result of the diagnosis.

    Attributes:
      name: of the rule, such as "overfitting".
      level: "problem", "caution", or "fine".
      title: one sentence that states it.
      why: the numbers behind it.
      advice: what to try.
    """

    name: str
    level: Level
    title: str
    why: str
    advice: str


def diagnose(evidence: Evidence) -> list[Finding]:
    """Returns the findings, the most important first; only "fine" if there are none.

    Example:
      >>> steps = np.arange(1, 9) * 100
      >>> down, up = Curve(steps, 2.0 / np.arange(1, 9), 1 - 0.5 ** np.arange(1, 9)), np.linspace(0.4, 0.6, 8)
      >>> val = Curve(steps, 0.5 + 0.2 * np.abs(np.arange(8) - 2), up)
      >>> [f.name for f in diagnose(Evidence(down, val, (800, 800), classes=10, val_examples=1000))]
      ['overfitting']
    """
    found = [finding for rule in RULES if (finding := rule(evidence))]
    problems = [f for f in found if f.level == "problem"]
    names = {f.name for f in problems}
    hidden = {name for first, others in _EXPLAINS.items() if first in names for name in others}
    found = problems + [f for f in found if f.level == "caution"]
    found = [f for f in found if f.name not in hidden]
    return found or [_fine(evidence)]


# --- quantities that the rules derive from the evidence ---


def half_width(accuracy: float, examples: int) -> float:
    """Returns half the width of Wilson's 95 % interval of an accuracy.

    Example:
      >>> round(half_width(0.9, 100), 4)
      0.0596
    """
    z = 1.96
    spread = math.sqrt(accuracy * (1 - accuracy) / examples + z**2 / (4 * examples**2))
    return z * spread / (1 + z**2 / examples)


def _last(curve: Curve, name: str = "loss") -> float:
    """The last finite value of a curve, NaN for none."""
    values = getattr(curve, name)
    values = values[np.isfinite(values)]
    return float(values[-1]) if len(values) else math.nan


def _finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the finite losses."""
    known = np.isfinite(curve.loss)
    return curve.steps[known], curve.loss[known]


def _smooth(loss: np.ndarray) -> np.ndarray:
    """A running median of five values; of fewer at the ends."""
    return np.array([np.median(loss[max(0, i - 2) : i + 3]) for i in range(len(loss))])


def _train(e: Evidence) -> Measured | None:
    """Training accuracy: measured in evaluation mode if possible, else the last one that training recorded."""
    if e.clean_train:
        return e.clean_train
    known = e.train.accuracy[np.isfinite(e.train.accuracy)]
    return Measured(float(known[-max(1, len(known) // 10) :].mean()), e.train_examples or 1) if len(known) else None


def _val(e: Evidence) -> Measured | None:
    """Validation accuracy of the kept checkpoint, else the best that was recorded."""
    if e.clean_val:
        return e.clean_val
    known = e.val.accuracy[np.isfinite(e.val.accuracy)]
    return Measured(float(known.max()), e.val_examples) if len(known) and e.val_examples else None


def _chance(e: Evidence) -> float:
    """Accuracy of always predicting the most frequent class, or of guessing."""
    counts = e.val_counts if e.val_counts is not None else e.train_counts
    return float(counts.max() / counts.sum()) if counts is not None and counts.sum() else 1 / max(1, e.classes)


def _by_chance(share: float, chance: float, examples: int) -> bool:
    """Whether a share of right answers is within three standard errors of guessing, or lower."""
    return share <= chance + 3 * math.sqrt(chance * (1 - chance) / max(1, examples))


def _falling(e: Evidence) -> tuple[float, float] | None:
    """The fall of a loss at the end, relative to its whole fall and to what is left; None if it cannot be determined.

    The end is the last quarter, or the last tenth if the learning rate had fallen to almost zero: then the loss fell in
    the last quarter because of the rate.
    """
    steps, loss = _finite(e.val)
    curve = e.val
    if len(loss) < 3:
        curve = e.train
        steps, loss = _finite(curve)
        loss = _smooth(loss)
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


def _restless(e: Evidence) -> float:
    """How much the loss fluctuates around its trend in the last half: standard deviation of its logarithm.

    The validation loss is always measured on the same examples; that of training also has the noise of its batches, so
    it is used only if there are too few validation losses.
    """
    loss = _finite(e.val)[1]
    if len(loss) < 6 or 0 < e.val_examples < 100:
        return 0.0
    half = np.log(np.maximum(loss[len(loss) // 2 :], 1e-12))
    if len(half) < 4:
        return 0.0
    return float(np.median(np.abs(np.diff(half))) / 0.954)  # the median step of normal noise is 0.954 deviations


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# --- the rules ---


def _diverged(e: Evidence) -> Finding | None:
    advice = "Try a lower learning rate (first a tenth), a warm-up, or optim.clip_norm."
    if e.failed:
        return Finding("diverged", "problem", "The training diverged.", e.failed, advice)
    _, loss = _finite(e.train)
    broken = len(e.train.loss) > len(loss) and not np.isfinite(e.train.loss[-1])
    end = _last(e.train)
    if broken:
        why = f"The training loss is not a number at step {int(e.train.steps[-1]):,}."
        return Finding("diverged", "problem", "The training diverged.", why, advice)
    reference = np.fmax(loss[0], e.chance_loss) if len(loss) else math.nan
    if len(loss) >= 3 and end > 3 * reference:
        why = f"The training loss ended at {end:.4g}, far above the initial {reference:.4g}."
        return Finding("diverged", "problem", "The training diverged.", why, advice)
    return None


def _shuffled(e: Evidence) -> Finding | None:
    """Neither the model nor the nearest images can predict the class."""
    train, val = _train(e), _val(e)
    if not e.classes or not val or not train or not _by_chance(val.accuracy, _chance(e), val.examples):
        return None
    p = e.pictures
    told = p is not None and _by_chance(p.vote, _chance(e), p.compared[1])
    own = p.own_vote if p else None
    learnt = train.accuracy > 2 * _chance(e) + 0.2
    if not (told if p else learnt):
        return None
    numbers = f"Validation accuracy {_percent(val.accuracy)} is no better than guessing ({_percent(_chance(e))})"
    if p:
        numbers += f", and the nearest training images predict only {_percent(p.vote)} correctly"
    if learnt:
        numbers += f"; training images are predicted with {_percent(train.accuracy)}: they were memorised"
    if own is not None and p and not _by_chance(own, _chance(e), p.compared[0]):
        numbers += f". Among training images alone, neighbours do predict the class ({_percent(own)})"
        title = "The labels of the validation images do not belong to them."
    else:
        title = "The labels do not belong to the images: they look shuffled."
    advice = (
        "Look at the pictures below with their labels. The usual causes: images and labels were sorted or shuffled "
        "separately, or an index is off by one. If the labels are right, the images do not show their classes."
    )
    return Finding("labels shuffled", "problem", title, f"{numbers}.", advice)


def _shared(e: Evidence) -> Finding | None:
    """A few near copies prove nothing, because some are different pictures; two exact copies do."""
    p = e.pictures
    if p is None or (p.copies * p.compared[1] < 2 and p.near * p.compared[1] < max(3, 0.006 * p.compared[1])):
        return None
    share = min(1.0, p.near / p.expected)
    if share < 0.01:
        return None
    what = f"{_percent(p.copies)} of the validation images are exact copies of training images"
    if p.near > p.copies:
        what += f", {_percent(p.near)} including near copies"
    if p.expected < 0.999:
        what += f", of which {_percent(p.expected)} were compared: with all of them it may be {_percent(share)}"
    return Finding(
        "shared images",
        "problem" if share >= 0.02 else "caution",
        "Training and validation share images: the validation numbers are too good.",
        f"{what}.",
        "Split by what the pictures show (scene, person, film) rather than by file; `prepare --duplicates=drop` leaves "
        "copies out.",
    )


def _rate(e: Evidence) -> Finding | None:
    """The loss exploded during training, or never settles."""
    _, loss = _finite(e.train)
    ends = (f"Validation accuracy ended at {_percent(_last(e.val, 'accuracy'))}." if len(e.val.steps) else "").strip()
    advice = "Try a third or a tenth of the rate, a warm-up, or a schedule that ends near zero."
    late = (
        loss[1:] if len(e.train.steps) and e.train.steps[0] < 5 else loss
    )  # one of the first steps is the initial loss
    if len(late) and not math.isnan(e.chance_loss) and late.max() > 2 * e.chance_loss:
        why = f"The training loss rose to {late.max():.4g}; guessing gives {e.chance_loss:.3g}. {ends}"
        title = "The learning rate is too high: the first steps moved the weights far away."
        return Finding("rate too high", "problem", title, why.strip(), advice)
    train, restless = _train(e), _restless(e)
    learnt = train is not None and train.accuracy > 0.98  # the remaining loss comes from single images
    if restless > 0.2 and not learnt:
        why = (
            f"In the second half the validation loss still jumps by {100 * math.expm1(restless):.0f} % from one "
            f"evaluation to the next. {ends}"
        )
        title = "The learning rate is too high: the training does not settle."
        return Finding("rate too high", "problem", title, why.strip(), advice)
    p = e.pictures
    if e.classes and train and p and _by_chance(train.accuracy, _chance(e), train.examples):
        stays = len(loss) >= 3 and not (_falling(e) or (0, 0))[0] > 0.06
        if stays and not _by_chance(p.vote, _chance(e), p.compared[1]):
            why = (
                f"Training accuracy {_percent(train.accuracy)} is that of guessing, but the nearest images predict "
                f"the class of {_percent(p.vote)}: the labels are not the cause."
            )
            title = "The model learns nothing: dead units, as from too high a learning rate, or no gradient reaches it."
            return Finding("rate too high", "problem", title, why, advice)
    return None


def _small(e: Evidence) -> Finding | None:
    val = _val(e)
    n = e.val_examples
    if not e.classes or val is None or not n:
        return None
    width = half_width(val.accuracy, n)
    if width <= 0.06 and n >= 5 * min(e.classes, 20):
        return None
    return Finding(
        "validation too small",
        "problem" if n < 50 or n < 2 * e.classes else "caution",
        "The validation set is too small to distinguish models.",
        f"With {n:,} images, an accuracy of {_percent(val.accuracy)} means {_percent(val.accuracy)} ± "
        f"{100 * width:.1f} points.",
        "Hold out more images, or use cross-validation; ignore differences smaller than that.",
    )


def _unrepresentative(e: Evidence) -> Finding | None:
    """Validation images with other class frequencies, or a different look; or a very different test accuracy."""
    why = []
    if e.train_counts is not None and e.val_counts is not None and e.train_counts.sum() and e.val_counts.sum():
        n, m = e.train_counts.sum(), e.val_counts.sum()
        p, q = e.train_counts / n, e.val_counts / m
        mean = (e.train_counts + e.val_counts) / (n + m)
        moved = np.abs(p - q).sum() / 2
        drawn = np.sqrt(mean * (1 - mean) * (1 / n + 1 / m) * 2 / math.pi).sum() / 2  # expected of a fair draw
        if moved > 0.1 + 1.5 * drawn:
            missing = int(((e.val_counts == 0) & (e.train_counts > 0)).sum())
            none = f"; {missing:,} classes have no validation image" if missing else ""
            why.append(f"{_percent(moved)} of the validation images would need another class to match training{none}")
    p_ = e.pictures
    if p_ is not None and p_.compared[1]:
        beyond = 4 * 0.29 / math.sqrt(p_.compared[1])
        if p_.further > 0.5 + max(0.2, beyond):
            why.append(
                f"{_percent(p_.further)} of them are further away from the training images than these from each other"
            )
        moved = max(abs(p_.darker), abs(p_.flatter))
        if moved > max(0.8, 4 / math.sqrt(p_.compared[1])):
            kind = "brightness" if abs(p_.darker) >= abs(p_.flatter) else "contrast"
            why.append(f"their {kind} differs by {moved:.1f} standard deviations")
    val, train = _val(e), _train(e)
    if val and e.test and not why:
        gap = val.accuracy - e.test.accuracy
        error = math.hypot(*(half_width(x.accuracy, x.examples) / 1.96 for x in (val, e.test)))
        if abs(gap) > max(0.04, 4 * error):
            why.append(
                f"validation accuracy is {_percent(val.accuracy)}, test accuracy {_percent(e.test.accuracy)}, which is "
                "more than a random difference"
            )
    if not why:
        return None
    text = "; ".join(why)
    return Finding(
        "validation unrepresentative",
        "problem",
        "The validation images are not like the training images.",
        f"{text[0].upper()}{text[1:]}.",
        "Draw validation at random from the same source (not the last part of a sorted data set), unless you want to "
        "measure on a different kind of images." + (" Training accuracy tells little here." if train else ""),
    )


def _early(e: Evidence) -> Finding | None:
    found = _falling(e)
    if found is None or e.ended == "early stop":
        return None
    share, relative = found
    if share < 0.06 or relative < 0.1:
        return None
    done, planned = e.steps
    if done < planned and e.ended != "done":
        title = "The run has not ended, and is still learning."
        advice = "Continue it: the same command resumes it."
    else:
        title = "The training stopped too early: it was still learning."
        advice = "Train longer, or raise the learning rate if the curve is slow and smooth."
    name = "validation" if np.isfinite(e.val.loss).sum() >= 3 else "training"
    why = (
        f"The {name} loss fell by {_percent(min(share, 1.0))} of its total fall in the last part of the training, to "
        f"{_last(e.val if name == 'validation' else e.train):.4g}."
    )
    return Finding("stopped too early", "problem", title, why, advice)


def _over(e: Evidence) -> Finding | None:
    train, val = _train(e), _val(e)
    advice = "More or augmented data, more regularisation (weight decay, dropout), a smaller model, or an earlier stop."
    steps, loss = _finite(e.val)
    risen = bool(len(loss) >= 3 and loss[-1] > 1.2 * loss.min() and np.argmin(loss) < 0.8 * len(loss))
    rise = ""
    if risen:
        rise = (
            f" The validation loss was lowest at step {int(steps[np.argmin(loss)]):,} ({loss.min():.4g}) and has risen "
            f"to {loss[-1]:.4g}."
        )
    if train and val:
        gap = train.accuracy - val.accuracy
        error = math.hypot(*(half_width(x.accuracy, x.examples) / 1.96 for x in (train, val)))
        if gap > max(0.05, 3 * error) and 1 - val.accuracy > 1.5 * (1 - train.accuracy):
            why = (
                f"Training images are predicted with {_percent(train.accuracy)}, validation images with "
                f"{_percent(val.accuracy)}.{rise}"
            )
            return Finding("overfitting", "problem", "The model overfits.", why, advice)
        if risen:
            title = "The validation loss rises again: the model becomes overconfident."
            return Finding("overfitting", "caution", title, rise.strip(), advice)
    elif risen:
        return Finding("overfitting", "problem", "The model overfits.", rise.strip(), advice)
    return None


def _under(e: Evidence) -> Finding | None:
    train, val = _train(e), _val(e)
    if not e.classes or not train or 1 - train.accuracy < 0.1 or (_falling(e) or (0, 0))[0] >= 0.06:
        return None
    if val and 1 - train.accuracy < 0.6 * (1 - val.accuracy):
        return None
    p = e.pictures
    beside = f" The nearest training images alone predict the class of {_percent(p.vote)}." if p else ""
    both = f", and at least as many of validation ({_percent(1 - val.accuracy)})" if val else ""
    return Finding(
        "underfitting",
        "problem",
        "The model underfits: it is wrong even on its training images.",
        f"At the end {_percent(1 - train.accuracy)} of the training images are predicted wrongly{both}, and the loss "
        f"no longer falls.{beside}",
        "A longer training, a larger model, or less regularisation (weight decay, dropout, augmentation).",
    )


def _fine(e: Evidence) -> Finding:
    train, val = _train(e), _val(e)
    told = [f"training accuracy {_percent(train.accuracy)}"] if train else []
    told += [f"validation accuracy {_percent(val.accuracy)}"] if val else []
    if not told and not math.isnan(_last(e.train)):
        told = [f"training loss {_last(e.train):.4g}"]
    if not len(e.train.steps) and not val:
        return Finding("fine", "caution", "There is nothing to diagnose: the run has no records.", "", "")
    if not val and not len(e.val.steps):
        why = f"{', '.join(told)}; without validation data, overfitting cannot be detected."
        return Finding("fine", "fine", "Nothing in the training curve stands out.", why[0].upper() + why[1:], "")
    text = ", ".join(told)
    return Finding("fine", "fine", "Nothing stands out.", f"{text[:1].upper()}{text[1:]}.", "")


# The most important rules come first.
RULES: tuple[Callable[[Evidence], Finding | None], ...] = (
    _diverged, _shuffled, _shared, _rate, _small, _unrepresentative, _early, _over, _under,
)  # fmt: skip
# Findings that another one explains are left out: a model that memorises wrong labels of course overfits.
_EXPLAINS = {
    "diverged": ("rate too high", "stopped too early", "overfitting", "underfitting", "labels shuffled"),
    "labels shuffled": ("rate too high", "stopped too early", "overfitting", "underfitting"),
    "rate too high": ("stopped too early", "overfitting", "underfitting"),
    "validation unrepresentative": ("overfitting",),
    "stopped too early": ("underfitting",),
}
