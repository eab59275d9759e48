"""Checkpoints: written by orbax in the background, checked when read, never trusted blindly, never thrown away.

A run keeps the two newest under `checkpoints/last` (so that a damaged one can be skipped) and the best under
`checkpoints/best`, in the workdir or wherever the config's `checkpoint_dir` is, on a disk or as gs://bucket/folder.
Beside the state lies JSON with the position in the data, the loop's own state, shape and fingerprint of every leaf (the
latter computed on the device when saving and again when restoring), and a checksum of the JSON: they find what a file
format does not.

A checkpoint that cannot be read, or whose fingerprint is another, is damaged: it is moved to `checkpoints/damaged`, and
the one before is used. One that holds other names or shapes than the state to restore is whole; that the code or the
config changed is the user's to mend, and nothing is moved. A best checkpoint of a later step than the run resumes from
stays until the run has come by there again, at most aside in `checkpoints/ahead`.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import LatestN

from recvis_jax import errors, reading, trees
from recvis_jax.training import processes
from recvis_jax.training.state import State, describe, differences


class Restored(NamedTuple):
    """A checkpoint as read: the step it was saved at, the state, and the JSON beside it."""

    step: int
    state: State
    meta: dict[str, Any]


class Mismatch(errors.BadRequest):
    """A whole checkpoint holds another state than the one wanted."""


class _Saved(NamedTuple):
    """A checkpoint as it lies there: in which folder ("last", "best", "damaged"), and of which step."""

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
      template: shapes and types of the state, what a checkpoint must fit, with the shardings that it is restored to;
        they need not be those with which it was saved.
      say: prints a line for the user.
      read_only: nothing is written or removed, so that a run can be looked at while it goes on.
      root: where the checkpoints are; None for where the run's config has them.
      held: raises where this process must no longer write; asked before every save.
      without: attribute of the state that is neither compared nor read, for looking at a run.
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
    ):
        self.root = root or home(workdir)
        self.template = template
        self.say = say
        self.read_only = read_only
        self._held, self._without = held, without
        self._last = _manager(self.root / "last", keep=2, read_only=read_only)
        self._best = _manager(self.root / "best", keep=1, read_only=read_only)
        self._managers = {"last": self._last, "best": self._best}

    def save(self, state: State, meta: dict[str, Any], *, best: bool) -> None:
        """Starts saving `state` and `meta`, at once copies: the caller may donate the one and change the other.

        `best` also makes it the best one.

        Raises:
          Failure: an earlier save failed in the background, for instance because the disk is full, or another process
            has taken the run over.
        """
        self._held()
        step = int(state.step)
        meta = {**meta, "step": step, "fingerprint": trees.fingerprint(state), "shapes": describe(state)}
        # A copy to the bottom: it is written while the caller goes on.
        meta = json.loads(json.dumps(meta, allow_nan=False))
        meta["digest"] = _digest(meta)
        if jax.default_backend() == "cpu":
            state = jax.tree.map(jnp.copy, state)  # on CPU the writer may share memory with a donated buffer
        self._guard(lambda: self._best.wait_until_finished())
        if processes.several():  # orbax names its barriers alike for all managers: one at a time
            self._guard(lambda: self._last.wait_until_finished())
        self._forget_ahead()
        if best and self._make_way(step, meta):
            self._guard(lambda: _save(self._best, step, state, meta))
            if processes.several():
                self._guard(lambda: self._best.wait_until_finished())
        if step not in self._last.all_steps():
            self._guard(lambda: _save(self._last, step, state, meta))

    def check(self) -> None:
        """Raises `Failure` where a save has failed in the background; does not wait for one in progress."""
        self._guard(lambda: (self._best.check_for_errors(), self._last.check_for_errors()))

    def wait(self) -> None:
        """Returns when everything is on disk; raises `Failure` where that failed."""
        self._guard(lambda: (self._best.wait_until_finished(), self._last.wait_until_finished()))
        self._forget_ahead()

    def close(self) -> None:
        """Waits for what is being saved; raises `Failure` where that failed."""
        self._guard(lambda: (self._best.close(), self._last.close()))

    def restore(self, which: str | int = "last") -> Restored:
        """Restores "last", "best" or the checkpoint of a step.

        Raises:
          BadRequest: there is no such checkpoint (with the steps there are), or it holds another state.
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
        """Restores the newest checkpoint that is whole; None where the run has saved none.

        Damaged ones are reported and moved to `checkpoints/damaged`, and the one before is used: of the last, then the
        best, then those that were set aside as damaged and are not.

        Raises:
          BadRequest: they hold another state than the one wanted; nothing was moved.
          Failure: there are checkpoints, and none can be used; nothing was moved.
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
        """Raises `Mismatch` where there are checkpoints, all of which hold another state than the one wanted."""
        other = None
        for saved in self._there():
            try:
                return self._compare(saved, self._meta(saved))
            except Mismatch as e:
                other = other or e
            except Exception:  # damaged, which is found when it is read
                continue
        if other:
            raise other

    def kept(self) -> dict[str, list[int]]:
        """Returns the steps of the checkpoints that there are under "last" and under "best"."""
        return {kind: _steps(self._there(kind)) for kind in ("last", "best")}

    def newest_step(self) -> int:
        """Returns the newest step of which there is a checkpoint, damaged or not; 0 where there is none."""
        return max((saved.step for saved in self._there()), default=0)

    def best_step(self) -> int | None:
        return max(self._best.all_steps(), default=None)

    def _path(self, saved: _Saved) -> epath.Path:
        return self.root / saved.kind / str(saved.step)

    def _there(self, *kinds: str) -> list[_Saved]:
        """Lists what has the name of a checkpoint, newest first, by default the last before the best."""
        out = []
        for kind in kinds or ("last", "best"):
            steps = [int(p.name) for p in _listed(self.root / kind) if _is_step(p.name)]
            out += [_Saved(kind, step) for step in sorted(steps, reverse=True)]
        return out

    def _move(self, saved: _Saved, kind: str) -> epath.Path:
        """Moves a checkpoint to another folder, where it replaces none; returns its new place."""
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
        """Prepares the saving of a best checkpoint; returns False where that very one is there.

        Best checkpoints of later steps are of a life that was cut short, as where the newest checkpoint was damaged.
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
        """Removes what lies aside of steps that the run has come by again, and saved."""
        ahead = [p for p in _listed(self.root / "ahead") if _is_step(p.name.partition(".")[0])]
        if not ahead or self.read_only:
            return
        reached = max((saved.step for saved in self._there("last")), default=0)
        processes.barrier("ahead")
        if jax.process_index() == 0:
            for p in ahead:
                if int(p.name.partition(".")[0]) <= reached:
                    p.rmtree()

    def _meta(self, saved: _Saved) -> dict[str, Any]:
        """Reads the JSON beside a state; `Failure` where it is damaged."""
        path = self._path(saved)
        try:
            if "://" not in str(path):
                reading.regular(Path(path / "meta" / "metadata"), "record bytes")
            meta = json.loads((path / "meta" / "metadata").read_text())
            if meta["digest"] == _digest(meta):
                return meta
        except Exception as e:
            raise errors.Failure(f"the checkpoint {path} cannot be read ({_line(e)})") from e
        raise errors.Failure(f"the checkpoint {path} is corrupt: the record beside its state changed")

    def _compare(self, saved: _Saved, meta: dict[str, Any]) -> None:
        """Raises `Mismatch` where a checkpoint's names, shapes or types are not those wanted."""
        wanted, have = describe(self.template), meta.get("shapes")
        if have is None:  # of an earlier version: the names are on record, the shapes with the state itself
            have = dict.fromkeys(meta["fingerprint"])
            if have.keys() == wanted.keys():
                with ocp.StandardCheckpointer() as reader:
                    have = describe(reader.metadata(self._path(saved) / "state").item_metadata.tree)
        if self._without:
            wanted = {k: v for k, v in wanted.items() if k.partition("/")[0] != self._without}
            have = {k: v for k, v in have.items() if k.partition("/")[0] != self._without}
        if have != wanted:
            raise Mismatch(
                f"the checkpoint {self._path(saved)} is whole, but of another model or optimizer than this code and "
                f"config make: {differences(have, wanted)}. Nothing was changed. Go on with the code and config that "
                "saved it, or choose another --workdir."
            )

    def _read(self, saved: _Saved) -> Restored:
        path, meta = self._path(saved), self._meta(saved)
        try:
            self._compare(saved, meta)
            if saved.kind not in self._managers:
                self._managers[saved.kind] = _manager(self.root / saved.kind, keep=1, read_only=True)
            names = [f.name for f in dataclasses.fields(self.template) if f.name != self._without]
            wanted: Any = {n: getattr(self.template, n) for n in names} if self._without else self.template
            shaped = ocp.checkpoint_utils.construct_restore_args(wanted)
            args = ocp.args.PyTreeRestore(wanted, restore_args=shaped, partial_restore=bool(self._without))
            found = self._managers[saved.kind].restore(saved.step, args=ocp.args.Composite(state=args)).state
            state = State(**found, **{self._without: ()}) if self._without else found
        except Mismatch:
            raise
        except Exception as e:
            raise errors.Failure(f"the checkpoint {path} cannot be read ({_line(e)})") from e
        given, expected = trees.fingerprint(state), meta["fingerprint"]
        wrong = [k for k in given if given[k] != expected.get(k)]
        if wrong:
            raise errors.Failure(f"the checkpoint {path} is corrupt: {len(wrong)} array(s) changed, such as {wrong[0]}")
        return Restored(saved.step, state, meta)

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as e:
            # As they lie on the disk: the managers already count what they were about to write and to remove.
            good: list[int] = []
            for kind in ("last", "best"):
                with contextlib.suppress(errors.Failure):
                    good = sorted({*good, *_steps(self._there(kind))})
            have = f"The checkpoints of steps {good} are intact." if good else "There is no earlier checkpoint."
            if any(map(_is_full, _chain(e))):
                what, remedy = f"the disk is full: {self.root} has no room for a checkpoint", "Make room and give"
            else:
                what, remedy = f"saving a checkpoint in {self.root} failed ({_line(e)})", "Give"
            rest = "to go on from there" if good else "again"
            raise errors.Failure(f"{what}. {have} {remedy} the same command {rest}.") from e


