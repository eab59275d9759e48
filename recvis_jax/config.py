"""What config files use: the argument after the colon, and the smoke variant that every config offers.

A config is a plain `ml_collections.ConfigDict` from `get_config(arg)`. Its sections become keyword arguments, so the
valid keys of a section are the parameters of the function it goes to:

  top level   `recvis_jax.train.train`
  data        `recvis_jax.build.open_data`
  model       `recvis_jax.models.create(name, ...)`
  task        `recvis_jax.build.make_task`
  optim       `recvis_jax.training.optim.make_optimizer`
"""

import ast
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from recvis_jax import errors


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """Parses "smoke,depth=20" into `defaults` plus `smoke`; a bare name means True.

    Raises:
      BadRequest: a name that is not among `defaults`, or a value of another type than its default.
    """
    out = ml_collections.ConfigDict({"smoke": False, **defaults})
    for part in (arg or "").split(","):
        if not part:
            continue
        name, _, text = part.partition("=")
        if name not in out:
            raise errors.BadRequest(
                f"unknown config argument {name!r}.{errors.nearest(name, out)} There are: {', '.join(out)}."
            )
        value: Any = True
        if text:
            try:
                value = ast.literal_eval(text)
            except (SyntaxError, ValueError):
                value = text
        if out[name] is not None and not isinstance(value, type(out[name])):
            raise errors.BadRequest(f"config argument {name}={text!r} should be {type(out[name]).__name__}.")
        out[name] = value
    return out


def like(path: str, sibling: str, preset: str) -> Callable[[str | None], ml_collections.ConfigDict]:
    """Returns the `get_config` of a config that is a sibling's with some arguments set.

    Args:
      path: `__file__` of the config.
      sibling: name of the file beside it.
      preset: arguments, as "size=l"; what the user gives counts after them.
    """
    of_sibling = runpy.run_path(str(Path(path).parent / sibling))["get_config"]

    def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
        return of_sibling(",".join(a for a in (preset, arg) if a))

    return get_config


def finish(config: ml_collections.ConfigDict, arg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns `config` as programs want it: cut down if `arg.smoke`, and with the sections that it left empty.

    Only a section that is there takes keys from the command line, as `--config.optim.schedule_args.final=0.1`.
    """
    c = smoke(config) if arg.smoke else config.copy_and_resolve_references()
    with c.unlocked():
        for section, key in ((c, "task"), (c.optim, "schedule_args"), (c.optim, "optimizer_args")):
            if key not in section:
                section[key] = ml_collections.ConfigDict()
    return c


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns `config` cut down to a few steps on mock data: the same path end to end, in seconds."""
    c = config.copy_and_resolve_references()
    with c.unlocked():
        c.data.mock = 64  # examples a split, of the data set's own shape and classes
        c.data.train = "train[:75%]" if c.data.val else "train"
        c.data.val = "train[75%:]" if c.data.val else ""
        c.batch_size = 16
        c.eval_batch_size = 16
        for key in ("epochs", "log_every", "eval_every", "checkpoint_every"):
            if key in c:  # else an int, steps, would become a float, epochs, where the config has one
                del c[key]
        c.steps = 4
        c.log_every = c.eval_every = c.checkpoint_every = 2
        if c.optim.get("warmup_epochs"):  # longer than the run
            c.optim.warmup_epochs = 0
            c.optim.warmup = 0.25
    return c


def read(flag: Any, example: str) -> dict[str, Any]:
    """Returns the config that a program's `--config` names, as plain dicts.

    Args:
      flag: what `config_flags.DEFINE_config_file` returned.
      example: a config file, for the message where the flag is missing.

    Raises:
      BadRequest: the flag is missing, or its file cannot be read.
    """
    if flag.value is None:
        raise errors.BadRequest(f"--config is missing, for instance --config={example}.")
    try:
        return plain(flag.value.copy_and_resolve_references())
    except OSError as e:  # raised only when the config is looked at
        raise errors.BadRequest(f"--config cannot be read: {str(e).splitlines()[-1].strip()}.") from e


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as nested dicts of JSON types (tuples become lists)."""

    def convert(x: Any) -> Any:
        if isinstance(x, (ml_collections.ConfigDict, dict)):
            return {str(k): convert(v) for k, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [convert(v) for v in x]
        return x

    return convert(config)


# Where and how a run is computed, not what: it may go on with other values of these.
PLACES = ("sharding", "compile", "data.cache", "data.threads", "data.workers", "data.data_dir")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns a line "key: old -> new" for each leaf in which two plain configs differ, but for `PLACES`."""
    out = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        name = f"{prefix}{key}"
        if name in PLACES:
            continue
        if isinstance(a, dict) or isinstance(b, dict):
            out += differences(a or {}, b or {}, f"{name}.")
        elif a != b:
            out.append(f"{name}: {a!r} -> {b!r}")
    return out
