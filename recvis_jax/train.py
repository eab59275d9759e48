"""Trains a model.

  python -m recvis_jax.train --config=configs/fashion_mnist/lenet5.py --workdir=runs/lenet5 [--config.optim.lr=0.2 ...]

The same command continues a stopped run, with a result that is bit-identical to an uninterrupted one.
`--config=FILE:smoke` runs a few steps on mock data.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from absl import flags

from recvis_jax import cli, errors
from recvis_jax.config import define_flag, differences, read

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    define_flag("Config file, such as configs/fashion_mnist/lenet5.py[:argument].")
    flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, summary.")
    flags.DEFINE_bool("report", True, "Write report.html at the end: curves, diagnosis, predictions; a second or two.")
    flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> int:
    del argv
    config = read(FLAGS["config"], "configs/fashion_mnist/lenet5.py")
    if not FLAGS.workdir:
        raise errors.BadRequest("--workdir is missing, for instance --workdir=runs/first.")
    if "learn" in config:
        command = errors.command("python", "-m", "recvis_jax.features", f"--config={FLAGS['config'].value}")
        raise errors.BadRequest(
            f"this config is learnt without gradients: {command} --split=train --out={FLAGS.workdir}."
        )
    errors.check_kwargs(train, config, "config", given=("workdir", "config", "report"))
    cli.start_jax(FLAGS.compile_cache)
    train(workdir=FLAGS.workdir, config=config, report=FLAGS.report, **config)
    return 0


def train(
    *,
    workdir: str,
    config: dict[str, Any] | None = None,
    report: bool = False,
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
    keep_checkpoints: int = 2,
    early_stop: int = 0,
    init_from: str | dict | None = None,
    checkpoint_dir: str | None = None,
    probe: dict | None = None,
) -> dict[str, Any]:
    """Runs a training from a config's sections and returns the summary; the arguments are a config's top-level keys.

    Args:
      workdir: folder of the run.
      config: the whole config as plain dicts, written to `config.json`.
      report: whether to write the report page at the end, or when the loss becomes NaN.
      data: see `data.opened.open_data`.
      model: `name` and the attributes of the model.
      optim: see `training.optim.make_optimizer`.
      task: `name` and the arguments of the objective; None for classification, or regression without classes.
      seed: of everything random.
      epochs, steps: length of the run; give one of the two.
      batch_size: images per step, over all devices and micro-batches.
      eval_batch_size: images per batch in evaluation; by default batch_size / accumulate.
      accumulate: micro-batches per step.
      compile: "jit" over a mesh or "pmap".
      dtype: type of the computation; parameters stay float32.
      sharding: "replicate", "fsdp" or "tensor", or a dict with the mesh's sizes and rules; see `build.open_mesh`.
      ema_decay: decay of the moving average of parameters and batch statistics, which is then evaluated instead.
      metrics: names of further validation metrics.
      log_every, eval_every, checkpoint_every: in steps if an int, in epochs if a float: 50 are steps, 50.0 epochs.
      keep_checkpoints: number of newest checkpoints to keep in addition to the best, at least 2;
        `--checkpoint=average` uses their mean.
      early_stop: evaluations without a new best after which the run ends; 0 for never.
      init_from: checkpoint from which the model's variables are taken at the start; see `build.initial_state`.
      checkpoint_dir: where checkpoints go, such as gs://bucket/runs/x; by default `checkpoints` in the workdir.
      probe: probes of the features during training; see `trained.make_prober`.
    """
    given = locals()
    from recvis_jax import build, environment, finishing, fitting, trained
    from recvis_jax.evaluation import evaluator
    from recvis_jax.training import checkpoint, distributed, log, processes, signals
    from recvis_jax.training.workdir import Workdir, absolute, refuse_unwritable

    began, tell = time.monotonic(), print if distributed.is_main() else (lambda text: None)
    paths = absolute({"data": data, "init_from": init_from, "checkpoint_dir": checkpoint_dir})
    home = Workdir(workdir, absolute(config or paths), differences, tell, distributed.is_main())
    folder, root = home.folder, checkpoint.place(home.folder, paths["checkpoint_dir"])
    if "://" not in str(root):
        refuse_unwritable(Path(root), "config.checkpoint_dir")
    run = build.make_run(**{k: (given | paths)[k] for k in errors.keywords(build.make_run) if k in given})
    with errors.at("config.metrics"):
        measured = evaluator.build_metrics(metrics, run.data.info.num_classes)
    every = _every(run, log_every=log_every, eval_every=eval_every, checkpoint_every=checkpoint_every)
    test = run.data.test
    info = run.data.info.with_split("test", run.data.test_split or "", test)
    recorded = _compare_data(folder, info)
    after = _make_after(run, probe, eval_every, every["eval_every"])

    # All checks are done by now, or by the first batch and step; nothing has been written yet.
    reader = checkpoint.Checkpointer(folder, run.template, read_only=True, root=root)
    reader.refuse_mismatch()
    longer, done_before = _check_length(home, run, optim, reader.newest_step()), reader.newest_step()
    training = fitting.prepare(
        run, accumulate=accumulate, compile=compile, ema_decay=ema_decay, metrics=measured, first=done_before
    )
    fresh = None if any(reader.kept().values()) else build.initial_state(run, paths["init_from"], tell)
    reader.close()
    figure = _make_draw(run, folder / "figure.png") if run.task.figure and run.data.val else lambda state: {}

    with home.taken(), signals.StopSignal() as stop:
        keeper = checkpoint.Checkpointer(
            folder, run.template, say=tell, root=root, held=home.held, keep=keep_checkpoints
        )
        restored = keeper.restore_newest()
        resumed = restored.meta if restored else {}
        at = restored.step if restored else 0
        state = restored.state if restored else fresh or build.initial_state(run, paths["init_from"], tell)
        home.write(length_changes=longer is not None)
        if not recorded and distributed.is_main():
            _record_data(folder, info)
        if distributed.is_main():
            environment.note(folder)
        writer = log.Log(folder, run.total_steps, at, evaluated=resumed.get("loop", {}).get("evaluated", 0))
        _introduce(writer.say, run, test, model["name"], every)
        if longer:
            writer.say(longer)
        writer.say(f"{'resuming from step ' + format(at, ',') if restored else 'starting'} in {folder}")
        try:
            done = fitting.fit(
                training, state, keeper, writer, every=every, early_stop=early_stop, resumed=resumed,
                after=lambda state: figure(state) | after(state), stop=stop,
            )  # fmt: skip
        except BaseException as e:
            with contextlib.suppress(errors.Failure):
                keeper.wait()  # a save in progress is good
            if report and isinstance(e, errors.Failure):
                tell(finishing.write_page(folder, None))
            raise
        finally:
            writer.close()
            finishing.draw_curves(writer.path, folder / "curves.png")
        if done.reason == "interrupted":
            return finishing.interrupted(done, keeper, stop, tell)
        best = finishing.best_state(done, keeper, tell)
        summary = finishing.summarise(run, done, best, training.evaluate, test)
        keeper.close()
        if distributed.is_main():
            finishing.write_summary(folder / "summary.json", summary, tell)
        page = ""
        if report and distributed.is_main():
            kept = best or done.state
            looked_at = trained.Trained(
                run=run, params=kept.evaluated[0], model_state=kept.evaluated[1], step=int(kept.step),
                name="best" if best else "last", config=config or paths,
            )  # fmt: skip
            page = finishing.write_page(folder, None if processes.several() else looked_at)
        if distributed.is_main():
            print(finishing.report(summary, folder, time.monotonic() - began, page), flush=True)
        return summary


def _every(run: Any, **given: int | float) -> dict[str, int]:
    """Returns how often the loop logs, evaluates and saves, in steps."""
    every = {name: _steps(name, value, run.steps_per_epoch) for name, value in given.items()}
    if every["log_every"] > run.total_steps:  # else the curve would be a single point
        every["log_every"] = max(1, run.total_steps // 10)
    return every


def _make_after(run: Any, probe: dict | None, default: int | float, each: int) -> Callable[[Any], dict[str, float]]:
    """Returns state -> metrics of the probes that are due after an evaluation; evaluations come every `each` steps."""
    from recvis_jax import trained

    if not probe:
        return lambda state: {}
    errors.check_kwargs(trained.make_prober, probe, "config.probe", extra=("every",), given=("run",))
    often = _steps("probe.every", probe.get("every", default), run.steps_per_epoch)
    measure = trained.make_prober(run, **{k: v for k, v in probe.items() if k != "every"})

    def after(state: Any) -> dict[str, float]:
        step = int(state.step)
        due = step // often > max(0, step - each) // often or step == run.total_steps
        return measure(*state.evaluated) if due else {}

    return after


def _check_length(home: Any, run: Any, optim: dict, done: int) -> str | None:
    """Refuses a new length that would have changed the steps already made; returns a note on what changes."""
    from recvis_jax import build
    from recvis_jax.training.optim import schedule_of
    from recvis_jax.training.workdir import check_length

    if not home.old:
        return None

    def rates(total: int) -> Callable[[Any], Any]:
        return schedule_of(total_steps=total, batch_size=run.batch_size, steps_per_epoch=run.steps_per_epoch, **optim)

    before = build.length_in_steps(home.old.get("epochs"), home.old.get("steps"), run.steps_per_epoch)
    return check_length(home.folder, before, run.total_steps, done, rates, optim.get("schedule", "cosine"))


def _compare_data(folder: Path, info: Any) -> bool:
    """Compares the data with the run's record of them; returns whether there is a record."""
    from recvis_jax.data import data_info

    recorded = data_info.read(folder)
    if recorded:
        data_info.check(recorded, info, going_on=True)
    return recorded is not None


