"""Two sides of a comparison, each a warm process of its own, measured in turn.

A side is a program that calls `serve` with functions; whoever measures starts it as a `Side` and calls them by name.
Only one side works at a time: the others wait for a line on their standard input, and use no processor.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

# PyTorch's idle OpenMP threads would otherwise spin on the processors that the other side is measured on.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


class Side:
    """A process that answers calls."""

    def __init__(self, command: Sequence[str], **env: str):
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **QUIET, **env}
        )

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()

    def call(self, name: str, **arguments: Any) -> Any:
        """Calls a function of the process, and returns what it returned.

        Raises:
          RuntimeError: it failed, with its message.
        """
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps([name, arguments]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"the other process ended with exit code {self.process.wait()}.")
        result = json.loads(answer)
        if "error" in result:
            raise RuntimeError(result["error"])
        return result["value"]


def serve(functions: dict[str, Callable[..., Any]]) -> None:
    """Answers calls, one a line, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"value": functions[name](**arguments)}
        except Exception as e:
            answer = {"error": f"{type(e).__name__}: {' '.join(str(e).split())[:400]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def timed(work: Callable[[], None], least: float) -> dict[str, float]:
    """Does work again and again for at least so many seconds, after as many that do not count.

    What an idle process had in memory may have been put aside meanwhile, and its first work then takes twice as long.

    Returns:
      wall, cpu: seconds of one piece of work, of the clock and of all threads of this process.
    """
    start = time.perf_counter()
    work()
    while time.perf_counter() - start < least:
        work()
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while True:
        work()
        count += 1
        passed = time.perf_counter() - wall
        if passed >= least:
            return {"wall": passed / count, "cpu": (time.process_time() - cpu) / count}


def peak_memory() -> int:
    """Returns the most memory that this process has had at once, in bytes, compilation included."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def interleave(among: Sequence[Side], rounds: int, least: float) -> list[list[dict[str, float]]]:
    """Lets sides `measure` in turn, A B A B ..., and returns what each gave, round by round."""
    found: list[list[dict[str, float]]] = [[] for _ in among]
    for _ in range(rounds):
        for side, own in zip(among, found, strict=True):
            own.append(side.call("measure", least=least))
    return found


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, Any]:
    """Returns the median of the pairs' ratios, and `spread`, their quartiles."""
    ratios = sorted(n / d for n, d in zip(numerators, denominators, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"ratio": statistics.median(ratios), "spread": [low, high]}


def load() -> float:
    """Returns how many processes wanted a processor in the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def machine() -> str:
    """Returns the number of processors, whose they are, and what they compute with: "2 x Intel, AVX-512"."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    vendor = "Intel, " if "GenuineIntel" in words else "AMD, " if "AuthenticAMD" in words else ""
    vectors = "AVX-512" if "avx512f" in words else "AVX2" if "avx2" in words else platform.machine()
    return f"{os.cpu_count()} x {vendor}{vectors}"


def load_rows(name: str) -> list[dict[str, Any]]:
    """Returns the rows of `results/NAME.json`, none if there is no such file."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else []


def save(
    name: str,
    rows: Sequence[dict[str, Any]],
    columns: dict[str, str],
    note: str = "",
    shown: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Writes rows to `results/NAME.json`, and the table of them to `results/NAME.md`, which it also prints.

    Args:
      rows: with at least `name` and `ratio`; `target` and `spread` where there are any.
      columns: title -> format string over a row, such as "{ratio:.2f}"; empty where the row lacks a value.
      note: a line above the table.
      shown: rows of the table, by default all.
    """
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows if shown is None else shown:
        cells = []
        for form in columns.values():
            try:
                cells.append(form.format(**row))
            except (KeyError, TypeError, ValueError):
                cells.append("")
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join([*([note, ""] if note else []), *lines, ""])
    RESULTS.mkdir(exist_ok=True)
    texts = {"json": json.dumps(list(rows), indent=2) + "\n", "md": table}
    for path, text in ((RESULTS / f"{name}.{suffix}", text) for suffix, text in texts.items()):
        part = path.with_name(f".{path.name}.part")
        part.write_text(text)
        part.replace(path)
    print(table, flush=True)
