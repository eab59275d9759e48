"""A trained model as programs look at it: a checkpoint of a run or published weights, and the features it makes."""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax import build, errors, reading, trees
from recvis_jax.data import data_info, given
from recvis_jax.data.sources import NoSplit, Source
from recvis_jax.evaluation import features, probes
from recvis_jax.models import layer_head
from recvis_jax.pretrained import published
from recvis_jax.training import checkpoint, distributed, state
from recvis_jax.training.optim import make_optimizer


class Trained(NamedTuple):
    """A model with its variables, and the run that it belongs to.

    Attributes:
      run: as built from the config.
      params, model_state: what is evaluated: the moving average where the run keeps one.
      step: of the checkpoint; 0 for published or random weights.
      name: which checkpoint it is: 'best', 'last', 'average', a step, 'random' or 'published'.
      config: the config's sections as plain dicts.
    """

    run: build.Run
    params: Any
    model_state: Any
    step: int
    name: str
    config: dict[str, Any]

    @property
    def variables(self) -> dict[str, Any]:
        """All collections of the model, as `apply` wants them."""
        return {"params": self.params, **self.model_state}


def find_run(weights: str) -> tuple[Path, str | None] | None:
    """Returns folder and checkpoint where `weights` names a run, as runs/lenet5 or runs/lenet5@last; else None."""
    for folder, which in ((weights, None), weights.rpartition("@")[::2]):
        if folder and (Path(folder).expanduser() / "config.json").exists():
            return Path(folder).expanduser().absolute(), which
    return None


def run_folder(weights: str) -> tuple[Path, str | None]:
    """The same; `BadRequest` where `weights` names no run."""
    found = find_run(weights)
    if found is None:
        raise errors.BadRequest(f"{errors.printable(weights)} is not the folder of a run: it has no config.json.")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the config of the run in `folder`; `BadRequest` where it is no run's or not readable."""
    path = folder / "config.json"
    if not path.exists():
        raise errors.BadRequest(f"{folder} is not the folder of a run: it has no config.json.")
    config = reading.read_json(path)
    keys = set(errors.keywords(build.make_run))
    known = {k: v for k, v in config.items() if k in keys}
    errors.check_kwargs(build.make_run, known, str(path), given=("devices", "recorded", "built"))
    return config


def make_run(
    config: dict[str, Any], recorded: data_info.Recorded | None = None, built: tuple[Any, Any] = (None, None)
) -> build.Run:
    """Builds the run of a whole config, of which it takes the keys that say what a run is.

    Args:
      config: the sections as plain dicts.
      recorded: what the run knows of its data, which then need not be there; None opens them.
      built: see `build.make_run`.
    """
    keys = set(errors.keywords(build.make_run)) - {"devices", "recorded", "built"}
    found = {k: v for k, v in config.items() if k in keys}
    if isinstance(found.get("sharding"), dict):  # here there may be other devices than the run's
        found["sharding"] = {k: v for k, v in found["sharding"].items() if k in ("strategy", "rules")}
    return build.make_run(**found, recorded=recorded, built=built)


def of_run(
    folder: Path, config: dict[str, Any], which: str | None = None, *, model: Any = None, task: Any = None
) -> Trained:
    """Opens a checkpoint of a run, without its optimizer's state; it is only read, and the run may go on.

    Args:
      folder: of the run.
      config: its config, perhaps changed where that does not change the model.
      which: 'best', 'last' or a step; None takes the best, or the last of a run without validation; 'average' is the
        mean of the newest checkpoints, as many as the config's `keep_checkpoints`; 'random' are the weights with which
        the run began, had it not been initialised from others.
      model, task: objects of the caller's own that the config cannot describe.

    Raises:
      BadRequest: there is no such checkpoint.
    """
    recorded, optim = data_info.read(folder), config.get("optim")
    if recorded and isinstance(optim, dict):
        if optim != build.OWN:  # it is checked, and not built
            given = ("params", "total_steps", "batch_size", "steps_per_epoch")
            errors.check_kwargs(make_optimizer, optim, "config.optim", given=given)
        config = {**config, "optim": build.OWN}
    run = make_run(config, recorded, (model, task))
    if which == "random":
        made = run.create()
        return Trained(run, made.params, made.model_state, 0, "random", config)
    if published.there(folder):
        return _published(run, folder, config, which)
    keeper = checkpoint.Checkpointer(folder, run.template, read_only=True, without="opt_state")
    if which == "average":
        return _average(run, keeper, config)
    which = which or ("best" if keeper.best_step() is not None else "last")
    restored = keeper.restore(which)
    return Trained(run, *restored.state.evaluated, restored.step, which, config)