def _record_data(folder: Path, info: Any) -> None:
    """Writes the run's record of its data."""
    from recvis_jax.data import data_info
    from recvis_jax.training import log

    log.write_json(folder / data_info.FILE, data_info.as_json(info))


def _make_draw(run: Any, path: Path, examples: int = 8) -> Callable[[Any], dict[str, float]]:
    """Returns `state -> {}`, which draws the task's figure of the first validation examples."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from recvis_jax.training import distributed, processes
    from recvis_jax.vis import plot

    found = run.data.val.read(np.arange(min(examples, run.data.val.length)))
    if run.data.eval_transform:
        found = [run.data.eval_transform(np.random.default_rng(0), e) for e in found]
    batch = {"image": np.stack([e["image"] for e in found])}

    titles: list[str] = []  # in the task's order, which jit does not keep

    @processes.compiled_together
    @functools.partial(jax.jit, out_shardings=NamedSharding(run.mesh, PartitionSpec()))
    def columns(params, model_state, batch):
        images = run.task.figure(params, model_state, run.data.preprocess(batch))
        titles[:] = images
        return [run.data.denormalise(x) for x in images.values()]

    def draw(state: Any) -> dict[str, float]:
        images = jax.device_get(columns(*state.evaluated, batch))
        if distributed.is_main():
            with contextlib.suppress(OSError):  # a full disk must not end the run
                plot.image_rows(dict(zip(titles, images, strict=True)), path)
        return {}

    return draw


def _introduce(say: Callable[[str], None], run: Any, test: Any, model: str, every: dict[str, int]) -> None:
    """Prints what will be trained, and on which data."""
    from recvis_jax import trees
    from recvis_jax.training import sharding

    say(cli.about_jax())
    data = run.data
    splits = {"train": data.train, "val": data.val, "test": test}
    sizes = ", ".join(f"{name} {source.length if source else 0:,}" for name, source in splits.items())
    known = f"{'x'.join(map(str, data.image_shape))}, {data.info.num_classes} classes"
    if data.info.vocabulary:
        known = f"texts in {data.info.vocabulary.size:,} tokens ({data.info.vocabulary.kind})"
    say(f"data: {data.train.name}, {known}; {sizes}; cache {data.cache}")
    for note in data.train.notes:
        say(note)
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


if __name__ == "__main__":
    cli.run(main, define_flags)
