"""Checkpoints: orbax writes them in the background; they are checked when read, and never thrown away.

A run keeps its two newest checkpoints under `checkpoints/last` (so that a damaged one can be skipped) and the best
under `checkpoints/best`. Both are in the workdir or in the config's `checkpoint_dir`, a folder or gs://bucket/folder.
Each state comes with JSON: the position in the data, the state of the loop, the shape and fingerprint of every leaf,
and a checksum of the JSON itself. Fingerprints are computed on the device when saving and again when restoring, which
finds damage that the file format does not notice.

A checkpoint is damaged if it cannot be read or its fingerprint differs: it is moved to `checkpoints/damaged`, and the
one before it is used. A checkpoint with other names or shapes than the state to restore is not damaged: the code or
the config has changed. The user has to decide, and nothing is moved. If a run resumes from before its best checkpoint,
that checkpoint is kept, in `checkpoints/ahead` if it is in the way, until the run has reached its step again.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from recvis_jax import errors, reading, trees
from recvis_jax.training import orbax_files, processes
from recvis_jax.training.state import State, describe, differences


class Restored(NamedTuple):
    """A checkpoint as read: the step it was saved at, the state, and the JSON beside it."""

    step: int
    state: State
    meta: dict[str, Any]


class Mismatch(errors.BadRequest):
    """An intact checkpoint holds a different state from the one wanted."""


class _Saved(NamedTuple):
    """A stored checkpoint: its folder ("last", "best", "damaged") and its step."""

    kind: str
    step: int


def home(workdir: str | Path) -> epath.Path:
    """Returns where a run's checkpoints are: the `checkpoint_dir` of its config, or `checkpoints` in the workdir."""
    config, named = Path(workdir) / "config.json", None
    if config.exists():
        named = reading.read_json(config).get("checkpoint_dir")
    return place(workdir, named)


def place(workdir: str | Path, checkpoint_dir: Any) -> epath.Path:
    """Returns where the checkpoints of a run with this `checkpoint_dir` are."""
    if checkpoint_dir and not isinstance(checkpoint_dir, str):
        shown = errors.printable(checkpoint_dir)[:60]
        raise errors.BadRequest(f"checkpoint_dir of {errors.printable(workdir)} is {shown}, not a folder's name.")
    return epath.Path(checkpoint_dir or Path(workdir).absolute() / "checkpoints")


