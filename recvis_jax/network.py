"""A network ready for use: one of our runs or published weights, with the preparation of its images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax import errors, models, pretrained, trained
from recvis_jax.data import augment, given
from recvis_jax.pretrained import preprocessing


class Network(NamedTuple):
    """A network with the preparation of image files.

    Attributes:
      name: of the model.
      apply: (variables, images in [0, 1] (b h w c)) -> (output, acts).
      variables: its variables.
      image_shape: (h, w, c) of its images.
      prepare: path of an image file -> uint8 (h w c), in the network's size.
      classes: names of the classes; may be empty.
      origin: description of where the weights come from.
      trained: the run's model, with its data; None for published weights.
    """

    name: str
    apply: Callable[[Any, Any], tuple[Any, dict[str, Any]]]
    variables: Any
    image_shape: tuple[int, int, int]
    prepare: Callable[[Path], np.ndarray]
    classes: Sequence[str]
    origin: str
    trained: trained.Trained | None


class Published(NamedTuple):
    """Published weights in one of our models, and the preparation of their images."""

    model: Any
    variables: Any
    how: preprocessing.Preprocessing


def published(
    name: str,
    weights: str,
    size: int | None = None,
    statistics: str | None = None,
    num_classes: int | None = None,
    of_classes: bool = False,
) -> Published:
    """Loads published weights.

    Args:
      name: one of our models, or library/name.
      weights: file, or hf://owner/repo[/file].
      size: rows and columns of the images, if different from those of the weights.
      statistics: name of mean and deviation, if different from those of the weights.
      num_classes: number of outputs, if different from that of the weights.
      of_classes: whether it must predict classes.

    Raises:
      BadRequest: an unknown model, a model without a required head, or weights that do not fit.
    """
    library, _, theirs = name.rpartition("/")
    how = preprocessing.of(library, theirs)._replace(**({"size": size} if size else {}))
    how = how._replace(statistics=statistics or how.statistics)
    kw = {"num_classes": num_classes} if num_classes else {}
    model = pretrained.create(library, theirs, **kw) if library else models.create(theirs, **kw)
    if of_classes and not getattr(model, "num_classes", 0):
        raise errors.BadRequest(f"{name} predicts no classes: {type(model).__name__} has no head.")
    if of_classes and isinstance(model, models.DETR | models.CentrePoints | models.Segmenter):
        raise errors.BadRequest(
            f"{name} does not name whole images: predict takes {type(model).__name__} from the folder of a run."
        )
    shape = (1, how.size, how.size, 3)
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=False))

    def spell(key: str, value: Any) -> str:
        return f"--num_classes={value}" if key == "num_classes" else ""

    variables = pretrained.load(
        weights, model, template, library=library, resample=bool(size), image_size=shape[1:3], spell=spell
    )
    return Published(model, variables, how)


def of_published(name: str, weights: str, size: int | None = None) -> Network:
    """Returns published weights as a network; for the arguments see `published`."""
    model, variables, how = published(name, weights, size)
    shape = (how.size, how.size, 3)

    def apply(variables: Any, images: Any) -> Any:
        return model.apply(variables, augment.normalise(images, how.statistics), train=False)

    prepare = given.preparer(how.transform(), shape)
    return Network(name, apply, variables, shape, prepare, (), errors.printable(weights), None)


def of_run(folder: Path, which: str | None = None) -> Network:
    """Returns a checkpoint of a run as a network: by default the best, or the last if there is no validation."""
    config = trained.read_config(folder)
    found = trained.of_run(folder, config, which)
    trained.refuse_texts(found.run)
    model, known = found.run.model, found.run.data.info
    origin = f"{folder}, checkpoint {found.name} of step {found.step}"
    prepare = given.preparer(known.eval_transform, known.image_shape)
    name = (config.get("model") or {}).get("name", type(model).__name__)
    variables = found.variables
    return Network(name, forward(found), variables, known.image_shape, prepare, known.class_names, origin, found)


# What the outputs of a model are: logits of probabilities that sum to 1, or of one for each class, or plain numbers.
Kind = Literal["softmax", "sigmoid", "value"]


def kind(of: trained.Trained) -> Kind:
    """Returns what the outputs of a run's model are, for a task that gives classes or numbers."""
    task, known = of.config.get("task") or {}, of.run.data.info
    loss: Any = task.get("loss") or ("sigmoid" if known.multi_label else "softmax")
    if known.num_classes and task.get("name") != "regress" and loss in ("softmax", "sigmoid"):
        return loss
    return "value"  # also of classes, whose 0 and 1 the losses "l1", "l2" and "huber" fit


def forward(of: trained.Trained) -> Callable[[Any, Any], tuple[Any, dict[str, Any]]]:
    """Returns the model of a run as a function of (variables, images in [0, 1]), see `Network.apply`."""
    data, model = of.run.data, of.run.model

    def apply(variables: Any, images: Any) -> Any:
        return model.apply(variables, data.preprocess({"image": images})["image"], train=False)

    return apply
