"""For runs without a folder: the best state is kept in memory, and progress is shown in a bar."""

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from recvis_jax import errors
from recvis_jax.training import distributed, log
from recvis_jax.training.checkpoint import Restored
from recvis_jax.training.state import State


class Memory:
    """Keeps a run's best state on the host; takes the place of `checkpoint.Checkpointer`."""

    def __init__(self) -> None:
        self._best: Restored | None = None

    def save(self, state: State, meta: dict[str, Any], *, best: bool) -> None:
        """Keeps the state if it is the best so far."""
        if best:
            self._best = Restored(int(state.step), distributed.onto_host(state), meta)

    def best_step(self) -> int | None:
        return self._best.step if self._best else None

    def restore(self, which: str | int = "best") -> Restored:
        """Returns the best state.

        Raises:
          BadRequest: there is no best state.
        """
        if self._best is None:
            raise errors.BadRequest("there is no best state: the run had no validation data.")
        return self._best

    def check(self) -> None:
        """Does nothing: there are no writes that could have failed."""

    wait = close = check


class Records:
    """Keeps a run's records in a list, and shows progress in a terminal or notebook.

    Args:
      total_steps: length of the run.
      progress: whether anything is shown.

    Attributes:
      records: a list of {"step", "split", ...}.
    """

    def __init__(self, total_steps: int, progress: bool = True):
        self.records: list[dict[str, Any]] = []
        self._total, self._shown, self._bar = total_steps, progress, None
        if progress and (sys.stderr.isatty() or _in_notebook()):
            self._bar, self._task = log.progress_bar(total_steps, 0)

    def say(self, text: str) -> None:
        if self._shown and distributed.is_main():
            print(errors.printable_lines(text), flush=True)

    def advance(self, step: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=step)

    def record(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self.records.append({"step": step, "split": split, **values})
        if self._bar:
            self._bar.update(self._task, description=log.short(values))
        elif self._shown and split == "val":
            self.say(f"step {step}/{self._total} {split}: {log.short(values)}")

    def failed(self, step: int, message: str) -> None:
        """Notes that the run ended at a step because a number in it was not finite."""
        self.records.append({"step": step, "split": log.FAILURE, "message": message})

    def close(self) -> None:
        if self._bar:
            with contextlib.suppress(Exception):  # the terminal may be gone
                self._bar.stop()
            self._bar = None


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules
