"""Diagnoses a training in words, from its curves, its model's predictions of single examples, and its images.

Every rule is a function of the evidence that returns a finding or None. `RULES` lists them, the most important first;
the first finding is the headline. A rule ignores evidence that was not measured, so a run without its data is still
diagnosed by its curves. The thresholds are meant for common mistakes, not for differences of a point of accuracy.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from recvis_jax.evaluation import symptoms
from recvis_jax.evaluation.symptoms import Evidence

Level = Literal["problem", "caution", "fine"]


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
      >>> from recvis_jax.evaluation.symptoms import Curve
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


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _diverged(e: Evidence) -> Finding | None:
    advice = "Try a lower learning rate (first a tenth), a warm-up, or optim.clip_norm."
    if e.failed:
        return Finding("diverged", "problem", "The training diverged.", e.failed, advice)
    _, loss = symptoms.finite(e.train)
    broken = len(e.train.loss) > len(loss) and not np.isfinite(e.train.loss[-1])
    end = symptoms.last(e.train)
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
    train, val = symptoms.train_accuracy(e), symptoms.val_accuracy(e)
    if not e.classes or not val or not train or not symptoms.by_chance(val.accuracy, symptoms.chance(e), val.examples):
        return None
    p = e.pictures
    told = p is not None and symptoms.by_chance(p.vote, symptoms.chance(e), p.compared[1])
    own = p.own_vote if p else None
    learnt = train.accuracy > 2 * symptoms.chance(e) + 0.2
    if not (told if p else learnt):
        return None
    guessing = _percent(symptoms.chance(e))
    numbers = f"Validation accuracy {_percent(val.accuracy)} is no better than guessing ({guessing})"
    if p:
        numbers += f", and the nearest training images predict only {_percent(p.vote)} correctly"
    if learnt:
        numbers += f"; training images are predicted with {_percent(train.accuracy)}: they were memorised"
    if own is not None and p and not symptoms.by_chance(own, symptoms.chance(e), p.compared[0]):
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
    _, loss = symptoms.finite(e.train)
    accuracy = _percent(symptoms.last(e.val, "accuracy"))
    ends = f"Validation accuracy ended at {accuracy}." if len(e.val.steps) else ""
    advice = "Try a third or a tenth of the rate, a warm-up, or a schedule that ends near zero."
    late = (
        loss[1:] if len(e.train.steps) and e.train.steps[0] < 5 else loss
    )  # one of the first steps is the initial loss
    if len(late) and not math.isnan(e.chance_loss) and late.max() > 2 * e.chance_loss:
        why = f"The training loss rose to {late.max():.4g}; guessing gives {e.chance_loss:.3g}. {ends}"
        title = "The learning rate is too high: the first steps moved the weights far away."
        return Finding("rate too high", "problem", title, why.strip(), advice)
    train, restless = symptoms.train_accuracy(e), symptoms.restless(e)
    learnt = train is not None and train.accuracy > 0.98  # the remaining loss comes from single images
    if restless > 0.2 and not learnt:
        why = (
            f"In the second half the validation loss still jumps by {100 * math.expm1(restless):.0f} % from one "
            f"evaluation to the next. {ends}"
        )
        title = "The learning rate is too high: the training does not settle."
        return Finding("rate too high", "problem", title, why.strip(), advice)
    p = e.pictures
    if e.classes and train and p and symptoms.by_chance(train.accuracy, symptoms.chance(e), train.examples):
        stays = len(loss) >= 3 and not (symptoms.falling(e) or (0, 0))[0] > 0.06
        if stays and not symptoms.by_chance(p.vote, symptoms.chance(e), p.compared[1]):
            why = (
                f"Training accuracy {_percent(train.accuracy)} is that of guessing, but the nearest images predict "
                f"the class of {_percent(p.vote)}: the labels are not the cause."
            )
            title = "The model learns nothing: dead units, as from too high a learning rate, or no gradient reaches it."
            return Finding("rate too high", "problem", title, why, advice)
    return None


def _small(e: Evidence) -> Finding | None:
    val = symptoms.val_accuracy(e)
    n = e.val_examples
    if not e.classes or val is None or not n:
        return None
    width = symptoms.half_width(val.accuracy, n)
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
    val, train = symptoms.val_accuracy(e), symptoms.train_accuracy(e)
    if val and e.test and not why:
        gap = val.accuracy - e.test.accuracy
        error = math.hypot(*(symptoms.half_width(x.accuracy, x.examples) / 1.96 for x in (val, e.test)))
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
    found = symptoms.falling(e)
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
        f"{symptoms.last(e.val if name == 'validation' else e.train):.4g}."
    )
    return Finding("stopped too early", "problem", title, why, advice)


def _over(e: Evidence) -> Finding | None:
    train, val = symptoms.train_accuracy(e), symptoms.val_accuracy(e)
    advice = "More or augmented data, more regularisation (weight decay, dropout), a smaller model, or an earlier stop."
    steps, loss = symptoms.finite(e.val)
    risen = bool(len(loss) >= 3 and loss[-1] > 1.2 * loss.min() and np.argmin(loss) < 0.8 * len(loss))
    rise = ""
    if risen:
        rise = (
            f" The validation loss was lowest at step {int(steps[np.argmin(loss)]):,} ({loss.min():.4g}) and has risen "
            f"to {loss[-1]:.4g}."
        )
    if train and val:
        gap = train.accuracy - val.accuracy
        error = math.hypot(*(symptoms.half_width(x.accuracy, x.examples) / 1.96 for x in (train, val)))
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
    train, val = symptoms.train_accuracy(e), symptoms.val_accuracy(e)
    if not e.classes or not train or 1 - train.accuracy < 0.1 or (symptoms.falling(e) or (0, 0))[0] >= 0.06:
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
    train, val = symptoms.train_accuracy(e), symptoms.val_accuracy(e)
    told = [f"training accuracy {_percent(train.accuracy)}"] if train else []
    told += [f"validation accuracy {_percent(val.accuracy)}"] if val else []
    if not told and not math.isnan(symptoms.last(e.train)):
        told = [f"training loss {symptoms.last(e.train):.4g}"]
    if not len(e.train.steps) and not val:
        return Finding("fine", "caution", "There is nothing to diagnose: the run has no records.", "", "")
    if not val and not len(e.val.steps):
        why = f"{', '.join(told)}; without validation data, overfitting cannot be detected."
        return Finding("fine", "fine", "Nothing in the training curve stands out.", why[0].upper() + why[1:], "")
    if e.classes and val and symptoms.by_chance(val.accuracy, symptoms.chance(e), val.examples):
        why = f"Validation accuracy {_percent(val.accuracy)} is no better than guessing after {e.steps[0]:,} steps."
        advice = "Train longer; if it stays so, try other learning rates, and look at images with their labels."
        return Finding("nothing learnt", "caution", "Nothing is learnt yet.", why, advice)
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
