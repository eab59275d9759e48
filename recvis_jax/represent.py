"""Runs that are learnt without gradients: a vocabulary from descriptors, then a linear classifier on the encodings.

The result is a run like any other: `evaluate`, `features`, `probe`, `predict` and `describe` read it. Intermediate
results are kept in its folder, `vocabulary/` after every pass and `features/` of the training images, so the same
command continues an interrupted run.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from recvis_jax import build, errors, library, trained
from recvis_jax.classical import gmm, kmeans, pca, storage, stream
from recvis_jax.config import differences
from recvis_jax.data.sources import Source
from recvis_jax.evaluation import features, probes, svm
from recvis_jax.models import BagOfWords
from recvis_jax.training import distributed, optim, workdir
from recvis_jax.vis import plot, vocabulary

SECTION = "learn"  # of a config; a config with this section is learnt here
Say = Callable[[str, int, int], None]

_REMEMBERED = 2**31  # bytes of descriptors kept between passes; beyond that, images are read again
_PICTURED = 500  # images that are searched for patches
_BARS = 512
_SCALES = tuple(np.geomspace(0.05, 50, 121))  # factors tried to turn decision values into logits


class Plan(NamedTuple):
    """The learning of a run; the keys of a config's section `learn`.

    Attributes:
      images: number of training images for learning the vocabulary, drawn with the seed; 0 for all.
      per_image: number of descriptors of each, drawn with the seed; 0 for all.
      passes: maximum number of passes of k-means and of expectation maximisation.
      mini_batch: k-means moves words after every block of descriptors, for vocabularies of many thousand words.
      mirrored: the classifier also learns from mirrored images.
      classifier: "svm", or "none" for features alone, which `probe` can measure.
    """

    images: int = 3000
    per_image: int = 100
    passes: int = 25
    mini_batch: bool = False
    mirrored: bool = False
    classifier: Literal["svm", "none"] = "svm"


def open_learnt(
    config: dict[str, Any], folder: str | Path, *, say: Say = lambda what, done, total: None
) -> trained.Trained:
    """Returns the run of a config with a section `learn`: the one in `folder`, or a new one that is learnt there.

    Args:
      config: `data`, `model`, `learn`, and optionally `task`, `seed`, `batch_size` (images computed at a time).
      folder: of the run.
      say: called with (what, done, total).

    Raises:
      BadRequest: the folder belongs to another run, an unknown key, fewer descriptors than words.
    """
    errors.check_kwargs(Plan, config[SECTION], f"config.{SECTION}")
    keys = ("data", "model", "task", "seed", "batch_size", SECTION)
    if unknown := sorted({*config} - {*keys}):
        raise errors.BadRequest(f"unknown key config.{unknown[0]}; a run with 'learn' takes {', '.join(keys)}.")
    if jax.process_count() > 1:
        raise errors.BadRequest("vocabularies are learnt by a single process: leave out --num_processes.")
    whole = workdir.absolute({"seed": 0, "batch_size": 256, **config, "steps": 1, "optim": build.OWN})
    home = workdir.Workdir(str(folder), whole, differences)
    if home.old is not None:
        return trained.of_run(home.folder, trained.read_config(home.folder))
    run, plan = make_run(config), Plan(**config[SECTION])
    with home.taken():
        model = trained.Trained(run, *_learnt(run, plan, home.folder, say), 1, "last", whole)
        if plan.classifier == "svm":
            model = model._replace(params={"head": _classifier(model, plan, home.folder, say)})
        if run.model.encoder is not None:
            pictures(model, home.folder)
        library.Model(run, model.params, model.model_state, 1, "last", whole).save(home.folder)
    return trained.of_run(home.folder, whole)


def open_either(
    workdir: str | None,
    config: dict[str, Any] | None,
    out: str | None,
    which: str | None,
    say: Say = lambda what, done, total: None,
) -> tuple[trained.Trained, Path]:
    """Like `trained.open_either`, but also learns the run of a config with a section `learn`."""
    if workdir is not None or config is None or SECTION not in config:
        return trained.open_either(workdir, config, out, which)
    if out is None:
        raise errors.BadRequest("with --config, give the folder for the run, such as --out=runs/fisher.")
    if which not in (None, "best", "last"):
        raise errors.BadRequest(
            f"--checkpoint={errors.brief(which)}: a run that is learnt without gradients has only one state, the best."
        )
    return open_learnt(config, out, say=say), Path(out).expanduser().absolute()


def make_run(config: dict[str, Any]) -> build.Run:
    """Builds the run of a config before learning: data, model, and the task for evaluation.

    Raises:
      BadRequest: an unknown key, name or value.
    """
    size = config.get("batch_size", 256)
    distributed.check_batch(size, 1, jax.device_count(), "config.batch_size")
    errors.check_kwargs(build.open_data, config["data"], "config.data", given=("recorded",))
    data = build.open_data(**config["data"])
    if not data.info.num_classes:
        raise errors.BadRequest(f"{data.info.name} has no classes, but a bag of words is a classifier.")
    model = build.make_model(data, **config["model"])
    if not isinstance(model, BagOfWords):
        raise errors.BadRequest(f"config.model.name is {errors.shown(config['model']['name'])}; it takes bag_of_words.")
    return build.assemble(
        data,
        model,
        build.make_task(data, model, **(config.get("task") or {})),
        optim.of_optax(optax.identity()),
        total_steps=1,
        batch_size=size,
        seed=config.get("seed", 0),
    )


def _learnt(run: build.Run, plan: Plan, folder: Path, say: Say) -> tuple[Any, Any]:
    """Returns the run's variables with the learnt vocabulary, and a classifier that is not learnt yet."""
    state = run.create()
    params, model_state = state.evaluated
    if run.model.encoder is not None:
        found = learn_vocabulary(run, plan, folder / "vocabulary", say)
        wanted = model_state["vocabulary"]
        model_state = {**model_state, "vocabulary": {name: jnp.asarray(found[name]) for name in wanted}}
    return params, model_state


