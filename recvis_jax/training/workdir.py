"""The folder of a run: its path, its owner, and the checks before anything is written to it."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax import errors, reading
from recvis_jax.training import lock, processes
from recvis_jax.training.log import plain_json, write_json

LENGTH = ("epochs", "steps")  # keys of a config that set the length of the run


def resolve(path: str | os.PathLike[str], what: str, buckets: bool = False) -> str:
    """Returns the absolute name of a folder for a name that is relative, or with ~, or of the form file:///folder.

    Args:
      path: the name.
      what: its flag or key, for the message.
      buckets: whether gs://bucket/folder is allowed; it is returned unchanged.

    Raises:
      BadRequest: another kind of name, the home of an unknown user, or a bucket that cannot be reached.
    """
    text = os.fspath(path)
    shown = f"{what}={errors.printable(text)[:200]}"
    if not text or "\0" in text:
        raise errors.BadRequest(f"{shown} is not the name of a folder.")
    scheme, found, rest = text.partition("://")
    if found and scheme == "file" and rest.startswith("/"):
        text = rest
    elif found and scheme == "gs" and buckets:
        _reach(text, shown)
        return text.rstrip("/")
    elif found:
        mount = "mount the bucket (gcsfuse; `launch` does it on TPU pods and GKE) and give the folder"
        taken = "a folder on a disk, or gs://bucket/folder" if buckets else f"a folder on a disk; {mount}"
        raise errors.BadRequest(f"{shown}: {scheme}:// is not taken here, but {taken}.")
    try:
        return str(Path(os.path.normpath(Path(text).expanduser().absolute())))
    except RuntimeError as e:
        raise errors.BadRequest(f"{shown}: {e}") from None


def _reach(url: str, shown: str) -> None:
    """Raises `BadRequest` if a bucket cannot be read from here."""
    from etils import epath

    try:
        epath.Path(url).exists()
    except ImportError as e:
        raise errors.BadRequest(f"{shown} needs a package: {e}. pip install gcsfs, or give a folder.") from None
    except Exception as e:  # errors of the network, or of credentials
        raise errors.BadRequest(f"{shown} cannot be reached: {' '.join(str(e).split())[:200]}") from None


def absolute(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with absolute names of files and folders, so that they are valid in any working directory.

    Raises:
      BadRequest: see `resolve`.
    """
    out = dict(config)
    if out.get("checkpoint_dir"):
        out["checkpoint_dir"] = resolve(out["checkpoint_dir"], "config.checkpoint_dir", buckets=True)
    data = out.get("data")
    if isinstance(data, dict) and isinstance(data.get("data_dir"), str) and data["data_dir"]:  # otherwise refused later
        given = data["data_dir"]
        out["data"] = {**data, "data_dir": given if "://" in given else resolve(given, "config.data.data_dir")}
    given = out.get("init_from")
    if isinstance(given, str):
        out["init_from"] = _source(given)
    elif isinstance(given, dict) and isinstance(given.get("source"), str):
        out["init_from"] = {**given, "source": _source(given["source"])}
    return out


def _source(text: str) -> str:
    """Makes the name of a file or run absolute, with its @CHECKPOINT or #PART; other sources are not changed."""
    if "://" in text or "\0" in text:
        return text
    try:
        for end in ("", "@", "#"):  # a run's checkpoint, a part of a file
            name, _, which = text.rpartition(end) if end else (text, "", "")
            if name and (found := Path(name).expanduser()).exists():
                return os.path.normpath(found.absolute()) + (f"{end}{which}" if which else "")
    except (OSError, RuntimeError):
        pass
    return text


def check(folder: Path, config: dict[str, Any], differences: Callable[..., list[str]]) -> dict[str, Any] | None:
    """Refuses a folder that cannot be written or that holds a run with another config; changes nothing.

    A different length (`LENGTH`) does not count: the caller checks whether the run may have it.

    Args:
      folder: of the run.
      config: its config as plain dicts, with absolute paths.
      differences: (old, new) -> lines that name differing keys.

    Returns:
      The config of the existing run, None for a new one.

    Raises:
      BadRequest: see above; or `config.json` is damaged.
    """
    refuse_unwritable(folder, "the workdir")
    path = folder / "config.json"
    if not path.exists():
        return None
    old = reading.read_json(path)
    try:
        before = absolute(old)
    except errors.BadRequest:  # a path that no longer exists
        before = old
    without = [{k: v for k, v in c.items() if k not in LENGTH} for c in (before, plain_json(config))]
    lines = differences(*without)
    if lines:
        raise errors.BadRequest(
            f"{folder} holds a run with another config; choose another --workdir or remove it. "
            f"Differing: {'; '.join(lines)}"
        )
    return old


