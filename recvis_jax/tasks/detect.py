"""Detection by set prediction: every object is given one query, and all other queries say that there is nothing."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from recvis_jax import errors
from recvis_jax.data.fields import Field
from recvis_jax.evaluation import coco_ap, metrics
from recvis_jax.tasks import boxes, matching
from recvis_jax.tasks.applying import apply_train, initialiser
from recvis_jax.tasks.task import Batch, Task

TERMS = ("classes", "l1", "giou")


def detect(
    model: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    fields: Sequence[Field],
    no_object: float = 0.1,
    l1: float = 5.0,
    giou: float = 2.0,
    auxiliary: bool = True,
    nms: float = 0.0,
    soft_nms: float = 0.0,
) -> Task:
    """Pairs DETR with its set loss.

    Every image's objects are assigned to queries at least cost. A query learns its object's class and box; the others
    learn "no object". All decoder layers are matched and trained, each for itself. The cross-entropy is divided by the
    sum of the class weights (1, `no_object`), the losses of boxes by the number of boxes, over the global batch.

    Args:
      model: `models.detr.DETR`.
      image_shape: (h, w, c) of the model's input.
      num_classes: k.
      fields: of the data: `boxes` and `labels`. Others are used where they are there: `crowd` (not learnt, and ignored
        in evaluation), `frame` (where the picture lies in its padding), `size` and `area` (evaluation in pixels of the
        picture as it was), `difficult`.
      no_object: weight of "no object" in the cross-entropy.
      l1, giou: weights of the two losses of boxes, and of both in the matching.
      auxiliary: whether all decoder layers are trained; otherwise only the last.
      nms: intersection over union from which the worse of two predictions of a class is left out; 0 for never, as DETR
        needs none.
      soft_nms: sigma of soft suppression, which lowers scores by overlap (`boxes.softened`); 0 for never.

    Raises:
      BadRequest: another kind of model, data without boxes, more objects in an image than queries, or two kinds of
        suppression.

    Reference: Carion et al. 2020, "End-to-end object detection with transformers", section 3.1.
    """
    if nms < 0 or soft_nms < 0 or (nms and soft_nms):
        raise errors.BadRequest(
            f"task.nms={nms} and task.soft_nms={soft_nms}: neither may be below 0, and at most one above it."
        )
    if not hasattr(model, "queries"):
        raise errors.BadRequest(f"task 'detect' trains DETR, such as detr_r50; {type(model).__name__} has no queries.")
    most = check_fields(fields, "detect")
    if most > model.queries:
        raise errors.BadRequest(
            f"an image has up to {most} objects, and the model {model.queries} queries: set "
            f"config.model.queries={most}, or fewer objects by config.data.most_objects."
        )
    layers = [f"decoder{i}" for i in range(model.decoder_depth - 1)] if auxiliary else []
    set_loss = partial(_set_losses, no_object=no_object, l1=l1, giou=giou)

    def terms(acts: dict[str, Array], batch: Batch) -> dict[str, Array]:
        logits = [acts["logits"], *(acts[f"{layer}/logits"] for layer in layers)]
        placed = [acts["boxes"], *(acts[f"{layer}/boxes"] for layer in layers)]
        found = set_loss(jnp.stack(logits), jnp.stack(placed), batch)  # one search for all layers
        others = {f"auxiliary_{t}": found[t][1:].sum(0) for t in TERMS if layers}
        return {t: found[t][0] for t in TERMS} | others

    def counts(batch: Batch) -> dict[str, Array]:
        n = boxes.targets(batch).valid.sum(1, dtype=jnp.float32)
        found = {"classes": n + no_object * (model.queries - n), "l1": n, "giou": n}
        return found | {f"auxiliary_{t}": x for t, x in found.items() if layers}

    def loss(params, model_state, batch, key):
        _, acts, new = apply_train(model, params, model_state, padded(batch), key, **valid_of(batch))
        return terms(acts, batch), new, {}

    def predict(params, model_state, batch):
        variables = {"params": params, **model_state}
        logits, acts = model.apply(variables, padded(batch)["image"], train=False, **valid_of(batch))
        p = jax.nn.softmax(logits)[..., :-1]
        found = {"boxes": boxes.absolute(boxes.corners(acts["boxes"]), boxes.region(batch))}
        found |= {"labels": p.argmax(-1).astype(jnp.int32), "scores": p.max(-1)}
        if nms:
            found["scores"] = jax.vmap(partial(boxes.suppressed, threshold=nms))(
                found["boxes"], found["scores"], found["labels"]
            )
        if soft_nms:
            soften = jax.vmap(partial(boxes.softened, sigma=soft_nms))
            found["scores"] = soften(found["boxes"], found["scores"], found["labels"])
        if "boxes" in batch:
            found |= {"terms": terms(acts, batch), "counts": counts(batch)}
        return found

    weights = {"l1": l1, "giou": giou}
    weights |= {f"auxiliary_{t}": w for t, w in weights.items() if layers}
    return Task(
        init=initialiser(model, image_shape),
        loss=loss,
        predict=predict,
        metrics={"loss": metrics.terms(weights), "ap": coco_ap.coco(num_classes)},
        best=("AP", "max"),
        counts=counts,
        weights=weights,
        gives="boxes",
    )


def check_fields(fields: Sequence[Field], task: str) -> int:
    """Returns the most objects of an image.

    Raises:
      BadRequest: the data have no boxes with labels.
    """
    there = {f.name: f for f in fields}
    if "boxes" not in there or "labels" not in there:
        raise errors.BadRequest(
            f"task '{task}' needs data with boxes and labels; these have "
            f"{errors.printable(', '.join(there))[:200] or 'an image and a label'}. config.data.fields names what is "
            "read of a data set with objects, as ('image', 'boxes', 'labels', 'size', 'frame')."
        )
    return there["boxes"].most or 0


def padded(batch: Batch) -> Batch:
    """Returns the batch with zeros, the mean colour, where an image shows nothing of its picture."""
    if "frame" not in batch:
        return batch
    return {**batch, "image": jnp.where(boxes.valid_pixels(batch)[..., None], batch["image"], 0)}


def valid_of(batch: Batch) -> dict[str, Any]:
    """Returns the model's argument `valid` where the pictures are padded."""
    return {"valid": boxes.valid_pixels(batch)} if "frame" in batch else {}


