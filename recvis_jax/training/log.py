"""The files of a run besides its checkpoints, and the progress shown while it runs.

In the workdir: `config.json`, `metrics.jsonl` (one record a line: step, split, values), TensorBoard events under
`tensorboard/`, `summary.json` and `curves.png`. Only the main process writes. Non-finite numbers are stored as null.
"""

import contextlib
import fcntl
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recvis_jax import errors, reading
from recvis_jax.training.distributed import is_main

# Fields that differ from run to run; everything else in a record repeats exactly.
TIMES = ("seconds", "images_per_second")
# Stands for the split in the last record of a run that diverged; a run that goes on drops it with what is later.
FAILURE = "failure"


def write_atomically(path: Path, text: str | bytes) -> None:
    """Replaces the file at `path` in one step: after a crash, or for a reader, it holds the old text or the new one.

    Raises:
      Failure: it cannot be written, for instance because the disk is full.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as f:
            f.write(text.encode() if isinstance(text, str) else text)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise errors.Failure(f"cannot write {path}: {e.strerror or e}.") from e


def write_json(path: Path, value: Any) -> None:
    """Replaces the file at `path` by standard JSON; see `plain_json` and `write_atomically`."""
    write_atomically(path, json.dumps(plain_json(value), indent=2, allow_nan=False) + "\n")


def update_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Reads the JSON object at `path` (empty if there is no file), changes it in place and replaces the file.

    Programs that do so at the same time wait for each other, so that no change is lost.

    Raises:
      BadRequest: the file is damaged; it is left unchanged.
      Failure: it cannot be written.
    """
    folder = None
    try:
        with contextlib.suppress(OSError):  # some network disks cannot lock folders
            folder = os.open(path.parent, os.O_RDONLY)
            fcntl.flock(folder, fcntl.LOCK_EX)
        value = reading.read_json(path) if path.exists() else {}
        change(value)
        write_json(path, value)
    finally:
        if folder is not None:
            os.close(folder)


