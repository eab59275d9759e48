"""The gradient of a score with respect to the image, and maps computed directly from it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.vis import targets
from recvis_jax.vis.layers import Apply, Images
from recvis_jax.vis.rectifiers import with_rule
from recvis_jax.vis.targets import Target


def gradient(
    apply: Apply, variables: Any, images: Images, target: Target = None, *, rule: str | None = None
) -> Float[Array, "b h w c"]:
    """The gradient of each image's score with respect to the image.

    Args:
      apply: the network, (variables, images) -> (output, acts), such as `functools.partial(model.apply, train=False)`.
        It is compiled once: pass the same object again.
      variables: its variables.
      images: (b h w c), the network's input.
      target: defines the score, see `vis.targets`; by default the output of the predicted class.
      rule: of gradients through relus, one of `rectifiers.RULES`; None for the network's own gradient.

    Raises:
      BadRequest: a target that the network does not have.

    Example:
      >>> gradient(apply, variables, images).shape
      (2, 28, 28, 1)
    """
    return _gradient(apply, variables, jnp.asarray(images), targets.fixed(apply, variables, images, target), rule)


def saliency(apply: Apply, variables: Any, images: Images, target: Target = None) -> Float[Array, "b h w c"]:
    """The magnitude of the gradient.

    Args: see `gradient`. For one number per pixel, Simonyan et al. take the maximum over the colours.

    Reference: Simonyan, Vedaldi & Zisserman 2013, "Deep inside convolutional networks", section 3.

    Example:
      >>> float(saliency(apply, variables, images, 3).min()) >= 0
      True
    """
    return jnp.abs(gradient(apply, variables, images, target))


def gradient_x_input(apply: Apply, variables: Any, images: Images, target: Target = None) -> Float[Array, "b h w c"]:
    """The gradient times the image: what each pixel adds to the score if the network is linear near this image.

    Args: see `gradient`.

    Reference: Shrikumar et al. 2016, "Not just a black box", section 3.2.

    Example: for a linear network it sums to the output without its bias
      >>> found = gradient_x_input(linear, weights, images, 3)
      >>> bias = weights["params"]["head"]["bias"][3]
      >>> jnp.allclose(found.sum((1, 2, 3)), linear(weights, images)[0][:, 3] - bias, atol=1e-4)
      Array(True, dtype=bool)
    """
    return gradient(apply, variables, images, target) * jnp.asarray(images)


@partial(jax.jit, static_argnums=(0, 4))
def _gradient(apply: Apply, variables: Any, images: Array, target: Any, rule: str | None) -> Array:
    def total(images: Array) -> Array:
        return targets.scores(apply, variables, images, target).sum()

    return jax.grad(total if rule is None else with_rule(total, rule))(images)
