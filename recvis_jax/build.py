"""Builds the parts that programs work with from the sections of a config, given as keyword arguments."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from recvis_jax import errors, models, palette, pretrained, trees, tried
from recvis_jax.data import data_info, pipeline, sources
from recvis_jax.data.opened import Data, open_data
from recvis_jax.tasks import TASKS, Task
from recvis_jax.training import distributed
from recvis_jax.training.optim import Optimizer, make_optimizer
from recvis_jax.training.sharding import Layout, Rule, check_rules, laid_out, make_layout, make_mesh
from recvis_jax.training.state import State, create_state

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Section of a saved run whose model, task or optimizer is the author's own object, which no config can describe.
OWN = {"name": "own"}


def make_model(data: Data, dtype: str = "float32", **kw: Any) -> Any:
    """Builds the model of a config's `model` section; the number of classes comes from the data unless given."""
    if "name" not in kw:
        raise errors.BadRequest(f"config.model.name is missing; there are: {', '.join(models.CONSTRUCTORS)}.")
    name = kw.pop("name")
    with errors.at("config.model.name"):
        made = errors.choose(models.CONSTRUCTORS, name, "model")
    if "num_classes" in errors.keywords(made):  # an autoencoder has none
        kw.setdefault("num_classes", data.info.num_classes or 1)
    if "vocabulary" in errors.keywords(made):
        if data.info.vocabulary is None:
            raise errors.BadRequest(f"model {name!r} needs texts: set config.data.text, which defines their tokens.")
        kw.setdefault("vocabulary", data.info.vocabulary.size)
    if isinstance(kw.get("num_classes"), int) and kw["num_classes"] < data.info.num_classes:
        raise errors.BadRequest(
            f"config.model.num_classes={kw['num_classes']} is less than the {data.info.num_classes} classes of "
            f"{data.info.name}; leave it out to use that number."
        )
    return models.create(name, dtype=errors.choose(DTYPES, dtype, "dtype"), **kw)


def make_task(data: Data, model: Any, name: str | None = None, **kw: Any) -> Task:
    """Builds the task of a config's `task` section; None means "classify", or "regress" for data without classes."""
    if not data.info.labelled and name in (None, "classify", "regress"):
        there = ", ".join(f.name for f in data.info.fields)
        raise errors.BadRequest(
            f"{data.info.name} has no label of a whole example, only {errors.printable(there)[:200]}: choose another "
            "objective, as config.task.name='mae' or fit(..., task=Task(...))."
        )
    name = ("classify" if data.info.num_classes else "regress") if name is None else name
    if name == "classify" and data.info.num_classes == 1 and not data.info.multi_label:
        raise errors.BadRequest(
            f"{data.info.name} has only one class, {errors.brief(data.info.class_names[0])}: a classifier has nothing "
            "to distinguish. Give each class a folder of its own, or pretrain without labels (config.task.name='mae')."
        )
    if name == OWN["name"]:
        raise errors.BadRequest("the run's objective is one of its author's own: give it, as open(folder, task=...).")
    with errors.at("config.task.name"):
        make = errors.choose(TASKS, name, "task")
    known = {
        "image_shape": data.image_shape,
        "num_classes": data.info.num_classes,
        "multi_label": data.info.multi_label,
        "fields": data.info.fields,
        "vocabulary": data.info.vocabulary,
    }
    takes = inspect.signature(make).parameters
    errors.check_kwargs(make, kw, "config.task", extra=("name",), given=("model", *known))
    return make(model, **{k: v for k, v in known.items() if k in takes}, **kw)


class Run(NamedTuple):
    """The parts of a run that training, evaluation and everything else that reads a checkpoint need.

    Attributes:
      data, model, task, optimizer: built from the config's sections.
      mesh: all devices.
      create: () -> the state at step 0 on its devices; compiled.
      template: shapes, types and shardings of the state.
      layout: how the state is split over the mesh.
      seed: of everything random.
      total_steps: updates of the whole run.
      steps_per_epoch: updates per epoch; need not be whole.
      batch_size: examples per update.
      eval_batch_size: examples per batch in evaluation.
    """

    data: Data
    model: Any
    task: Task
    optimizer: Any
    mesh: Mesh
    create: Callable[[], State]
    template: State
    layout: Layout
    seed: int
    total_steps: int
    steps_per_epoch: float
    batch_size: int
    eval_batch_size: int

    @property
    def shardings(self) -> State:
        """The shardings of the state."""
        return self.layout.shardings