def _published(run: build.Run, folder: Path, config: dict[str, Any], which: str | None) -> Trained:
    """Returns the weights of a folder that was exported, which holds one checkpoint."""
    weights = published.read(folder)
    if which not in (None, weights.name, str(weights.step)):
        there = f"{errors.printable(weights.name)}, of step {weights.step}"
        raise errors.BadRequest(f"no checkpoint {errors.brief(which)!r} in {errors.printable(folder)}, only {there}.")
    params, model_state = run.template.evaluated
    differ = state.differences(state.describe(weights.tensors), state.describe({"params": params, **model_state}))
    if differ:
        raise errors.BadRequest(
            f"{errors.printable(folder / published.FILE)} does not fit the model of its config.json: {differ}."
        )
    tree = trees.unflatten(weights.tensors)
    params, model_state = distributed.onto_devices((tree.pop("params"), tree), run.shardings.evaluated)
    return Trained(run, params, model_state, weights.step, weights.name, config)


def _average(run: build.Run, keeper: checkpoint.Checkpointer, config: dict[str, Any]) -> Trained:
    """Returns the mean of the last checkpoints of a run, as many as its `keep_checkpoints` has kept."""
    steps = keeper.kept()["last"]
    if len(steps) < 2:
        raise errors.BadRequest(f"checkpoint 'average' needs several, and {keeper.root} keeps {len(steps)}.")
    states = (keeper.restore(step).state.evaluated for step in steps)
    # One after the other: not all are in memory at once.
    total = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), states)

    def mean(x: jax.Array) -> jax.Array:
        return (x / len(steps)).astype(x.dtype)

    params, model_state = jax.tree.map(mean, total)
    return Trained(run, params, model_state, max(steps), "average", config)


def of_config(config: dict[str, Any], which: str | None = None, say: Callable[[str], None] = print) -> Trained:
    """Initialises the model of a config from its `init_from`, or at random where `which` is 'random'.

    Raises:
      BadRequest: the config names no weights, or any that do not fit.
    """
    run = make_run(config)
    source = config.get("init_from")
    if which not in (None, "random") or not (source or which):
        raise errors.BadRequest(
            "without a --workdir the weights come from --config.init_from=FILE, hf://owner/repo or a run's folder; "
            "--checkpoint=random takes random ones."
        )
    made = run.create() if which else build.initial_state(run, source, say)
    return Trained(run, made.params, made.model_state, 0, which or "published", config)


def open_either(
    workdir: str | None, config: dict[str, Any] | None, out: str | None, which: str | None
) -> tuple[Trained, Path]:
    """Opens the run in `workdir`, or the weights that a config names; returns it and the folder for what is found.

    Raises:
      BadRequest: a config without `out`, and what `of_run` and `of_config` refuse.
    """
    if workdir is not None:
        folder = Path(workdir).expanduser().absolute()
        return of_run(folder, read_config(folder), which), Path(out).expanduser().absolute() if out else folder
    if out is None:
        raise errors.BadRequest("with --config, --out=FOLDER says where the results go.")
    return of_config(config or {}, which), Path(out).expanduser().absolute()


def open_named(data: build.Data, split: str) -> Source:
    """Returns the split that a user names; this is the meaning of every program's flag `--split`.

    Args:
      data: of a run.
      split: train, val (or validation) or test as the run's config has them, or a split expression.

    Raises:
      BadRequest: there is no such split; those there are are named.
    """
    which = canonical(split)
    found = data.named(which) if which in SPLITS else data.open(split)
    if not found:
        there = ", ".join(s for s in SPLITS if s in data.info.splits or (s == "test" and data.test_split))
        raise errors.BadRequest(
            f"the run has no {which} split, only {there}; --split also takes an expression, as --split='train[90%:]'."
        )
    return found


def canonical(split: str) -> str:
    """Returns the name of a split as configs have it: val for validation; all others stay."""
    return "val" if split == "validation" else split


