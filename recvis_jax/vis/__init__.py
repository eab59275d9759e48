"""Looking inside: pure functions of `(apply, variables, images, ...)` that return arrays.

`apply` is a network, `(variables, images) -> (output, acts)`: `functools.partial(model.apply, train=False)`, or
`run.forward` of a trained model. Only `plot` draws.
"""

from collections.abc import Callable
from typing import Any

from recvis_jax.vis.attention import attention_distance, attention_weights, from_class_token, of_queries, rollout
from recvis_jax.vis.calibration import reliability
from recvis_jax.vis.dream import deep_dream
from recvis_jax.vis.gradcam import default_layer, enlarged, gradcam
from recvis_jax.vis.guided import deconvnet, guided_backpropagation
from recvis_jax.vis.integrated_gradients import completeness, integrated_gradients
from recvis_jax.vis.inversion import invert
from recvis_jax.vis.layers import activations
from recvis_jax.vis.maximisation import maximise
from recvis_jax.vis.occlusion import occlusion
from recvis_jax.vis.rise import rise
from recvis_jax.vis.saliency import gradient, gradient_x_input, saliency
from recvis_jax.vis.sanity import rank_correlation, sanity, scrambled
from recvis_jax.vis.similarity import linear_cka, neighbours, principal_components
from recvis_jax.vis.smoothgrad import smoothgrad
from recvis_jax.vis.style import style_transfer
from recvis_jax.vis.targets import Channel, Direction, Unit, fixed, scores
from recvis_jax.vis.top_patches import crops, top_patches
from recvis_jax.vis.weights import first_filters, position_similarity, token_mixing

# Evidence for a target by place: (apply, variables, images, target) -> (b h w c), (b h w), or (b i j) of a layer.
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
    "attention_distance",
    "attention_weights",
    "completeness",
    "crops",
    "deep_dream",
    "default_layer",
    "enlarged",
    "first_filters",
    "fixed",
    "from_class_token",
    "gradient",
    "invert",
    "linear_cka",
    "maximise",
    "neighbours",
    "of_queries",
    "position_similarity",
    "principal_components",
    "rank_correlation",
    "reliability",
    "rollout",
    "sanity",
    "scores",
    "scrambled",
    "style_transfer",
    "token_mixing",
    "top_patches",
    *ATTRIBUTIONS,
]
