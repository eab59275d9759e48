"""Names what is in images: the five most probable classes of each, and those of a folder in order.

  python -m recvis_jax.predict --model=torchvision/resnet50 --weights=resnet50.safetensors cat.jpg dog.png
  python -m recvis_jax.predict --weights=runs/lenet5 shoe.png my/pictures

Of a folder all images are taken, also those in its subfolders, but no hidden ones and no files of other names than
images'. An image that cannot be read is named with the reason, and the others are predicted; the exit code is then 1.
Photographs are turned as their EXIF orientation says. A name that begins with "-" is written ./-name.

A model is one of ours, as vit_b16, or another library's by its own name, as timm/vit_base_patch16_224. Weights are a
file, hf://owner/repo[/file], or the folder of a run of our own, which knows its model, classes and preprocessing. It
stands for its best checkpoint; FOLDER@last and FOLDER@1000 are others.

A line is a probability and a class; where the outputs are no probabilities of one class out of all, a line says so.

A run that finds objects names those of at least --threshold with their boxes, one that names pixels the share of each
class. What is found is drawn over the pictures in --out (by default the run's folder `predictions`), beside all
detections in `detections.json`, COCO's form.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from absl import flags

from recvis_jax import cli, errors, reading

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_string("model", None, "Name of the model, ours or library/name; not needed for a run of our own.")
    flags.DEFINE_string("weights", None, "File, hf://owner/repo[/file] or folder of a run[@checkpoint].")
    flags.DEFINE_string("classes", None, "Names of the classes: a file with one a line, or a data set's name.")
    flags.DEFINE_integer("top", 5, "How many classes to print.", lower_bound=1)
    flags.DEFINE_integer(
        "image_size", None, "Rows and columns for the model, if not those of the weights.", lower_bound=1
    )
    flags.DEFINE_string("out", None, "Folder for pictures with boxes or maps; predictions in the run's by default.")
    flags.DEFINE_float("threshold", 0.5, "Least probability of an object that is named and drawn.", 0, 1)
    flags.DEFINE_string("statistics", None, "Mean and deviation by name, if not those of the weights.")
    flags.DEFINE_integer("num_classes", None, "Outputs of the model, if not its usual 1000.", lower_bound=1)


# What the numbers of a line are, where they are not the probabilities of one class out of all.
NOTES = {
    "sigmoid": "each probability is of that class by itself; they do not sum to 1",
    "value": "the model was trained to give these numbers themselves; they are no probabilities",
}


Kind = Literal["softmax", "sigmoid", "value"]


class Predictor(NamedTuple):
    """What it takes to predict.

    Attributes:
      prepare: path of an image -> uint8 (h w c), as large as the model wants it.
      outputs: images uint8 (b h w c) -> (b k).
      classes: names of the classes; may be empty.
      kind: what the outputs are: "softmax" and "sigmoid" are logits of such probabilities, "value" plain numbers.
    """

    prepare: Callable[[Path], np.ndarray]
    outputs: Callable[[np.ndarray], Any]
    classes: Sequence[str]
    kind: Kind


def main(argv: list[str]) -> None:
    from recvis_jax.data import given

    if not argv[1:]:
        raise errors.BadRequest("name the images: python -m recvis_jax.predict --model=... --weights=... IMAGE...")
    paths = given.find(argv[1:])
    if not FLAGS.weights:
        raise errors.BadRequest("--weights is missing: a file, hf://owner/repo or the folder of a run.")
    cli.start_jax()
    from recvis_jax import trained

    run = trained.find_run(FLAGS.weights)
    if run:
        if extra := [n for n in ("model", "image_size", "statistics", "num_classes") if FLAGS[n].present]:
            raise errors.BadRequest(f"--{extra[0]} is not needed: the run {run[0]} says by itself what it takes.")
        model = trained.of_run(run[0], trained.read_config(run[0]), run[1])
        if model.run.task.gives in ("boxes", "map"):
            return find(run[0], model, paths)
        predictor = of_run(run[0], model)
    elif FLAGS.model:
        predictor = of_library(FLAGS.model, FLAGS.weights, FLAGS.image_size, FLAGS.statistics, FLAGS.num_classes)
    else:
        raise errors.BadRequest(
            "--model is missing, as resnet50 or torchvision/resnet50: "
            f"{errors.printable(FLAGS.weights)} is no folder of a run."
        )
    classes = class_names(FLAGS.classes) if FLAGS.classes else predictor.classes
    if predictor.kind in NOTES:
        print(NOTES[predictor.kind])
    bad = 0
    for path in paths:  # one by one: what is read is shown at once, and memory does not grow
        try:
            image = predictor.prepare(path)
        except errors.BadRequest as e:
            if len(paths) == 1:
                raise
            bad += 1
            shown = errors.printable(path)
            print(f"{shown}\n  {str(e).removeprefix(shown).strip()}", flush=True)
            continue
        outputs = np.asarray(predictor.outputs(image[None]))[0]
        print(f"{errors.printable(path)}\n{show(outputs, classes, FLAGS.top, predictor.kind)}", flush=True)
    if run:
        print("next: " + errors.command("python", "-m", "recvis_jax.probe", f"--workdir={run[0]}"))
    if bad:
        raise errors.Failure(f"{bad:,} of {len(paths):,} images could not be predicted; their lines say why.")


main.takes_arguments = True  # type: ignore[attr-defined]


def of_library(
    name: str, weights: str, size: int | None = None, statistics: str | None = None, num_classes: int | None = None
) -> Predictor:
    """Loads published weights: `name` is one of our models, or library/name; the rest as the flags say."""
    from recvis_jax import network

    model, variables, how = network.published(name, weights, size, statistics, num_classes, of_classes=True)
    shape = (how.size, how.size, 3)

    def apply(variables: Any, images: Any) -> Any:
        return model.apply(variables, images, train=False)[0]

    print(f"preprocessing: {how.transform()}, statistics of {how.statistics}")
    return _predictor(apply, variables, how.transform(), how.statistics, shape, (), "softmax")


def of_run(folder: Path, model: Any) -> Predictor:
    """Returns what predicts by a checkpoint of a run of our own, a `trained.Trained`."""
    from recvis_jax import network

    run, info = model.run, model.run.data.info
    if run.task.gives == "other":
        raise errors.BadRequest(f"{folder} was pretrained without labels: fine-tune it or probe it first.")
    name = model.config["model"]["name"]
    print(f"{errors.printable(folder)}: {name}, checkpoint {model.name} of step {model.step}")

    def apply(variables: Any, images: Any) -> Any:
        found = run.task.predict(variables[0], variables[1], {"image": images})
        return found.get("logits", found.get("prediction"))

    variables = (model.params, model.model_state)
    spec, kind = info.eval_transform, network.kind(model)
    return _predictor(apply, variables, spec, info.statistics, info.image_shape, info.class_names, kind)


def find(folder: Path, model: Any, paths: Sequence[Path]) -> None:
    """Names what a detector or segmenter finds in pictures, and draws it; see `detections` and `segments`."""
    from recvis_jax import detections, segments
    from recvis_jax.training import log

    if FLAGS["top"].present:
        raise errors.BadRequest("--top is of classes of whole images; this run finds what is in them.")
    objects, named = model.run.task.gives == "boxes", FLAGS.classes and class_names(FLAGS.classes)
    classes = named or (model.run.data.info.class_names if objects else segments.names_of(model))
    print(f"{errors.printable(folder)}: {model.config['model']['name']}, checkpoint {model.name} of step {model.step}")
    look, found, bad = (detections if objects else segments).finder(model), [], 0
    for path in paths:
        shown = errors.printable(path)
        try:
            one = look(path)
        except errors.BadRequest as e:
            if len(paths) == 1:
                raise
            bad += 1
            print(f"{shown}\n  {str(e).removeprefix(shown).strip()}", flush=True)
            continue
        found.append(one)
        told = detections.lines(one, classes, FLAGS.threshold) if objects else segments.lines(one, classes)
        print("\n".join([shown, *(told or ["  nothing"])]), flush=True)
    out = Path(FLAGS.out).expanduser() if FLAGS.out else folder / "predictions"
    pictures = [detections.drawn(f, classes, FLAGS.threshold) if objects else segments.drawn(f) for f in found]
    detections.write(out, [f.path for f in found], pictures)
    if objects:
        log.write_json(out / detections.FILE, detections.as_coco(found, classes))
    also = f", and all detections in {detections.FILE}" if objects else ""
    print(f"drawn in {errors.printable(out)}: {len(found):,} pictures{also}")
    if bad:
        raise errors.Failure(f"{bad:,} of {len(paths):,} images could not be read; their lines say why.")


def _predictor(
    apply: Callable,
    variables: Any,
    spec: str,
    statistics: Any,
    shape: tuple[int, int, int],
    classes: Sequence[str],
    kind: Kind,
) -> Predictor:
    import jax

    from recvis_jax.data import augment, given

    @jax.jit
    def outputs(variables: Any, images: Any) -> Any:
        return apply(variables, augment.normalise(images, statistics))

    return Predictor(given.preparer(spec, shape), lambda images: outputs(variables, images), classes, kind)


def class_names(source: str) -> list[str]:
    """Reads the names of classes from a file, one a line, or takes those of a data set."""
    from recvis_jax.data import sources

    path = Path(source)
    if os.path.exists(path) and not path.is_dir():  # pathlib's raises for names that are too long
        lines = reading.read_text(path, what="names of classes").removesuffix("\n").split("\n")
        return [line.removesuffix("\r") for line in lines]
    return list(sources.open_split(source, "train").class_names)


def show(outputs: np.ndarray, classes: Sequence[str], top: int, kind: Kind) -> str:
    """Returns a line for each of the `top` largest outputs (k): its probability or the number itself, and the class."""
    if classes and len(classes) != len(outputs):
        raise errors.BadRequest(f"there are {len(classes)} names of classes, but the model has {len(outputs)} outputs.")
    x = outputs.astype(np.float64)
    e = np.exp(x - x.max())
    values = {"softmax": e / e.sum(), "sigmoid": (1 + np.tanh(x / 2)) / 2, "value": x}[kind]
    order = np.argsort(-x, kind="stable")[:top]
    names = [errors.printable(c) for c in classes] or [
        f"{'output' if kind == 'value' else 'class'} {i}" for i in range(len(x))
    ]
    return "\n".join(f"  {values[i]:{'7.4g' if kind == 'value' else '7.2%'}}  {names[i]}" for i in order)


if __name__ == "__main__":
    cli.run(main, define_flags)