def default_split(data: build.Data, note: Callable[[str], None] = print) -> str:
    """Returns what is measured unless `--split` says otherwise: the test split, or, said, the validation split.

    Raises:
      NoSplit: there is neither.
    """
    try:
        if data.named("test"):
            return "test"
    except NoSplit:  # the default of configs names one
        pass
    if data.named("val"):
        note("there is no test split: the validation split is taken.")
        return "val"
    raise NoSplit(
        "the run has neither a test nor a validation split: --split=train takes all its training images, and "
        "--split='train[90%:]' some of them."
    )


SPLITS = ("train", "val", "test")
_LARGE = 2**28  # bytes of features that take a while to check
PIXELS = "pixels"  # the layer before the first: the image as the model is given it, flattened


def refuse_texts(run: build.Run) -> None:
    """Raises `BadRequest` for a run of texts, which has no images."""
    if run.data.info.vocabulary:
        raise errors.BadRequest("the run is of texts; features, probes and figures need images.")


def make_layers(run: build.Run, layers: Sequence[str], pool: str) -> Callable[[Any, dict], Mapping[str, Any]]:
    """Returns the compiled `extract(variables, batch) -> {layer: (b d)}` of a run's model; `PIXELS` needs none."""

    refuse_texts(run)

    def layers_of(variables: Any, batch: dict) -> dict[str, Any]:
        acts = {PIXELS: batch["image"].reshape(len(batch["image"]), -1)}
        if set(layers) != {PIXELS}:
            acts |= run.model.apply(variables, batch["image"], train=False)[1]
        return {layer: layer_head.pooled(acts, layer, pool) for layer in layers}

    return features.make_extract(layers_of, run.data.preprocess, run.mesh)


def features_of(
    trained: Trained,
    paths: Sequence[Path],
    layers: Sequence[str],
    pool: str,
    say: Callable[[str, int, int], None] = lambda name, done, length: None,
) -> dict[str, np.ndarray]:
    """Returns {layer: features (n d)} of image files, prepared as the run's evaluation images are.

    Args:
      trained: the model; its data set need not be there.
      paths: of the images.
      layers: names of intermediates, or `PIXELS`.
      pool: see `models.layer_head.pooled`.
      say: called with (what, images done, total).

    Raises:
      BadRequest: an unknown layer or pool, or an image that cannot be read.
    """
    known = trained.run.data.info
    prepare = given.preparer(known.eval_transform, known.image_shape)
    size = min(trained.run.eval_batch_size, len(paths))
    size += -size % trained.run.mesh.size
    compiled, rows = make_layers(trained.run, layers, pool), []
    for start in range(0, len(paths), size):
        images = [prepare(path) for path in paths[start : start + size]]
        batch = np.zeros((size, *known.image_shape), np.uint8)  # of one shape, so that there is one program
        batch[: len(images)] = images
        found = compiled(trained.variables, {"image": batch})
        rows.append({layer: np.asarray(x, np.float32)[: len(images)] for layer, x in found.items()})
        say("images", start + len(images), len(paths))
    return {layer: np.concatenate([r[layer] for r in rows]) for layer in layers}


def make_prober(
    run: build.Run,
    protocols: Sequence[str] = ("knn",),
    layer: str = "features",
    pool: str = "mean",
    train: str | None = None,
) -> Callable[[Any, Any], dict[str, float]]:
    """Returns `(params, model_state) -> {"probe_knn": accuracy, ...}` on validation data; a config's section `probe`.

    What there is to choose is chosen on a tenth of the training examples, so that the numbers are those of
    unseen data. A further key of the section, `every`, says how often, in steps or epochs as `eval_every`; it waits for
    the next evaluation.

    Args:
      run: the run.
      protocols: names of `evaluation.probes.PROTOCOLS`.
      layer: name of an intermediate.
      pool: see `models.layer_head.pooled`.
      train: split expression of the training examples; None for all of the run's.

    Raises:
      BadRequest: no validation data, an unknown name, or data without classes.
    """
    if run.data.val is None or not run.data.info.num_classes or not run.data.info.labelled:
        raise errors.BadRequest("config.probe needs validation data, of classes.")
    for name in protocols:
        errors.choose(probes.PROTOCOLS, name, "protocol")
    compiled = make_layers(run, [layer], pool)
    image = jax.ShapeDtypeStruct((run.eval_batch_size, *run.data.image_shape), np.uint8)
    params, model_state = run.template.evaluated
    jax.eval_shape(compiled, {"params": params, **model_state}, {"image": image})  # refuse a wrong layer or pool now
    sources = [run.data.open(train) if train else run.data.train, run.data.val]

    def prober(params: Any, model_state: Any) -> dict[str, float]:
        variables = {"params": params, **model_state}
        sets = []
        for source in sources:
            rows = build.eval_batches(run, source)
            values, labels = features.collect(rows, lambda batch: compiled(variables, batch))
            sets.append(probes.Set(values[layer], labels))
        fit, val = sets
        parts = probes.hold_out(fit, run.data.info.num_classes)
        found: dict[str, list[float]] = {}
        for r in probes.run(protocols, *parts, val, num_classes=run.data.info.num_classes):
            found.setdefault(f"probe_{r.name}", []).append(r.score)
        return {name: float(np.mean(a)) for name, a in found.items()}

    return prober


