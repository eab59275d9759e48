"""The state of a training run: everything a step reads and writes, and all that a checkpoint holds."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class State:
    """State of a training run, a pytree.

    Attributes:
      step: int32 (), number of updates made.
      params: parameters, float32.
      model_state: the model's other collections, such as `batch_stats`; may be empty.
      opt_state: state of the optimizer.
      key: uint32 (2,), raw data of the run's random key; a step's keys are folded from it and `step`.
      ema: moving average of `{"params", "model_state"}`, or None.
    """

    step: Any
    params: Any
    model_state: Any
    opt_state: Any
    key: Any
    ema: Any = None

    @property
    def evaluated(self) -> tuple[Any, Any]:
        """(params, model_state) that evaluation uses: the average where one is kept."""
        return (
            (self.ema["params"], self.ema["model_state"]) if self.ema is not None else (self.params, self.model_state)
        )


def create(task: Any, optimizer: Any, seed: int, *, ema: bool = False) -> State:
    """Initialises the parameters from `seed` and the optimizer's state from them.

    The key for initialisation and the key of the run are independent, so that a model can be changed without changing
    the masks and augmentations that it meets.
    """
    root = jax.random.key(seed)
    variables = task.init(jax.random.fold_in(root, 0))
    params = variables.pop("params")
    average = {"params": params, "model_state": variables} if ema else None
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=variables,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(jax.random.fold_in(root, 1)),
        ema=jax.tree.map(jnp.copy, average),
    )
