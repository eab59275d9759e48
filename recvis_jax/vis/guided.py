"""Guided backpropagation and the deconvnet: gradients with other rules for relus (see `rectifiers`)."""

from typing import Any

from jaxtyping import Array, Float

from recvis_jax.vis.layers import Apply, Images
from recvis_jax.vis.saliency import gradient
from recvis_jax.vis.targets import Target


def guided_backpropagation(
    apply: Apply, variables: Any, images: Images, target: Target = None
) -> Float[Array, "b h w c"]:
    """The gradient with a changed rule: each relu passes back only positive gradients, and only if it is open itself.

    Args:
      apply, variables, images, target: see `saliency.gradient`.

    Raises:
      BadRequest: a network without relus, for which this would be the plain gradient.

    Reference: Springenberg et al. 2014, "Striving for simplicity: the all convolutional net", section 3.4. It shows the
      content of the image rather than what the network uses: with random weights it hardly changes (Adebayo et al.
      2018).

    Example:
      >>> guided_backpropagation(apply, variables, images, 3).shape
      (2, 28, 28, 1)
    """
    return gradient(apply, variables, images, target, rule="guided")


def deconvnet(apply: Apply, variables: Any, images: Images, target: Target = None) -> Float[Array, "b h w c"]:
    """The image that corresponds to a score: the network run backwards, with relus and with the switches of max pools.

    Each relu passes back what is positive, whether the relu itself was open or not. Each window of a max pool passes
    everything to the place of its maximum. For the picture of one unit as in the paper, use `target=Unit(layer,
    channel)`: then all other units are zero.

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
