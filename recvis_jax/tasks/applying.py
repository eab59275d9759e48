"""How every objective applies its model: initialisation, training mode and evaluation mode."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from recvis_jax.tasks.task import Batch


def initialiser(model: nn.Module, image_shape: tuple[int, int, int]) -> Callable[[jax.Array], dict[str, Any]]:
    """Returns `init(key) -> variables` for images of `image_shape`, compiled as one program."""

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        params_key, dropout_key = jax.random.split(key)
        keys = {"params": params_key, "dropout": dropout_key}
        return dict(model.init(keys, jnp.zeros((2, *image_shape)), train=False))

    return init


def apply_train(
    model: nn.Module, params: Any, model_state: Any, batch: Batch, key: jax.Array, inputs: Any = None, **kw: Any
) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """Applies `model` in training mode.

    Args:
      model: `__call__(inputs, *, train) -> (output, acts)`.
      params, model_state: the model's variables.
      batch: with `slot` (b), the examples' indices in the global batch.
      key: key of this step's dropout.
      inputs: input of the model; by default the batch's `image` (b h w c).
      kw: further arguments of the model.

    Returns:
      (output, acts, new model_state).
    """
    with nn.intercept_methods(_dropout_by_slot(batch["slot"])):
        (output, acts), new = model.apply(
            {"params": params, **model_state},
            batch["image"] if inputs is None else inputs,
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state) or ["batch_stats"],
            **kw,
        )
    return output, acts, dict(new)


def apply_eval(model: nn.Module, params: Any, model_state: Any, image: jax.Array) -> tuple[jax.Array, dict]:
    """Applies `model` in evaluation mode and returns (output, acts); nothing is mutable."""
    return model.apply({"params": params, **model_state}, image, train=False)  # type: ignore[return-value]


def _dropout_by_slot(slots: jax.Array) -> Callable:
    """Makes every `nn.Dropout` draw each example's mask from (key, slot).

    With one key for a whole batch, masks would depend on the number of devices and of micro-batches.
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
