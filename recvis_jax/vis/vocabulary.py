"""The look of visual words: the patches nearest to each word."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Nearest(NamedTuple):
    """The places nearest to each word, the nearest first, at most one per image.

    Attributes:
      scores: larger is nearer; -inf for missing places if there are fewer images than places.
      images: index of the image, in the order of reading.
      places: index of the descriptor in the image.
    """

    scores: Float[np.ndarray, "k m"]
    images: Int[np.ndarray, "k m"]
    places: Int[np.ndarray, "k m"]


def nearest(score: Callable[[Array], Array], batches: Iterable[tuple[Any, Any]], count: int) -> Nearest:
    """Finds the places nearest to each word, in one pass.

    Args:
      score: descriptors (n d) -> (n k), larger is nearer, such as minus a distance.
      batches: pairs of descriptors (b n d) and a mask of the valid ones (b n).
      count: places per word.

    Example:
      >>> x, mask = jnp.array([[[0.0], [4.0]], [[1.0], [5.0]]]), jnp.ones((2, 2), bool)
      >>> found = nearest(lambda x: -jnp.abs(x - jnp.array([0.0, 5.0])), [(x, mask)], count=2)
      >>> found.images.tolist(), found.places.tolist()
      ([[0, 1], [1, 0]], [[0, 0], [1, 1]])
    """
    best, seen = None, 0
    for descriptors, mask in batches:
        scores, places = _of_images(score, jnp.asarray(descriptors), jnp.asarray(mask))
        images = np.broadcast_to(seen + np.arange(len(mask)), scores.shape)
        new = Nearest(np.asarray(scores), images, np.asarray(places))
        best = new if best is None else Nearest(*(np.concatenate(pair, axis=1) for pair in zip(best, new, strict=True)))
        order = np.argsort(-best.scores, axis=1, kind="stable")[:, :count]  # in ties the first image
        best = Nearest(*(np.take_along_axis(x, order, axis=1) for x in best))
        seen += len(mask)
    if best is None:
        raise ValueError("there are no batches")
    return best


def _of_images(
    score: Callable[[Array], Array], descriptors: Float[Array, "b n d"], mask: Bool[Array, "b n"]
) -> tuple[Float[np.ndarray, "k b"], Int[np.ndarray, "k b"]]:
    b, n, d = descriptors.shape
    scores = jnp.where(mask[..., None], score(descriptors.reshape(b * n, d)).reshape(b, n, -1), -jnp.inf)
    return jax.device_get((scores.max(1).T, scores.argmax(1).T))


def patch(
    image: Float[np.ndarray, "h w c"], position: Float[np.ndarray, "2"], side: float, size: int
) -> Float[np.ndarray, "s s c"]:
    """Cuts a square from an image, by nearest pixels; the border pixels are repeated beyond the border.

    Args:
      image: of any range.
      position: of the centre, x and y as fractions of the image.
      side: of the square in pixels.
      size: rows and columns of the result.

    Example:
      >>> patch(np.arange(16.0).reshape(4, 4, 1), np.array([0.5, 0.5]), side=2, size=2)[..., 0]
      array([[ 5.,  6.],
             [ 9., 10.]])
    """
    h, w = image.shape[:2]
    at = ((np.arange(size) + 0.5) / size - 0.5) * side
    columns = np.clip(np.floor(position[0] * w + at), 0, w - 1).astype(int)
    rows = np.clip(np.floor(position[1] * h + at), 0, h - 1).astype(int)
    return image[rows[:, None], columns]
