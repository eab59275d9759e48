"""Kills a training at random instants until it has ended, many times, and compares it with one that nobody disturbed.

    python tests/kills.py [--kills=100] [--seed=0] [--folder=FOLDER]

The same command is started again and again; each life is killed by SIGKILL at an instant drawn anew: while it starts,
between steps, in the first save, in the last one, in the report. Each finds the lock of the dead one before. The run
must end with the parameters, the optimizer's state, the records and the summary of the undisturbed run, to the last
bit. Lives are forks of this process, which has imported what they need: a hundred kills take minutes.
"""

import argparse
import collections
import json
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
STEPS, EVERY = 120, 20  # steps, and between evaluations; there are three more saves in between
CONFIG = f"""
import ml_collections
def get_config():
    c = ml_collections.ConfigDict(dict(seed=5, steps={STEPS}, batch_size=32, eval_batch_size=64, ema_decay=0.9))
    c.update(log_every=3, eval_every={EVERY}, checkpoint_every={EVERY // 4})
    c.data = dict(name="digits", train="train[:90%]", val="train[90%:]", statistics="digits", cache="host")
    c.data.update(transform="random_resized_crop(8, scale=(0.5, 1.0))", augment="flip|cutout(3)|mixup(0.2)")
    c.model = dict(name="mlp", hidden=(64, 32), norm="batch", dropout=0.3)
    c.optim = dict(name="momentum", lr=0.05, schedule="cosine", warmup=0.1, weight_decay=1e-4)
    return c
"""
MOMENTS = ("anywhere", "while starting", "in the first save", "in a save", "in the last save", "after the last step")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="where the runs go; by default a temporary folder")
    args = parser.parse_args()
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="kills"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.py").write_text(CONFIG)
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    # What lives would wait for. Nothing here starts JAX: a process with its threads must not fork.
    import cv2, flax, grain, jax, optax, orbax.checkpoint, sklearn.datasets, tensorflow_datasets  # noqa: E401, F401, I001
    from recvis_jax.training import lock

    began = time.monotonic()
    reference = folder / "reference"
    start_up, length = undisturbed(folder, reference)
    rng, where, runs, kills, locked = random.Random(args.seed), collections.Counter(), 0, 0, 0
    while kills < args.kills:
        runs += 1
        run = folder / f"run{runs}"
        going = True
        while going:
            locked += (run / lock.NAME).exists()
            moment = rng.choice(MOMENTS) if kills < args.kills else None
            found = live(folder, run, moment, rng, start_up, length)
            if going := found is not None:
                where[found] += 1
                kills += 1
        in_a_fork(lambda run=run: compare(run, reference), folder / "compared.txt")
        print(f"run {runs} ended as the undisturbed one; {kills} kills so far", flush=True)
        shutil.rmtree(run)
    assert locked, "no lock was ever left behind"
    counts = ", ".join(f"{n} {what}" for what, n in sorted(where.items()))
    print(
        f"{kills} kills in {runs} runs ({counts}); {locked} lives began with a dead one's lock. "
        f"All runs ended bit for bit as the undisturbed one; {(time.monotonic() - began) / 60:.1f} minutes."
    )
    if not args.folder:
        shutil.rmtree(folder)
    return 0


def fork(call: Callable[[], None], out: Path) -> int:
    """Runs `call` in a child, whose output goes to a file, and returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        stream = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1), os.dup2(stream, 2)
        call()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(bool(e.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def start(folder: Path, run: Path) -> int:
    def train() -> None:
        sys.argv = ["train", f"--config={folder}/config.py", f"--workdir={run}"]
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # else the program would begin again to set its own
        runpy.run_module("recvis_jax.train", run_name="__main__", alter_sys=True)

    return fork(train, folder / "life.txt")


def ended(pid: int, wait: bool = False) -> int | None:
    """Returns the exit code of a child that has ended, -9 of one that was killed, None of one that lives."""
    found, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def in_a_fork(call: Callable[[], None], out: Path) -> None:
    code = ended(fork(call, out), wait=True)
    assert code == 0, f"ended with {code}: {out.read_text()[-3000:]}"


def undisturbed(folder: Path, run: Path) -> tuple[float, float]:
    """Makes the run that nobody disturbs; returns the seconds to its first record, and in all."""
    for again in (run.with_name("first"), run):  # the first one compiles
        began, first = time.monotonic(), 0.0
        pid = start(folder, again)
        while (code := ended(pid)) is None:
            if not first and (again / "metrics.jsonl").exists():
                first = time.monotonic() - began
            time.sleep(0.002)
        assert code == 0, (folder / "life.txt").read_text()[-3000:]
    in_a_fork(lambda: compare(run.with_name("first"), run), folder / "compared.txt")
    return first, time.monotonic() - began


def live(folder: Path, run: Path, moment: str | None, rng: random.Random, start_up: float, length: float) -> str | None:
    """One life of a run. Returns where it was killed; None where it came to its end."""
    pid, began = start(folder, run), time.monotonic()
    until = {"anywhere": rng.uniform(0, length), "while starting": rng.uniform(0, start_up)}.get(moment or "")
    pause = rng.uniform(0, 0.03)

    def due() -> bool:
        if moment is None:
            return False
        if until is not None:
            return time.monotonic() - began > until
        if moment == "after the last step":
            return last_step(run) >= STEPS
        if moment == "in the first save":
            return not steps(run) and saving(run)
        return saving(run, STEPS if moment == "in the last save" else None)

    while (code := ended(pid)) is None and not due():
        time.sleep(0.0005)
    if code is None:
        if until is None:
            time.sleep(pause)
        os.kill(pid, signal.SIGSTOP)  # so that what is looked at is what the kill leaves
        what = state_of(run)
        os.kill(pid, signal.SIGKILL)
        code = ended(pid, wait=True)
        if code == -signal.SIGKILL:
            return what
    assert code == 0, f"a life ended with {code}: {(folder / 'life.txt').read_text()[-3000:]}"
    return None


def state_of(run: Path) -> str:
    if not (run / "config.json").exists():
        return "before anything was written"
    if (run / "summary.json").exists():
        return "after the summary"
    if saving(run):
        return "in the first save" if not steps(run) else "in the last save" if saving(run, STEPS) else "in other saves"
    if not steps(run):
        return "before the first save"
    return "after the last save" if steps(run)[-1] == STEPS else "between saves"


def last_step(run: Path) -> int:
    """Of the last whole line of the records."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def steps(run: Path) -> list[int]:
    """The steps whose checkpoints are whole by their names."""
    folder = run / "checkpoints/last"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []


def saving(run: Path, step: int | None = None) -> bool:
    """Whether a half-written checkpoint, of `step` where it is given, is on the disk."""
    found = [p.name for which in ("last", "best") for p in (run / "checkpoints" / which).glob("*tmp*")]
    return any(step is None or name.startswith(str(step)) for name in found)


def compare(run: Path, reference: Path) -> None:
    """Holds parameters, records and summary of a run against the undisturbed one's."""
    import programs

    assert programs.records(run) == programs.records(reference), "other records"
    for which in ("last", "best"):
        assert programs.steps(run, which) == programs.steps(reference, which), f"other {which} checkpoints"
        programs.assert_same_arrays(programs.arrays(run, which), programs.arrays(reference, which))
    summaries = [json.loads((d / "summary.json").read_text()) for d in (run, reference)]
    assert all(s.pop("seconds") > 0 for s in summaries)
    assert summaries[0] == summaries[1], "another summary"
    assert not (run / "checkpoints/damaged").exists(), "an intact checkpoint was taken for a damaged one"


if __name__ == "__main__":
    sys.exit(main())
