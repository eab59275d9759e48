"""Objects that a run finds in a user's pictures: computed, drawn over the pictures, and written as COCO's JSON."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from recvis_jax import errors, trained
from recvis_jax.data import given, image_file
from recvis_jax.evaluation import coco_ap
from recvis_jax.training import log
from recvis_jax.vis import boxes

FILE = "detections.json"
LEAST = 0.01  # score of a detection that is written


class Found(NamedTuple):
    """The objects found in a picture, best first.

    Attributes:
      path: of the picture.
      picture: (h w c).
      boxes: (n 4), x0 y0 x1 y1 in its pixels, inside it.
      labels, scores: (n), classes and probabilities.
    """

    path: Path
    picture: UInt8[np.ndarray, "h w c"]
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"]


def finder(model: trained.Trained) -> Callable[[Path], Found]:
    """Returns a function from the path of a picture to what the model finds in it.

    Args:
      model: of a run whose task gives boxes.

    The function raises `BadRequest` where a file is no picture.
    """
    run, info = model.run, model.run.data.info
    place = given.placer(info.eval_transform, info.image_shape)

    @jax.jit
    def predict(params: Any, model_state: Any, batch: dict[str, Any]) -> dict[str, Any]:
        found = run.task.predict(params, model_state, run.data.preprocess(batch))
        return {**found, "boxes": coco_ap.in_picture(found["boxes"], batch)}

    def find(path: Path) -> Found:
        placed = place(path)
        h, w = placed.picture.shape[:2]
        batch: dict[str, Any] = {"image": placed.image, "frame": placed.frame, "size": np.int32([h, w])}
        batch = {name: jnp.asarray(value)[None] for name, value in batch.items()}
        got = {k: np.asarray(v[0]) for k, v in predict(model.params, model.model_state, batch).items()}
        inside = np.clip(got["boxes"], 0, [w, h, w, h])
        kept = (got["scores"] >= LEAST) & ((inside[:, 2:] - inside[:, :2]) > 0).all(1)
        order = np.flatnonzero(kept)[np.argsort(-got["scores"][kept], kind="stable")]
        return Found(path, placed.picture, inside[order], got["labels"][order], got["scores"][order])

    return find


def drawn(found: Found, classes: Sequence[str], threshold: float) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the picture with the objects of at least that score; a small picture is enlarged."""
    kept = found.scores >= threshold
    scale = max(1, 400 // max(found.picture.shape[:2]))
    return boxes.over(found.picture, found.boxes[kept], found.labels[kept], names=classes, scale=scale)


def lines(found: Found, classes: Sequence[str], threshold: float) -> list[str]:
    """Returns a line for each object of at least that score: probability, class, and its box in pixels.

    Example:
      >>> row = Found(Path("a.png"), np.zeros((9, 9, 1), np.uint8), np.ones((1, 4)), np.array([1]), np.array([0.5]))
      >>> lines(row, ["cat", "dog"], 0.5)
      ['   50.00%  dog  x 1.0 to 1.0, y 1.0 to 1.0']
    """
    return [
        f"  {score:7.2%}  {_name(classes, int(label))}  x {x0:.1f} to {x1:.1f}, y {y0:.1f} to {y1:.1f}"
        for (x0, y0, x1, y1), label, score in zip(found.boxes, found.labels, found.scores, strict=True)
        if score >= threshold
    ]


def as_coco(found: Sequence[Found], classes: Sequence[str]) -> dict[str, Any]:
    """Returns what was found in the form of COCO's annotations, with a `score` each; `prepare` reads it."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, one in enumerate(found, 1):
        h, w = one.picture.shape[:2]
        images.append({"id": number, "file_name": one.path.name, "height": h, "width": w})
        for (x0, y0, x1, y1), label, score in zip(one.boxes.tolist(), one.labels, one.scores, strict=True):
            box = [x0, y0, x1 - x0, y1 - y0]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": int(label), "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0, "score": float(score)}
            )  # fmt: skip
    known = max([len(classes), *(a["category_id"] + 1 for a in annotations)])
    categories = [{"id": k, "name": _name(classes, k)} for k in range(known)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(folder: Path, paths: Sequence[Path], pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> None:
    """Writes pictures into a folder, named like the files that they are of.

    Raises:
      BadRequest: the folder cannot be made.
      Failure: a file cannot be written.
    """
    import PIL.Image

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise errors.BadRequest(
            f"--out: the folder {errors.printable(folder)} cannot be made: {e.strerror or e}."
        ) from None
    taken: set[str] = set()
    for path, picture in zip(paths, pictures, strict=True):
        name, number = path.stem, 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name)
        log.write_atomically(folder / f"{name}.png", image_file.png(PIL.Image.fromarray(picture)))


def _name(classes: Sequence[str], label: int) -> str:
    return errors.printable(classes[label]) if label < len(classes) else f"class {label}"
