"""Style transfer: an image with the content of one picture and the feature correlations of another.

Reference: Gatys, Ecker & Bethge 2015, "A neural algorithm of artistic style".
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.vis import layers
from recvis_jax.vis.layers import Apply, Images

# relu1_1, relu2_1, ... and relu4_2 of a VGG network, by the names of our acts.
STYLE = tuple(f"stage{i}/block1" for i in range(1, 6))
CONTENT = "stage4/block2"
_TOGETHER = 10  # steps between two calls of `say`


def gram(maps: Float[Array, "b i j d"]) -> Float[Array, "b d d"]:
    """Correlations of a layer's channels: F'F / (i j).

    Example:
      >>> gram(jnp.ones((1, 2, 2, 1))).item()
      1.0
    """
    x = maps.reshape(len(maps), -1, maps.shape[-1])
    return jnp.einsum("bnd,bne->bde", x, x) / x.shape[1]


def style_transfer(
    apply: Apply,
    variables: Any,
    content: Images,
    style: Images,
    *,
    steps: int = 300,
    weight: float = 1e3,
    style_layers: Sequence[str] = STYLE,
    content_layer: str = CONTENT,
    say: Callable[[int], None] = lambda done: None,
) -> Float[Array, "1 h w c"]:
    """Returns an image in [0, 1] with the content of one and the style of the other, by L-BFGS.

    It minimises the mean squared difference of the content layer plus, for each style layer of d channels,
    `weight` / d^2 times the mean squared difference of the Gram matrices. It starts from the content.

    Args:
      apply: the network, for images in [0, 1], such as a VGG without a head.
      variables: its variables.
      content: (1 h w c) in [0, 1].
      style: (1 i j c) in [0, 1], of any size that the network takes.
      steps: of L-BFGS.
      weight: of the style.
      style_layers, content_layer: names in `acts`, or paths of modules.
      say: called with the number of steps done.

    Raises:
      BadRequest: more than one image, steps below 1, or an unknown layer.

    Example:
      >>> x = jax.nn.sigmoid(images[:1])
      >>> found = style_transfer(apply, variables, x, x, steps=1, style_layers=["stem"], content_layer="stage1/block1")
      >>> bool(jnp.allclose(found, x, atol=1e-3))  # an image in its own style
      True
    """
    if len(content) != 1 or len(style) != 1 or steps < 1:
        raise BadRequest(f"{len(content)} contents, {len(style)} styles, {steps} steps: give one of each.")
    names = (content_layer, *style_layers)
    content, style = jnp.asarray(content), jnp.asarray(style)
    wanted = (
        layers.activations(apply, variables, content, content_layer),
        tuple(gram(layers.activations(apply, variables, style, name)) for name in style_layers),
    )
    image, state = content, optax.lbfgs().init(content)
    for done in range(0, steps, _TOGETHER):
        count = min(_TOGETHER, steps - done)
        image, state = _descend(apply, names, count, variables, image, state, wanted, jnp.float32(weight))
        say(done + count)
    return jnp.clip(image, 0, 1)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _descend(
    apply: Apply,
    names: tuple[str, ...],
    steps: int,
    variables: Any,
    image: Array,
    state: Any,
    wanted: Any,
    weight: Array,
) -> tuple[Array, Any]:
    def loss(image: Array) -> Array:
        content, grams = wanted
        total = jnp.square(layers.activations(apply, variables, image, names[0]) - content).mean()
        for name, target in zip(names[1:], grams, strict=True):
            found = gram(layers.activations(apply, variables, image, name))
            total += weight / found.shape[-1] ** 2 * jnp.square(found - target).mean()
        return total

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(kept: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        image, state = kept
        value, gradient = value_and_grad(image, state=state)
        updates, state = optimizer.update(gradient, state, image, value=value, grad=gradient, value_fn=loss)
        return (jnp.clip(optax.apply_updates(image, updates), 0, 1), state), None

    return jax.lax.scan(step, (image, state), None, length=steps)[0]
