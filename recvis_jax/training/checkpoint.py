"""Checkpoints: written by orbax in the background, checked when read, never trusted blindly.

A run keeps the two newest under `checkpoints/last` (so that a damaged one can be skipped) and the best under
`checkpoints/best`, in the workdir or wherever the config's `checkpoint_dir` is, on a disk or as gs://bucket/folder.
Beside the state lies JSON with the position in the data, the loop's own state and a fingerprint of every leaf, computed
on the device when saving and again when restoring, and one of the JSON: they find what a file format does not.
"""

import errno
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import LatestN

from recvis_jax import errors, trees
from recvis_jax.training import processes
from recvis_jax.training.state import State


class Restored(NamedTuple):
    """A checkpoint as read: the step it was saved at, the state, and the JSON beside it."""

    step: int
    state: State
    meta: dict[str, Any]


def home(workdir: str | Path) -> epath.Path:
    """Returns where a run's checkpoints are: the `checkpoint_dir` of its config, or `checkpoints` in the workdir."""
    config = Path(workdir) / "config.json"
    try:
        named = json.loads(config.read_text()).get("checkpoint_dir") if config.exists() else None
    except (ValueError, AttributeError) as e:
        raise errors.BadRequest(f"{config} is not valid JSON ({e}); is this the folder of a run?") from e
    return epath.Path(named) if named else epath.Path(Path(workdir).absolute() / "checkpoints")


