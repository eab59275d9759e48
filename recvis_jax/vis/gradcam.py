"""Grad-CAM, for maps and for tokens."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.vis import layers, targets
from recvis_jax.vis.layers import Apply, Images
from recvis_jax.vis.targets import Target


def gradcam(
    apply: Apply, variables: Any, images: Images, target: Target = None, layer: str | None = None
) -> Float[Array, "b i j"]:
    """relu(sum over channels of a layer's maps times the spatial mean of the score's gradient with respect to them).

    Tokens of patches are arranged as maps; other tokens, such as the class token, are left out. `enlarged` resizes the
    result to the size of the images.

    Args:
      apply, variables, images, target: see `saliency.gradient`.
      layer: a name in `acts`, or the path of a module, see `layers.activations`; by default `default_layer`.

    Returns:
      Maps with the layer's own rows and columns, 0 without evidence for the target.

    Raises:
      BadRequest: a layer without places, or one for which the score has no gradient at any place, such as a layer after
        the last attention of a network that reads only its class token.

    Reference: Selvaraju et al. 2016, "Grad-CAM: visual explanations from deep networks", section 3.

    Example:
      >>> gradcam(apply, variables, images, 3, "stage1/block1").shape
      (2, 14, 14)
    """
    images = jnp.asarray(images)
    layer = default_layer(apply, variables, images) if layer is None else layer
    target = targets.fixed(apply, variables, images, target)
    found, alive = _gradcam(apply, layer, variables, images, target)
    if not isinstance(alive, jax.core.Tracer) and not alive:
        before = default_layer(apply, variables, images)
        instead = f": take {before!r}" if before != layer else ""
        raise BadRequest(
            f"the score has no gradient at any place of the layer {layer!r}, so its map would be blank. If only the "
            "class token is read, the tokens of patches have an effect up to the last block's attention, but not after "
            f"it{instead}."
        )
    return found


def default_layer(apply: Apply, variables: Any, images: Images) -> str:
    """Returns the default layer: the last maps; for tokens, the input of the last block's attention or mixing.

    Args: see `gradcam`.

    Raises:
      BadRequest: a network without places, such as a multi-layer perceptron.
    """
    found = layers.names(apply, variables, images)
    placed = layers.with_places(found)
    if not placed:
        raise BadRequest(f"none of the network's layers has places: {', '.join(found)}.")
    if len(found[placed[-1]]) == 4:
        return placed[-1]
    blocks = [name for name in placed if name.startswith("block")]
    if not blocks:
        return placed[-1]
    norm = f"{blocks[-1]}/norm1"
    known = layers.modules(apply, variables, images)
    return norm if norm in known else blocks[-2] if len(blocks) > 1 else blocks[-1]


def enlarged(maps: Float[Array, "b i j"], size: tuple[int, int]) -> Float[Array, "b h w"]:
    """Enlarges maps bilinearly to `size`, rows and columns.

    Example:
      >>> enlarged(jnp.ones((2, 5, 5)), (28, 28)).shape
      (2, 28, 28)
    """
    return jax.image.resize(maps, (len(maps), *size), "linear")


@partial(jax.jit, static_argnums=(0, 1))
def _gradcam(apply: Apply, layer: str, variables: Any, images: Array, target: Any) -> tuple[Array, Array]:
    value, moved = layers.from_layer(apply, variables, images, layer)
    names = layers.names(apply, variables, images)
    as_maps = partial(layers.as_maps, layers=names, image=images.shape[1:3], layer=layer)
    as_maps(value)  # refuses a layer without places before the gradient is traced
    gradient = as_maps(jax.grad(lambda delta: targets.of_outputs(*moved(delta), target).sum())(jnp.zeros_like(value)))
    found = jnp.einsum("bd,bijd->bij", gradient.mean((1, 2)), as_maps(value))
    return jax.nn.relu(found), (gradient != 0).any()