def _listed(folder: epath.Path) -> list[epath.Path]:
    """Lists a folder that need not be there; `Failure` where it is none, or cannot be read."""
    try:
        return list(folder.iterdir()) if folder.exists() else []
    except OSError as e:
        raise errors.Failure(f"the checkpoints in {folder} cannot be read: {e.strerror or e}.") from e


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _steps(saved: list[_Saved]) -> list[int]:
    return sorted({s.step for s in saved})


def _chain(e: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    for _ in range(20):
        if e is None:
            return
        yield e
        e = e.__cause__ or e.__context__


def _is_full(e: BaseException) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    signs = ("No space left", "ENOSPC", "quota exceeded", *(f"os_error_code='{n}'" for n in full))
    return getattr(e, "errno", None) in full or any(sign in str(e) for sign in signs)


def _manager(folder: epath.Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    if "://" not in str(folder):
        for path in sorted(Path(folder).rglob("*")):  # orbax would wait for ever for what a pipe says
            if path.exists() and not (path.is_dir() or path.is_file()):
                raise errors.Failure(f"the checkpoints in {folder} cannot be read: {path} is no regular file.")
    # Not compressed: of float32 parameters it saves a twelfth, and takes the processors that training is on.
    handlers = {"state": ocp.PyTreeCheckpointHandler(use_compression=False), "meta": ocp.JsonCheckpointHandler()}
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)  # it warns that a folder is only read, which is what was asked for
    try:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestN(keep),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
    finally:
        absl.setLevel(level)


def _save(manager: ocp.CheckpointManager, step: int, state: State, meta: dict[str, Any]) -> None:
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta))
    if not manager.save(step, args=args):  # as where there are later steps
        raise RuntimeError(f"orbax did not save step {step} beside {manager.all_steps()}")


def _digest(meta: dict[str, Any]) -> int:
    """Checksum of the JSON, but for itself."""
    return zlib.crc32(json.dumps({k: v for k, v in meta.items() if k != "digest"}, sort_keys=True).encode())


def _line(e: BaseException) -> str:
    return " ".join(str(e).split())[:200] or type(e).__name__
