"""Detection by centre points: a map of where the centres of each class are, and the sizes of boxes there."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from recvis_jax import errors
from recvis_jax.data.fields import Field
from recvis_jax.evaluation import coco_ap, metrics
from recvis_jax.operations import max_pool
from recvis_jax.tasks import boxes
from recvis_jax.tasks.applying import apply_train, initialiser
from recvis_jax.tasks.detect import check_fields, padded, valid_of
from recvis_jax.tasks.task import Batch, Task


def centre(
    model: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    fields: Sequence[Field],
    size_weight: float = 0.1,
    least_overlap: float = 0.7,
    most: int = 100,
) -> Task:
    """Pairs a centre-point detector with its losses, all divided by the number of objects of the global batch.

    The map learns a Gaussian around each centre by a focal loss; sizes and offsets are learnt at the centres, by L1 (in
    places of the map). Found are the places that no neighbour exceeds, the best `most` of them.

    Args:
      model: `models.centre.CentrePoints`.
      image_shape: (h, w, c) of the model's input.
      num_classes: k.
      fields: of the data, as in `detect`.
      size_weight: weight of the sizes' loss.
      least_overlap: intersection over union of boxes whose centre lies at the Gaussian's edge, in (0, 1).
      most: detections of an image.

    Raises:
      BadRequest: another kind of model, or data without boxes.

    Reference: Zhou, Wang & Krähenbühl 2019, "Objects as points", section 3; Law & Deng 2018, "CornerNet", section 3.2.
    """
    if not hasattr(model, "stride") or not hasattr(model, "backbone"):
        raise errors.BadRequest(
            f"task 'centre' trains centre-point detectors, such as centre_r18; {type(model).__name__} is none."
        )
    if not 0 < least_overlap < 1:
        raise errors.BadRequest(f"task.least_overlap={least_overlap} is outside (0, 1).")
    check_fields(fields, "centre")
    h, w = (n // model.stride for n in image_shape[:2])
    most = min(most, h * w * num_classes)

    def terms(logits: Array, acts: dict[str, Array], batch: Batch) -> dict[str, Array]:
        true = boxes.targets(batch)
        placed = boxes.centred(true.boxes) / model.stride
        heat = jax.vmap(partial(heat_map, size=logits.shape[1:], overlap=least_overlap))(
            placed, true.labels, true.valid
        )
        x, y = (places(placed[..., i], n) for i, n in ((0, logits.shape[2]), (1, logits.shape[1])))
        rows = jnp.arange(len(x))[:, None]
        sizes = jnp.abs(acts["sizes"][rows, y, x] / model.stride - placed[..., 2:]).sum(-1)
        offsets = jnp.abs(acts["offsets"][rows, y, x] - (placed[..., :2] - jnp.stack([x, y], -1))).sum(-1)
        out = {"offsets": offsets, "sizes": sizes}
        found = {name: jnp.where(true.valid, value, 0).sum(1) for name, value in out.items()}
        return {"centres": focal_loss(logits, heat), **found}

    def counts(batch: Batch) -> dict[str, Array]:
        n = boxes.targets(batch).valid.sum(1, dtype=jnp.float32)
        return dict.fromkeys(("centres", "offsets", "sizes"), n)

    def loss(params, model_state, batch, key):
        logits, acts, new = apply_train(model, params, model_state, padded(batch), key, **valid_of(batch))
        return terms(logits, acts, batch), new, {}

    def predict(params, model_state, batch):
        variables = {"params": params, **model_state}
        logits, acts = model.apply(variables, padded(batch)["image"], train=False, **valid_of(batch))
        found = peaks(logits, acts["sizes"], acts["offsets"], model.stride, most)
        if "boxes" in batch:
            found |= {"terms": terms(logits, acts, batch), "counts": counts(batch)}
        return found

    weights = {"sizes": size_weight}
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


def places(coordinates: Float[Array, "*n"], size: int) -> Int[Array, "*n"]:
    """Returns the places of a map of `size` in which coordinates lie."""
    return jnp.clip(jnp.floor(coordinates).astype(jnp.int32), 0, size - 1)


def radius(width: Float[Array, "*n"], height: Float[Array, "*n"], overlap: float) -> Float[Array, "*n"]:
    """Returns by how far both corners of a box may move so that it still overlaps the true one that much.

    The least of three cases: both corners move one way, both inward, both outward.

    Example:
      >>> round(float(radius(jnp.array(10.0), jnp.array(10.0), 0.5)), 3)  # inward: (10 - 2 r)^2 / 10^2 = 0.5
      1.464

    Reference: Law & Deng 2018, "CornerNet: detecting objects as paired keypoints", section 3.2 and figure 5. (Its code
      divides by 2 where a is not 1; here the equations are solved.)
    """
    total, product = width + height, width * height
    one_way = (total - jnp.sqrt(total**2 - 4 * product * (1 - overlap) / (1 + overlap))) / 2
    inward = (total - jnp.sqrt(total**2 - 4 * (1 - overlap) * product)) / 4
    outward = (jnp.sqrt(total**2 + 4 * (1 - overlap) / overlap * product) - total) / 4
    return jnp.minimum(jnp.minimum(one_way, inward), outward)


def heat_map(
    placed: Float[Array, "n 4"], labels: Int[Array, "n"], valid: Array, *, size: tuple[int, ...], overlap: float
) -> Float[Array, "h w k"]:
    """Returns the map that is learnt: 1 at centres, falling as a Gaussian around them, the largest of several.

    Args:
      placed: centre, width and height of the objects, in places of the map.
      labels: their classes.
      valid: which objects there are.
      size: (h, w, k) of the map.
      overlap: see `radius`; three standard deviations are that radius and half a place.
    """
    h, w, k = size
    x, y = places(placed[:, 0], w), places(placed[:, 1], h)
    r = jnp.floor(jnp.maximum(radius(placed[:, 2], placed[:, 3], overlap), 0))
    sigma = ((2 * r + 1) / 6)[:, None, None]
    down = jnp.arange(h)[None, :, None] - y[:, None, None]
    right = jnp.arange(w)[None, None] - x[:, None, None]
    near = (jnp.maximum(jnp.abs(down), jnp.abs(right)) <= r[:, None, None]) & valid[:, None, None]
    bumps = jnp.where(near, jnp.exp(-(down**2 + right**2) / (2 * sigma**2)), 0.0)
    return jnp.zeros((k, h, w)).at[labels].max(bumps).transpose(1, 2, 0)


def focal_loss(logits: Float[Array, "b h w k"], heat: Float[Array, "b h w k"]) -> Float[Array, "b"]:
    """Returns -sum of (1 - p)^2 log p at centres and (1 - heat)^4 p^2 log(1 - p) elsewhere, of each image.

    Reference: Zhou, Wang & Krähenbühl 2019, eq. 1; Lin et al. 2017, "Focal loss for dense object detection".
    """
    p, yes, no = jax.nn.sigmoid(logits), jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    out = jnp.where(heat == 1, (1 - p) ** 2 * yes, (1 - heat) ** 4 * p**2 * no)
    return -out.sum((1, 2, 3))


def peaks(
    logits: Float[Array, "b h w k"],
    sizes: Float[Array, "b h w 2"],
    offsets: Float[Array, "b h w 2"],
    stride: int,
    most: int,
) -> dict[str, Array]:
    """Returns the best local maxima of the map as `boxes` (b q 4) in pixels, `labels` and `scores` (b q)."""
    b, _, w, k = logits.shape
    p = jax.nn.sigmoid(logits)
    kept = jnp.where(max_pool(p, 3, 1, padding=1) == p, p, 0.0)
    scores, index = jax.lax.top_k(kept.reshape(b, -1), most)
    place, labels = index // k, index % k
    size, offset = (jnp.take_along_axis(m.reshape(b, -1, 2), place[..., None], 1) for m in (sizes, offsets))
    middle = (jnp.stack([place % w, place // w], -1) + offset) * stride
    return {"boxes": boxes.corners(jnp.concatenate([middle, size], -1)), "labels": labels, "scores": scores}
