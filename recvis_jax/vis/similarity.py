"""Comparison of features: between layers and networks, between images, and projected to a plane."""

import numpy as np
from jaxtyping import Float, Int

from recvis_jax.errors import BadRequest


def linear_cka(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m e"]) -> float:
    """Linear centred kernel alignment: |Y'X|^2 / (|X'X| |Y'Y|) of centred features, in [0, 1].

    It is invariant to rotation and overall scaling of features, and can compare layers of different widths.

    Args:
      x, y: features of the same n examples.

    Raises:
      BadRequest: different numbers of examples, or features that are the same for all examples.

    Reference: Kornblith et al. 2019, "Similarity of neural network representations revisited", section 3.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(50, 3))
      >>> round(linear_cka(x, 7 * x[:, [2, 0, 1]] + 5), 6)
      1.0
    """
    x, y = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, y))
    if len(x) != len(y):
        raise BadRequest(f"features of {len(x)} and of {len(y)} examples cannot be compared.")
    x, y = x - x.mean(0), y - y.mean(0)
    if x.shape[1] + y.shape[1] > 2 * len(x):  # the same from products of examples, which are fewer
        of_x, of_y = x @ x.T, y @ y.T
        found, scale = (of_x * of_y).sum(), np.linalg.norm(of_x) * np.linalg.norm(of_y)
    else:
        found = np.square(y.T @ x).sum()
        scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    if not scale:
        raise BadRequest("features that are the same for all examples cannot be compared.")
    return float(found / scale)


def principal_components(features: Float[np.ndarray, "n d"], count: int = 2) -> Float[np.ndarray, "n k"]:
    """Projects features onto the directions of largest variance, the largest first.

    The sign of a direction makes its largest weight positive.

    Args:
      features: (n d).
      count: k, at most d and n.

    Raises:
      BadRequest: `count` is too large.

    Example:
      >>> principal_components(np.array([[0.0, 0.0], [3.0, 4.0]]), 1)
      array([[-2.5],
             [ 2.5]])
    """
    x = np.asarray(features, np.float64)
    if not 1 <= count <= min(x.shape):
        raise BadRequest(f"{x.shape[0]} examples of {x.shape[1]} numbers do not have {count} directions.")
    x = x - x.mean(0)
    _, _, directions = np.linalg.svd(x, full_matrices=False)
    directions = directions[:count]
    largest = np.abs(directions).argmax(1)
    return x @ (directions * np.sign(directions[np.arange(count), largest])[:, None]).T


def neighbours(
    queries: Float[np.ndarray, "q d"], features: Float[np.ndarray, "n d"], k: int = 9
) -> Int[np.ndarray, "q k"]:
    """Returns the indices of the features with the largest cosine with each query, the nearest first.

    Args:
      queries, features: (q d) and (n d).
      k: number of neighbours, at most n; in ties the first.

    Example:
      >>> neighbours(np.array([[1.0, 0.1]]), np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]), 2)
      array([[1, 2]])
    """
    if not 1 <= k <= len(features):
        raise BadRequest(f"{k} neighbours cannot be found among {len(features)} examples.")
    x, y = (np.asarray(a, np.float64) for a in (queries, features))
    x, y = (a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-30) for a in (x, y))
    return np.argsort(-(x @ y.T), axis=1, kind="stable")[:, :k]