def write_features(
    trained: Trained,
    folder: Path,
    source: Source,
    split: str,
    layers: Sequence[str],
    pool: str,
    *,
    overwrite: bool = False,
    reuse: bool = False,
    say: Callable[[str, int, int], None] = lambda name, done, length: None,
    note: Callable[[str], None] = print,
) -> dict[str, features.Features]:
    """Returns {layer: features} of a split: from disk where `reuse` allows it, else computed and written.

    Args:
      trained: the model.
      folder: where `features/` lies.
      source: the split.
      split: what the user calls it, for the files' names.
      layers: names of intermediates, or `PIXELS`.
      pool: see `models.layer_head.pooled`.
      overwrite: replaces what is there.
      reuse: takes what is there.
      say: called with (what, done, total).
      note: prints a line for the user.

    Raises:
      BadRequest: no layer, an unknown one or an unknown pool; features that are there and stale or damaged, or there at
        all where neither `reuse` nor `overwrite` allows them.
    """
    if not layers or not all(layers):
        raise errors.BadRequest("no layer is named, as in --layers=features.")
    section = trained.config["data"]
    weights = trained.name if trained.name in ("random", "published") else f"step{trained.step}"
    of_features = getattr(trained.run.model, "of_features", trained.variables)  # collections; of most models all
    sums = sorted(trees.fingerprint({k: v for k, v in trained.variables.items() if k in of_features}).items())
    origins, paths = {}, {}
    for layer in dict.fromkeys(layers):
        raw = layer == PIXELS
        paths[layer] = features.path_of(folder, split, layer, "flatten" if raw else pool, "" if raw else weights)
        origins[layer] = {
            "layer": layer,
            "pool": "flatten" if raw else pool,
            "model": {} if raw else trained.config["model"],
            "weights": {} if raw else {"step": trained.step, "checksum": f"{zlib.crc32(repr(sums).encode()):08x}"},
            "preprocessing": {k: section.get(k, d) for k, d in (("eval_transform", ""), ("statistics", "none"))},
            "data": {"name": source.name, "examples": source.length, "hash": source.digest},
        }

    def read(layer: str, note: Callable[[str], None]) -> features.Features | None:
        def checked(done: int, total: int) -> None:
            if total > _LARGE:
                say(f"checking {paths[layer].name} (MB)", done >> 20, total >> 20)

        classes = source.num_classes if trained.run.data.info.labelled else 0
        return features.read(paths[layer], origins[layer], classes, checked, note)

    found: dict[str, features.Features] = {}
    if not overwrite:
        found = {layer: f for layer in paths if (f := read(layer, note)) is not None}
        if found and not reuse:
            there = errors.printable(", ".join(str(paths[layer]) for layer in found))
            raise errors.BadRequest(f"these features are there already: {there}. --overwrite computes them again.")
    rest = [layer for layer in paths if layer not in found]
    if rest:
        say(source.name, 0, source.length)
        compiled = make_layers(trained.run, rest, pool)
        rows = features.rows_of(
            build.eval_batches(trained.run, source), lambda batch: compiled(trained.variables, batch)
        )
        features.write(
            {layer: paths[layer] for layer in rest}, origins, rows, source.length,
            lambda done: say(source.name, done, source.length),
        )  # fmt: skip
        for layer in rest:
            written = read(layer, note)
            if written is None:
                raise errors.Failure(f"the features {paths[layer]} that were just written are not there.")
            found[layer] = written
    return {layer: found[layer] for layer in paths}
