"""Looking inside: pure functions of `(apply, variables, images, ...)` that return arrays.

`apply` is a network, `(variables, images) -> (output, acts)`: `functools.partial(model.apply, train=False)`, or what a
trained model has as `run.forward`. Only `plot` draws.
"""

from collections.abc import Callable
from typing import Any

from recvis_jax.vis.gradcam import enlarged, gradcam
from recvis_jax.vis.guided import deconvnet, guided_backpropagation
from recvis_jax.vis.integrated_gradients import completeness, integrated_gradients
from recvis_jax.vis.layers import activations
from recvis_jax.vis.occlusion import occlusion
from recvis_jax.vis.rise import rise
from recvis_jax.vis.saliency import gradient, gradient_x_input, saliency
from recvis_jax.vis.sanity import sanity, scrambled
from recvis_jax.vis.smoothgrad import smoothgrad
from recvis_jax.vis.targets import Channel, Direction, Unit

# What speaks for a target, and where: (apply, variables, images, target) -> (b h w c), (b h w), or (b i j) of a layer.
ATTRIBUTIONS: dict[str, Callable[..., Any]] = {
    "saliency": saliency,
    "gradient_x_input": gradient_x_input,
    "smoothgrad": smoothgrad,
    "integrated_gradients": integrated_gradients,
    "guided_backpropagation": guided_backpropagation,
    "deconvnet": deconvnet,
    "occlusion": occlusion,
    "gradcam": gradcam,
    "rise": rise,
}

__all__ = [
    "ATTRIBUTIONS",
    "Channel",
    "Direction",
    "Unit",
    "activations",
    "completeness",
    "enlarged",
    "gradient",
    "sanity",
    "scrambled",
    *ATTRIBUTIONS,
]
