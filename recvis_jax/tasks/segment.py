"""Semantic segmentation: the class of every pixel."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from recvis_jax import errors
from recvis_jax.data.fields import Field
from recvis_jax.evaluation import mean_iou, metrics
from recvis_jax.tasks import boxes
from recvis_jax.tasks.applying import apply_eval, apply_train, initialiser
from recvis_jax.tasks.task import Batch, Task


def segment(
    model: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    fields: Sequence[Field],
    ignore: int = 255,
    aux_weight: float = 0.5,
) -> Task:
    """Pairs a segmenter with the cross-entropy of its pixels, divided by the number of those that count.

    Args:
      model: `models.segmenters.Segmenter`: `__call__(image, *, train) -> (logits (b h w k), acts)`.
      image_shape: (h, w, c) of the model's input.
      num_classes: of the data.
      fields: of the data: one of kind "map", whose numbers are the classes; or `masks` and `labels` of objects, of
        which class 0 is the background and label l the class l + 1. `frame`, where it is there, says which pixels are
        padding.
      ignore: number in a map that marks pixels of no class.
      aux_weight: weight of the loss of the model's auxiliary head, if it has one (torchvision's 0.5).

    Raises:
      BadRequest: another kind of model, data without maps or masks, or a model of too few classes.
    """
    if not hasattr(model, "head") or not hasattr(model, "backbone"):
        raise errors.BadRequest(f"task 'segment' trains segmenters, such as fcn_r50; {type(model).__name__} is none.")
    own = next((f.name for f in fields if f.kind == "map"), "")
    names = {f.name for f in fields}
    if not own and not {"masks", "labels"} <= names:
        raise errors.BadRequest(
            "task 'segment' needs data with a map of classes, or with masks and labels of objects; these have "
            f"{errors.printable(', '.join(names))[:200]}. config.data.fields names what is read."
        )
    classes = num_classes + (not own)
    if model.num_classes < classes:
        raise errors.BadRequest(
            f"config.model.num_classes={model.num_classes} is less than {classes}"
            f"{'' if own else f', the {num_classes} classes and the background'}."
        )

    def truth(batch: Batch) -> Int[Array, "b h w"]:
        found = jnp.asarray(batch[own], jnp.int32) if own else of_objects(batch["masks"], batch["labels"])
        found = jnp.where(found == ignore, -1, found)
        return jnp.where(boxes.valid_pixels(batch), found, -1) if "frame" in batch else found

    def terms(logits: Array, acts: dict[str, Array], true: Array) -> dict[str, Array]:
        found = {"pixels": pixel_loss(logits, true)}
        if "auxiliary/logits" in acts:
            found["auxiliary"] = pixel_loss(acts["auxiliary/logits"], true)
        return found

    helped = bool(getattr(model, "auxiliary_layer", ""))

    def counts(batch: Batch) -> dict[str, Array]:
        true = truth(batch)
        n = ((true >= 0) & (true < model.num_classes)).sum((1, 2), dtype=jnp.float32)
        return {"pixels": n, **({"auxiliary": n} if helped else {})}

    def loss(params, model_state, batch, key):
        logits, acts, new = apply_train(model, params, model_state, batch, key)
        return terms(logits, acts, truth(batch)), new, {}

    def predict(params, model_state, batch):
        logits, acts = apply_eval(model, params, model_state, batch["image"])
        found = {"map": logits.argmax(-1).astype(jnp.int32)}
        if (own or "masks") in batch:
            true = truth(batch)
            found |= {"truth": true, "terms": terms(logits, acts, true), "counts": counts(batch)}
        return found

    weights = {"auxiliary": aux_weight} if helped else {}
    return Task(
        init=initialiser(model, image_shape),
        loss=loss,
        predict=predict,
        metrics={"loss": metrics.terms(weights), "mIoU": mean_iou.mean_iou(classes)},
        best=("mIoU", "max"),
        counts=counts,
        weights=weights,
        gives="map",
    )


def of_objects(masks: Array, labels: Array) -> Int[Array, "b h w"]:
    """Returns the map of classes of masked objects: 0 for the background, else the label of the last object, plus 1.

    Args:
      masks: (b n h w).
      labels: (b n), below 0 for padding.

    Example:
      >>> masks = jnp.array([[[[True, True]], [[False, True]], [[True, True]]]])
      >>> of_objects(masks, jnp.array([[4, 0, -1]])).tolist()
      [[[5, 1]]]
    """
    there = jnp.asarray(masks, bool) & (labels >= 0)[..., None, None]
    last = jnp.where(there, jnp.arange(1, masks.shape[1] + 1)[:, None, None], 0).max(1)
    padded = jnp.pad(labels + 1, ((0, 0), (1, 0)))
    b = len(masks)
    return jnp.take_along_axis(padded, last.reshape(b, -1), 1).reshape(last.shape).astype(jnp.int32)


def pixel_loss(logits: Float[Array, "b h w k"], true: Int[Array, "b h w"]) -> Float[Array, "b"]:
    """Returns the cross-entropy, in nats, summed over the pixels of each image whose class is in [0, k)."""
    counted = (true >= 0) & (true < logits.shape[-1])
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, true, 0))
    return jnp.where(counted, nats, 0).sum((1, 2))
