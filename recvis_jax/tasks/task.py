"""What an objective is: pure functions of a built model, and how its losses are divided."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax

from recvis_jax import errors
from recvis_jax.evaluation.metrics import Metric

Batch = dict[str, Any]  # arrays, of numpy or of a trace


class Task(NamedTuple):
    """A built model paired with an objective.

    The loss of a global batch is `sum_t weight_t * (sum of term t) / (sum of what term t counts)`. Both sums run over
    all examples of the global batch before anything is divided, so that devices, hosts and micro-batches that hold
    unequal numbers of tokens or boxes give the numbers of one device.

    Attributes:
      init: key -> variables: `params` and the model's other collections.
      loss: (params, model_state, batch, key) -> (terms {name: (b,) float32}, new model_state, metrics {name: (b,)}), in
        training mode. A term holds each example's own sum, over its tokens or boxes; nobody has masked or divided
        anything yet. A metric is a mean over examples, or a pair (sums (b,), counts (b,)).
      predict: (params, model_state, batch) -> {"logits" or "prediction": (b k), ...}, in evaluation mode.
      metrics: {name: what is measured in evaluation}; "loss" is among them.
      best: the validation metric that decides which checkpoint is best, and "max" or "min".
      counts: batch -> {term: (b,)}, what the sum of each term is divided by (tokens, boxes, visible points, valid
        pixels of each example), of the targets alone; None where all terms are means over examples.
      weights: {term: its weight}; 1 where a term is not named.
      couples_examples: whether the loss of an example depends on the others of its batch (a contrastive loss), so that
        the batch cannot be cut.
      gives: what `predict` gives: "classes", "numbers", or "other".
      figure: (params, model_state, batch) -> {title: images (b h w c) as the model is given them}, columns of a figure
        that shows what was learned; None where there is nothing to see.
      generate: (params, model_state, batch, key) -> sequences, for objectives that write them; else None.
    """

    init: Callable[[jax.Array], dict[str, Any]]
    loss: Callable[[Any, Any, Batch, jax.Array], tuple[dict[str, jax.Array], Any, dict[str, Any]]]
    predict: Callable[[Any, Any, Batch], dict[str, jax.Array]]
    metrics: Mapping[str, Metric]
    best: tuple[str, str]
    counts: Callable[[Batch], dict[str, jax.Array]] | None = None
    weights: Mapping[str, float] = MappingProxyType({})
    couples_examples: bool = False
    gives: Literal["classes", "numbers", "other"] = "other"
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
            f"{what} cuts the batch, and this loss compares its examples with each other: use compile='jit' without "
            "accumulation; a batch may be split over any number of devices."
        )