def learn_vocabulary(run: build.Run, plan: Plan, folder: Path, say: Say) -> dict[str, Any]:
    """Learns components and words from the training images' descriptors; returns the model's arrays by name.

    Args:
      run: of a `BagOfWords`.
      plan: see `Plan`.
      folder: where the state is saved after every pass, and loaded from.
      say: called with (what, done, total).

    Raises:
      BadRequest: fewer descriptors than words, or a folder with results of different settings.
    """
    model, source = run.model, run.data.train
    assert isinstance(model, BagOfWords) and source is not None
    part = _drawn(source, plan.images, run.seed)
    read = _remembered(lambda: _descriptors(run, part, plan.per_image, say))
    about: dict[str, Any] = {
        "data": part.digest, "descriptor": dict(model.descriptor), "keep_flat": model.keep_flat,
        "components": model.components,
        "whiten": model.whiten, "per_image": plan.per_image, "seed": run.seed,
    }  # fmt: skip
    projection, found = None, {}
    if model.components:
        path = folder / "pca.safetensors"
        if path.exists():
            projection = storage.load(path, pca.Projection, about)
        else:
            projection = pca.fit(lambda: (x[:, :-2] for x in read()), model.components, whiten=model.whiten)
            storage.save(path, projection, about)
        found = {"mean": projection.mean, "axes": projection.axes}

    prepare = jax.jit(lambda x: model.prepare(projection, x[None, :, :-2], x[None, :, -2:])[0])

    def prepared() -> Iterator[np.ndarray]:
        for block, real in stream.blocks(read):
            yield np.asarray(prepare(block))[real]

    learns = model.make_encoder().learns
    # A mixture starts from words after ten passes.
    about |= {"xy": model.xy, "words": model.words, "passes": plan.passes, "mini_batch": plan.mini_batch}
    passes = plan.passes if learns == "words" else min(10, plan.passes)
    words = _fit(
        kmeans.fit, kmeans.Words, folder / "words.safetensors", about, prepared, model.words, passes, say,
        seed=run.seed, mini_batch=plan.mini_batch,
    )  # fmt: skip
    learnt = words
    if learns == "mixture":
        path = folder / "mixture.safetensors"
        learnt = _fit(gmm.fit, gmm.Mixture, path, about, prepared, model.words, plan.passes, say, words=words)
    return {**found, **learnt._asdict()}


