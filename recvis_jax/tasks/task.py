"""What an objective is: three pure functions, and one way of applying a model for all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

Batch = dict[str, Any]  # arrays, of numpy or of a trace


class Task(NamedTuple):
    """A built model paired with an objective.

    Attributes:
      init: key -> variables: `params` and the model's other collections.
      loss: (params, model_state, batch, key) -> (loss (b,) float32, new model_state, metrics {name: (b,)}), in
        training mode. Per example; nobody has masked or averaged anything yet.
      predict: (params, model_state, batch) -> {"logits" or "prediction": (b k), ...}, in evaluation mode.
      losses: (logits or prediction (b k), label) -> (b,), the same objective for evaluation; None where `predict`
        gives it too, as "loss" (b), for objectives without labels.
      metrics: names in `evaluation.metrics.METRICS` that suit the objective.
      best: the validation metric that decides which checkpoint is best, and "max" or "min".
      figure: (params, model_state, batch) -> {title: images (b h w c) as the model is given them}, columns of a figure
        that shows what was learned; None where there is nothing to see.
    """

    init: Callable[[jax.Array], dict[str, Any]]
    loss: Callable[[Any, Any, Batch, jax.Array], tuple[jax.Array, Any, dict[str, jax.Array]]]
    predict: Callable[[Any, Any, Batch], dict[str, jax.Array]]
    losses: Callable[[jax.Array, jax.Array], jax.Array] | None
    metrics: tuple[str, ...]
    best: tuple[str, str]
    figure: Callable[[Any, Any, Batch], dict[str, jax.Array]] | None = None


def initialiser(model: nn.Module, image_shape: tuple[int, int, int]) -> Callable[[jax.Array], dict[str, Any]]:
    """Returns `init(key) -> variables` for images of `image_shape`, compiled as one program."""

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        params_key, dropout_key = jax.random.split(key)
        keys = {"params": params_key, "dropout": dropout_key}
        return dict(model.init(keys, jnp.zeros((2, *image_shape)), train=False))

    return init


def apply_train(
    model: nn.Module, params: Any, model_state: Any, batch: Batch, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """Applies `model` in training mode.

    Args:
      model: `__call__(image, *, train) -> (output, acts)`.
      params, model_state: the model's variables.
      batch: `image` (b h w c) and `slot` (b), the examples' places in the global batch.
      key: key of this step's dropout.

    Returns:
      (output, acts, new model_state).
    """
    with nn.intercept_methods(_dropout_by_slot(batch["slot"])):
        (output, acts), new = model.apply(
            {"params": params, **model_state},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state) or ["batch_stats"],
        )
    return output, acts, dict(new)


def apply_eval(model: nn.Module, params: Any, model_state: Any, image: jax.Array) -> tuple[jax.Array, dict]:
    """Applies `model` in evaluation mode and returns (output, acts); nothing is mutable."""
    return model.apply({"params": params, **model_state}, image, train=False)  # type: ignore[return-value]


def _dropout_by_slot(slots: jax.Array) -> Callable:
    """Makes every `nn.Dropout` draw each example's mask from (key, slot).

    One key for a whole batch would give other masks on other numbers of devices, or with accumulated gradients.
    """

    def intercept(next_fun, args, kwargs, context):
        drop = context.module
        if not isinstance(drop, nn.Dropout) or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        x = args[0]
        deterministic = nn.merge_param("deterministic", drop.deterministic, kwargs.get("deterministic"))
        if deterministic or drop.rate == 0.0 or x.shape[0] != slots.shape[0]:
            return next_fun(*args, **kwargs)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(drop.make_rng(drop.rng_collection), slots)
        shape = [1 if d in drop.broadcast_dims else n for d, n in enumerate(x.shape)][1:]
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - drop.rate, shape))(keys)
        return jnp.where(keep, x / (1 - drop.rate), 0).astype(x.dtype) if drop.rate < 1 else jnp.zeros_like(x)

    return intercept
