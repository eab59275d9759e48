"""Scores images by their sliding windows, like Oquab et al. 2014 with the photographs of PASCAL VOC.

Reference: Oquab, Bottou, Laptev and Sivic 2014, "Learning and transferring mid-level image representations using
convolutional neural networks", section 3.4.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from recvis_jax.errors import BadRequest
from recvis_jax.evaluation import metrics
from recvis_jax.training import processes

POWER = 5.0  # the paper's k, chosen there on the validation images of VOC

_SCALE = 2.0**100  # of powers of probabilities while they are summed in float32, whose maximum is 1e8 times larger


def image_sums(
    scores: Float[Array, "b k"], image: Int[Array, " b"], mask: Bool[Array, " b"], count: int, power: float = POWER
) -> tuple[Float[Array, "n k"], Int[Array, " n"]]:
    """Returns Σ_i y(C_k | P_i)^power over the windows i of each image, and the number of windows; see eq. 3.

    The results of several batches can be added, and their quotient is eq. 3. With a high power, the windows with the
    highest scores decide.

    Args:
      scores: y, the probabilities of the classes in each window.
      image: index of the image that the window belongs to.
      mask: false for windows that do not count.
      count: number of images, n.
      power: the paper's k.
    """
    counted = jnp.where(mask[:, None], scores**power, 0)
    sums = jnp.zeros((count, scores.shape[1]), scores.dtype).at[image].add(counted)
    return sums, jnp.zeros(count, jnp.int32).at[image].add(mask)


def score_map(
    scores: Float[Array, "m k"], windows: Int[Array, "m 4"], height: int, width: int, power: float = POWER
) -> Float[Array, "h w k"]:
    """Returns for every pixel the mean of y^power over the windows that contain it, 0 if none does.

    Args:
      scores: y, the probabilities of the classes in each window of one image.
      windows: ymin xmin ymax xmax in pixels, ends excluded.
      height, width: of the image.
      power: see `image_sums`; 1 for the mean of the probabilities.
    """
    y, x, bottom, right = jnp.asarray(windows).T[..., None]
    rows = ((jnp.arange(height) >= y) & (jnp.arange(height) < bottom)).astype(scores.dtype)
    columns = ((jnp.arange(width) >= x) & (jnp.arange(width) < right)).astype(scores.dtype)
    number = jnp.einsum("mh,mw->hw", rows, columns)
    return jnp.einsum("mh,mw,mk->hwk", rows, columns, scores**power) / jnp.maximum(number, 1)[..., None]


def image_ranking(
    labels: Float[np.ndarray, "n k"], power: float = POWER, mode: Literal["voc11", "all"] = "voc11"
) -> metrics.Metric:
    """The mean average precision of ranking images by the scores of their windows.

    The softmax of the outputs 'logits' (b c) is over all classes; the first k are ranked, so another one may be
    background. A batch's 'label' (b) is the index of the image that the window belongs to.

    Args:
      labels: of the images, multi-hot.
      power: see `image_sums`.
      mode: see `metrics.mean_average_precision`, also for the reported values.

    Raises:
      BadRequest: a power of 0 or less, or outputs with fewer than k classes.
    """
    if power <= 0:
        raise BadRequest(f"windows: the power is {power}; it must be above 0.")
    count, num_classes = labels.shape
    ranking = metrics.mean_average_precision(num_classes, mode)

    def update(outputs: metrics.Arrays, batch: metrics.Arrays) -> Any:
        logits = jnp.asarray(outputs["logits"], jnp.float32)
        if logits.shape[1] < num_classes:
            raise BadRequest(f"the model has {logits.shape[1]} outputs; the images have {num_classes} classes.")
        # Images without the class are ranked too: 1e-9 ** 5 must be a float32 above 0.
        scores = jax.nn.softmax(logits)[:, :num_classes] * _SCALE ** (1 / power)
        mask = jnp.asarray(batch["mask"], bool)
        sums, counts = image_sums(scores, jnp.asarray(batch["label"]), mask, count, power)
        return {"sum": sums, "count": counts}

    def compute(state: Any) -> metrics.Values:
        if not (seen := np.asarray(state["count"]) > 0).all():
            raise BadRequest(f"{int((~seen).sum())} of {count} images have no windows.")
        scores = np.asarray(state["sum"]) / _SCALE / np.asarray(state["count"])[:, None]
        return ranking.compute({"scores": scores, "labels": labels, "mask": seen})

    return metrics.Metric(update, "sum", compute)


def evaluate(
    predict: Callable[[Any, Any, dict], dict],
    metric: metrics.Metric,
    preprocess: Callable[[dict], dict],
    mesh: Mesh,
    params: Any,
    model_state: Any,
    batches: Iterable[dict],
) -> metrics.Values:
    """Returns the metric's values over all windows of all images.

    Args:
      predict: of a `Task` whose outputs are logits.
      metric: from `image_ranking`.
      preprocess: batch -> input of the model.
      mesh: devices; the sums are replicated over it.
      params, model_state: of the model.
      batches: of windows, each with its image's index as 'label'.
    """

    def update(params: Any, model_state: Any, batch: dict) -> Any:
        batch = preprocess(batch)
        return {"windows": metric.update(predict(params, model_state, batch), batch)}

    compiled = processes.compiled_together(jax.jit(update, out_shardings=NamedSharding(mesh, PartitionSpec())))
    return metrics.accumulate({"windows": metric}, (compiled(params, model_state, batch) for batch in batches))
