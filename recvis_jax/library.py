"""The main functions of the library: `import recvis_jax as rv; rv.fit(...)`. The programs use the same code.

There are three levels. `fit` trains and returns a `Model` that evaluates, predicts and returns features. `init` and
`make_step` (see `stepping`) and `data.batches` are for your own loop. Below, models are linen modules: `model.init`,
`model.apply`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax import build, drawing, errors, evidence, fitting, models, trained, translating
from recvis_jax.data import data_info, opened
from recvis_jax.data.opened import Data
from recvis_jax.data.sources import Source
from recvis_jax.evaluation import diagnosis, evaluator, features
from recvis_jax.models import layer_head
from recvis_jax.tasks import Task
from recvis_jax.training import checkpoint, distributed, log, memory, optim, sharding, workdir
from recvis_jax.training.state import State


def fit(
    model: Any,
    data: Data,
    optimizer: Any,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    task: Task | None = None,
    seed: int = 0,
    accumulate: int = 1,
    ema_decay: float | None = None,
    eval_every: int | float = 1.0,
    early_stop: int = 0,
    init_from: str | dict | None = None,
    progress: bool = True,
) -> "Model":
    """Trains a model and returns it with its last state, or with its best state if there are validation data.

    Args:
      model: a linen module `__call__(image, *, train) -> (output, acts)`, for instance from `models.create`.
      data: from `data.open` or `data.from_arrays`.
      optimizer: any transformation of optax.
      epochs, steps: length of the training; give one of the two.
      batch_size: examples per step, over all devices.
      task: the objective; None for that of `task(model, data)`.
      seed: of everything random; the same call gives the same numbers.
      accumulate: micro-batches per step.
      ema_decay: of the moving average of parameters, which is then evaluated instead of them.
      eval_every: how often validation data are evaluated, in steps if an int, in epochs if a float.
      early_stop: evaluations without a new best after which training ends; 0 for never.
      init_from: weights to start from, of a file or of the folder of a run, as configs name them: see
        `build.initial_state`. For a `probe` they are its backbone's, which is frozen unless the model says otherwise.
      progress: whether a bar, or a line for each evaluation, is shown.

    Raises:
      BadRequest: arguments do not fit together; found before training.
      Failure: a loss or gradient that is not finite.

    Example:
      >>> data = recvis_jax.data.from_arrays(images, labels, val=0.1)
      >>> run = fit(models.create("linear", num_classes=10), data, optax.adam(1e-2), epochs=1, progress=False)
      >>> sorted(run.evaluate(data.val))
      ['accuracy', 'loss', 'top_5']
    """
    total = opened.length(data, batch_size, steps, epochs)
    objective = task or build.make_task(data, model)
    mesh, strategy, rules = build.open_mesh("replicate")
    distributed.check_batch(batch_size, accumulate, mesh.size, "batch_size")
    tx, params = optim.of_optax(optimizer), jax.eval_shape(lambda: objective.init(jax.random.key(0)))["params"]
    if frozen := build.frozen_in(model, params):
        tx = optim.held(tx, params, frozen)
    run = build.assemble(
        data, model, objective, tx, total_steps=total, batch_size=batch_size, seed=seed,
        ema=ema_decay is not None, mesh=mesh, strategy=strategy, rules=rules,
    )  # fmt: skip
    training = fitting.prepare(run, accumulate=accumulate, ema_decay=ema_decay)
    often = eval_every if isinstance(eval_every, int) else max(1, round(eval_every * run.steps_per_epoch))
    every = {"log_every": max(1, total // 50), "eval_every": often, "checkpoint_every": total + 1}
    state = build.initial_state(run, init_from, print if progress else lambda line: None)
    keeper, records = memory.Memory(), memory.Records(total, progress)
    try:
        done = fitting.fit(training, state, keeper, records, every=every, early_stop=early_stop)
    finally:
        records.close()
    best = keeper.best_step()
    state = done.state if best in (None, int(done.state.step)) else keeper.restore("best").state
    params, model_state = state.evaluated
    config = {
        "seed": seed, "steps": total, "batch_size": batch_size, "ema_decay": ema_decay, "optim": build.OWN,
        "dtype": str(jnp.dtype(getattr(model, "dtype", jnp.float32))), "data": _section(data),
        "model": models.section_of(model), "task": None if task is None else build.OWN,
    }  # fmt: skip
    kind = "last" if best is None else "best"
    return Model(run, params, model_state, int(state.step), kind, config, tuple(records.records))


def open(folder: str | Path, checkpoint: str | None = None, *, model: Any = None, task: Task | None = None) -> "Model":
    """Opens a run, finished or in progress, of a program or saved by `Model.save`. Its data are not needed.

    Args:
      folder: of the run; FOLDER@last and FOLDER@1000 choose a checkpoint.
      checkpoint: "best", "last" or a step; None takes the best, or the last of a run without validation.
      model: the linen module, if it is your own class, which a run cannot store.
      task: the objective, if it is your own.

    Raises:
      BadRequest: there is no such run or checkpoint, or the model does not fit it.

    Example:
      >>> folder = run.save("runs/digits")
      >>> open(folder)
      <Linear at step 13, of arrays, 10 classes>
    """
    where, which = trained.run_folder(str(folder))
    config = trained.read_config(where)
    found = trained.of_run(where, config, checkpoint or which, model=model, task=task)
    records = tuple(log.read_records(where / "metrics.jsonl"))
    return Model(found.run, found.params, found.model_state, found.step, found.name, config, records)


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model, with its record of the data.

    Attributes:
      run: its parts: `run.model`, `run.task`, `run.data`.
      params, model_state: the variables; those of the best state, or of the last without validation data.
      step: the step of that state.
      name: "best", "last", or the requested checkpoint.
      config: as plain dicts.
      history: records {"step", "split", metric: value}, in the order of training.

    Example:
      >>> run = fit(models.create("linear", num_classes=10), data, optax.adam(1e-2), steps=5, progress=False)
      >>> run.step, run.layers
      (5, ('stem', 'features', 'logits'))
    """

    run: build.Run
    params: Any
    model_state: Any
    step: int
    name: str
    config: dict[str, Any]
    history: tuple[dict[str, Any], ...] = ()

    def __repr__(self) -> str:
        known, kind = self.run.data.info, type(self.run.model).__name__
        return f"<{kind} at step {self.step:,}, of {errors.printable(known.name)}, {known.num_classes} classes>"

    @property
    def variables(self) -> dict[str, Any]:
        """All collections of the model, as `model.apply` takes them."""
        return {"params": self.params, **self.model_state}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if the data have none."""
        return self.run.data.info.class_names

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the intermediates, for `features`."""
        names: list[str] = []

        def forward(variables: Any, image: jax.Array) -> None:
            names.extend(self.run.model.apply(variables, image, train=False)[1])  # in the model's order

        jax.eval_shape(forward, self.variables, jax.ShapeDtypeStruct((1, *self.run.data.image_shape), jnp.float32))
        return tuple(names)

    def apply(self, images: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (output (b k), acts) for images in evaluation mode; differentiable.

        Args:
          images: (b h w c) as in the data: uint8, or float in [0, 1]. They are normalised here.

        Example: the gradient of a class's score with respect to the image
          >>> x = images[:1, :, :, None] / np.float32(255)
          >>> jax.grad(lambda x: run.apply(x)[0][0, 3])(x).shape
          (1, 8, 8, 1)
        """
        return self.forward(self.variables, self._images(images))

    @functools.cached_property
    def forward(self) -> Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]]:
        """The network as `recvis_jax.vis` takes it: (variables, images in [0, 1]) -> (output, acts).

        It is the same function each time, so that what is made of it is compiled once.

        Example:
          >>> x = images[:2, :, :, None] / np.float32(255)
          >>> rv.vis.saliency(run.forward, run.variables, x).shape
          (2, 8, 8, 1)
        """

        def forward(variables: Any, images: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            batch = self.run.data.preprocess({"image": images})
            return self.run.model.apply(variables, batch["image"], train=False)

        return forward

    def predict(self, images: Any, batch_size: int = 128) -> np.ndarray:
        """Returns probabilities of the classes (n k), or the predicted numbers (n k), of images (n h w c).

        Args:
          images: uint8, or float in [0, 1], with the shape of the run's images.
          batch_size: images computed at a time.

        Raises:
          BadRequest: images of another shape or type, or a model trained without labels.

        Example:
          >>> run.predict(images[:3]).shape
          (3, 10)
        """

        def outputs(batch: dict) -> jax.Array:
            found = self.run.task.predict(self.params, self.model_state, self.run.data.preprocess(batch))
            if "logits" not in found:
                return found["prediction"]
            several = self.run.data.info.multi_label
            return jax.nn.sigmoid(found["logits"]) if several else jax.nn.softmax(found["logits"])

        if self.run.task.gives == "other":
            raise errors.BadRequest("this model was trained without labels and predicts no classes: see `features`.")
        if self.run.task.gives in ("boxes", "map"):
            raise errors.BadRequest(f"this model gives {self.run.task.gives}, not classes of images: see `detect`.")
        return self._mapped(outputs, images, batch_size)

    def features(self, images: Any, layer: str = "features", pool: str = "mean", batch_size: int = 128) -> np.ndarray:
        """Returns the features (n d) of images, or of all examples of a split.

        Args:
          images: (n h w c) uint8 or float in [0, 1]; or a split, such as `data.val`.
          layer: name of an intermediate, see `layers`.
          pool: how a layer with positions becomes a vector; a name of `models.layer_head.POOLS`.
          batch_size: images computed at a time.

        Raises:
          BadRequest: an unknown layer (the others are listed) or pool.

        Example:
          >>> run.features(images[:3], "logits").shape
          (3, 10)
        """
        if isinstance(images, Source):
            compiled = trained.make_layers(self.run, [layer], pool)
            found, _ = features.collect(
                build.eval_batches(self.run, images), lambda batch: compiled(self.variables, batch)
            )
            return found[layer]

        def outputs(batch: dict) -> jax.Array:
            acts = self.run.model.apply(self.variables, self.run.data.preprocess(batch)["image"], train=False)[1]
            return layer_head.pooled(acts, layer, pool)

        return self._mapped(outputs, images, batch_size)

    def evaluate(self, split: Source | str | None = None) -> dict[str, Any]:
        """Returns the metrics of the task over all examples of a split.

        Args:
          split: such as `data.test`, or "train", "val" or "test"; by default the test split, else the validation split.

        Raises:
          BadRequest: there is no such split, or its classes differ.

        Example:
          >>> sorted(run.evaluate("val"))
          ['accuracy', 'loss', 'top_5']
        """
        if split is None:
            split = trained.default_split(self.run.data, lambda line: None)
        source = trained.open_named(self.run.data, split) if isinstance(split, str) else split
        known = self.run.data.info
        if source.num_classes != known.num_classes:
            raise errors.BadRequest(
                f"{source.name} has {source.num_classes} classes, the model was trained on {known.num_classes}."
            )
        measure = evaluator.make_evaluate(
            self.run.task.predict, self.run.task.metrics, self.run.data.preprocess, self.run.mesh
        )
        found = measure(self.params, self.model_state, build.eval_batches(self.run, source)) or {}
        return {k: float(v) if np.ndim(v) == 0 else np.asarray(v) for k, v in found.items()}

    def diagnose(self) -> list[diagnosis.Finding]:
        """Returns what stands out in the training, in words, the most important first; see `evaluation.diagnosis`.

        Besides the curves, it looks at predictions and at the images themselves where the data are at hand.

        Example:
          >>> [finding.name for finding in run.diagnose()]
          ['stopped too early']
        """
        files = evidence.Records(Path(), self.config, self.run.data.info, list(self.history), {}, [])
        model = trained.Trained(self.run, self.params, self.model_state, self.step, self.name, self.config)
        try:
            seen = evidence.look(model, self.run.data)
        except errors.BadRequest:  # an opened run whose data are elsewhere
            seen = evidence.Seen()
        return diagnosis.diagnose(evidence.of_run(files, seen))

    def generate(
        self, number: int, seed: int = 0, *, split: str | None = None, **options: Any
    ) -> dict[str, np.ndarray]:
        """Returns images (n h w c) in [0, 1] that a model of pixels draws, or completes.

        Args:
          number: of images.
          seed: of what is drawn; an image depends on it and on its own number alone.
          split: "train", "val" or "test": completes the upper halves of its first images, which are returned too.
          **options: of `drawing.draw`, as `temperature=0.9` and `top_k=5`.

        Raises:
          BadRequest: a model that generates nothing.

        Example:
          >>> digits = recvis_jax.data.from_arrays(images, labels, val=0.1, statistics=((0.0,), (1.0,)))
          >>> model = models.create("igpt_s", colours=17, pixels=64, width=16, depth=1, heads=2)
          >>> objective = task(model, digits, "pixels")
          >>> fit(model, digits, optax.adam(1e-2), steps=2, task=objective, progress=False).generate(3)["images"].shape
          (3, 8, 8, 1)
        """
        return drawing.draw(self.run, self.params, self.model_state, number, seed, split=split, **options)

    def translate(self, texts: Sequence[str], **options: Any) -> list[str]:
        """Returns translations of texts by a model trained on task 'translate'.

        Args:
          texts: in its source language.
          **options: of `translating.translate`, such as `beams=4` and `alpha=0.6`.

        Raises:
          BadRequest: the model cannot translate, or a text is empty or too long.

        Example:
          >>> texts = recvis_jax.data.open("libreoffice_de", mock=40, text={"tokens": 300})
          >>> sizes = dict(width=8, heads=2, encoder_depth=1, decoder_depth=1, hidden=8)
          >>> model = models.create("transformer_base", vocabulary=300, **sizes)
          >>> objective = task(model, texts, "translate")
          >>> found = fit(model, texts, optax.adam(1e-3), steps=1, batch_size=8, task=objective, progress=False)
          >>> len(found.translate(["bade fi"], beams=1))
          1
        """
        return translating.translate(self.run, self.params, self.model_state, texts, **options)

    def attended(self, source: str, target: str, kind: str = "cross", **which: int) -> translating.Attended:
        """Returns the attention weights of a text and its translation, with the tokens of rows and columns.

        Args:
          source, target: the texts.
          kind: "encoder", "decoder" or "cross" (the translation to the source).
          **which: `layer` and `head`, numbers from 0; all by default.

        Raises:
          BadRequest: the model cannot translate; an unknown kind, layer or head.

        Example: see `translate` for the model
          >>> texts = recvis_jax.data.from_texts([("a cat", "eine Katze")] * 8)
          >>> sizes = dict(width=8, heads=2, encoder_depth=1, decoder_depth=1, hidden=8)
          >>> model = models.create("transformer_base", vocabulary=texts.info.vocabulary.size, **sizes)
          >>> objective = task(model, texts, "translate")
          >>> found = fit(model, texts, optax.adam(1e-3), steps=1, batch_size=8, task=objective, progress=False)
          >>> seen = found.attended("a cat", "eine Katze")
          >>> list(seen.maps), seen.columns
          (['layer 0, head 0', 'layer 0, head 1'], ['a', '␣cat', '<end>'])
        """
        return translating.attended(self.run, self.params, self.model_state, source, target, kind, **which)

    def reconstruct(self, images: Any) -> dict[str, np.ndarray]:
        """Returns what a masked autoencoder makes of images (n h w c) of the run's shape, all in [0, 1].

        Which patches are masked depends on an image's pixels alone.

        Returns:
          `masked`, in which masked patches have the mean colour of the data; `reconstruction`, whose visible patches
          are the image's own; `original`.

        Raises:
          BadRequest: images of another shape or type, or another kind of model.

        Example:
          >>> sizes = dict(patch_size=2, width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)
          >>> model = models.create("mae_b16", **sizes)
          >>> found = fit(model, data, optax.adam(1e-3), steps=1, task=task(model, data, "mae"), progress=False)
          >>> {name: x.shape for name, x in sorted(found.reconstruct(images[:2]).items())}
          {'masked': (2, 8, 8, 1), 'original': (2, 8, 8, 1), 'reconstruction': (2, 8, 8, 1)}
        """
        return drawing.reconstruct(self.run, self.params, self.model_state, self._images(images))

    def export(self, file: str | Path) -> Path:
        """Writes the whole computation for other programs: StableHLO or ONNX, by the file's ending; see `exporting`.

        Returns:
          The path of the JSON beside it: shapes, names of classes, preprocessing.

        Raises:
          BadRequest: another ending than .stablehlo and .onnx, or a model without classes, boxes and maps.

        Example:
          >>> run.export("digits.stablehlo").name
          'digits.json'
        """
        from recvis_jax import exporting

        of = trained.Trained(self.run, self.params, self.model_state, self.step, self.name, self.config)
        return exporting.write(of, Path(file).expanduser()).beside

    def save(self, folder: str | Path) -> Path:
        """Writes the model as a run, for `recvis_jax.open` and the programs; the data are not copied.

        Raises:
          BadRequest: the folder already holds a run, or cannot be written.

        Example:
          >>> run.save("runs/saved").name
          'saved'
        """
        where = Path(workdir.resolve(folder, "folder"))
        if (where / "config.json").exists():
            raise errors.BadRequest(f"{errors.printable(where)} already holds a run; choose another folder.")
        workdir.refuse_unwritable(where, "the folder")
        workdir.make(where)
        average = {"params": self.params, "model_state": self.model_state}
        state = State(
            jnp.asarray(self.step, jnp.int32), self.params, self.model_state, (),
            jax.random.key_data(jax.random.key(self.run.seed)), average if self.config.get("ema_decay") else None,
        )  # fmt: skip
        template = jax.eval_shape(lambda: state)
        layout = sharding.make_layout(template, self.run.mesh, "replicate")
        laid = sharding.laid_out(template, layout.shardings)
        keeper = checkpoint.Checkpointer(where, laid, root=checkpoint.place(where, None))
        keeper.save(distributed.onto_devices(distributed.onto_host(state), layout.shardings), {}, best=True)
        keeper.wait()
        keeper.close()
        lines = "".join(log.json_line(record) for record in self.history)
        log.write_atomically(where / "metrics.jsonl", lines)
        log.write_json(where / data_info.FILE, data_info.as_json(self.run.data.info))
        log.write_json(where / "config.json", self.config)  # last, because a folder with this file is a run
        return where

    def _images(self, images: Any) -> jax.Array:
        """Checks images against those of the run."""
        x, shape = jnp.asarray(images), self.run.data.image_shape
        if x.ndim == 3 and shape[2] == 1 and x.shape[1:] == shape[:2]:
            x = x[..., None]
        if x.ndim != 4 or x.shape[1:] != shape:
            raise errors.BadRequest(
                f"images have shape {x.shape}; this model takes (n, {', '.join(map(str, shape))}): one image is "
                "images[None]."
            )
        if x.dtype != jnp.uint8 and not jnp.issubdtype(x.dtype, jnp.floating):
            raise errors.BadRequest(f"images are {x.dtype}; give uint8 from 0 to 255, or floats from 0 to 1.")
        return x

    def detect(self, images: Any, batch_size: int = 128) -> dict[str, np.ndarray]:
        """Returns what a detector or segmenter finds in images (n h w c) of the run's shape.

        Args:
          images: uint8, or float in [0, 1].
          batch_size: images computed at a time.

        Returns:
          Of a detector `boxes` (n q 4), x0 y0 x1 y1 in pixels, `labels` (n q) and `scores` (n q), of which 0 is no
          detection; of a segmenter `map` (n h w), the class of every pixel.

        Raises:
          BadRequest: images of another shape or type, or another kind of model.
        """
        gives = {"boxes": ("boxes", "labels", "scores"), "map": ("map",)}.get(self.run.task.gives)
        if gives is None:
            raise errors.BadRequest("this model finds no objects and names no pixels: see `predict` and `features`.")

        def outputs(batch: dict) -> dict[str, jax.Array]:
            found = self.run.task.predict(self.params, self.model_state, self.run.data.preprocess(batch))
            return {name: found[name] for name in gives}

        return self._mapped(outputs, images, batch_size)

    def _mapped(self, function: Callable[[dict], Any], images: Any, batch_size: int) -> Any:
        """Applies a function, of an array or a dict of arrays, to images in batches of one shape."""
        x = np.asarray(self._images(images))
        if not len(x):
            raise errors.BadRequest("there are no images.")
        size = min(batch_size, len(x))
        size += -size % self.run.mesh.size
        place = distributed.jit_placement(self.run.mesh)
        compiled = jax.jit(function)
        out = []
        for first in range(0, len(x), size):
            part = x[first : first + size]
            batch = np.zeros((size, *part.shape[1:]), part.dtype)  # one shape, so one compiled program
            batch[: len(part)] = part
            found = jax.tree.map(np.asarray, compiled(place.put_eval({"image": batch})))
            out.append(jax.tree.map(lambda x, n=len(part): x[:n], found))  # noqa: B008, a number of this round
        return jax.tree.map(lambda *parts: np.concatenate(parts), *out)


def _section(data: Data) -> dict[str, Any]:
    """Returns the config's section that opens the data; for arrays, only how they are preprocessed."""
    known = data.info
    return data.section or {
        "name": known.name, "statistics": known.statistics, "eval_transform": known.eval_transform
    }  # fmt: skip