class Checkpointer:
    """Saves and restores the states of one run.

    Args:
      workdir: folder of the run.
      template: shapes and types of the state, what a checkpoint must fit, with the shardings that it is restored to;
        they need not be those with which it was saved.
      say: prints a line for the user.
      read_only: nothing is written or removed, so that a run can be looked at while it goes on.
    """

    def __init__(
        self,
        workdir: str | Path,
        template: State,
        say: Callable[[str], None] = print,
        read_only: bool = False,
    ):
        self.root = home(workdir)
        self.template = template
        self.say = say
        self.read_only = read_only
        self._last = _manager(self.root / "last", keep=2, read_only=read_only)
        self._best = _manager(self.root / "best", keep=1, read_only=read_only)

    def save(self, state: State, meta: dict[str, Any], *, best: bool) -> None:
        """Starts saving `state` and `meta`, at once copies: the caller may donate the one and change the other.

        `best` also makes it the best one.

        Raises:
          Failure: an earlier save failed in the background, for instance because the disk is full.
        """
        step = int(state.step)
        meta = {**meta, "step": step, "fingerprint": trees.fingerprint(state)}
        meta = json.loads(json.dumps(meta))  # a copy to the bottom: it is written while the caller goes on
        meta["digest"] = _digest(meta)
        if jax.default_backend() == "cpu":
            state = jax.tree.map(jnp.copy, state)  # on CPU the writer may share memory with a donated buffer
        self._guard(lambda: self._best.wait_until_finished())
        if processes.several():  # orbax names its barriers alike for all managers: one at a time
            self._guard(lambda: self._last.wait_until_finished())
        if best and step not in self._best.all_steps():
            self._guard(lambda: _save(self._best, step, state, meta))
            if processes.several():
                self._guard(lambda: self._best.wait_until_finished())
        if step not in self._last.all_steps():
            self._guard(lambda: _save(self._last, step, state, meta))

    def wait(self) -> None:
        """Returns when everything is on disk; raises `Failure` where that failed."""
        self._guard(lambda: (self._best.wait_until_finished(), self._last.wait_until_finished()))

    def close(self) -> None:
        """Waits for what is being saved; raises `Failure` where that failed."""
        self._guard(lambda: (self._best.close(), self._last.close()))

    def restore(self, which: str | int = "last") -> Restored:
        """Restores "last", "best" or the checkpoint of a step.

        Raises:
          BadRequest: there is no such checkpoint (with the steps there are).
          Failure: it is damaged.
        """
        managers = {"last": self._last, "best": self._best}
        if which in managers:
            steps = managers[which].all_steps()
            if not steps:
                raise errors.BadRequest(f"no checkpoint {which!r} in {self.root}; has the run saved one yet?")
            newest = self.restore_newest() if which == "last" else None
            if newest:
                return newest
            return self._read(self._best, max(steps))
        try:
            step = int(which)
        except ValueError:
            raise errors.BadRequest(f"checkpoint {which!r} is neither 'best', 'last' nor a step.") from None
        for manager in managers.values():
            if step in manager.all_steps():
                return self._read(manager, step)
        there = sorted({*self._last.all_steps(), *self._best.all_steps()})
        raise errors.BadRequest(f"no checkpoint of step {step} in {self.root}; there are {there}.")

    def restore_newest(self) -> Restored | None:
        """Restores the newest checkpoint that is whole; None where the run has saved none.

        A damaged one is reported and moved to `checkpoints/damaged`, and the one before is used.

        Raises:
          Failure: there are checkpoints, and all are damaged.
        """
        steps = sorted(self._last.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._read(self._last, step)
            except errors.Failure as e:
                if self.read_only:
                    self.say(f"warning: {e}; the one before is used.")
                    continue
                aside = self.root / "damaged" / str(step)
                processes.barrier(f"damaged {step}")  # all have read it
                if jax.process_index() == 0:
                    if aside.exists():
                        aside.rmtree()
                    aside.parent.mkdir(parents=True, exist_ok=True)
                    (self.root / "last" / str(step)).rename(aside)
                processes.barrier(f"damaged {step} aside")
                self.say(f"warning: {e}; it is now in {aside}, and the one before is used.")
        self._last.reload()
        if steps:
            raise errors.Failure(
                f"every checkpoint in {self.root} is damaged (steps {steps}); to start again, remove the folder."
            )
        return None

    def forget_after(self, step: int) -> None:
        """Removes best checkpoints of a later step than the run resumes from: it will come by there again."""
        for later in [s for s in self._best.all_steps() if s > step]:
            self._best.delete(later)
        self._last.reload()

    def best_step(self) -> int | None:
        return max(self._best.all_steps(), default=None)

    def _read(self, manager: ocp.CheckpointManager, step: int) -> Restored:
        place = epath.Path(manager.directory) / str(step)
        try:
            shaped = ocp.checkpoint_utils.construct_restore_args(self.template)
            state = ocp.args.PyTreeRestore(self.template, restore_args=shaped)
            found = manager.restore(step, args=ocp.args.Composite(state=state, meta=ocp.args.JsonRestore()))
        except Exception as e:
            raise errors.Failure(f"the checkpoint {place} cannot be read ({_line(e)})") from e
        if found.meta.get("digest") != _digest(found.meta):
            raise errors.Failure(f"the checkpoint {place} is corrupt: the record beside its state changed")
        given, expected = trees.fingerprint(found.state), found.meta["fingerprint"]
        wrong = [k for k in given if given[k] != expected.get(k)]
        if wrong:
            raise errors.Failure(
                f"the checkpoint {place} is corrupt: {len(wrong)} array(s) changed, such as {wrong[0]}"
            )
        return Restored(step, found.state, dict(found.meta))

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as e:
            # As they lie on the disk: the managers already count what they were about to write and to remove.
            good = sorted({int(p.name) for d in ("last", "best") for p in _listed(self.root / d) if p.name.isdigit()})
            have = f"The checkpoints of steps {good} are intact." if good else "There is no earlier checkpoint."
            text = str(e)
            full = getattr(e, "errno", None) == errno.ENOSPC or "No space left" in text or "ENOSPC" in text
            what = (
                f"the disk is full: {self.root} has no room for a checkpoint" if full else f"saving failed ({_line(e)})"
            )
            raise errors.Failure(f"{what}. {have} Make room and give the same command to go on from there.") from e


def _listed(folder: epath.Path) -> list[epath.Path]:
    return list(folder.iterdir()) if folder.exists() else []


def _manager(folder: epath.Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        preservation_policy=LatestN(keep),
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=not read_only,
    )
    # Not compressed: of float32 parameters it saves a twelfth, and takes the processors that training is on.
    handlers = {"state": ocp.PyTreeCheckpointHandler(use_compression=False), "meta": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def _save(manager: ocp.CheckpointManager, step: int, state: State, meta: dict[str, Any]) -> None:
    manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)))


def _digest(meta: dict[str, Any]) -> int:
    """Checksum of the JSON, but for itself."""
    return zlib.crc32(json.dumps({k: v for k, v in meta.items() if k != "digest"}, sort_keys=True).encode())


def _line(e: BaseException) -> str:
    return " ".join(str(e).split())[:200] or type(e).__name__
