"""Stands in for a training of several processes: counts to --steps, keeps what a run promises, and needs no JAX.

Each process keeps its count in a file and goes on from it. SIGTERM to any one: all stop with exit code 0. At the end
process 0 writes `summary.json`. What is asked by --fail happens in one life only, or with --always=1 in every one:
"1:30:kill" kills process 1 at 30, "0:30:2" ends process 0 with exit code 2; the others then end with exit code 1,
or with --hang=1 go on as if nothing had happened. With --held=1 the first life stays one short of the end until it
is stopped: a test that stops it needs no luck.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(argv: list[str]) -> int:
    flags = dict(word.removeprefix("--").split("=", 1) for word in argv if "=" in word)
    index = int(flags.get("process_id", os.environ.get("SLURM_PROCID", os.environ.get("TPU_WORKER_ID", "0"))))
    folder = Path(flags["workdir"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"argv_{index}.json").write_text(json.dumps(argv))
    kept, stop, broken = folder / f"count_{index}", folder / "stop", folder / "broken"
    began = time.time()

    def new(path: Path) -> bool:
        """Whether this is of this life and not of one before."""
        return path.exists() and path.stat().st_mtime > began

    count = int(kept.read_text()) if kept.exists() else 0
    steps = int(flags.get("steps", "30"))
    print(f"process {index} starts at {count}", flush=True)
    with (folder / "lives").open("a+") as lives:
        lives.seek(0)
        held = "held" in flags and not any(line.split()[0] == str(index) for line in lives)
        lives.write(f"{index} {count}\n")
    signal.signal(signal.SIGTERM, lambda *_: stop.touch())
    who, at, how = flags.get("fail", "-1:0:0").split(":")
    failed = folder / "failed"
    while count < steps:
        time.sleep(0.05)
        count = min(count + 1, steps - held)
        kept.with_suffix(".part").write_text(str(count))
        kept.with_suffix(".part").replace(kept)
        if index == int(who) and count >= int(at) and not (failed.exists() and "always" not in flags):
            failed.touch()
            broken.touch()
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            print(f"error: process {index} fails", file=sys.stderr, flush=True)
            return int(how)
        if new(broken) and "hang" not in flags:
            time.sleep(0.3)  # it takes a real one longer to notice
            print(f"error: process {index} lost another", file=sys.stderr, flush=True)
            return 1
        if new(stop):
            print("stopped, saved", flush=True)
            return 0
    if index == 0:
        metrics = {"val": {"loss": 1.5, "accuracy": float(flags.get("config.score", "0.5"))}}
        summary = {"step": count, "seconds": 7.6, "reason": "done", "final": metrics, "best": metrics}
        (folder / ".part").write_text(json.dumps(summary))
        (folder / ".part").replace(folder / "summary.json")
        print("finished", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
