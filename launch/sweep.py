"""Runs a program over a grid of settings, each in its own workdir, and shows all results in one table.

  python -m launch.sweep --grid config.optim.lr=0.1,0.2 --grid config.seed=0,1,2 \\
    --config=configs/fashion_mnist/lenet5.py --workdir=runs/sweep [...]

Runs are started here one after the other, in `runs/sweep/optim.lr=0.1,seed=0` and so on. --launcher=local, slurm,
tpu_pod or gke starts each run with that launcher; give its flags, too. --list names a file with the settings of one run
per line. A failed run does not stop the others. The same command again skips finished runs (those with a summary.json),
resumes the others, and prints the table; --collect only prints the table.
Exit code: 0 if all runs are done (or submitted), 1 if not. Flags that are not listed below go to the program.
"""

import hashlib
import itertools
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags

from launch import attempt, command
from recvis_jax import errors

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this launcher."""
    flags.DEFINE_multi_string("grid", [], "Flag and values, such as config.seed=0,1,2; repeat it for all combinations.")
    flags.DEFINE_string("list", None, "File with the settings of one run per line: config.seed=0 config.steps=10")
    flags.DEFINE_enum("launcher", "none", ["none", "local", "slurm", "tpu_pod", "gke"], "What starts each run.")
    flags.DEFINE_bool("collect", False, "Only print the table; without settings, of all runs in the workdir.")
    flags.DEFINE_list("metrics", [], "Metrics of the table; by default accuracy, or all if there is no accuracy.")
    command.define_flags()
    flags.adopt_module_key_flags(command)


_SUBMIT = ("slurm", "gke")  # these return before the run has ended


class Run(NamedTuple):
    """One run: its folder below the sweep's, its flags, and its whole command."""

    name: str
    folder: str
    words: list[str]


def main(passed: list[str]) -> int:
    workdir = command.workdir(passed).rstrip("/")
    runs = _runs(workdir, passed)
    if FLAGS.dry_run:
        print("\n".join(command.shown(run.words) for run in runs if not _finished(run)))
        return 0
    if FLAGS.collect:
        return _tell(workdir, runs or _found(workdir), {})
    if not runs:
        raise errors.BadRequest("there is nothing to vary: give --grid or --list.")
    if FLAGS.launcher == "none":
        command.check([word for word in runs[0].words[3:] if word.startswith("--")])
    elif "://" in workdir:
        command.say("all runs in a bucket are started, as finished ones cannot be seen from here")
    stop = _Stop()
    states: dict[str, str] = {}
    for number, run in enumerate(runs, 1):
        if _finished(run):
            command.say(f"run {number} of {len(runs)}, {run.name}: has finished already")
            continue
        if stop.asked:
            break
        command.say(f"run {number} of {len(runs)}, {run.name}: {command.shown(run.words)}")
        code = stop.wait(subprocess.Popen(run.words, stdin=subprocess.DEVNULL, process_group=0))
        if stop.asked and code == 128 + signal.SIGINT:
            states[run.name] = "stopped"
        elif code:
            states[run.name] = f"failed with exit code {code}"
        elif FLAGS.launcher in _SUBMIT:
            states[run.name] = "submitted"
        elif "://" in workdir:
            states[run.name] = "done"
    code = _tell(workdir, runs, states)
    return 0 if stop.asked else code


class _Stop:
    """Passes SIGTERM and SIGINT on to the current run; then no other run is started."""

    def __init__(self) -> None:
        self.asked = False
        self._process: subprocess.Popen | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def _hear(self, number: int, _: Any) -> None:
        self.asked = True
        if self._process:
            self._process.send_signal(number)

    def wait(self, process: subprocess.Popen) -> int:
        self._process = process
        code = attempt.exit_code(process.wait())
        self._process = None
        return code


def _runs(workdir: str, passed: list[str]) -> list[Run]:
    """Returns the runs in the order of the grid, the last setting varying fastest.

    Raises:
      BadRequest: a setting is invalid, or two runs have the same settings.
    """
    choices = [_values(text) for text in FLAGS.grid]
    if FLAGS.list:
        choices.append(_lines(Path(FLAGS.list)))
    if not choices:
        return []
    launcher = FLAGS.launcher
    runs: list[Run] = []
    for chosen in itertools.product(*choices):
        settings = [word for words in chosen for word in words]
        name = _name(settings)
        if name in {run.name for run in runs}:
            raise errors.BadRequest(f"two runs have the same settings: {' '.join(settings)}.")
        flags_ = [*_without_workdir(passed), *(f"--{word}" for word in settings), f"--workdir={workdir}/{name}"]
        program = FLAGS.program
        if launcher == "none":
            words = command.python(program, flags_)
        else:
            words = command.python(f"launch.{launcher}", [f"--program={program}", *flags_])
        runs.append(Run(name, f"{workdir}/{name}", words))
    return runs


