"""Guided backpropagation and the deconvnet: gradients that pass relus by other rules (see `rectifiers`)."""

from typing import Any

from jaxtyping import Array, Float

from recvis_jax.vis.layers import Apply, Images
from recvis_jax.vis.saliency import gradient
from recvis_jax.vis.targets import Target


def guided_backpropagation(
    apply: Apply, variables: Any, images: Images, target: Target = None
) -> Float[Array, "b h w c"]:
    """The gradient, of which each relu passes back what is positive where the relu itself is open.

    Args:
      apply, variables, images, target: as of `saliency.gradient`.

    Raises:
      BadRequest: a network without relus, of which this would be the plain gradient.

    Reference: Springenberg et al. 2014, "Striving for simplicity: the all convolutional net", section 3.4. It shows
      what the image has more than what the network looks for: with random weights it hardly changes (Adebayo et al.
      2018).

    Example:
      >>> guided_backpropagation(apply, variables, images, 3).shape
      (2, 28, 28, 1)
    """
    return gradient(apply, variables, images, target, rule="guided")


def deconvnet(apply: Apply, variables: Any, images: Images, target: Target = None) -> Float[Array, "b h w c"]:
    """What a score looks like in the image: the network run backwards, with relus on the way and max pools' switches.

    Each relu passes back what is positive, wherever the relu itself was open or not. Each window of a max pool puts
    all of it where its maximum was. For the picture of one unit as in the paper, take `target=Unit(layer, channel)`:
    all other units are then zero.

    Args:
      apply, variables, images, target: as of `saliency.gradient`.

    Raises:
      BadRequest: a network without relus, of which this would be the plain gradient.

    Reference: Zeiler & Fergus 2013, "Visualizing and understanding convolutional networks", section 2.1.

    Example:
      >>> from recvis_jax.vis import Unit
      >>> deconvnet(apply, variables, images, Unit("stage1/block1", 3)).shape
      (2, 28, 28, 1)
    """
    return gradient(apply, variables, images, target, rule="deconvnet")