def make_run(
    *,
    data: dict,
    model: dict | None,
    optim: dict,
    task: dict | None = None,
    seed: int = 0,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    eval_batch_size: int | None = None,
    accumulate: int = 1,
    dtype: str = "float32",
    ema_decay: float | None = None,
    sharding: str | dict = "replicate",
    devices: Sequence[jax.Device] | None = None,
    recorded: data_info.Recorded | None = None,
    built: tuple[Any, Task | None] = (None, None),
) -> Run:
    """Builds a run from the sections of its config; see `recvis_jax.train.train` for the keys.

    Args:
      devices: to run on; all by default. (All other arguments are those of `train`.)
      recorded: the run's record of its data, which are then not opened; see `open_data`.
      built: the model and the task, if they are the caller's own objects, which no config can describe.

    Raises:
      BadRequest: an unknown key, name or value, with what would be right.
    """
    errors.check_kwargs(open_data, data, "config.data", given=("recorded",))
    if model is None and built[0] is None:
        raise errors.BadRequest("the run's model is one of its author's own: give it, as open(folder, model=MyNet()).")
    if model and "dtype" in model:
        raise errors.BadRequest("unknown key config.model.dtype; config.dtype sets the type of the computation.")
    if (epochs is None) == (steps is None):
        raise errors.BadRequest("give the length of the run as one of config.epochs and config.steps.")
    if seed < 0:
        raise errors.BadRequest(f"config.seed={seed} is negative.")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise errors.BadRequest(f"config.ema_decay={ema_decay} is outside [0, 1).")
    mesh, strategy, rules = open_mesh(sharding, devices)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    distributed.check_batch(batch_size, accumulate, parts, "config.batch_size")
    eval_batch_size = eval_batch_size or batch_size // accumulate
    distributed.check_batch(eval_batch_size, 1, parts, "config.eval_batch_size")

    opened = open_data(**data, recorded=recorded)
    net = built[0] or make_model(opened, dtype, **(model or {}))
    objective = built[1] or make_task(opened, net, **(task or {}))
    per_epoch = opened.info.splits["train"].examples / batch_size
    total = length_in_steps(epochs, steps, per_epoch)
    _check_length(total)
    shapes = jax.eval_shape(lambda: objective.init(jax.random.key(0)))
    from_run = ("params", "total_steps", "batch_size", "steps_per_epoch")
    if recorded and optim == OWN:
        optimizer = Optimizer(lambda params: (), lambda grads, state, params: (grads, state), None)
    else:
        errors.check_kwargs(make_optimizer, optim, "config.optim", given=from_run)
        optim = {**optim, "freeze": frozen_in(net, shapes["params"], optim.get("freeze"))}
        with errors.at("config.optim"):
            optimizer = make_optimizer(
                **optim, params=shapes["params"], total_steps=total, steps_per_epoch=per_epoch, batch_size=batch_size
            )
    return assemble(
        opened, net, objective, optimizer, total_steps=total, batch_size=batch_size, eval_batch_size=eval_batch_size,
        seed=seed, ema=ema_decay is not None, mesh=mesh, strategy=strategy, rules=rules,
    )  # fmt: skip