def _set_losses(
    logits: Float[Array, "l b q k"], predicted: Float[Array, "l b q 4"], batch: Batch, **weights: float
) -> dict[str, Float[Array, "l b"]]:
    """Returns the losses of the decoder layers' predictions, summed over each image's queries or objects."""
    true = boxes.targets(batch)
    placed = boxes.centred(boxes.relative(true.boxes, boxes.region(batch)))

    def of_image(*image: Array) -> dict[str, Array]:
        return set_losses(*image, **weights)

    of_layer = jax.vmap(of_image)
    return jax.vmap(lambda *layer: of_layer(*layer, true.labels, placed, true.valid))(logits, predicted)


def set_losses(
    logits: Float[Array, "q k"],
    predicted: Float[Array, "q 4"],
    labels: Int[Array, "n"],
    true: Float[Array, "n 4"],
    valid: Array,
    *,
    no_object: float = 0.1,
    l1: float = 5.0,
    giou: float = 2.0,
) -> dict[str, Float[Array, ""]]:
    """Returns the losses of an image: sums over queries (`classes`) and over objects (`l1`, `giou`), not yet divided.

    Args:
      logits: of the classes, "no object" last.
      predicted, true: centre, width and height, as fractions of the picture.
      labels: classes of the objects.
      valid: which objects there are.
      no_object: weight of the queries without an object.
      l1, giou: weights in the matching; the losses are not multiplied by them.
    """
    cost = matching.costs(logits, predicted, labels, true, l1=l1, giou=giou)
    query = matching.assign(jax.lax.stop_gradient(cost), valid)
    nothing = logits.shape[1] - 1
    place = jnp.where(valid, query, len(logits))  # outside, where nothing is set
    classes = jnp.full(len(logits), nothing).at[place].set(labels, mode="drop")
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), classes[:, None], 1)[:, 0]
    found = predicted[query]
    distance = jnp.abs(found - true).sum(-1)
    overlap = boxes.overlaps(boxes.corners(found), boxes.corners(true))[1]
    return {
        "classes": jnp.where(classes == nothing, no_object, 1.0) @ nats,
        "l1": jnp.where(valid, distance, 0).sum(),
        "giou": jnp.where(valid, 1 - overlap, 0).sum(),
    }
