"""The folder of a run: where it lies, whose it is, and what is checked before anything is written into it."""

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

LENGTH = ("epochs", "steps")  # keys of a config that say how long the run is


def resolve(path: str | os.PathLike[str], what: str, buckets: bool = False) -> str:
    """Returns a folder's absolute name, for a name as people write it: relative, with ~, or as file:///folder.

    Args:
      path: the name.
      what: the flag or key that it was given as, for the message.
      buckets: whether gs://bucket/folder is taken, which is returned as it is.

    Raises:
      BadRequest: it is of another kind, in the home of an unknown user, or a bucket that cannot be reached.
    """
    text = os.fspath(path)
    shown = f"{what}={errors.printable(text)[:200]}"
    if not text or "\0" in text:
        raise errors.BadRequest(f"{shown} is no folder's name.")
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
    """Raises `BadRequest` where a bucket cannot be read from here."""
    from etils import epath

    try:
        epath.Path(url).exists()
    except ImportError as e:
        raise errors.BadRequest(f"{shown} needs a package: {e}. pip install gcsfs, or give a folder.") from None
    except Exception as e:  # of the network, or of credentials
        raise errors.BadRequest(f"{shown} cannot be reached: {' '.join(str(e).split())[:200]}") from None


def absolute(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config in which the names of files and folders are absolute, so that they hold from anywhere.

    Raises:
      BadRequest: see `resolve`.
    """
    out = dict(config)
    if out.get("checkpoint_dir"):
        out["checkpoint_dir"] = resolve(out["checkpoint_dir"], "config.checkpoint_dir", buckets=True)
    data = out.get("data")
    if isinstance(data, dict) and isinstance(data.get("data_dir"), str) and data["data_dir"]:  # else refused later
        given = data["data_dir"]
        out["data"] = {**data, "data_dir": given if "://" in given else resolve(given, "config.data.data_dir")}
    given = out.get("init_from")
    if isinstance(given, str):
        out["init_from"] = _source(given)
    elif isinstance(given, dict) and isinstance(given.get("source"), str):
        out["init_from"] = {**given, "source": _source(given["source"])}
    return out


def _source(text: str) -> str:
    """Makes the name of a file or run absolute, with its @CHECKPOINT or #PART; another source stays as it is."""
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
    """Refuses a folder that cannot be written or that holds a run of another config; changes nothing.

    Another length (`LENGTH`) is no other config: whether the run may have it is for the caller to find out.

    Args:
      folder: of the run.
      config: its config as plain dicts, with absolute paths.
      differences: (old, new) -> lines that name differing keys.

    Returns:
      The config of the run that is there, None for a new one.

    Raises:
      BadRequest: as said, or `config.json` is damaged.
    """
    refuse_unwritable(folder, "the workdir")
    path = folder / "config.json"
    if not path.exists():
        return None
    old = reading.read_json(path)
    try:
        before = absolute(old)
    except errors.BadRequest:  # of a place that is gone
        before = old
    without = [{k: v for k, v in c.items() if k not in LENGTH} for c in (before, plain_json(config))]
    lines = differences(*without)
    if lines:
        raise errors.BadRequest(
            f"{folder} holds a run of another config; choose another --workdir or remove it. "
            f"Differing: {'; '.join(lines)}"
        )
    return old


def check_length(
    folder: Path, old: int, new: int, done: int, rates: Callable[[int], Callable[[Any], Any]], schedule: str
) -> str | None:
    """Refuses another length for a run whose steps so far would not have been the same with it.

    Args:
      folder: of the run.
      old, new: steps of the whole run, as it began and as wanted.
      done: steps that its newest checkpoint has behind it.
      rates: steps of the whole run -> (steps made -> learning rate).
      schedule: its name, for the message.

    Returns:
      A line that says what changes; None where nothing does.

    Raises:
      BadRequest: the run has done more steps than that, or had other learning rates.
    """
    if new == old:
        return None
    where = f"the run in {folder} of {old:,} steps has done {done:,}"
    if new < done:
        raise errors.BadRequest(f"{where}; it cannot end at {new:,}. Give a length of at least that.")
    if done:
        steps = jnp.arange(done)
        was, now = (np.broadcast_to(jax.jit(jax.vmap(rates(total)))(steps), (done,)) for total in (old, new))
        if not np.array_equal(was, now):
            first = int(np.flatnonzero(was != now)[0])
            raise errors.BadRequest(
                f"{where}, and in one of {new:,} steps its learning rates would have been others from step "
                f"{first + 1} on (schedule {schedule!r}). Train on in a new run that begins with its weights: "
                f"--config.init_from={folder}@last and another --workdir; or let it end as it began. Schedules that "
                "may be made longer: 'constant', 'rsqrt', and 'step' with boundaries in steps; a warm-up in steps."
            )
    return f"note: the run's length changes from {old:,} to {new:,} steps; {done:,} are done."


def refuse_unwritable(folder: Path, what: str) -> None:
    """Raises `BadRequest` where a folder cannot be made or written; leaves nothing behind."""
    above = folder
    try:
        while not above.exists() and above != above.parent:
            above = above.parent
        with tempfile.TemporaryFile(dir=above):  # root may do what the disk may not
            pass
    except OSError as e:
        raise errors.BadRequest(f"cannot write to {what} {errors.printable(folder)}: {e.strerror or e}.") from None


def make(folder: Path) -> None:
    """Makes the folder.

    Raises:
      BadRequest: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise errors.BadRequest(f"cannot write to the workdir {folder}: {e.strerror or e}.") from None


def write_config(folder: Path, config: dict[str, Any], old: dict[str, Any] | None) -> None:
    """Writes `config.json` where it differs from what is there."""
    if old is None or json.dumps(old) != json.dumps(plain_json(config)):
        write_json(folder / "config.json", config)


def set_summary_aside(folder: Path) -> None:
    """Renames the summary of a run that is to go on after its end: who reads one takes the run to be finished."""
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
    """A run's folder from the outside, in two stages: looked at, with everything refused that can be; then taken.

    Args:
      path: as the user gave it.
      config: the run's config as plain dicts, with absolute paths (`absolute`).
      differences: (old, new) -> lines that name differing keys of two configs.
      say: prints a line for the user.
      main: whether this process writes; of several, one does.

    Raises:
      BadRequest: the folder cannot be written, is another run's, or another process is writing it.
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
        """Makes the folder and keeps it for this process until the end of the `with`."""
        if self._main:
            make(self.folder)
            self._lock.take()
        try:
            self.old = self._check()  # once more, as somebody may have been here since
            processes.barrier("workdir")
            yield
        finally:
            self._lock.release()

    def held(self) -> None:
        """Raises `Failure` where another process has taken the folder meanwhile."""
        self._lock.check()

    def write(self, length_changes: bool) -> None:
        """Writes the config where it is new, as the first of what a run leaves."""
        if self._main:
            if length_changes:
                set_summary_aside(self.folder)
            write_config(self.folder, self._config, self.old)
