"""An objective: pure functions of a built model, and how its losses are divided."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax

from recvis_jax import errors
from recvis_jax.evaluation.metrics import Metric

Batch = dict[str, Any]  # arrays of numpy, or traced


class Task(NamedTuple):
    """A built model paired with an objective.

    The loss of a global batch is `sum_t weight_t * (sum of term t) / (sum of the counts of term t)`. Both sums run over
    all examples of the global batch before the division. So the result is the same as on one device, even if devices,
    hosts and micro-batches have unequal numbers of tokens or boxes.

    Attributes:
      init: key -> variables: `params` and the model's other collections.
      loss: (params, model_state, batch, key) -> (terms {name: (b,) float32}, new model_state, metrics {name: (b,)}), in
        training mode. A term is each example's sum over its tokens or boxes, not yet masked or divided. A metric is
        averaged over examples, or is a pair (sums (b,), counts (b,)).
      predict: (params, model_state, batch) -> {"logits" or "prediction": (b k), ...}, in evaluation mode.
      metrics: {name: metric computed in evaluation}; "loss" is among them.
      best: the validation metric that decides which checkpoint is best, and "max" or "min".
      counts: batch -> {term: (b,)}, the number of tokens, boxes, visible points or valid pixels of each example, by
        whose sum a term is divided. It may depend only on the targets. None: all terms are means over examples.
      weights: {term: its weight}; 1 for terms that are not named.
      couples_examples: whether the loss of an example depends on other examples of its batch (a contrastive loss), so
        that the batch cannot be cut.
      gives: what `predict` gives: "classes", "numbers", "boxes" (`boxes` (b q 4) in pixels of the image, `labels` and
        `scores` (b q)), "map" (`map` (b h w), a class a pixel), or "other".
      figure: (params, model_state, batch) -> {title: images (b h w c), scaled like the model's input}, columns of a
        figure that shows what was learned; None if there is nothing to show.
      generate: (params, model_state, keys (b,), **options) -> an example for every key; None if it generates nothing.
    """

    init: Callable[[jax.Array], dict[str, Any]]
    loss: Callable[[Any, Any, Batch, jax.Array], tuple[dict[str, jax.Array], Any, dict[str, Any]]]
    predict: Callable[[Any, Any, Batch], dict[str, jax.Array]]
    metrics: Mapping[str, Metric]
    best: tuple[str, str]
    counts: Callable[[Batch], dict[str, jax.Array]] | None = None
    weights: Mapping[str, float] = MappingProxyType({})
    couples_examples: bool = False
    gives: Literal["classes", "numbers", "boxes", "map", "other"] = "other"
    figure: Callable[[Any, Any, Batch], dict[str, jax.Array]] | None = None
    generate: Callable[..., Any] | None = None


def refuse_cutting(task: Task, accumulate: int, compile: str) -> None:
    """Refuses to cut the batch of a loss that couples its examples.

    Raises:
      BadRequest: `accumulate` is above 1 or `compile` is "pmap", and the task's loss couples the examples.
    """
    if task.couples_examples and (accumulate > 1 or compile == "pmap"):
        what = f"accumulate={accumulate}" if accumulate > 1 else "compile='pmap'"
        raise errors.BadRequest(
            f"{what} cuts the batch, but this loss compares its examples with each other: use compile='jit' without "
            "accumulation; the batch may still be split over any number of devices."
        )