def _fit(
    fit: Callable[..., Any], kind: Any, path: Path, about: dict[str, Any], read: Any, k: int, passes: int, say: Say,
    words: Any = None, **kw: Any,
) -> Any:  # fmt: skip
    """Learns words or a mixture, and continues interrupted learning."""
    what = f"passes for the {path.stem}"

    def keep(state: Any) -> None:
        storage.save(path, state, about)
        say(what, passes if bool(state.done) else int(state.passes), passes)

    start = storage.load(path, kind, about) if path.exists() else words
    return fit(read, k, start=start, passes=passes, keep=keep, **kw)


def pictures(model: trained.Trained, folder: Path, words: int = 16, patches: int = 10) -> bool:
    """Draws the patches of training images nearest to each word (`words.png`), and encodings (`histograms.png`).

    Args:
      model: of a `BagOfWords` with an encoder.
      folder: for `words.png` and `histograms.png`, which are replaced.
      words: number of words, spread over the vocabulary.
      patches: number of patches per word, each from a different image.

    Returns:
      False if matplotlib is not installed.
    """
    net, data = model.run.model, model.run.data
    assert isinstance(net, BagOfWords) and data.train is not None
    kept = model.model_state["vocabulary"]
    shown = np.linspace(0, net.words - 1, min(words, net.words)).astype(int)
    projection = pca.Projection(kept["mean"], kept["axes"], jnp.zeros(net.components)) if net.components else None
    images: list[np.ndarray] = []
    local: list[tuple[np.ndarray, np.ndarray]] = []

    @jax.jit
    def describe(batch: dict) -> Any:
        found: Any = net.apply({}, batch["image"], method="describe")
        return found, net.prepare(projection, found.descriptors, found.positions)

    def score(x: Any) -> Any:
        if "centers" in kept:
            return -stream.squared_distances(x, kept["centers"][shown])
        squares = (x[:, None] - kept["means"][shown]) ** 2 / kept["variances"][shown]
        return -jnp.sum(squares + jnp.log(kept["variances"][shown]), axis=-1)

    def read() -> Iterator[tuple[Any, Any]]:
        for batch in build.eval_batches(model.run, _drawn(data.train, _PICTURED, model.run.seed)):
            batch = data.preprocess(batch)
            found, prepared = jax.device_get(describe(batch))
            images.extend(np.asarray(data.denormalise(batch["image"])))
            local.extend(zip(found.positions, found.scales, strict=True))
            yield prepared, found.mask & np.asarray(batch["mask"])[:, None]

    found = vocabulary.nearest(score, read(), patches)
    cut = np.stack(
        [[vocabulary.patch(images[i], local[i][0][p], 4 * float(local[i][1][p]), 32) for i, p in zip(*row, strict=True)]
         for row in zip(found.images, found.places, strict=True)]
    )  # fmt: skip
    few = jnp.stack(images[:6])
    encoded = np.asarray(net.apply(model.variables, few, train=False)[1]["features"])
    title = f"{encoded.shape[1]:,} dimensions" + (f", the first {_BARS} drawn" if encoded.shape[1] > _BARS else "")
    return plot.mosaic(cut, folder / "words.png", "one word per row: its nearest patches") and plot.histograms(
        np.asarray(few), encoded[:, :_BARS], folder / "histograms.png", title
    )


def _drawn(source: Source, images: int, seed: int) -> Source:
    """Returns a number of examples of a source, drawn with the seed; 0 for all."""
    if not 0 < images < source.length:
        return source
    order = np.sort(np.random.default_rng(seed).permutation(source.length)[:images])
    return source._replace(
        name=f"{source.name} ({images:,} for the vocabulary)",
        length=images,
        read=lambda indices: source.read(order[np.asarray(indices, int)]),
        digest=f"{source.digest}+{images}+{seed}",
    )


