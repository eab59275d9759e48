"""Trains a model.

  python -m recvis_jax.train --config=configs/fashion_mnist/lenet5.py --workdir=runs/lenet5 [--config.optim.lr=0.2 ...]

The same command given again goes on where the run stopped, and ends bit for bit as if it had never been interrupted.
`--config=FILE:smoke` runs a few steps on mock data.
"""

import json
import time
from pathlib import Path
from typing import Any, Literal

from absl import flags
from ml_collections import config_flags

from recvis_jax import cli, errors
from recvis_jax import config as configs

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, as configs/fashion_mnist/lenet5.py[:argument].", lock_config=False,
    accept_new_attributes=True,
)  # fmt: skip
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, summary.")
_CACHE = flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> int:
    del argv
    if _CONFIG.value is None:
        raise errors.BadRequest("--config is missing, for instance --config=configs/fashion_mnist/lenet5.py.")
    if not _WORKDIR.value:
        raise errors.BadRequest("--workdir is missing, for instance --workdir=runs/first.")
    print(cli.start_jax(_CACHE.value), flush=True)
    config = configs.plain(_CONFIG.value)
    errors.check_kwargs(train, config, "config", extra=())
    train(workdir=_WORKDIR.value, config=config, **config)
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
    ema_decay: float | None = None,
    metrics: tuple | list = (),
    log_every: int | float = 100,
    eval_every: int | float = 1.0,
    checkpoint_every: int | float = 1.0,
    early_stop: int = 0,
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
      ema_decay: decay of the moving average of parameters and batch statistics, which is then what is evaluated.
      metrics: names of further validation metrics.
      log_every, eval_every, checkpoint_every: in steps if an int, in epochs if a float.
      early_stop: evaluations without a new best after which the run ends; 0 for never.
    """
    from recvis_jax import build, trees
    from recvis_jax.data import pipeline
    from recvis_jax.evaluation import classify
    from recvis_jax.training import checkpoint, distributed, log, loop
    from recvis_jax.training import step as steps_of
    from recvis_jax.vis import plot

    began = time.monotonic()
    run = build.make_run(
        data=data, model=model, optim=optim, task=task, seed=seed, epochs=epochs, steps=steps, batch_size=batch_size,
        eval_batch_size=eval_batch_size, accumulate=accumulate, dtype=dtype, ema_decay=ema_decay,
    )  # fmt: skip
    parts, total = run.data, run.total_steps
    measured = classify.build_metrics([*run.task.metrics, *metrics], parts.train.num_classes)
    every = {"log_every": log_every, "eval_every": eval_every, "checkpoint_every": checkpoint_every}
    every = {name: _steps(name, value, run.steps_per_epoch) for name, value in every.items()}
    test = build.open_test(parts)

    folder = log.open_workdir(workdir, config or {}, configs.differences)
    keeper = checkpoint.Checkpointer(folder, run.template, run.mesh)
    restored = keeper.restore_newest()
    resumed = restored.meta if restored else None
    at = restored.step if restored else 0
    keeper.forget_after(at)
    state = restored.state if restored else run.create()

    count = trees.count(state.params)
    writer = log.Log(folder, total, at, evaluated=(resumed or {}).get("loop", {}).get("evaluated", 0))
    sizes = {
        "train": parts.train.length,
        "val": parts.val.length if parts.val else 0,
        "test": test.length if test else 0,
    }
    writer.say(
        f"data: {parts.train.name}, {'x'.join(map(str, parts.image_shape))}, {parts.train.num_classes} classes; "
        + ", ".join(f"{k} {v:,}" for k, v in sizes.items())
        + f"; cache {parts.cache}"
    )
    writer.say(
        f"model: {model['name']}, {count:,} parameters; "
        f"{total:,} steps of {batch_size} ({total / run.steps_per_epoch:.3g} epochs)"
    )
    writer.say(f"{'resuming from step ' + format(at, ',') if restored else 'starting'} in {folder}")

    placement = distributed.pmap_placement(run.mesh) if compile == "pmap" else distributed.jit_placement(run.mesh)
    kept, reader = parts.train, parts.train
    transform = parts.transform
    if parts.cache != "none" and at < total:
        kept = pipeline.materialise(parts.train, None if parts.random else transform)
        transform = transform if parts.random else None
        kept = placement.keep(kept) if parts.cache == "device" else kept

    def batches(start: int):
        return pipeline.train_batches(
            kept, reader, batch_size=batch_size, seed=seed, start=start, stop=total, placement=placement,
            transform=transform, threads=parts.threads, workers=parts.workers,
        )  # fmt: skip

    def eval_batches(source):
        return pipeline.EvalBatches(
            source, batch_size=run.eval_batch_size, placement=placement, transform=parts.eval_transform,
            keep=parts.cache != "none", threads=parts.threads, workers=parts.workers,
        )  # fmt: skip

    evaluate = classify.make_evaluate(run.task.predict, run.task.losses, measured, parts.preprocess, run.mesh)
    val_batches = eval_batches(parts.val) if parts.val else None

    def validate(state, stop):
        found = evaluate(*state.evaluated, val_batches, stop)
        return found if found is None else classify.scalars(found)

    step_fn = steps_of.make_train_step(
        run.task,
        run.optimizer,
        augment=parts.augment,
        accumulate=accumulate,
        ema_decay=ema_decay,
        compile=compile,
        mesh=run.mesh,
    )
    try:
        done = loop.run(
            steps_of.place_state(state, run.mesh, compile), step_fn, batches, total_steps=total, batch_size=batch_size,
            checkpointer=keeper, log=writer, resumed=resumed, evaluate=validate if parts.val else None,
            best=run.task.best, early_stop=early_stop,
            fetch=lambda x: steps_of.fetch_state(x, run.mesh, compile), **every,
        )  # fmt: skip
    finally:
        writer.close()
        if distributed.is_main():
            plot.curves(log.read_records(writer.path), folder / "curves.png")
    if done.reason == "interrupted":
        print(
            f"stopped by SIGTERM at step {int(done.state.step.ravel()[0])}, saved; the same command goes on.",
            flush=True,
        )
        keeper.close()
        return {}

    state = steps_of.fetch_state(done.state, run.mesh, compile)
    summary = {
        "parameters": count, "step": (end := int(state.step)), "epochs": end / run.steps_per_epoch,
        "seconds": done.seconds, "reason": done.reason, "seed": seed,
        "final": {"step": end, **({"val": done.last["metrics"]} if done.last else {})},
    }  # fmt: skip
    if done.best:
        summary["best"] = {"step": done.best["step"], "val": done.best["metrics"]}
    if test:
        test_batches = eval_batches(test)
        summary["final"]["test"] = classify.scalars(evaluate(*state.evaluated, test_batches))
        if done.best:
            same = done.best["step"] == int(state.step)
            best = state if same else keeper.restore("best").state
            summary["best"]["test"] = classify.scalars(evaluate(*best.evaluated, test_batches))
    keeper.close()
    if distributed.is_main():
        log.write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        print(_report(summary, folder, time.monotonic() - began), flush=True)
    return summary


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
    lines.append(f"next: python -m recvis_jax.evaluate --workdir={folder} --split=test")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
