"""Which prediction is for which object: the assignment of least cost, on the device."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from recvis_jax import errors
from recvis_jax.tasks import boxes

_FAR = 1e6  # in place of a cost that is not finite, with which the search would not end


def assign(cost: Float[Array, "q n"], valid: Bool[Array, "n"]) -> Int[Array, "n"]:
    """Returns for every object the prediction that it is given, no two the same, with the least sum of costs.

    Objects that are not valid cost nothing whichever they are given, so they do not change the others.

    Args:
      cost: of giving an object to a prediction; at least as many predictions as objects.
      valid: false on padding.

    Raises:
      BadRequest: fewer predictions than objects.

    Example:
      >>> cost = jnp.array([[4.0, 1.0, 9.0], [2.0, 0.0, 9.0], [5.0, 9.0, 9.0]])
      >>> assign(cost, jnp.array([True, True, False])).tolist()
      [1, 0, 2]
    """
    q, n = cost.shape
    if q < n:
        raise errors.BadRequest(f"{n} objects cannot each have a prediction of their own of {q}.")
    cost = jnp.where(jnp.isfinite(cost), cost, _FAR)
    rows, columns = optax.assignment.hungarian_algorithm(jnp.where(valid, cost, 0).astype(jnp.float32))
    return jnp.zeros(n, jnp.int32).at[columns].set(rows.astype(jnp.int32))


def costs(
    logits: Float[Array, "q k"],
    predicted: Float[Array, "q 4"],
    labels: Shaped[Array, "n"],
    true: Float[Array, "n 4"],
    *,
    l1: float = 5.0,
    giou: float = 2.0,
) -> Float[Array, "q n"]:
    """Returns -p(label) + `l1` |box - box'| - `giou` GIoU of every prediction and object.

    Args:
      logits: of classes; p is their softmax.
      predicted, true: centre, width and height, as fractions of the picture.
      labels: classes of the objects.
      l1, giou: weights.

    Reference: Carion et al. 2020, "End-to-end object detection with transformers", eq. 1 and appendix A.2.
    """
    probability = jax.nn.softmax(logits)[:, labels]
    distance = jnp.abs(predicted[:, None] - true[None]).sum(-1)
    overlap = boxes.overlaps(boxes.corners(predicted)[:, None], boxes.corners(true)[None])[1]
    return l1 * distance - probability - giou * overlap
