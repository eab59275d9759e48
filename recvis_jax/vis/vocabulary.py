"""What visual words look like: the patches nearest to each."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Nearest(NamedTuple):
    """The places that are nearest to each word, the nearest first, at most one of an image.

    Attributes:
      scores: the larger, the nearer; -inf where there are fewer images than places.
      images: number of the image, in the order in which they were read.
      places: number of the descriptor in it.
    """

    scores: Float[np.ndarray, "k m"]
    images: Int[np.ndarray, "k m"]
    places: Int[np.ndarray, "k m"]


def nearest(score: Callable[[Array], Array], batches: Iterable[tuple[Any, Any]], count: int) -> Nearest:
    """Finds for each word the places that are nearest to it, in one pass.

    Args:
      score: descriptors (n d) -> (n k), the larger, the nearer, as minus a distance.
      batches: of descriptors (b n d) and which of them are there (b n).
      count: places of each word.

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
        order = np.argsort(-best.scores, axis=1, kind="stable")[:, :count]  # of equals the first image
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
    """Cuts a square from an image, of the nearest pixels; beyond the border the image goes on as it is there.

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
