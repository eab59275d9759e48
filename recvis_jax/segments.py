"""The class of every pixel of a user's pictures: computed, and drawn over them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from recvis_jax import errors, trained
from recvis_jax.data import given
from recvis_jax.vis import boxes


class Found(NamedTuple):
    """A picture and its map of classes.

    Attributes:
      path: of the picture.
      picture: (h w c).
      map: (h w), the class of every pixel.
    """

    path: Path
    picture: UInt8[np.ndarray, "h w c"]
    map: Int[np.ndarray, "h w"]


def finder(model: trained.Trained) -> Callable[[Path], Found]:
    """Returns a function from the path of a picture to the classes of its pixels.

    Args:
      model: of a run whose task gives maps.

    The function raises `BadRequest` where a file is no picture.
    """
    run, info = model.run, model.run.data.info
    place = given.placer(info.eval_transform, info.image_shape)

    @jax.jit
    def predict(params: Any, model_state: Any, image: Any) -> Any:
        return run.task.predict(params, model_state, run.data.preprocess({"image": image}))["map"]

    def find(path: Path) -> Found:
        placed = place(path)
        found = np.asarray(predict(model.params, model.model_state, jnp.asarray(placed.image)[None])[0])
        x0, y0, x1, y1 = placed.frame
        h, w = placed.picture.shape[:2]
        rows = np.floor(y0 + (np.arange(h) + 0.5) * (y1 - y0) / h).astype(int).clip(0, found.shape[0] - 1)
        columns = np.floor(x0 + (np.arange(w) + 0.5) * (x1 - x0) / w).astype(int).clip(0, found.shape[1] - 1)
        return Found(path, placed.picture, found[rows[:, None], columns])

    return find


def names_of(model: trained.Trained) -> list[str]:
    """Returns the names of the map's classes, first the background where the data name only objects."""
    classes = list(model.run.data.info.class_names)
    return ["background", *classes] if model.run.model.num_classes == len(classes) + 1 else classes


def drawn(found: Found) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the picture under the colours of its classes, of which class 0 has none; a small picture is enlarged.

    Example:
      >>> one = Found(Path("a.png"), np.full((300, 400, 1), 9, np.uint8), np.zeros((300, 400), int))
      >>> int(drawn(one).max()), drawn(one).shape
      (9, (300, 400, 3))
    """
    scale = max(1, 400 // max(found.picture.shape[:2]))
    out = np.repeat(found.picture, 3, 2) if found.picture.shape[2] == 1 else found.picture.copy()
    for label in np.unique(found.map[found.map > 0]).tolist():
        own = found.map == label
        out[own] = (0.5 * out[own] + 0.5 * np.array(boxes.colour(label - 1))).astype(np.uint8)
    return out.repeat(scale, 0).repeat(scale, 1)


def lines(found: Found, classes: Sequence[str]) -> list[str]:
    """Returns a line for each class that is there, with its share of the picture.

    Example:
      >>> one = Found(Path("a.png"), np.zeros((2, 2, 1), np.uint8), np.array([[0, 1], [0, 0]]))
      >>> lines(one, ["background", "cat"])
      ['   75.00%  background', '   25.00%  cat']
    """
    counts = np.bincount(found.map.ravel())
    named = [errors.printable(n) for n in classes] + [f"class {i}" for i in range(len(classes), len(counts))]
    order = [i for i in np.argsort(-counts, kind="stable").tolist() if counts[i]]
    return [f"  {counts[i] / counts.sum():7.2%}  {named[i]}" for i in order]