def assemble(
    data: Data,
    model: Any,
    task: Task,
    optimizer: Optimizer,
    *,
    total_steps: int,
    batch_size: int,
    eval_batch_size: int | None = None,
    seed: int = 0,
    ema: bool = False,
    mesh: Mesh | None = None,
    strategy: str = "replicate",
    rules: tuple[Rule, ...] = (),
) -> Run:
    """Puts the parts of a run together; configs and `recvis_jax.fit` both end here.

    Args:
      data, model, task, optimizer: the parts, built.
      total_steps: updates of the whole run, at least one.
      batch_size, eval_batch_size: see `Run`; by default they are equal.
      seed: of everything random.
      ema: whether the state has a moving average.
      mesh, strategy, rules: see `make_mesh`; all devices, with the parameters on each, by default.
    """
    _check_length(total_steps)
    mesh = open_mesh(strategy)[0] if mesh is None else mesh
    drawn = task
    if mesh.size == 1 and tried.usable("loops of draws"):
        from recvis_jax.training import initialisers  # depends on JAX's internal form of programs

        drawn = task._replace(init=initialisers.looped(task.init))

    def initial() -> State:
        return create_state(drawn, optimizer, seed, ema=ema)

    template = jax.eval_shape(initial)
    layout = make_layout(template, mesh, strategy, rules)
    # It runs once, so optimising it costs more than it saves.
    quick = mesh.devices.flat[0].platform == "cpu" and tried.usable("quick create")
    options = {"xla_backend_optimization_level": 1} if quick else None
    create = jax.jit(initial, out_shardings=layout.shardings, compiler_options=options)
    return Run(
        data=data,
        model=model,
        task=task,
        optimizer=optimizer,
        mesh=mesh,
        create=create,
        template=laid_out(template, layout.shardings),
        layout=layout,
        seed=seed,
        total_steps=total_steps,
        steps_per_epoch=data.info.splits["train"].examples / batch_size,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size or batch_size,
    )


def _check_length(total_steps: int) -> None:
    if total_steps < 1:
        raise errors.BadRequest(f"the run has {total_steps} steps; it needs at least one.")


def length_in_steps(epochs: float | None, steps: int | None, steps_per_epoch: float) -> int:
    """Returns the number of updates of a run whose length is given in epochs or in steps."""
    return steps if steps is not None else round((epochs or 0) * steps_per_epoch)


def open_mesh(sharding: str | dict, devices: Sequence[jax.Device] | None = None) -> tuple[Mesh, str, tuple[Rule, ...]]:
    """Returns the mesh of a config's `sharding`, its strategy, and the user's rules.

    Args:
      sharding: the strategy's name, or a dict of `strategy`, `data`, `fsdp`, `model` (see `sharding.make_mesh`) and
        `rules` (see `training.sharding`): dict(strategy="tensor", model=4, rules=[("head/bias$", ("model",))]).
      devices: all by default.
    """
    section = {"strategy": sharding} if isinstance(sharding, str) else dict(sharding)
    rules = check_rules(section.pop("rules", ()))
    errors.check_kwargs(make_mesh, section, "config.sharding", extra=("rules",), given=("devices",))
    return make_mesh(devices, **section), section.get("strategy", "replicate"), rules


def frozen_in(model: Any, params: Any, freeze: str | tuple | list | None = None) -> tuple | None:
    """Returns the patterns of frozen parameters: the user's, and those of the model itself."""
    own = getattr(model, "frozen_parameters", None)
    found = own and any(re.search(own, name) for name in trees.flatten(params))
    given = (freeze,) if isinstance(freeze, str) else tuple(freeze or ())
    return (*given, *((own,) if found else ())) or None


