"""What a run leaves behind besides checkpoints, and what it shows while it runs.

In the workdir: `config.json`, `metrics.jsonl` (one record a line: step, split, values), TensorBoard events under
`tensorboard/`, `summary.json` and `curves.png`. Only the main process writes.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recvis_jax import errors
from recvis_jax.training.distributed import is_main

# What a record says of time differs from run to run; everything else in it repeats exactly.
TIMES = ("seconds", "images_per_second")


def write_atomically(path: Path, text: str) -> None:
    """Replaces the file at `path` as a whole: a reader, or a crash, sees the old text or the new.

    Raises:
      Failure: it cannot be written, for instance because the disk is full.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise errors.Failure(f"cannot write {path}: {e.strerror or e}.") from e


def open_workdir(workdir: str | Path, config: dict[str, Any], differences: Any) -> Path:
    """Makes the folder of a run, or takes it up again if it belongs to the same config.

    Args:
      workdir: the folder.
      config: the run's config as plain dicts.
      differences: (old, new) -> lines that name differing keys.

    Raises:
      BadRequest: the folder cannot be written, or holds a run of another config (the differing keys are named).
    """
    folder = Path(workdir).expanduser().absolute()
    path, old = folder / "config.json", None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as e:
        raise errors.BadRequest(f"cannot write to the workdir {folder}: {e.strerror or e}.") from e
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError as e:
            raise errors.BadRequest(f"{path} is not valid JSON ({e}); is this the folder of a run?") from e
        lines = differences(old, json.loads(json.dumps(config)))
        if lines:
            raise errors.BadRequest(
                f"{folder} holds a run of another config; choose another --workdir or remove it. "
                f"Differing: {'; '.join(lines)}"
            )
    if is_main() and old != json.loads(json.dumps(config)):
        write_atomically(path, json.dumps(config, indent=2) + "\n")
    return folder


class Log:
    """Writes records to `metrics.jsonl` and TensorBoard, and shows progress.

    Args:
      folder: the workdir.
      total_steps: length of the run.
      resumed_at: step from which the run goes on: later records, of a life that was cut short, are dropped.
      evaluated: the last step whose evaluation the run remembers; it makes that of `resumed_at` again if due.
    """

    def __init__(self, folder: Path, total_steps: int, resumed_at: int = 0, evaluated: int = 0):
        self.folder, self.total, self.main = folder, total_steps, is_main()
        self.path = folder / "metrics.jsonl"
        self._progress = self._task = self._board = None
        self._started, self._started_at = time.monotonic(), resumed_at
        if not self.main:
            return
        limits = {"val": min(resumed_at, evaluated)}
        kept = [r for r in read_records(self.path) if r["step"] <= limits.get(r["split"], resumed_at)]
        write_atomically(self.path, "".join(json.dumps(r) + "\n" for r in kept))
        self._file = self.path.open("a")
        try:
            from tensorboardX import SummaryWriter

            # Files are named by the second; two lives may begin in the same one.
            self._board = SummaryWriter(
                str(folder / "tensorboard"),
                purge_step=resumed_at + 1 if resumed_at else None,
                filename_suffix=f".{resumed_at}",
            )
        except ImportError:
            self.say("note: no TensorBoard events, as tensorboardX is not installed: pip install 'recvis_jax[plot]'.")
        if sys.stderr.isatty():
            from rich import progress

            columns = (
                progress.TextColumn("step"),
                progress.MofNCompleteColumn(),
                progress.BarColumn(),
                progress.TextColumn("{task.description}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("eta"),
                progress.TimeRemainingColumn(),
            )
            from rich.console import Console

            self._progress = progress.Progress(*columns, console=Console(stderr=True))
            self._task = self._progress.add_task("", total=total_steps, completed=resumed_at)
            self._progress.start()

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar where there is one."""
        if not self.main:
            return
        text = errors.printable_lines(text)
        if self._progress:
            self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def advance(self, step: int) -> None:
        if self._progress:
            self._progress.update(self._task, completed=step)

    def record(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes one record and shows it.

        Raises:
          Failure: it cannot be written.
        """
        if not self.main:
            return
        try:
            self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
            self._file.flush()
        except OSError as e:
            raise errors.Failure(
                f"cannot write {self.path}: {e.strerror or e}. The same command goes on from the last checkpoint."
            ) from e
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
            self._board.flush()
        shown = ", ".join(f"{k} {_number(k, v)}" for k, v in values.items() if k not in ("seconds", "grad_norm"))
        if self._progress:
            self._progress.update(self._task, description=f"{split}: {shown}")
            if split == "train":
                return
        done, spent = step - self._started_at, time.monotonic() - self._started
        eta = f", eta {_duration(spent / done * (self.total - step))}" if split == "train" and done else ""
        self.say(f"step {step}/{self.total} {split}: {shown}{eta}")

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
        if self.main:
            with contextlib.suppress(OSError):  # of a record that was reported as not written
                self._file.close()
        if self._board:
            self._board.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl`; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    out = []
    for line in path.read_text().splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:
            break
    return out


def _number(name: str, value: float) -> str:
    if name == "images_per_second":
        return f"{value:,.0f}"
    return f"{100 * value:.2f} %" if "accuracy" in name or name.startswith("top_") else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