def _descriptors(run: build.Run, source: Source, per_image: int, say: Say) -> Iterator[np.ndarray]:
    """Yields descriptors (n d) drawn from each image, with their positions as two more numbers."""
    rng, done = np.random.default_rng(run.seed), 0
    describe = jax.jit(lambda batch: run.model.apply({}, run.data.preprocess(batch)["image"], method="describe"))
    for batch in build.eval_batches(run, source):
        found, real = jax.device_get((describe(batch), batch["mask"]))
        x = np.concatenate([found.descriptors, found.positions], axis=-1)
        drawn = [x[i, np.sort(rng.permutation(np.flatnonzero(found.mask[i]))[: per_image or None])] for i in
                 np.flatnonzero(real)]  # fmt: skip
        yield np.concatenate(drawn)
        done += int(real.sum())
        say("images described", done, source.length)


def _remembered(read: Callable[[], Iterator[np.ndarray]]) -> Callable[[], Iterator[np.ndarray]]:
    """Returns the same batches at every call, from memory if they fit."""
    kept: list[np.ndarray] | None = None

    def again() -> Iterator[np.ndarray]:
        nonlocal kept
        if kept is not None:
            yield from kept
            return
        fresh: list[np.ndarray] = []
        size = 0
        for x in read():
            size += x.nbytes
            fresh = [*fresh, x] if size <= _REMEMBERED else []
            yield x
        if size <= _REMEMBERED:
            kept = fresh

    return again


def _classifier(model: trained.Trained, plan: Plan, folder: Path, say: Say) -> dict[str, Any]:
    """Fits the classifier to the features of the training images; choices are made on those of validation images.

    Decision values are scaled to the most probable logits on validation data, so that predictions are probabilities.
    """
    run, sets = model.run, {}
    for split in ("train", "val"):
        source = run.data.named(split)
        if source is not None:
            found = trained.write_features(
                model, folder, source, split, ["features"], "mean", reuse=True, say=say, note=lambda line: None
            )["features"]
            sets[split] = probes.Set(found.values, found.labels)
    train, val = (sets["train"], sets["val"]) if "val" in sets else probes.hold_out(sets["train"], _classes(run))
    if plan.mirrored:
        train = _with_mirrored(model, train, say)
    chosen = svm.fit_path(
        *train, *val, num_classes=_classes(run), patience=1, tol=3e-3,
        say=lambda done, total: say("classifiers", done, total),
    )  # fmt: skip
    kernel, bias = chosen.classifier.kernel, chosen.classifier.bias
    scale = _calibrate(svm.decide(chosen.classifier, val.values), val.labels)
    return {"kernel": jnp.asarray(scale * kernel), "bias": jnp.asarray(scale * bias)}


def _with_mirrored(model: trained.Trained, train: probes.Set, say: Say) -> probes.Set:
    """Returns the features, followed by those of the mirrored images."""
    run, source = model.run, model.run.data.train
    assert source is not None
    compiled = trained.make_layers(run, ["features"], "mean")

    def mirrored(batch: dict) -> Any:
        return compiled(model.variables, {**batch, "image": batch["image"][:, :, ::-1]})

    values = np.empty((2 * len(train.values), train.values.shape[1]), np.float32)
    values[: len(train.values)] = train.values
    done = len(train.values)
    for _, found in features.rows_of(build.eval_batches(run, source), mirrored):
        values[done : done + len(found["features"])] = found["features"]
        done += len(found["features"])
        say("mirror images", done - len(train.values), len(train.values))
    return probes.Set(values, np.concatenate([train.labels, train.labels]))


def _calibrate(values: np.ndarray, labels: np.ndarray) -> float:
    """Returns the factor that turns decision values into the logits under which the labels are most probable."""

    def loss(scale: float) -> float:
        logits = jnp.asarray(scale * values)
        if labels.ndim == 1:
            return float(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean())
        known = jnp.asarray(labels >= 0)
        return float(jnp.mean(optax.sigmoid_binary_cross_entropy(logits, jnp.asarray(labels)), where=known))

    return float(min(_SCALES, key=loss))


def _classes(run: build.Run) -> int:
    return run.data.info.num_classes