class Checkpointer:
    """Saves and restores the states of one run.

    Args:
      workdir: folder of the run.
      template: shapes and types that a checkpoint must have, with the shardings to restore it to; these may differ
        from the shardings it was saved with.
      say: prints a line for the user.
      read_only: writes and removes nothing, so that a run can be inspected while it trains.
      root: where the checkpoints are; None for the place that the run's config names.
      held: called before every save; raises if this process may no longer write.
      keep: number of newest checkpoints to keep.
      without: attribute of the state that is neither compared nor read, for inspecting a run.
    """

    def __init__(
        self,
        workdir: str | Path,
        template: State,
        say: Callable[[str], None] = print,
        read_only: bool = False,
        root: epath.Path | None = None,
        held: Callable[[], None] = lambda: None,
        without: str = "",
        keep: int = 2,
    ):
        self.root = root or home(workdir)
        self.template = template
        self.say = say
        self.read_only = read_only
        self._held, self._without = held, without
        self._last = orbax_files.open_manager(self.root / "last", keep=keep, read_only=read_only)
        self._best = orbax_files.open_manager(self.root / "best", keep=1, read_only=read_only)
        self._managers = {"last": self._last, "best": self._best}

    def save(self, state: State, meta: dict[str, Any], *, best: bool) -> None:
        """Starts saving `state` and `meta`. Both are copied: the caller may donate the state and change `meta`.

        `best` also makes it the best checkpoint.

        Raises:
          Failure: an earlier save failed in the background, for instance because the disk is full, or another process
            has taken over the run.
        """
        self._held()
        step = int(state.step)
        meta = {**meta, "step": step, "fingerprint": trees.fingerprint(state), "shapes": describe(state)}
        # A deep copy: it is written while the caller continues.
        meta = json.loads(json.dumps(meta, allow_nan=False))
        meta["digest"] = orbax_files.digest(meta)
        if jax.default_backend() == "cpu":
            state = jax.tree.map(jnp.copy, state)  # on CPU the writer may share memory with a donated buffer
        self._guard(lambda: self._best.wait_until_finished())
        if processes.several():  # all orbax managers use the same barrier names: save one at a time
            self._guard(lambda: self._last.wait_until_finished())
        self._forget_ahead()
        if best and self._make_way(step, meta):
            self._guard(lambda: orbax_files.save(self._best, step, state, meta))
            if processes.several():
                self._guard(lambda: self._best.wait_until_finished())
        if step not in self._last.all_steps():
            self._guard(lambda: orbax_files.save(self._last, step, state, meta))

    def check(self) -> None:
        """Raises `Failure` if a background save has failed; does not wait for one in progress."""
        self._guard(lambda: (self._best.check_for_errors(), self._last.check_for_errors()))

    def wait(self) -> None:
        """Returns when everything is on disk; raises `Failure` if saving failed."""
        self._guard(lambda: (self._best.wait_until_finished(), self._last.wait_until_finished()))
        self._forget_ahead()

    def close(self) -> None:
        """Waits for saves in progress; raises `Failure` if one failed."""
        self._guard(lambda: (self._best.close(), self._last.close()))

    def restore(self, which: str | int = "last") -> Restored:
        """Restores "last", "best" or the checkpoint of a step.

        Raises:
          BadRequest: there is no such checkpoint (the message lists the steps), or it holds a different state.
          Failure: it is damaged.
        """
        there = self._there()
        if which == "last":
            found = self.restore_newest()
            if found is None:
                raise errors.BadRequest(f"no checkpoint 'last' in {self.root}; has the run saved one yet?")
            return found
        if which == "best":
            steps = [saved.step for saved in there if saved.kind == "best"]
            if not steps:
                raise errors.BadRequest(f"no checkpoint 'best' in {self.root}; has the run saved one yet?")
            return self._read(_Saved("best", max(steps)))
        try:
            step = int(which)
        except ValueError:
            raise errors.BadRequest(
                f"checkpoint {errors.printable(which)[:60]!r} is neither 'best', 'last' nor a step."
            ) from None
        for saved in there:
            if saved.step == step:
                return self._read(saved)
        raise errors.BadRequest(f"no checkpoint of step {step} in {self.root}; there are {_steps(there)}.")

    def restore_newest(self) -> Restored | None:
        """Restores the newest intact checkpoint; None if the run has saved none.

        Damaged checkpoints are reported and moved to `checkpoints/damaged`, and the next one is tried: first "last",
        then "best", then those in `checkpoints/damaged`, which may be intact after all.

        Raises:
          BadRequest: the checkpoints hold a different state from the one wanted; nothing was moved.
          Failure: there are checkpoints, but none can be used; nothing was moved.
        """
        bad: list[tuple[_Saved, Exception]] = []
        found = None
        there = [*self._there(), *self._there("damaged")]
        for saved in there:
            try:
                found = saved, self._read(saved)
                break
            except (Mismatch, errors.Failure) as e:
                bad.append((saved, e))
        if found is None:
            other = next((e for _, e in bad if isinstance(e, Mismatch)), None)
            if other:
                raise other
            if bad:
                raise errors.Failure(
                    f"none of the checkpoints in {self.root} (steps {_steps(there)}) can be used: {bad[0][1]}. Nothing "
                    f"was moved. To start again, choose another --workdir or remove {self.root}."
                )
            return None
        saved, restored = found
        where = "the one before is used" if saved.kind == "last" else f"{self._path(saved)} is used"
        for damaged, why in bad:
            if self.read_only or damaged.kind == "damaged":
                self.say(f"warning: {why}; {where}.")
            else:
                aside = self._move(damaged, "damaged")
                self.say(f"warning: {why}; it is now in {aside}, and {where}.")
        if saved.kind == "damaged" and not self.read_only:
            self.say(f"note: {self._path(saved)} is whole; it is now in {self._move(saved, 'last')}.")
        return restored

    def refuse_mismatch(self) -> None:
        """Raises `Mismatch` if there are checkpoints and all hold a different state from the one wanted."""
        other = None
        for saved in self._there():
            try:
                return self._compare(saved, self._meta(saved))
            except Mismatch as e:
                other = other or e
            except Exception:  # damaged; reported when it is read
                continue
        if other:
            raise other

    def kept(self) -> dict[str, list[int]]:
        """Returns the steps of the checkpoints under "last" and under "best"."""
        return {kind: _steps(self._there(kind)) for kind in ("last", "best")}

    def newest_step(self) -> int:
        """Returns the step of the newest checkpoint, damaged or not; 0 if there is none."""
        return max((saved.step for saved in self._there()), default=0)

    def best_step(self) -> int | None:
        return max(self._best.all_steps(), default=None)

    def _path(self, saved: _Saved) -> epath.Path:
        return self.root / saved.kind / str(saved.step)

    def _there(self, *kinds: str) -> list[_Saved]:
        """Lists everything named like a checkpoint, newest first; by default "last", then "best"."""
        out = []
        for kind in kinds or ("last", "best"):
            steps = [int(p.name) for p in orbax_files.listed(self.root / kind) if orbax_files.is_step(p.name)]
            out += [_Saved(kind, step) for step in sorted(steps, reverse=True)]
        return out

    def _move(self, saved: _Saved, kind: str) -> epath.Path:
        """Moves a checkpoint to another folder without replacing anything there; returns its new place."""
        to = self.root / kind / str(saved.step)
        processes.barrier(f"move {saved}")  # all have read it
        for number in range(1, 1000):
            if not to.exists():
                break
            to = self.root / kind / f"{saved.step}.{number}"
        processes.barrier(f"move {saved} to {to}")
        if jax.process_index() == 0:
            to.parent.mkdir(parents=True, exist_ok=True)
            self._path(saved).rename(to)
        processes.barrier(f"moved {saved}")
        for manager in self._managers.values():
            manager.reload()
        return to

    def _make_way(self, step: int, meta: dict[str, Any]) -> bool:
        """Prepares to save a best checkpoint; returns False if the same one is already there.

        Best checkpoints of later steps come from an earlier attempt, for instance if the newest checkpoint was damaged.
        """
        for saved in self._there("best"):
            if saved.step == step:
                try:
                    if self._meta(saved)["fingerprint"] == meta["fingerprint"]:
                        return False
                except (errors.Failure, KeyError):
                    pass
            if saved.step >= step:
                self._move(saved, "ahead")
        return True

    def _forget_ahead(self) -> None:
        """Removes checkpoints in `ahead` whose steps the run has reached and saved again."""
        ahead = [p for p in orbax_files.listed(self.root / "ahead") if orbax_files.is_step(p.name.partition(".")[0])]
        if not ahead or self.read_only:
            return
        reached = max((saved.step for saved in self._there("last")), default=0)
        processes.barrier("ahead")
        if jax.process_index() == 0:
            for p in ahead:
                if int(p.name.partition(".")[0]) <= reached:
                    p.rmtree()

    def _meta(self, saved: _Saved) -> dict[str, Any]:
        """Reads the JSON beside a state; `Failure` if it is damaged."""
        path = self._path(saved)
        try:
            if "://" not in str(path):
                reading.regular(Path(path / "meta" / "metadata"), "record bytes")
            meta = json.loads((path / "meta" / "metadata").read_text())
            if meta["digest"] == orbax_files.digest(meta):
                return meta
        except Exception as e:
            raise errors.Failure(f"the checkpoint {path} cannot be read ({orbax_files.line(e)})") from e
        raise errors.Failure(f"the checkpoint {path} is corrupt: the record beside its state changed")

    def _compare(self, saved: _Saved, meta: dict[str, Any]) -> None:
        """Raises `Mismatch` if a checkpoint's names, shapes or types are not those wanted."""
        wanted, have = describe(self.template), meta.get("shapes")
        if have is None:  # from an earlier version: names are in the JSON, shapes only in the state itself
            have = dict.fromkeys(meta["fingerprint"])
            if have.keys() == wanted.keys():
                with ocp.StandardCheckpointer() as reader:
                    have = describe(reader.metadata(self._path(saved) / "state").item_metadata.tree)
        if self._without:
            wanted = {k: v for k, v in wanted.items() if k.partition("/")[0] != self._without}
            have = {k: v for k, v in have.items() if k.partition("/")[0] != self._without}
        if have != wanted:
            raise Mismatch(
                f"the checkpoint {self._path(saved)} is intact, but its model or optimizer differs from that of this "
                f"code and config: {differences(have, wanted)}. Nothing was changed. Continue with the code and config "
                "that saved it, or choose another --workdir."
            )

    def _read(self, saved: _Saved) -> Restored:
        path, meta = self._path(saved), self._meta(saved)
        try:
            self._compare(saved, meta)
            if saved.kind not in self._managers:
                self._managers[saved.kind] = orbax_files.open_manager(self.root / saved.kind, keep=1, read_only=True)
            names = [f.name for f in dataclasses.fields(self.template) if f.name != self._without]
            wanted: Any = {n: getattr(self.template, n) for n in names} if self._without else self.template
            shaped = ocp.checkpoint_utils.construct_restore_args(wanted)
            args = ocp.args.PyTreeRestore(wanted, restore_args=shaped, partial_restore=bool(self._without))
            found = self._managers[saved.kind].restore(saved.step, args=ocp.args.Composite(state=args)).state
            state = State(**found, **{self._without: ()}) if self._without else found
        except Mismatch:
            raise
        except Exception as e:
            raise errors.Failure(f"the checkpoint {path} cannot be read ({orbax_files.line(e)})") from e
        given, expected = trees.fingerprint(state), meta["fingerprint"]
        wrong = [k for k in given if given[k] != expected.get(k)]
        if wrong:
            raise errors.Failure(f"the checkpoint {path} is corrupt: {len(wrong)} array(s) changed, such as {wrong[0]}")
        return Restored(saved.step, state, meta)

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as e:
            # Look at the disk: the managers already count checkpoints that they were about to write or remove.
            good: list[int] = []
            for kind in ("last", "best"):
                with contextlib.suppress(errors.Failure):
                    good = sorted({*good, *_steps(self._there(kind))})
            have = f"The checkpoints of steps {good} are intact." if good else "There is no earlier checkpoint."
            if orbax_files.is_full(e):
                what, remedy = f"the disk is full: {self.root} has no room for a checkpoint", "Make room and give"
            else:
                what, remedy = f"saving a checkpoint in {self.root} failed ({orbax_files.line(e)})", "Give"
            rest = "to continue from there" if good else "again"
            raise errors.Failure(f"{what}. {have} {remedy} the same command {rest}.") from e


def _steps(saved: list[_Saved]) -> list[int]:
    return sorted({s.step for s in saved})