def check_length(
    folder: Path, old: int, new: int, done: int, rates: Callable[[int], Callable[[Any], Any]], schedule: str
) -> str | None:
    """Refuses a new length for a run if its steps so far would have been different with that length.

    Args:
      folder: of the run.
      old, new: steps of the whole run, original and new.
      done: steps of its newest checkpoint.
      rates: steps of the whole run -> (steps made -> learning rate).
      schedule: its name, for the message.

    Returns:
      A line that says what changes; None if nothing does.

    Raises:
      BadRequest: the run has already done more steps, or had other learning rates.
    """
    if new == old:
        return None
    where = f"the run in {folder} of {old:,} steps has done {done:,}"
    if new < done:
        raise errors.BadRequest(f"{where}; it cannot end at {new:,}. Give a length of at least as many.")
    if done:
        steps = jnp.arange(done)
        was, now = (np.broadcast_to(jax.jit(jax.vmap(rates(total)))(steps), (done,)) for total in (old, new))
        if not np.array_equal(was, now):
            first = int(np.flatnonzero(was != now)[0])
            raise errors.BadRequest(
                f"{where}; in a run of {new:,} steps its learning rates would have been different from step "
                f"{first + 1} on (schedule {schedule!r}). Continue in a new run that starts from its weights: "
                f"--config.init_from={folder}@last and another --workdir; or keep the original length. Schedules that "
                "can be made longer: 'constant', 'rsqrt', and 'step' with boundaries in steps; a warm-up in steps."
            )
    return f"note: the run's length changes from {old:,} to {new:,} steps; {done:,} are done."


def refuse_unwritable(folder: Path, what: str) -> None:
    """Raises `BadRequest` if a folder cannot be created or written; leaves nothing behind."""
    above = folder
    try:
        while not above.exists() and above != above.parent:
            above = above.parent
        with tempfile.TemporaryFile(dir=above):  # permissions do not limit root, but the disk may be read-only
            pass
    except OSError as e:
        raise errors.BadRequest(f"cannot write to {what} {errors.printable(folder)}: {e.strerror or e}.") from None


def make(folder: Path) -> None:
    """Creates the folder.

    Raises:
      BadRequest: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise errors.BadRequest(f"cannot write to the workdir {folder}: {e.strerror or e}.") from None


def write_config(folder: Path, config: dict[str, Any], old: dict[str, Any] | None) -> None:
    """Writes `config.json` if it differs from the existing one."""
    if old is None or json.dumps(old) != json.dumps(plain_json(config)):
        write_json(folder / "config.json", config)


def set_summary_aside(folder: Path) -> None:
    """Renames the summary of a finished run that is continued: a summary means that the run is finished."""
    path = folder / "summary.json"
    if not path.exists():
        return
    try:
        step = reading.read_json(path, "summary of a run").get("step")
    except errors.BadRequest:
        step = None
    name = f"summary_step_{step}" if isinstance(step, int) else "summary_before"
    to = folder / f"{name}.json"
    number = 1
    while to.exists():
        to, number = folder / f"{name}.{number}.json", number + 1
    path.rename(to)


class Workdir:
    """A run's folder in two stages: first it is checked, and refused if anything is wrong; then it is taken.

    Args:
      path: as given by the user.
      config: the run's config as plain dicts, with absolute paths (`absolute`).
      differences: (old, new) -> lines that name differing keys of two configs.
      say: prints a line for the user.
      main: whether this process writes; only one of several does.

    Raises:
      BadRequest: the folder cannot be written, belongs to another run, or another process is writing it.
    """

    def __init__(
        self,
        path: str,
        config: dict[str, Any],
        differences: Callable[..., list[str]],
        say: Callable[[str], None] = print,
        main: bool = True,
    ):
        self.folder = Path(resolve(path, "--workdir"))
        self._config, self._differences, self._main = config, differences, main
        self._lock = lock.Lock(self.folder, say)
        self.old = self._check()
        if main:
            self._lock.refuse_if_held()

    def _check(self) -> dict[str, Any] | None:
        return check(self.folder, self._config, self._differences)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Creates the folder and reserves it for this process until the end of the `with`."""
        if self._main:
            make(self.folder)
            self._lock.take()
        try:
            self.old = self._check()  # again, because another process may have changed it
            processes.barrier("workdir")
            yield
        finally:
            self._lock.release()

    def held(self) -> None:
        """Raises `Failure` if another process has taken the folder meanwhile."""
        self._lock.check()

    def write(self, length_changes: bool) -> None:
        """Writes the config if it is new, before any other file of the run."""
        if self._main:
            if length_changes:
                set_summary_aside(self.folder)
            write_config(self.folder, self._config, self.old)