def initial_state(run: Run, init_from: str | dict | None, say: Callable[[str], None] = print) -> State:
    """Returns the state at step 0, with the model's variables from a checkpoint if one is named.

    For a `probe`, the checkpoint is that of its backbone, whose own head is not needed. Of other models around a
    backbone it is, unless it says "into", that of the whole model.

    Args:
      run: the run.
      init_from: a source of `pretrained.load`, or a dict of its arguments, such as
        {"source": "hf://timm/vit_small_patch16_224.augreg_in21k", "new_head": True, "resample": True}; with "into",
        {"source": "runs/resnet", "into": "backbone"}, the checkpoint is one of the backbone. None, or a dict without
        any value, means no checkpoint.
      say: called with each line about what was adapted.

    Raises:
      BadRequest: the checkpoint cannot be read or does not fit; the message names keys that would help.
    """
    if not isinstance(init_from, str | dict | None):
        raise errors.BadRequest(f"config.init_from is {errors.shown(init_from)}; it takes the name of a file or run.")
    arguments = {"source": init_from} if isinstance(init_from, str) else dict(init_from or {})
    arguments = {k: v for k, v in arguments.items() if v is not None}
    if not isinstance(arguments.get("source", ""), str):
        raise errors.BadRequest(f"config.init_from.source is {errors.shown(arguments['source'])}; it takes a name.")
    if not arguments.get("source"):
        if asked := sorted(k for k, v in arguments.items() if v):
            raise errors.BadRequest(
                f"config.init_from.{errors.brief(asked[0])} is set, but no weights are named: give "
                "--config.init_from=FILE, hf://owner/repo or the folder of a run."
            )
        return palette.learned(run, run.create(), say)
    given = ("model", "variables", "image_size", "say", "spell")
    into = arguments.pop("into", "backbone" if isinstance(run.model, models.Probe) else "")
    if into not in ("", "backbone") or (into and not hasattr(run.model, "backbone")):
        raise errors.BadRequest(
            f"config.init_from.into is {errors.shown(into)}; it takes 'backbone', of a model that has one."
        )
    errors.check_kwargs(pretrained.load, arguments, "config.init_from", extra=("into",), given=given)
    _check_vocabulary(run, arguments["source"])
    state = distributed.onto_host(run.create())  # loaded and kept values must be in the same place
    variables = {"params": state.params, **state.model_state}

    def spell(key: str, value: Any) -> str:
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).strip("()").replace(", ", ",")
        return "" if key in ("num_classes", "image_size") else f"--config.init_from.{key}={text}"

    arguments = {**({"new_head": True} if into else {}), **arguments}
    load = functools.partial(pretrained.load, **arguments, image_size=run.data.image_shape[:2], say=say, spell=spell)
    if into:
        inner = {kind: tree["backbone"] for kind, tree in variables.items() if "backbone" in tree}
        inner = load(model=run.model.backbone, variables=inner)
        variables |= {kind: {**variables[kind], "backbone": tree} for kind, tree in inner.items()}
    else:
        variables = dict(load(model=run.model, variables=variables))
    say(f"initialised from {errors.printable(arguments['source'])}")
    params = variables.pop("params")
    ema = None if state.ema is None else {"params": params, "model_state": variables}
    state = dataclasses.replace(state, params=params, model_state=variables, ema=ema)
    # Copy: a step must not be given memory shared with numpy, or between parameters and their average, as it donates.
    return jax.tree.map(jnp.copy, distributed.onto_devices(state, run.shardings))


def _check_vocabulary(run: Run, source: str) -> None:
    """Refuses the weights of a run with another vocabulary."""
    folder = Path(source.partition("@")[0]).expanduser()
    own = run.data.info.vocabulary
    recorded = data_info.read(folder) if own and folder.is_dir() else None
    if recorded and recorded.info.vocabulary != own:
        raise errors.BadRequest(
            f"config.init_from: the run {errors.printable(folder)} has another vocabulary; use it with "
            f"{errors.command(f'--config.data.text.of_run={folder}')}."
        )


def train_batches(run: Run, first: int, compile: str = "jit") -> Iterator[dict]:
    """Returns an iterator over the run's training batches from number `first` on, on the devices."""
    data = run.data
    assert data.train is not None, "a run that was opened without its data cannot be trained"
    if first >= run.total_steps:
        return iter(())  # the run is done: read nothing
    placement = (distributed.pmap_placement if compile == "pmap" else distributed.jit_placement)(run.mesh)
    kept, transform = data.kept()
    if data.cache == "device":
        kept = placement.keep(kept)
    return pipeline.train_batches(
        kept,
        data.train,
        batch_size=run.batch_size,
        seed=run.seed,
        start=first,
        stop=run.total_steps,
        placement=placement,
        transform=transform,
        threads=data.threads,
        workers=data.workers,
        buckets=data.buckets(data.train),
    )


def eval_batches(run: Run, source: sources.Source, keep: bool = False) -> pipeline.EvalBatches:
    """Returns all of `source` in batches for evaluation; `keep` keeps a small source's batches on the devices."""
    return pipeline.EvalBatches(
        source,
        batch_size=run.eval_batch_size,
        placement=distributed.jit_placement(run.mesh),
        transform=run.data.eval_transform,
        keep=keep and run.data.cache != "none",
        threads=run.data.threads,
        workers=run.data.workers,
        buckets=run.data.buckets(source),
    )
