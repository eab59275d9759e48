"""Names what is in images: the five most probable classes of each.

  python -m recvis_jax.predict --model=torchvision/resnet50 --weights=resnet50.safetensors cat.jpg dog.png
  python -m recvis_jax.predict --weights=runs/lenet5 shoe.png

A model is one of ours, as vit_b16, or another library's by its own name, as timm/vit_base_patch16_224. Weights are a
file, hf://owner/repo[/file], or the folder of a run of our own, which knows its model, classes and preprocessing.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from recvis_jax import cli, errors

_MODEL = flags.DEFINE_string("model", None, "Name of the model, ours or library/name; not needed for a run of our own.")
_WEIGHTS = flags.DEFINE_string("weights", None, "File, hf://owner/repo[/file] or folder of a run.")
_CLASSES = flags.DEFINE_string("classes", None, "Names of the classes: a file with one a line, or a data set's name.")
_TOP = flags.DEFINE_integer("top", 5, "How many classes to print.", lower_bound=1)
_SIZE = flags.DEFINE_integer("image_size", None, "Rows and columns for the model, if not those of the weights.")
_STATISTICS = flags.DEFINE_string("statistics", None, "Mean and deviation by name, if not those of the weights.")


class Predictor(NamedTuple):
    """What it takes to predict.

    Attributes:
      prepare: path of an image -> uint8 (h w c), as large as the model wants it.
      logits: images uint8 (b h w c) -> (b k).
      classes: names of the classes; may be empty.
    """

    prepare: Callable[[Path], np.ndarray]
    logits: Callable[[np.ndarray], Any]
    classes: Sequence[str]


def main(argv: list[str]) -> None:
    paths = [Path(p) for p in argv[1:]]
    if not paths:
        raise errors.BadRequest("name the images: python -m recvis_jax.predict --model=... --weights=... IMAGE...")
    if missing := [str(p) for p in paths if not p.is_file()]:
        raise errors.BadRequest(f"no such file: {', '.join(missing)}.")
    if not _WEIGHTS.value:
        raise errors.BadRequest("--weights is missing: a file, hf://owner/repo or the folder of a run.")
    cli.start_jax()
    run = Path(_WEIGHTS.value) / "config.json"
    if not run.exists() and not _MODEL.value:
        raise errors.BadRequest("--model is missing, as resnet50 or torchvision/resnet50.")
    predictor = (
        of_run(run) if run.exists() else of_library(_MODEL.value, _WEIGHTS.value, _SIZE.value, _STATISTICS.value)
    )
    classes = class_names(_CLASSES.value) if _CLASSES.value else predictor.classes
    for path in paths:  # one by one: what is read is shown at once, and memory does not grow
        logits = np.asarray(predictor.logits(predictor.prepare(path)[None]))[0]
        print(f"{path}\n{show(logits, classes, _TOP.value)}", flush=True)


main.takes_arguments = True  # type: ignore[attr-defined]


def of_library(name: str, weights: str, size: int | None = None, statistics: str | None = None) -> Predictor:
    """Loads published weights: `name` is one of our models, or library/name."""
    import jax
    import jax.numpy as jnp

    from recvis_jax import models, pretrained
    from recvis_jax.pretrained import files, preprocessing

    library, _, theirs = name.rpartition("/")
    how = preprocessing.of(library, theirs)._replace(**({"size": size} if size else {}))
    how = how._replace(statistics=statistics or how.statistics)
    checkpoint = files.read(weights)
    model = pretrained.create(library, theirs) if library else models.create(theirs)
    shape = (1, how.size, how.size, 3)
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=False))
    variables = pretrained.load(checkpoint, model, template, library=library)

    def apply(variables: Any, images: Any) -> Any:
        return model.apply(variables, images, train=False)[0]

    return _predictor(apply, variables, how.transform(), how.statistics, shape[1:], ())


def of_run(config: Path) -> Predictor:
    """Loads the best checkpoint of a run of our own, the last where it never evaluated."""
    from recvis_jax import trained

    content = trained.read_config(config.parent)
    model = trained.of_run(config.parent, content)
    run, data = model.run, content["data"]
    if run.task.losses is None:
        raise errors.BadRequest(f"{config.parent} was pretrained without labels: fine-tune it or probe it first.")
    spec, statistics = data.get("eval_transform", ""), data.get("statistics", "none")

    def apply(variables: Any, images: Any) -> Any:
        found = run.task.predict(variables[0], variables[1], {"image": images})
        return found.get("logits", found.get("prediction"))

    return _predictor(
        apply, (model.params, model.model_state), spec, statistics, run.data.image_shape, run.data.train.class_names
    )


def _predictor(
    apply: Callable, variables: Any, spec: str, statistics: Any, shape: tuple[int, int, int], classes: Sequence[str]
) -> Predictor:
    import jax

    from recvis_jax.data import augment, image_file, sources, transforms

    transform = transforms.parse(spec).fn

    def prepare(path: Path) -> np.ndarray:
        found = image_file.load(path)
        if found.data is None:
            raise errors.BadRequest(f"{path} cannot be read: {found.problem}.")
        if found.turned:
            print(f"note: {path} says that it is to be turned (EXIF); it is taken as it lies.")
        pixels = sources.decode(found.data, shape[2], str(path))
        out = transform(np.random.default_rng(0), {"image": pixels})["image"]
        if out.shape[:2] != shape[:2]:  # a data set whose images have one size needs no transform; this image does
            out = transforms.parse(f"resize({shape[:2]})").fn(np.random.default_rng(0), {"image": out})["image"]
        return out

    @jax.jit
    def logits(variables: Any, images: Any) -> Any:
        return apply(variables, augment.normalise(images, statistics))

    return Predictor(prepare, lambda images: logits(variables, images), classes)


def class_names(source: str) -> list[str]:
    """Reads the names of classes from a file, one a line, or takes those of a data set."""
    from recvis_jax.data import sources

    if Path(source).is_file():
        return Path(source).read_text().splitlines()
    return list(sources.open_split(source, "train").class_names)


def show(logits: np.ndarray, classes: Sequence[str], top: int) -> str:
    """Returns a line for each of the `top` most probable classes, softmax probabilities first."""
    if classes and len(classes) != len(logits):
        raise errors.BadRequest(f"there are {len(classes)} names of classes, but the model has {len(logits)} outputs.")
    e = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-logits, kind="stable")[:top]
    return "\n".join(f"  {e[i] / e.sum():6.2%}  {classes[i] if classes else f'class {i}'}" for i in order)


if __name__ == "__main__":
    cli.run(main)
