"""Targets in a network: one number per image, which other files differentiate or maximise.

A target is one of
  None                       the class that the network predicts for each image,
  3, or [3, 5, 3]            a class, or one for each image,
  Unit, Channel, Direction part of a layer, a function (output, acts) -> (b), your own. Each function is compiled once:
  pass the same one again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recvis_jax.errors import BadRequest
from recvis_jax.vis import layers
from recvis_jax.vis.layers import Apply, Images

_pytree = partial(jax.tree_util.register_dataclass, meta_fields=["layer"])


@partial(_pytree, data_fields=["channel", "place"])
@dataclasses.dataclass(frozen=True)
class Unit:
    """One unit of a layer: at a given place, or at its strongest place in each image.

    Attributes:
      layer: see `layers.activations`.
      channel: of the unit, the same for all images or one for each (b).
      place: (row, column) in maps, (token,) in tokens; None for the strongest, in ties the first.
    """

    layer: str
    channel: Any
    place: tuple[Any, ...] | None = None

    def __call__(self, value: Array) -> Array:
        x = _of_channel(value, self.channel)
        if x.ndim == 1:
            return x
        if self.place is not None:
            return x[(slice(None), *self.place)]
        x = x.reshape(len(x), -1)
        return jnp.take_along_axis(x, jnp.argmax(x, axis=1, keepdims=True), axis=1)[:, 0]


@partial(_pytree, data_fields=["channel"])
@dataclasses.dataclass(frozen=True)
class Channel:
    """The mean of a channel of a layer over all places.

    Attributes: as those of `Unit`.
    """

    layer: str
    channel: Any

    def __call__(self, value: Array) -> Array:
        x = _of_channel(value, self.channel)
        return x.reshape(len(x), -1).mean(1)


@partial(_pytree, data_fields=["vector"])
@dataclasses.dataclass(frozen=True)
class Direction:
    """The mean over all places of the product of a layer with a vector.

    Attributes:
      layer: see `layers.activations`.
      vector: (d), as wide as the layer.
    """

    layer: str
    vector: Any

    def __call__(self, value: Array) -> Array:
        x = value @ jnp.asarray(self.vector, value.dtype)
        return x.reshape(len(x), -1).mean(1)


Score = Callable[[Any, dict[str, Any]], Any]
Target = int | Sequence[int] | Int[Array, "..."] | Int[np.ndarray, "..."] | Unit | Channel | Direction | Score | None


def fixed(apply: Apply, variables: Any, images: Images, target: Target) -> Any:
    """Returns a checked target in a form for JAX; None is replaced by the predicted classes, which are then fixed.

    Args:
      apply, variables: the network.
      images: (b h w c), the network's input.
      target: see the top of this file.

    Raises:
      BadRequest: a class that does not exist, different numbers of classes and images, or a network without classes.
    """
    if isinstance(target, (Unit, Channel, Direction)):
        _check(target, jax.eval_shape(partial(layers.activations, apply, layer=target.layer), variables, images).shape)
        return target
    if isinstance(target, jax.tree_util.Partial):
        return target
    if callable(target):
        return jax.tree_util.Partial(target)
    output = jax.eval_shape(lambda v, x: apply(v, x)[0], variables, images)
    if len(output.shape) != 2:
        raise BadRequest(
            f"the network's output of shape {output.shape} is not that of classes (b k): give a target in a layer, "
            "such as vis.Unit('features', 3), or a function (output, acts) -> (b)."
        )
    if target is None:
        return _predicted(apply, variables, images)
    found = jnp.asarray(target)
    if found.shape not in ((), output.shape[:1]) or not jnp.issubdtype(found.dtype, jnp.integer):
        raise BadRequest(
            f"the target of shape {found.shape} and type {found.dtype} is neither a class nor one for each of "
            f"{output.shape[0]} images."
        )
    if not isinstance(found, jax.core.Tracer) and not ((found >= 0) & (found < output.shape[1])).all():
        raise BadRequest(f"the target {np.asarray(found).tolist()} is outside the classes 0 to {output.shape[1] - 1}.")
    return jnp.broadcast_to(found, output.shape[:1])


@partial(jax.jit, static_argnames="apply")
def scores(apply: Apply, variables: Any, images: Images, target: Any) -> Float[Array, "b"]:
    """Returns the number of each image for a target.

    Args:
      apply, variables: the network.
      images: (b h w c), the network's input.
      target: from `fixed`.

    Example:
      >>> scores(apply, variables, images, fixed(apply, variables, images, Unit("stage1/block1", 3))).shape
      (2,)
    """
    if isinstance(target, (Unit, Channel, Direction)):
        return target(layers.activations(apply, variables, images, target.layer))
    return of_outputs(*apply(variables, images), target)


def of_outputs(output: Any, acts: dict[str, Any], target: Any) -> Float[Array, "b"]:
    """Returns the same from a network's results, for a target in the output or in a named layer."""
    if isinstance(target, (Unit, Channel, Direction)):
        return target(acts[target.layer])
    if callable(target):
        found = target(output, acts)
        if found.shape != (len(jax.tree.leaves(output)[0]),):
            raise BadRequest(f"the target's function returns shape {found.shape}; it must return one number per image.")
        return found
    return jnp.take_along_axis(output, target[:, None], axis=1)[:, 0]


@partial(jax.jit, static_argnums=0)
def _predicted(apply: Apply, variables: Any, images: Any) -> Array:
    return jnp.argmax(apply(variables, images)[0], axis=1)


def _of_channel(value: Array, channel: Any) -> Array:
    """Returns the channel (b ...) of a layer (b ... d)."""
    if jnp.ndim(channel) == 0:
        return value[..., channel]
    index = jnp.asarray(channel).reshape(-1, *(1,) * (value.ndim - 1))
    return jnp.take_along_axis(value, index, axis=-1)[..., 0]


def _check(target: Any, shape: tuple[int, ...]) -> None:
    """Refuses a target that a layer of this shape does not have, as far as known at this point."""
    if isinstance(target, Direction):
        if jnp.shape(target.vector) != shape[-1:]:
            raise BadRequest(
                f"the vector of shape {jnp.shape(target.vector)} is not as wide as {target.layer!r}: {shape[-1]}."
            )
        return
    channel = target.channel
    if (
        not isinstance(channel, jax.core.Tracer)
        and not ((np.asarray(channel) >= 0) & (np.asarray(channel) < shape[-1])).all()
    ):
        raise BadRequest(f"channel {np.asarray(channel).tolist()} of {target.layer!r} is outside 0 to {shape[-1] - 1}.")
    places = getattr(target, "place", None)
    if places is not None and len(places) != len(shape) - 2:
        raise BadRequest(f"place={places} is not a place of {target.layer!r}, which has {shape[1:-1]} places.")
