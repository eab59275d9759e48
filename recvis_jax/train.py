"""Trains a model.

  python -m recvis_jax.train --config=configs/fashion_mnist/lenet5.py --workdir=runs/lenet5 [--config.optim.lr=0.2 ...]

The same command given again goes on where the run stopped, and ends bit for bit as if it had never been interrupted.
`--config=FILE:smoke` runs a few steps on mock data.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable
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
    metrics: tuple | list = (),
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
    from recvis_jax import build, trained, trees
    from recvis_jax.evaluation import classify
    from recvis_jax.training import checkpoint, distributed, log, loop
    from recvis_jax.training import step as steps_of
    from recvis_jax.vis import plot

    began = time.monotonic()
    run = build.make_run(
        data=data, model=model, optim=optim, task=task, seed=seed, epochs=epochs, steps=steps, batch_size=batch_size,
        eval_batch_size=eval_batch_size, accumulate=accumulate, dtype=dtype, ema_decay=ema_decay, sharding=sharding,
    )  # fmt: skip
    if compile == "pmap" and run.mesh.shape["data"] != run.mesh.size:
        raise errors.BadRequest("compile='pmap' copies the state to every device; config.sharding needs 'jit'.")
    measured = classify.build_metrics([*run.task.metrics, *metrics], run.data.info.num_classes)
    every = {"log_every": log_every, "eval_every": eval_every, "checkpoint_every": checkpoint_every}
    every = {name: _steps(name, value, run.steps_per_epoch) for name, value in every.items()}
    test = build.open_test(run.data)
    prober = None
    if probe:
        errors.check_kwargs(trained.make_prober, probe, "config.probe", extra=("every",), given=("run",))
        probe_every = _steps("probe.every", probe.get("every", eval_every), run.steps_per_epoch)
        prober = trained.make_prober(run, **{k: v for k, v in probe.items() if k != "every"})

    folder = log.open_workdir(workdir, config or {"checkpoint_dir": checkpoint_dir}, configs.differences)
    _record_data(folder, run.data.info.with_split("test", run.data.test or "", test))
    with loop.StopSignal() as stop:
        tell = print if distributed.is_main() else (lambda text: None)
        keeper = checkpoint.Checkpointer(folder, run.template, say=tell)
        restored = keeper.restore_newest()
        resumed = restored.meta if restored else {}
        at = restored.step if restored else 0
        keeper.forget_after(at)
        state = restored.state if restored else build.initial_state(run, init_from, tell)
        writer = log.Log(folder, run.total_steps, at, evaluated=resumed.get("loop", {}).get("evaluated", 0))
        _introduce(writer.say, run, test, model["name"], every)
        writer.say(f"{'resuming from step ' + format(at, ',') if restored else 'starting'} in {folder}")

        evaluate = classify.make_evaluate(run.task.predict, run.task.losses, measured, run.data.preprocess, run.mesh)
        val_batches = build.eval_batches(run, run.data.val, keep=True) if run.data.val else None

        draw = _make_draw(run, folder / "figure.png") if run.task.figure and run.data.val else None

        def validate(state, stop):
            found = evaluate(*state.evaluated, val_batches, stop)
            if found is None:
                return None
            found = classify.scalars(found)
            if draw:
                draw(*state.evaluated)
            step, each = int(state.step), every["eval_every"]
            if prober and (step // probe_every > max(0, step - each) // probe_every or step == run.total_steps):
                found |= prober(*state.evaluated)
            return found

        step_fn = steps_of.make_train_step(
            run.task, run.optimizer, augment=run.data.augment, accumulate=accumulate, ema_decay=ema_decay,
            compile=compile, shardings=run.shardings,
        )  # fmt: skip
        try:
            done = loop.run(
                steps_of.place_state(state, run.shardings, compile), step_fn,
                lambda first: build.train_batches(run, first, compile),
                total_steps=run.total_steps, batch_size=batch_size, checkpointer=keeper, log=writer, resumed=resumed,
                evaluate=validate if run.data.val else None, best=run.task.best, early_stop=early_stop, **every,
                fetch=lambda x: steps_of.fetch_state(x, run.shardings, compile), stop=stop,
            )  # fmt: skip
        except BaseException:
            with contextlib.suppress(errors.Failure):
                keeper.wait()  # what is still being saved is good
            raise
        finally:
            writer.close()
            if distributed.is_main():
                with contextlib.suppress(OSError):  # of a full disk, which is not to hide how the loop ended
                    plot.curves(log.read_records(writer.path), folder / "curves.png")
        state = steps_of.fetch_state(done.state, run.shardings, compile)
        end = int(state.step)
        if done.reason == "interrupted":
            keeper.close()
            tell(f"stopped by SIGTERM at step {end}, saved; the same command goes on.")
            return {}

        summary: dict[str, Any] = {
            "parameters": trees.count(state.params), "step": end, "epochs": end / run.steps_per_epoch,
            "seconds": done.seconds, "reason": done.reason, "seed": seed, "final": {"step": end},
        }  # fmt: skip
        if done.last:
            summary["final"]["val"] = done.last["metrics"]
        if done.best:
            summary["best"] = {"step": done.best["step"], "val": done.best["metrics"]}
        if test:
            batches = build.eval_batches(run, test, keep=True)
            summary["final"]["test"] = classify.scalars(evaluate(*state.evaluated, batches))
            if done.best:
                best = state if done.best["step"] == end else keeper.restore("best").state
                summary["best"]["test"] = classify.scalars(evaluate(*best.evaluated, batches))
        keeper.close()
        if distributed.is_main():
            log.write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
            print(_report(summary, folder, time.monotonic() - began), flush=True)
        return summary


def _record_data(folder: Path, info: Any) -> None:
    """Writes what the run knows of its data, or compares them with what it wrote when it began."""
    from recvis_jax.data import info as data_info
    from recvis_jax.training import distributed, log

    recorded = data_info.read(folder)
    if recorded:
        data_info.check(recorded, info, going_on=True)
    elif distributed.is_main():
        log.write_atomically(folder / data_info.FILE, json.dumps(data_info.as_json(info), indent=2) + "\n")


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
                shown = ", ".join(f"{k} {v:.4f}" for k, v in values.items())
                lines.append(f"  {which} (step {summary[which]['step']:,}) {kind}: {shown}")
    lines.append(f"run: {folder}  (summary.json, metrics.jsonl, curves.png, checkpoints/; {seconds:.0f} s this time)")
    split = next((s for s in ("test", "val") if s in summary["final"]), "train")
    following = ("python", "-m", "recvis_jax.evaluate", f"--workdir={folder}", f"--split={split}")
    lines.append(f"next: {errors.command(*following)}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, define_flags)
