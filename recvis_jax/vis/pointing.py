"""The pointing game: whether the place with the most evidence for a class lies on an object of that class.

Reference: Zhang, Lin, Brandt, Shen & Sclaroff 2016, "Top-down neural attention by excitation backprop", section 4.2.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


def covered(
    boxes: Sequence[Float[np.ndarray, "_ 4"]], size: tuple[int, int], tolerance: float = 0.0
) -> Bool[np.ndarray, "b h w"]:
    """Returns which pixels lie in one of an image's boxes.

    Args:
      boxes: of each image, those of one class: ymin xmin ymax xmax in pixels, ends excluded.
      size: rows and columns of the images.
      tolerance: pixels by which a point may miss a box on each side; the paper uses 15 for photographs.

    Example:
      >>> covered([np.array([[0.0, 1.0, 2.0, 3.0]])], (2, 4))[0].astype(int)
      array([[0, 1, 1, 0],
             [0, 1, 1, 0]])
    """
    out = np.zeros((len(boxes), *size), bool)
    rows, columns = (np.arange(n) + 0.5 for n in size)  # pixels by their centres
    for image, of_image in zip(out, boxes, strict=True):
        for top, left, bottom, right in of_image:
            tall = (rows > top - tolerance) & (rows < bottom + tolerance)
            wide = (columns > left - tolerance) & (columns < right + tolerance)
            image |= tall[:, None] & wide
    return out


def hits(maps: Float[np.ndarray, "b h w"], objects: Bool[np.ndarray, "b h w"]) -> Bool[np.ndarray, "b"]:
    """Returns for each map whether its largest value (in ties the first) lies on an object; a blank map misses.

    Args:
      maps: of any method, larger for more evidence.
      objects: where the objects of the class are, see `covered`.

    Example:
      >>> hits(np.array([[[0.0, 3.0]], [[5.0, 3.0]], [[0.0, 0.0]]]), np.array([[[False, True]]] * 3))
      array([ True, False, False])
    """
    x, there = (np.asarray(a).reshape(len(a), -1) for a in (maps, objects))
    return there[np.arange(len(x)), x.argmax(1)] & (x.max(1) > x.min(1))


def mean_over_classes(values: np.ndarray, classes: Int[np.ndarray, " b"]) -> float:
    """Returns the mean over classes of the mean of their values, as the paper counts hits.

    Args:
      values: (b) hits, or probabilities of hits: `objects.mean((1, 2))` are those of a random point.
      classes: of the values.

    Example:
      >>> mean_over_classes(np.array([True, True, False]), np.array([0, 0, 4]))
      0.5
    """
    values = np.asarray(values, np.float64)
    return float(np.mean([values[classes == k].mean() for k in np.unique(classes)]))
