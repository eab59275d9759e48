"""The end of a training: curves, summary, report page, and what the terminal shows."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recvis_jax import build, errors, trees
from recvis_jax.evaluation import evaluator
from recvis_jax.training import distributed, log


def interrupted(done: Any, keeper: Any, stop: Any, tell: Callable[[str], None]) -> dict[str, Any]:
    """Prints what was saved when a run was told to stop."""
    keeper.close()
    kept = ", ".join(f"{kind} {', '.join(map(str, s))}" for kind, s in keeper.kept().items() if s)
    tell(
        f"stopped by {stop.name} at step {int(done.state.step)}, saved; the same command continues. "
        f"Kept in {keeper.root}: {kept}."
    )
    if stop.name == "Ctrl-C":
        raise KeyboardInterrupt
    return {}


def draw_curves(records: Path, path: Path) -> None:
    """Draws the curves of a run's records; a full disk is no error here."""
    from recvis_jax.vis import plot  # not needed while training starts

    if distributed.is_main():
        with contextlib.suppress(OSError, errors.BadRequest):  # a full disk must not hide how the loop ended
            plot.curves(log.read_records(records), path)


def best_state(done: Any, keeper: Any, tell: Callable[[str], None]) -> Any:
    """Returns the state of the best evaluation; None if there was none, or its checkpoint cannot be read."""
    if not done.best:
        return None
    try:
        step = done.best["step"]
        return done.state if step == int(done.state.step) else keeper.restore(step).state
    except (errors.BadRequest, errors.Failure) as e:
        tell(f"warning: the best checkpoint was not evaluated on test data: {e}")
        return None


def summarise(run: Any, done: Any, best: Any, evaluate: Any, test: Any) -> dict[str, Any]:
    """Evaluates the last state and the best on the test split, and returns the run's summary."""
    end = int(done.state.step)
    summary: dict[str, Any] = {
        "parameters": trees.count(done.state.params), "step": end, "epochs": end / run.steps_per_epoch,
        "seconds": done.seconds, "reason": done.reason, "seed": run.seed, "final": {"step": end},
    }  # fmt: skip
    if done.last:
        summary["final"]["val"] = done.last["metrics"]
    if done.best:
        summary["best"] = {"step": done.best["step"], "val": done.best["metrics"]}
    if test:
        batches = build.eval_batches(run, test, keep=True)
        summary["final"]["test"] = evaluator.scalars(evaluate(*done.state.evaluated, batches))
        if best is not None:
            summary["best"]["test"] = evaluator.scalars(evaluate(*best.evaluated, batches))
    return summary


def write_page(folder: Path, model: Any) -> str:
    """Writes the report page of the run; returns a line with its place and main finding.

    Args:
      folder: of the run.
      model: a `trained.Trained`; None if its predictions are not shown: the run failed, or has several processes, which
        would all have to take part.
    """
    from recvis_jax import reporting  # not needed while training starts

    path = folder / reporting.FILE
    try:
        page, headline = reporting.of_run(folder, model, model.run.data if model else None, examples=1000)
        reporting.write(page, path)
    except Exception as e:  # the run itself is good
        return f"note: {path} was not written: {errors.brief(e, 300)}"
    return f"report: {path}  ({headline.title})"


def write_summary(path: Path, summary: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Writes the summary; keeps what `evaluate` added to an existing one."""

    def change(found: dict[str, Any]) -> None:
        evaluations = {k: v for k, v in found.items() if k == "evaluations"}
        found.clear()
        found.update(summary | evaluations)

    try:
        log.update_json(path, change)
    except errors.BadRequest as e:
        aside = path.with_name(f"{path.name}.damaged")
        tell(f"warning: {e} The file is now {aside}.")
        path.rename(aside)
        log.write_json(path, summary)


def report(summary: dict[str, Any], folder: Path, seconds: float, page: str) -> str:
    """Returns the last lines that a training prints: metrics, where the run is, and the next command."""
    lines = [
        f"\nfinished ({summary['reason']}) at step {summary['step']:,}; {summary['seconds']:.0f} s of training in all"
    ]
    for which in ("final", "best"):
        for split in ("val", "test"):
            values = summary.get(which, {}).get(split)
            if values:
                kind = {"val": "validation", "test": "test"}[split]
                shown = ", ".join(f"{k} {v:.4f}" for k, v in values.items() if v is not None)
                lines.append(f"  {which} (step {summary[which]['step']:,}) {kind}: {shown}")
    lines.append(f"run: {folder}  (summary.json, metrics.jsonl, curves.png, checkpoints/; {seconds:.0f} s this time)")
    lines += [page] if page else []
    split = next((s for s in ("test", "val") if s in summary["final"]), "train")
    following = ("python", "-m", "recvis_jax.evaluate", f"--workdir={folder}", f"--split={split}")
    lines.append(f"next: {errors.command(*following)}")
    return "\n".join(lines)