def plain_json(value: Any) -> Any:
    """Returns `value` in JSON's types: tuples and arrays become lists, non-finite numbers become None."""
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Log:
    """Writes records to `metrics.jsonl` and TensorBoard, and shows progress.

    Args:
      folder: the workdir.
      total_steps: length of the run.
      resumed_at: step from which the run continues; later records, written before an interruption, are dropped.
      evaluated: last step whose evaluation is in the restored state; a later evaluation is repeated.
    """

    def __init__(self, folder: Path, total_steps: int, resumed_at: int = 0, evaluated: int = 0):
        self.folder, self.total, self.main = folder, total_steps, is_main()
        self.path = folder / "metrics.jsonl"
        self._progress = self._task = self._board = None
        self._started, self._started_at = time.monotonic(), resumed_at
        if not self.main:
            return
        self._drop_later({"val": min(resumed_at, evaluated)}, resumed_at)
        self._file = self.path.open("ab")
        try:
            from tensorboardX import SummaryWriter

            # tensorboardX names files by the second; a run may be resumed within the same second.
            self._board = SummaryWriter(
                str(folder / "tensorboard"),
                purge_step=resumed_at + 1 if resumed_at else None,
                filename_suffix=f".{resumed_at}",
            )
        except ImportError:
            self.say("note: no TensorBoard events, as tensorboardX is not installed: pip install 'recvis_jax[plot]'.")
        if sys.stderr.isatty():
            self._progress, self._task = progress_bar(total_steps, resumed_at)

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
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
            self._file.write(json_line({"step": step, "split": split, **values}).encode())
            self._file.flush()
        except OSError as e:
            raise errors.Failure(
                f"cannot write {self.path}: {e.strerror or e}. The same command continues from the last checkpoint."
            ) from e
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
            self._board.flush()
        shown = ", ".join(f"{k} {_number(k, v)}" for k, v in values.items() if k not in ("seconds", "grad_norm"))
        if self._progress:
            if split == "train":
                self._progress.update(self._task, description=short(values))
                return
        done, spent = step - self._started_at, time.monotonic() - self._started
        eta = f", eta {_duration(spent / done * (self.total - step))}" if split == "train" and done else ""
        self.say(f"step {step}/{self.total} {split}: {shown}{eta}")

    def failed(self, step: int, message: str) -> None:
        """Notes that the run ended at a step because a number in it was not finite, for who looks at it later."""
        if self.main:
            with contextlib.suppress(OSError):  # the failure itself is what is to be said
                self._file.write(json_line({"step": step, "split": FAILURE, "message": message}).encode())
                self._file.flush()

    def _drop_later(self, limits: Mapping[str, int], limit: int) -> None:
        """Removes records of steps later than the limit of their split in `limits`, else `limit`.

        Lines that are not records are moved to `metrics.jsonl.damaged`, except a last line that a crash cut short.
        """
        kept, damaged = [], []
        lines = _lines(self.path)
        for number, line in enumerate(lines, 1):
            record = _record(line)
            if record is None:
                if line.strip() and (number < len(lines) or line.endswith(b"\n")):
                    damaged.append(line)
            elif record["step"] <= limits.get(record["split"], limit):
                strict = plain_json(record)  # earlier versions wrote NaN, which is not JSON
                kept.append(line.rstrip(b"\n") + b"\n" if strict == record else json_line(strict).encode())
        if damaged:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            with aside.open("ab") as f:
                f.writelines(line.rstrip(b"\n") + b"\n" for line in damaged)
            self.say(f"warning: {len(damaged)} line(s) of {self.path} are not records; they are now in {aside}.")
        if lines != kept or not self.path.exists():
            write_atomically(self.path, b"".join(kept))

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
        if self.main:
            with contextlib.suppress(OSError):  # a record whose failure was already reported
                self._file.close()
        if self._board:
            self._board.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl`; skips lines that are not records, such as one that a crash cut short.

    Non-finite numbers, which JSON does not have, are returned as NaN.
    """
    found = (_record(line) for line in _lines(path))
    return [{k: math.nan if v is None else v for k, v in record.items()} for record in found if record]


def _lines(path: Path) -> list[bytes]:
    """Returns the lines with their line feeds; strings in JSON may hold characters that Python takes for line ends."""
    if not path.exists():
        return []
    *lines, rest = reading.read_bytes(path, "records bytes").split(b"\n")
    return [*(line + b"\n" for line in lines), *([rest] if rest else [])]


def json_line(record: Mapping[str, Any]) -> str:
    """Returns a record as a line of `metrics.jsonl`."""
    return json.dumps(plain_json(record), allow_nan=False) + "\n"


def _record(line: bytes) -> dict[str, Any] | None:
    """Returns a record; None for a line that is not one."""
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int or not isinstance(found.get("split"), str):
        return None
    return found if all(v is None or isinstance(v, (int, float, str)) for v in found.values()) else None


def progress_bar(total: int, done: int) -> tuple[Any, Any]:
    """Starts the progress bar: step, bar and time left, then as many metrics as fit on the line."""
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    columns = (
        progress.TextColumn("step", table_column=Column(no_wrap=True)),
        progress.MofNCompleteColumn(table_column=Column(no_wrap=True)),
        progress.BarColumn(bar_width=12),
        progress.TimeRemainingColumn(table_column=Column(no_wrap=True)),
        progress.TextColumn("left", table_column=Column(no_wrap=True)),
        progress.TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1, overflow="ellipsis")
        ),
    )
    bar = progress.Progress(*columns, console=Console(stderr=True), expand=True)
    task = bar.add_task("", total=total, completed=done)
    bar.start()
    return bar, task


def short(values: Mapping[str, float]) -> str:
    """Returns metrics for the end of the progress bar, the most important first."""
    first = [k for k in ("loss", "accuracy") if k in values]
    rest = [k for k in values if k not in (*first, "seconds", "grad_norm", "images_per_second")]
    speed = [f"{values['images_per_second']:,.0f} images/s"] if "images_per_second" in values else []
    return ", ".join(
        [*(f"{k} {_number(k, values[k])}" for k in first), *speed, *(f"{k} {_number(k, values[k])}" for k in rest)]
    )


def _number(name: str, value: float) -> str:
    if name == "images_per_second":
        return f"{value:,.0f}"
    return f"{100 * value:.2f} %" if "accuracy" in name or name.startswith("top_") else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
