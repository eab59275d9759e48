"""A trained model as programs look at it: a checkpoint of a run, or a config with published weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from recvis_jax import build, errors
from recvis_jax.training import checkpoint


class Trained(NamedTuple):
    """A model with its variables, and the run that it belongs to.

    Attributes:
      run: as built from the config.
      params, model_state: what is evaluated: the moving average where the run keeps one.
      step: of the checkpoint; 0 for published or random weights.
      name: which checkpoint it is: 'best', 'last', a step, 'random' or 'published'.
      config: the config's sections as plain dicts.
    """

    run: build.Run
    params: Any
    model_state: Any
    step: int
    name: str
    config: dict[str, Any]

    @property
    def variables(self) -> dict[str, Any]:
        """All collections of the model, as `apply` wants them."""
        return {"params": self.params, **self.model_state}


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the config of the run in `folder`; `BadRequest` where it is no run's or not readable."""
    path = folder / "config.json"
    if not path.exists():
        raise errors.BadRequest(f"{folder} is not the folder of a run: it has no config.json.")
    try:
        return json.loads(path.read_text())
    except ValueError as e:
        raise errors.BadRequest(f"{path} is not valid JSON ({e}).") from e


def make_run(config: dict[str, Any]) -> build.Run:
    """Builds the run of a whole config, of which it takes the keys that say what a run is."""
    keys = errors.keywords(build.make_run)
    return build.make_run(**{k: v for k, v in config.items() if k in keys})


def of_run(folder: Path, config: dict[str, Any], which: str | None = None) -> Trained:
    """Opens a checkpoint of a run, which is only read and may be one that goes on.

    Args:
      folder: of the run.
      config: its config, perhaps changed where that does not change the model.
      which: 'best', 'last' or a step; None takes the best, or the last of a run without validation; 'random' are the
        weights with which the run began, had it not been initialised from others.

    Raises:
      BadRequest: there is no such checkpoint.
    """
    run = make_run(config)
    if which == "random":
        state = run.create()
        return Trained(run, state.params, state.model_state, 0, "random", config)
    keeper = checkpoint.Checkpointer(folder, run.template, run.mesh, read_only=True)
    which = which or ("best" if keeper.best_step() is not None else "last")
    restored = keeper.restore(which)
    return Trained(run, *restored.state.evaluated, restored.step, which, config)


def of_config(config: dict[str, Any], which: str | None = None, say: Callable[[str], None] = print) -> Trained:
    """Initialises the model of a config from its `init_from`, or at random where `which` is 'random'.

    Raises:
      BadRequest: the config names no weights, or any that do not fit.
    """
    run = make_run(config)
    source = config.get("init_from")
    if which not in (None, "random") or not (source or which):
        raise errors.BadRequest(
            "without a --workdir the weights come from --config.init_from=FILE, hf://owner/repo or a run's folder; "
            "--checkpoint=random takes random ones."
        )
    state = run.create() if which else build.initial_state(run, source, say)
    return Trained(run, state.params, state.model_state, 0, which or "published", config)
