"""Classification: one class per image, or several (multi-label)."""

import functools
import math
import re
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from recvis_jax import errors
from recvis_jax.evaluation import metrics
from recvis_jax.tasks import losses
from recvis_jax.tasks.applying import apply_eval, apply_train, initialiser
from recvis_jax.tasks.task import Task

_TAKES = {
    "softmax": ("label_smoothing",),
    "sigmoid": ("label_smoothing",),
    "l1": (),
    "l2": (),
    "huber": ("delta",),
}
_AUX_WEIGHT = 0.3
_AUX_HEAD = re.compile(r"aux\d+/logits")


def classify(
    model: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    multi_label: bool = False,
    loss: str | None = None,
    label_smoothing: float = 0.0,
    delta: float = 1.0,
    aux_weight: float = _AUX_WEIGHT,
    views: Literal["one", "mirror", "mirror_shift"] = "one",
) -> Task:
    """Pairs a model of `num_classes` outputs with a classification loss.

    Args:
      model: `__call__(image, *, train) -> (logits (b k), acts)`.
      image_shape: (h, w, c) of the model's input.
      num_classes: k.
      multi_label: labels are multi-hot (b k).
      loss: a name of `losses.LOSSES`; None means "softmax", or "sigmoid" for multi-label data. "l1", "l2" and "huber"
        fit the outputs to the one-hot label, as early perceptrons were trained.
      label_smoothing: in [0, 1), for "softmax" and "sigmoid".
      delta: error at which Huber's loss becomes linear.
      aux_weight: weight of the losses of auxiliary heads, for models with the attribute `aux_logits` (GoogLeNet): acts
        "aux1/logits", "aux2/logits", ... (b k). Added to the loss in training; evaluation ignores these heads
        (Szegedy et al. 2015, "Going deeper with convolutions", section 5).
      views: predictions are averaged over views of an image: "one" is the image itself, "mirror" adds its mirror image,
        "mirror_shift" also adds both shifted by one pixel up and left, and down and right, with half the weight
        (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.5).
    """
    loss = loss or ("sigmoid" if multi_label else "softmax")
    function = errors.choose(losses.LOSSES, loss, "loss")
    if multi_label and loss == "softmax":
        raise errors.BadRequest("task.loss='softmax' needs one class per image; multi-hot labels need 'sigmoid'.")
    given = {"label_smoothing": label_smoothing, "delta": delta}
    defaults = {"label_smoothing": 0.0, "delta": 1.0}
    for name, value in given.items():
        if value != defaults[name] and name not in _TAKES[loss]:
            raise errors.BadRequest(f"task.{name}={value} is not used by task.loss={loss!r}.")
    if not 0 <= label_smoothing < 1:
        raise errors.BadRequest(f"task.label_smoothing={label_smoothing} is outside [0, 1).")
    # Look at the model, not at its acts: a probe's acts include the auxiliary heads of its backbone.
    auxiliary = bool(getattr(model, "aux_logits", False))
    if not 0 <= aux_weight < math.inf:
        raise errors.BadRequest(f"task.aux_weight={aux_weight} is not a number of at least 0.")
    if aux_weight != _AUX_WEIGHT and not auxiliary:
        raise errors.BadRequest(f"task.aux_weight={aux_weight}: {type(model).__name__} has no auxiliary heads.")
    train_loss = functools.partial(function, **{k: given[k] for k in _TAKES[loss]})
    eval_loss = functools.partial(function, **{k: given[k] for k in _TAKES[loss] if k != "label_smoothing"})

    def correct(logits: jax.Array, label: jax.Array) -> jax.Array:
        if multi_label:
            known = label >= 0  # -1 marks an entry to ignore
            return jnp.where(known, (logits > 0) == (label > 0.5), 0).sum(-1) / jnp.maximum(known.sum(-1), 1)
        truth = label if label.ndim == 1 else label.argmax(-1)
        return ((logits.argmax(-1) == truth) & ~jnp.isnan(logits).any(-1)).astype(jnp.float32)

    def train(params, model_state, batch, key):
        logits, acts, new = apply_train(model, params, model_state, batch, key)
        total = train_loss(logits, batch["label"])
        for name, head in acts.items():
            if auxiliary and _AUX_HEAD.fullmatch(name):
                total = total + aux_weight * train_loss(head, batch["label"])
        return {"loss": total}, new, {"accuracy": correct(logits, batch["label"])}

    def predict(params, model_state, batch):
        seen = [(apply_eval(model, params, model_state, x)[0], w) for x, w in _views(batch["image"], views)]
        return {"logits": sum(logits * w for logits, w in seen)}

    measured = {"loss": metrics.loss(eval_loss)}
    if multi_label:
        measured["mean_average_precision"] = metrics.mean_average_precision(num_classes)
    else:
        measured["accuracy"] = metrics.accuracy()
        if num_classes > 5:
            measured["top_5"] = metrics.top_k(5)
    return Task(
        init=initialiser(model, image_shape),
        loss=train,
        predict=predict,
        metrics=measured,
        best=("mean_average_precision", "max") if multi_label else ("accuracy", "max"),
        gives="classes",
    )


def _views(image: jax.Array, kind: str) -> list[tuple[jax.Array, float]]:
    """Returns the views of images (b h w c) and their weights, which sum to 1."""
    views = [(image, 1.0)]
    if kind != "one":
        views = [(image, 0.5), (image[:, :, ::-1], 0.5)]
    if kind == "mirror_shift":
        h, w = image.shape[1:3]
        for x, weight in list(views):
            padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
            views += [(padded[:, i : i + h, i : i + w], weight / 4) for i in (0, 2)]
        views[:2] = [(x, weight / 2) for x, weight in views[:2]]
    return views
