"""Config files: helpers for writing them, and how programs read them, with overrides from the command line.

A config is a plain `ml_collections.ConfigDict` from `get_config(arg)`. Its sections become keyword arguments, so the
valid keys of a section are the parameters of the function it goes to:

  top level   `recvis_jax.train.train`
  data        `recvis_jax.data.opened.open_data`
  model       `recvis_jax.models.create(name, ...)`
  task        `recvis_jax.build.make_task`
  optim       `recvis_jax.training.optim.make_optimizer`
  learn       `recvis_jax.represent.Plan`, instead of optim and all about steps
"""

import ast
import math
import os
import runpy
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from recvis_jax import errors, overrides, reading


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """Parses "smoke,depth=20" into `defaults` plus `smoke`; a bare name means True.

    Raises:
      BadRequest: a name that is not in `defaults`, or a value whose type differs from the default's.
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
      preset: arguments, such as "size=l"; the user's arguments override them.
    """
    of_sibling = runpy.run_path(str(Path(path).parent / sibling))["get_config"]

    def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
        return of_sibling(",".join(a for a in (preset, arg) if a))

    return get_config


def finish(config: ml_collections.ConfigDict, arg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns `config` as programs need it: cut down if `arg.smoke`, and with empty sections for missing ones."""
    c = smoke(config) if arg.smoke else config.copy_and_resolve_references()
    with c.unlocked():
        of_optim = ((c.optim, "schedule_args"), (c.optim, "optimizer_args")) if "optim" in c else ()
        for section, key in ((c, "task"), *of_optim):
            if key not in section:
                section[key] = ml_collections.ConfigDict()
    return c


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns `config` cut down to a few steps on mock data: the same path end to end, in seconds."""
    c = config.copy_and_resolve_references()
    with c.unlocked():
        if "init_from" in c:  # these weights may not exist yet
            del c["init_from"]
        c.data.mock = 64  # examples a split, of the data set's own shape and classes
        c.data.train = "train[:75%]" if c.data.val else "train"
        c.data.val = "train[75%:]" if c.data.val else ""
        c.batch_size = 16
        if "text" in c.data:  # whose made-up words are few
            c.data.text.tokens = 300
            c.model.encoder_depth = c.model.decoder_depth = 1
        if "learn" in c:  # a vocabulary of few words, of few images
            c.model.words = 4
            c.learn.update(images=32, per_image=20, passes=3)
            return c
        c.eval_batch_size = 16
        for key in ("epochs", "log_every", "eval_every", "checkpoint_every"):
            if key in c:  # else ConfigDict would turn our int (steps) into a float (epochs) if the config has a float
                del c[key]
        c.steps = 4
        c.log_every = c.eval_every = c.checkpoint_every = 2
        warmup = c.optim.get("warmup", 0)
        if c.optim.get("warmup_epochs") or warmup >= 1:  # longer than the run
            c.optim.warmup_epochs = 0
            if "warmup" in c.optim:  # else ConfigDict would not turn steps into a share
                del c.optim["warmup"]
            c.optim.warmup = 0.25
    return c


class ConfigFlag(flags.Flag):
    """The flag `--config=FILE[:argument]`, with the overrides `--config.KEY=VALUE`."""

    def __init__(self, help_string: str):
        super().__init__(flags.ArgumentParser(), flags.ArgumentSerializer(), "config", None, help_string)
        self.overrides: list[overrides.Override] = []


def define_flag(help_string: str) -> None:
    """Defines the flag `--config` of a program; `cli` adds the overrides."""
    flags.DEFINE_flag(ConfigFlag(f"{help_string} Its keys: --config.KEY=VALUE; --noconfig.KEY removes one."))


def read(flag: Any, example: str) -> dict[str, Any]:
    """Returns the config that a program's `--config` names, as plain dicts, with the command line's overrides.

    Args:
      flag: the `ConfigFlag`.
      example: a config file, for the message if the flag is missing.

    Raises:
      BadRequest: the flag is missing, its file cannot be read or returns no config, or an override does not fit.
    """
    if not flag.value:
        raise errors.BadRequest(f"--config is missing, for instance --config={example}.")
    config = load(flag.value)
    with config.unlocked(), config.ignore_type():
        overrides.apply(config, flag.overrides, ml_collections.ConfigDict)
    try:
        return plain(config.copy_and_resolve_references())
    except errors.BadRequest:
        raise
    except Exception as e:  # a reference or a placeholder that has no value
        raise errors.BadRequest(
            f"the config {errors.brief(flag.value)} is not complete: {errors.brief(e, 200)}."
        ) from e


def load(name: str) -> ml_collections.ConfigDict:
    """Runs a config file and returns the result of its `get_config`.

    Args:
      name: the file, optionally with a colon and the argument of `get_config`. A name that begins with configs/ and is
        no file here means a config of the package.

    Raises:
      BadRequest: the file cannot be read, fails, or returns no config; the message has file and line.
    """
    path, arg = _file_and_argument(name)
    _check_name(path)
    text = reading.read_text(path, "config bytes", "--config")
    shown = errors.printable(path)
    module = types.ModuleType("config_file")
    module.__file__ = str(path)
    sys.modules["config_file"] = module  # dataclasses look up their module here
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
        if not callable(getattr(module, "get_config", None)):
            raise errors.BadRequest(f"the config file {shown} defines no function get_config.")
        config = module.get_config(*([] if arg is None else [arg]))
    except errors.BadRequest:
        raise
    except (Exception, SystemExit) as e:
        where = f"{shown}, line {_line(e, path)}" if _line(e, path) else shown
        kind = type(e).__name__
        said = e.msg if isinstance(e, SyntaxError) else errors.brief(e, 300)
        raise errors.BadRequest(f"the config file {where} raises {kind}{f' ({said})' if said else ''}.") from e
    if not isinstance(config, (ml_collections.ConfigDict, Mapping)):
        raise errors.BadRequest(
            f"get_config of {shown} returns {type(config).__name__}; it takes an ml_collections.ConfigDict."
        )
    try:
        return ml_collections.ConfigDict(config)
    except Exception as e:  # for instance keys that are not strings
        raise errors.BadRequest(f"get_config of {shown} returns no config: {errors.brief(e, 200)}.") from e


def shipped() -> Path:
    """Returns the folder of the package's own configs: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    return next((found for found in (package / "configs", package.parent / "configs") if found.is_dir()), package)


def _file_and_argument(name: str) -> tuple[Path, str | None]:
    """Splits FILE:argument so that FILE exists, here or in the package; both parts may contain further colons."""
    ends = [len(name), *(i for i, c in reversed([*enumerate(name)]) if c == ":")]
    for root in (Path(), shipped().parent):
        for end in ends if root == Path() or name.startswith("configs/") else ():
            path = root / Path(name[:end]).expanduser()
            try:
                if path.is_file():
                    return path, name[end + 1 :] if end < len(name) else None
            except (OSError, ValueError):  # a name that is too long or has a zero byte
                continue
    file, colon, arg = name.partition(":")
    return Path(file).expanduser(), arg if colon else None


def _check_name(path: Path) -> None:
    """Refuses the name of a config that is neither here nor in the package, with the nearest of the package's."""
    if os.path.lexists(path) or "\0" in str(path) or len(str(path)) > 1000:  # other problems have their own messages
        return
    root = shipped()
    known = sorted(str(Path("configs") / p.relative_to(root)) for p in root.rglob("*.py"))
    spelled = f"configs/{str(path).removeprefix('configs/').removesuffix('.py')}.py"
    near = f" Did you mean {spelled!r}?" if spelled in known else errors.nearest(spelled, known)
    raise errors.BadRequest(
        f"there is no config file {errors.brief(path)}, neither here nor among those of recvis_jax, which begin with "
        f"configs/.{near}"
    )


def _line(error: BaseException, path: Path) -> int | None:
    """Returns the line of a config file that failed."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    at, found = error.__traceback__, None
    while at:
        if at.tb_frame.f_code.co_filename == str(path):
            found = at.tb_lineno
        at = at.tb_next
    return found


_MOST_DEPTH = 20  # nesting of sections


def plain(config: Any) -> dict[str, Any]:
    """Returns the config as nested dicts of JSON types (tuples become lists, numpy's numbers Python's).

    Raises:
      BadRequest: a value that JSON does not have, such as a function, an array or NaN; the message names its key.
    """

    def convert(x: Any, name: str, depth: int) -> Any:
        if depth > _MOST_DEPTH:
            raise errors.BadRequest(f"{errors.brief(name)}: more than {_MOST_DEPTH} nested sections.")
        if isinstance(x, (ml_collections.ConfigDict, Mapping)):
            return {str(k): convert(v, f"{name}.{k}", depth + 1) for k, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [convert(v, f"{name}[{i}]", depth + 1) for i, v in enumerate(x)]
        if type(x).__module__ == "numpy" and hasattr(x, "item") and getattr(x, "ndim", 1) == 0:
            x = x.item()
        if isinstance(x, Path):
            x = str(x)
        if isinstance(x, float) and not math.isfinite(x):
            raise errors.BadRequest(f"{errors.brief(name)} is {x}; it takes a finite number.")
        if x is not None and not isinstance(x, (bool, int, float, str)):
            kind = f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
            raise errors.BadRequest(
                f"{errors.brief(name)} is of type {kind}; a config holds numbers, text, None, tuples and dicts."
            )
        return x

    return convert(config, "config", 0)


# Keys for where and how a run is computed, not what; a run may continue with other values of these.
PLACES = ("sharding", "compile", "data.cache", "data.threads", "data.workers", "data.data_dir")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns a line "key: old -> new" for each leaf in which two plain configs differ, except `PLACES`."""
    out = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        name = f"{prefix}{key}"
        if name in PLACES:
            continue
        short = overrides.SHORT.get(name)
        if short:  # a section that may be one word
            a, b = ({short: x} if isinstance(x, str) and x else x or None for x in (a, b))
        if a != b and all(x is None or isinstance(x, dict) for x in (a, b)):
            out += differences(a or {}, b or {}, f"{name}.")
        elif a != b:
            out.append(f"{name}: {a!r} -> {b!r}")
    return out
