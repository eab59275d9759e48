"""The state of a training run: everything a step reads and writes, and everything in a checkpoint."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from recvis_jax import trees


@struct.dataclass
class State:
    """State of a training run, a pytree.

    Attributes:
      step: int32 (), number of updates made.
      params: parameters, float32.
      model_state: the model's other collections, such as `batch_stats`; may be empty.
      opt_state: state of the optimizer.
      key: uint32 (2,), raw data of the run's random key; a step's key is this one folded with `step`.
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
        """(params, model_state) for evaluation: the moving average if there is one."""
        return (
            (self.ema["params"], self.ema["model_state"]) if self.ema is not None else (self.params, self.model_state)
        )


def describe(state: Any) -> dict[str, str]:
    """Returns {path name: type and shape} of every leaf, such as {"params/head/bias": "float32[10]"}."""
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in trees.flatten(state).items()}


def differences(have: Mapping[str, str | None], wanted: Mapping[str, str]) -> str:
    """Tells how the names, types and shapes of two descriptions differ, with a few names of each kind.

    Args:
      have: of the state that is there; the value is None if only the name is known.
      wanted: of the state to restore.
    """
    other = [k for k in wanted if have.get(k) is not None and have[k] != wanted[k]]
    sides = {
        "{} missing there ({})": [k for k in wanted if k not in have],
        "{} only there ({})": [k for k in have if k not in wanted],
        "{} of another shape or type ({})": [f"{k} {have[k]}, now {wanted[k]}" for k in other],
    }
    return "; ".join(text.format(len(names), trees.shorten(names, 4)) for text, names in sides.items() if names)


def create_state(task: Any, optimizer: Any, seed: int, *, ema: bool = False) -> State:
    """Initialises the parameters from `seed` and the optimizer's state from them.

    The key for initialisation and the key of the run are independent, so that another model gets the same masks and
    augmentations.
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
