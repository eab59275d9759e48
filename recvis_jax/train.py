"""Trains a model.

  python -m recvis_jax.train --config=configs/fashion_mnist/lenet5.py --workdir=runs/lenet5 [--config.optim.lr=0.2 ...]

The same command given again goes on where the run stopped, and ends bit for bit as if it had never been interrupted.
`--config=FILE:smoke` runs a few steps on mock data.
"""

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from absl import flags

from recvis_jax import cli, errors
from recvis_jax import config as configs

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    configs.define_flag("Config file, as configs/fashion_mnist/lenet5.py[:argument].")
    flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, summary.")
    flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> int:
    del argv
    config = configs.read(FLAGS["config"], "configs/fashion_mnist/lenet5.py")
    if not FLAGS.workdir:
        raise errors.BadRequest("--workdir is missing, for instance --workdir=runs/first.")
    errors.check_kwargs(train, config, "config", given=("workdir", "config"))
    cli.start_jax(FLAGS.compile_cache)
    train(workdir=FLAGS.workdir, config=config, **config)
    return 0


def train(
    *,
    workdir: str,
    config: dict[str, Any] | None = None,
    data: dict,
    model: dict,
    optim: dict,
    task: dict | None = None,
    seed: int = 0,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    eval_batch_size: int | None = None,
    accumulate: int = 1,
    compile: Literal["jit", "pmap"] = "jit",
    dtype: Literal["float32", "bfloat16"] = "float32",
    sharding: str | dict = "replicate",
    ema_decay: float | None = None,
    metrics: Sequence[str] = (),
    log_every: int | float = 100,
    eval_every: int | float = 1.0,
    checkpoint_every: int | float = 1.0,
    early_stop: int = 0,
    init_from: str | dict | None = None,
    checkpoint_dir: str | None = None,
    probe: dict | None = None,
) -> dict[str, Any]:
    """Runs a training from a config's sections and returns the summary; these are a config's top-level keys.

    Args:
      workdir: folder of the run.
      config: the whole config as plain dicts, written to `config.json`.
      data: see `build.open_data`.
      model: `name` and the attributes of the model.
      optim: see `training.optim.make_optimizer`.
      task: `name` and the arguments of the objective; None for classification (or regression, as the data are).
      seed: of everything random.
      epochs, steps: length of the run, one of the two.
      batch_size: images a step, over all devices and micro-batches.
      eval_batch_size: the same in evaluation; None for that of training.
      accumulate: micro-batches a step.
      compile: "jit" over a mesh or "pmap".
      dtype: type of the computation; parameters stay float32.
      sharding: "replicate", "fsdp" or "tensor", or a dict with the mesh's sizes and rules; see `build.make_mesh`.
      ema_decay: decay of the moving average of parameters and batch statistics, which is then what is evaluated.
      metrics: names of further validation metrics.
      log_every, eval_every, checkpoint_every: in steps if an int, in epochs if a float: 50 are steps, 50.0 epochs.
      early_stop: evaluations without a new best after which the run ends; 0 for never.
      init_from: checkpoint from which the model's variables are taken at the start; see `build.initial_state`.
      checkpoint_dir: where checkpoints go, as gs://bucket/runs/x; by default `checkpoints` in the workdir.
      probe: probes of the features during training; see `trained.make_prober`.
    """
    from recvis_jax import build, checks, trained
    from recvis_jax.evaluation import classify
    from recvis_jax.training import checkpoint, distributed, log, loop, processes
    from recvis_jax.training import optim as optimisers
    from recvis_jax.training import step as steps_of
    from recvis_jax.training import workdir as workdirs

    began = time.monotonic()
    tell = print if distributed.is_main() else (lambda text: None)
    paths = workdirs.absolute({"data": data, "init_from": init_from, "checkpoint_dir": checkpoint_dir})
    config = workdirs.absolute(config or paths)
    home = workdirs.Workdir(workdir, config, configs.differences, tell, distributed.is_main())
    folder, root = home.folder, checkpoint.place(home.folder, paths["checkpoint_dir"])
    if "://" not in str(root):
        workdirs.refuse_unwritable(Path(root), "config.checkpoint_dir")

    run = build.make_run(
        data=paths["data"], model=model, optim=optim, task=task, seed=seed, epochs=epochs, steps=steps,
        batch_size=batch_size, eval_batch_size=eval_batch_size, accumulate=accumulate, dtype=dtype,
        ema_decay=ema_decay, sharding=sharding,
    )  # fmt: skip
    if compile == "pmap" and run.mesh.shape["data"] != run.mesh.size:
        raise errors.BadRequest("compile='pmap' copies the state to every device; config.sharding needs 'jit'.")
    checks.check_run(run, accumulate)
    with errors.at("config.metrics"):
        measured = {**run.task.metrics, **classify.build_metrics(metrics, run.data.info.num_classes)}
    every = {"log_every": log_every, "eval_every": eval_every, "checkpoint_every": checkpoint_every}
    every = {name: _steps(name, value, run.steps_per_epoch) for name, value in every.items()}
    if every["log_every"] > run.total_steps:  # else its curve would be a point
        every["log_every"] = max(1, run.total_steps // 10)
    test = run.data.test
    info = run.data.info.with_split("test", run.data.test_split or "", test)
    recorded = _compare_data(folder, info)
    prober = None
    if probe:
        errors.check_kwargs(trained.make_prober, probe, "config.probe", extra=("every",), given=("run",))
        probe_every = _steps("probe.every", probe.get("every", eval_every), run.steps_per_epoch)
        prober = trained.make_prober(run, **{k: v for k, v in probe.items() if k != "every"}), probe_every

    # What can be refused is refused by now or by the first batch and step; nothing has been written yet.
    reader = checkpoint.Checkpointer(folder, run.template, read_only=True, root=root)
    reader.refuse_mismatch()
    longer, done_before = None, reader.newest_step()
    if home.old:
        longer = workdirs.check_length(
            folder, build.length_in_steps(home.old.get("epochs"), home.old.get("steps"), run.steps_per_epoch),
            run.total_steps, done_before, lambda total: optimisers.schedule_of(
                total_steps=total, batch_size=batch_size, steps_per_epoch=run.steps_per_epoch, **optim
            ), optim.get("schedule", "cosine"),
        )  # fmt: skip
    step_fn = steps_of.make_train_step(
        run.task, run.optimizer, augment=run.data.augment, accumulate=accumulate, ema_decay=ema_decay,
        compile=compile, shardings=run.shardings,
    )  # fmt: skip
    val_batches = build.eval_batches(run, run.data.val, keep=True) if run.data.val else None
    traceable = step_fn if compile == "jit" and not processes.several() else None
    batches = _rehearse(run, traceable, accumulate, done_before, compile, val_batches)
    fresh = None if any(reader.kept().values()) else build.initial_state(run, paths["init_from"], tell)
    reader.close()
    evaluate = classify.make_evaluate(run.task.predict, measured, run.data.preprocess, run.mesh)
    draw = _make_draw(run, folder / "figure.png") if run.task.figure and run.data.val else None
    validate = _make_validate(run, evaluate, val_batches, draw, prober, every["eval_every"]) if run.data.val else None

    with home.taken(), loop.StopSignal() as stop:
        keeper = checkpoint.Checkpointer(folder, run.template, say=tell, root=root, held=home.held)
        restored = keeper.restore_newest()
        resumed = restored.meta if restored else {}
        at = restored.step if restored else 0
        state = restored.state if restored else fresh or build.initial_state(run, paths["init_from"], tell)
        home.write(length_changes=longer is not None)
        if not recorded and distributed.is_main():
            _record_data(folder, info)
        writer = log.Log(folder, run.total_steps, at, evaluated=resumed.get("loop", {}).get("evaluated", 0))
        _introduce(writer.say, run, test, model["name"], every)
        if longer:
            writer.say(longer)
        writer.say(f"{'resuming from step ' + format(at, ',') if restored else 'starting'} in {folder}")
        try:
            done = loop.run(
                steps_of.place_state(state, run.shardings, compile), step_fn, batches,
                total_steps=run.total_steps, batch_size=batch_size, checkpointer=keeper, log=writer, resumed=resumed,
                evaluate=validate, best=run.task.best, early_stop=early_stop, **every,
                fetch=lambda x: steps_of.fetch_state(x, run.shardings, compile), stop=stop,
            )  # fmt: skip
        except BaseException:
            with contextlib.suppress(errors.Failure):
                keeper.wait()  # what is still being saved is good
            raise
        finally:
            writer.close()
            _draw_curves(writer.path, folder / "curves.png")
        done = done._replace(state=steps_of.fetch_state(done.state, run.shardings, compile))
        if done.reason == "interrupted":
            keeper.close()
            kept = ", ".join(f"{kind} {', '.join(map(str, s))}" for kind, s in keeper.kept().items() if s)
            tell(
                f"stopped by {stop.name} at step {int(done.state.step)}, saved; the same command goes on. "
                f"Kept in {keeper.root}: {kept}."
            )
            if stop.name == "Ctrl-C":
                raise KeyboardInterrupt
            return {}
        summary = _summarise(run, done, keeper, evaluate, test, tell)
        keeper.close()
        if distributed.is_main():
            _write_summary(folder / "summary.json", summary, tell)
            print(_report(summary, folder, time.monotonic() - began), flush=True)
        return summary


def _compare_data(folder: Path, info: Any) -> bool:
    """Compares the data with what the run wrote when it began; returns whether it wrote anything."""
    from recvis_jax.data import info as data_info

    recorded = data_info.read(folder)
    if recorded:
        data_info.check(recorded, info, going_on=True)
    return recorded is not None


def _record_data(folder: Path, info: Any) -> None:
    """Writes what the run knows of its data."""
    from recvis_jax.data import info as data_info
    from recvis_jax.training import log

    log.write_json(folder / data_info.FILE, data_info.as_json(info))


def _rehearse(
    run: Any, step_fn: Any, accumulate: int, first: int, compile: str, val_batches: Any
) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Reads the first batches and traces the step, so that what is wrong with them is found before the run begins.

    Returns:
      A function from the number of a step to the batches from there on.
    """
    from recvis_jax import build, checks

    stream = build.train_batches(run, first, compile)
    batch = next(stream, None)
    if batch is not None:
        checks.check_step(run, accumulate, step_fn, batch)
    if val_batches is not None:
        next(iter(val_batches))
    ready = {} if batch is None else {first: itertools.chain([batch], stream)}
    return lambda at: ready.pop(at, None) or build.train_batches(run, at, compile)


def _make_validate(
    run: Any, evaluate: Any, batches: Any, draw: Any, prober: tuple[Any, int] | None, each: int
) -> Callable[[Any, Callable[[], bool]], dict[str, float] | None]:
    """Returns `(state, stop) -> metrics` on validation data, with the figure and the probes that are due."""
    from recvis_jax.evaluation import classify

    def validate(state: Any, stop: Callable[[], bool]) -> dict[str, float] | None:
        found = evaluate(*state.evaluated, batches, stop)
        if found is None:
            return None
        found = classify.scalars(found)
        if draw:
            draw(*state.evaluated)
        if prober:
            step, (measure, often) = int(state.step), prober
            if step // often > max(0, step - each) // often or step == run.total_steps:
                found |= measure(*state.evaluated)
        return found

    return validate


def _draw_curves(records: Path, path: Path) -> None:
    from recvis_jax.training import distributed, log
    from recvis_jax.vis import plot

    if distributed.is_main():
        with contextlib.suppress(OSError, errors.BadRequest):  # a full disk is not to hide how the loop ended
            plot.curves(log.read_records(records), path)


def _summarise(
    run: Any, done: Any, keeper: Any, evaluate: Any, test: Any, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Evaluates the last and the best checkpoint on the test split, and returns the run's summary."""
    from recvis_jax import build, trees
    from recvis_jax.evaluation import classify

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
        summary["final"]["test"] = classify.scalars(evaluate(*done.state.evaluated, batches))
        if done.best:
            try:
                best = done.state if done.best["step"] == end else keeper.restore(done.best["step"]).state
                summary["best"]["test"] = classify.scalars(evaluate(*best.evaluated, batches))
            except (errors.BadRequest, errors.Failure) as e:
                tell(f"warning: the best checkpoint was not evaluated on test data: {e}")
    return summary


def _write_summary(path: Path, summary: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Writes the summary; what `evaluate` added to one that is there is kept."""
    from recvis_jax.training import log

    def change(found: dict[str, Any]) -> None:
        evaluations = {k: v for k, v in found.items() if k == "evaluations"}
        found.clear()
        found.update(summary | evaluations)

    try:
        log.update_json(path, change)
    except errors.BadRequest as e:
        aside = path.with_name(f"{path.name}.damaged")
        tell(f"warning: {e} It is now {aside}.")
        path.rename(aside)
        log.write_json(path, summary)


def _make_draw(run: Any, path: Path, examples: int = 8) -> Callable[[Any, Any], None]:
    """Returns `(params, model_state) -> None`, which draws the task's figure of the first validation examples."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from recvis_jax.training import distributed, processes
    from recvis_jax.vis import plot

    found = run.data.val.read(np.arange(min(examples, run.data.val.length)))
    if run.data.eval_transform:
        found = [run.data.eval_transform(np.random.default_rng(0), e) for e in found]
    batch = {"image": np.stack([e["image"] for e in found])}

    titles: list[str] = []  # in the task's order, which jit would forget

    @processes.compiled_together
    @functools.partial(jax.jit, out_shardings=NamedSharding(run.mesh, PartitionSpec()))
    def columns(params, model_state, batch):
        images = run.task.figure(params, model_state, run.data.preprocess(batch))
        titles[:] = images
        return [run.data.denormalise(x) for x in images.values()]

    def draw(params: Any, model_state: Any) -> None:
        images = jax.device_get(columns(params, model_state, batch))
        if distributed.is_main():
            with contextlib.suppress(OSError):  # as for the curves
                plot.image_rows(dict(zip(titles, images, strict=True)), path)

    return draw


def _introduce(say: Callable[[str], None], run: Any, test: Any, model: str, every: dict[str, int]) -> None:
    """Says what is about to be trained, and on what."""
    from recvis_jax import trees
    from recvis_jax.training import sharding

    say(cli.about_jax())
    data = run.data
    splits = {"train": data.train, "val": data.val, "test": test}
    sizes = ", ".join(f"{name} {source.length if source else 0:,}" for name, source in splits.items())
    shape = "x".join(map(str, data.image_shape))
    say(f"data: {data.train.name}, {shape}, {data.info.num_classes} classes; {sizes}; cache {data.cache}")
    epochs = run.total_steps / run.steps_per_epoch
    count = trees.count(run.template.params)
    if run.mesh.size > 1:
        say(sharding.describe(run.layout, run.template))
    say(f"model: {model}, {count:,} parameters; {run.total_steps:,} steps of {run.batch_size} ({epochs:.3g} epochs)")
    often = (f"{name.removesuffix('_every')} {n:,} ({n / run.steps_per_epoch:.3g})" for name, n in every.items())
    say(f"every so many steps (epochs): {', '.join(often)}")


def _steps(name: str, value: int | float, per_epoch: float) -> int:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise errors.BadRequest(f"config.{name} is {errors.shown(value)}; it takes a number of steps or epochs.")
    steps = value if isinstance(value, int) else max(1, round(value * per_epoch))
    if steps < 1:
        raise errors.BadRequest(f"config.{name}={value} must be at least one step.")
    return steps


def _report(summary: dict[str, Any], folder: Path, seconds: float) -> str:
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
    split = next((s for s in ("test", "val") if s in summary["final"]), "train")
    following = ("python", "-m", "recvis_jax.evaluate", f"--workdir={folder}", f"--split={split}")
    lines.append(f"next: {errors.command(*following)}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, define_flags)