def _values(text: str) -> list[list[str]]:
    """Splits "key=a,b" into [["key=a"], ["key=b"]]; commas within brackets or quotes belong to a value."""
    key, given, values = text.lstrip("-").partition("=")
    if not given or not key:
        raise errors.BadRequest(f"--grid={text} is not KEY=VALUE,VALUE,... as config.optim.lr=0.1,0.2.")
    depth, quote, parts = 0, "", [""]
    for c in values:
        if c == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += c
        if quote or c in "'\"":
            quote = "" if c == quote else quote or c
        else:
            depth += (c in "([{") - (c in ")]}")
    return [[f"{key}={part}"] for part in parts]


def _lines(path: Path) -> list[list[str]]:
    """Reads a file with the settings of one run per line."""
    try:
        lines = [shlex.split(line, comments=True) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as e:
        raise errors.BadRequest(f"--list={path} cannot be read: {e}.") from e
    found = [[word.lstrip("-") for word in line] for line in lines if line]
    wrong = [word for line in found for word in line if "=" not in word]
    if wrong or not found:
        raise errors.BadRequest(f"--list={path}: {wrong[0] if wrong else 'an empty file'} is not KEY=VALUE.")
    return found


def _name(settings: list[str]) -> str:
    """Returns a folder name with the settings: "optim.lr=0.1,seed=0"."""
    plain = ",".join(word.removeprefix("config.") for word in settings)
    name = re.sub(r"[^\w.=,+()-]", "_", plain)
    if name == plain and len(name) <= 120:
        return name
    return f"{name[:110]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def _without_workdir(passed: list[str]) -> list[str]:
    out: list[str] = []
    following = False  # the value of a --workdir without =
    for word in passed:
        flag = word.lstrip("-").partition("=")[0] if word.startswith("-") else ""
        if following or flag == "workdir":
            following = flag == "workdir" and "=" not in word
        else:
            out.append(word)
    return out


def _found(workdir: str) -> list[Run]:
    """Returns the runs in the folder."""
    folder = Path(workdir).expanduser()
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    runs = [Run(p.name, str(p), []) for p in paths if (p / "config.json").exists() or (p / "summary.json").exists()]
    if not runs:
        raise errors.BadRequest(f"there are no runs in {workdir}.")
    return runs


def _finished(run: Run) -> dict[str, Any] | None:
    """Returns the summary of a finished run, else None."""
    path = Path(run.folder).expanduser() / "summary.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _tell(workdir: str, runs: list[Run], states: dict[str, str]) -> int:
    """Prints the table and writes it to `table.md`; returns the exit code."""
    summaries = {run.name: _finished(run) for run in runs}
    text = table([(run.name, states.get(run.name), summaries[run.name]) for run in runs], FLAGS.metrics)
    print(text)
    folder = Path(workdir).expanduser()
    if folder.is_dir():
        (folder / "table.md").write_text(text + "\n")
    good = [run for run in runs if summaries[run.name] or states.get(run.name) in ("submitted", "done")]
    if len(good) < len(runs):
        command.say(f"{len(runs) - len(good)} of {len(runs)} runs have not finished")
    return int(len(good) < len(runs))


def table(rows: list[tuple[str, str | None, dict[str, Any] | None]], metrics: list[str]) -> str:
    """Returns a Markdown table.

    Args:
      rows: name, state (None: taken from the summary) and summary of each run.
      metrics: names of the metrics to show; empty for accuracy, or for all if no run has it.
    """
    columns: list[tuple[str, str, str]] = []  # which, split, metric
    for which, split in itertools.product(("best", "final"), ("val", "test")):
        for _, _, summary in rows:
            for metric in (summary or {}).get(which, {}).get(split, {}):
                if (which, split, metric) not in columns:
                    columns.append((which, split, metric))
    shown = metrics or (["accuracy"] if any(c[2] == "accuracy" for c in columns) else [c[2] for c in columns])
    columns = [c for c in columns if c[2] in shown]
    lines = [["run", "state", "step", *(" ".join(c) for c in columns), "seconds"]]
    for name, state, summary in rows:
        summary = summary or {}
        values = [summary.get(which, {}).get(split, {}).get(metric) for which, split, metric in columns]
        state = state or (summary.get("reason", "done") if summary else "not finished")
        step, seconds = summary.get("step", ""), summary.get("seconds")
        cells = ["" if v is None else f"{v:.4f}" for v in values]
        lines.append([name, state, f"{step}", *cells, "" if seconds is None else f"{seconds:.0f}"])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    command.run(main, define_flags)
