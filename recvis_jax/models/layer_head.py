"""A head on any layer of any model: linear probes and adaptation layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest, choose, nearest
from recvis_jax.models.layers import Acts
from recvis_jax.models.norms import BatchNorm

# Ways to pool a layer of tokens (b n d) or maps (b h w d) into vectors; maps are flattened to tokens first.
POOLS = {
    "mean": lambda x: x.mean(1),
    "max": lambda x: x.max(1),
    "first": lambda x: x[:, 0],
    "rest": lambda x: x[:, 1:].mean(1),
    "first_rest": lambda x: jnp.concatenate([x[:, 0], x[:, 1:].mean(1)], axis=-1),
    "flatten": lambda x: x.reshape(x.shape[0], -1),
}


def pooled(acts: Acts, layer: str, pool: str = "mean") -> Float[Array, "b d"]:
    """Returns a layer's activations as one vector per image, in float32.

    Args:
      acts: a model's named intermediates.
      layer: the name of one.
      pool: of activations (b n d) or (b h w d); vectors (b d) are not changed. 'mean' or 'max' over all positions;
        'first': the first token (the class token, if there is one); 'rest': the mean of the others; 'first_rest': both
        concatenated; 'flatten': all values.

    Raises:
      BadRequest: an unknown pool, or a layer that the model does not have (the message lists its layers).
    """
    take = choose(POOLS, pool, "pool")
    if layer not in acts:
        raise BadRequest(f"the model has no layer {layer!r}.{nearest(layer, acts)} It has: {', '.join(acts)}.")
    x = acts[layer].astype(jnp.float32)
    x = x[:, None] if x.ndim == 1 else x  # one number per image
    return x if x.ndim == 2 else take(x.reshape(x.shape[0], -1, x.shape[-1]))


def frozen_of(backbone: nn.Module) -> str | None:
    """Returns a regular expression of the parameters of a submodule `backbone` that the optimizer must not change.

    Example:
      >>> from recvis_jax import models
      >>> frozen_of(models.create("resnet18", num_classes=3)) is None
      True
    """
    own = getattr(backbone, "frozen_parameters", None)
    return own and rf"^backbone.*{own}"


def feature_map(acts: Acts, layer: str, size: tuple[int, int]) -> Float[Array, "b h w d"]:
    """Returns a layer's activations as a map of features, which detectors and segmenters read.

    Args:
      acts: a model's named intermediates.
      layer: the name of one, of maps (b h w d) or of tokens of patches (b n d), perhaps after a class token. Empty for
        `tokens`, or where there are none for the last of the smallest maps.
      size: rows and columns of the image.

    Raises:
      BadRequest: a layer that the model does not have, or that is neither maps nor tokens of square patches.
    """
    maps = sorted((n for n, x in acts.items() if x.ndim == 4), key=lambda n: -acts[n].shape[1])  # stable
    name = layer or ("tokens" if "tokens" in acts else ["", *maps][-1])
    if name not in acts:
        raise BadRequest(f"the backbone has no layer {layer!r}.{nearest(layer, acts)} It has: {', '.join(acts)}.")
    x = acts[name]
    if x.ndim == 4:
        return x
    n, (h, w) = x.shape[1] if x.ndim == 3 else 0, size
    patch = next((p for p in range(1, min(size) + 1) if h % p == w % p == 0 and 0 <= n - h * w // p**2 <= 1), 0)
    if not patch:
        raise BadRequest(f"the backbone's layer {name!r} has shape {x.shape}: neither maps nor tokens of patches.")
    return x[:, n - h * w // patch**2 :].reshape(x.shape[0], h // patch, w // patch, x.shape[-1])


class Probe(nn.Module):
    """head(norm(pool(layer of the backbone))), the backbone frozen and in evaluation mode.

    The backbone stays bit-identical: no gradient reaches it, its batch norms neither use nor change the statistics of a
    batch, and the optimizer skips it (`frozen_parameters`).

    Attributes:
      backbone: `__call__(image, *, train) -> (output, acts)`; its output is not used.
      num_classes: number of outputs.
      layer: name in `acts` of the layer that the head reads.
      pool: how the layer becomes a vector; see `pooled`.
      norm: a batch norm without scale and bias before the head (He et al. 2022, appendix A.1), so that one learning
        rate suits features of any scale.
      hidden: widths of layers with ReLU before the last; one of them is the adaptation layer FCa of Oquab et al. 2014.
      frozen: whether the backbone is frozen; otherwise it is trained with the head, from its initial parameters.
      dtype: of the computation.

    Reference: He et al. 2022, "Masked autoencoders are scalable vision learners", appendix A.1; Oquab et
    al. 2014, "Learning and transferring mid-level image representations using convolutional neural networks".
    """

    backbone: nn.Module
    num_classes: int
    layer: str = "features"
    pool: str = "mean"
    norm: bool = True
    hidden: tuple[int, ...] = ()
    frozen: bool = True
    dtype: Any = jnp.float32

    @property
    def frozen_parameters(self) -> str | None:
        """Regular expression of the parameters that the optimizer must not change."""
        return r"^backbone/" if self.frozen else None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        _, acts = self.backbone(x, train=train and not self.frozen)
        if self.frozen:
            acts = jax.lax.stop_gradient(acts)
        features = pooled(acts, self.layer, self.pool)
        x = features
        if self.norm:
            x = BatchNorm(use_scale=False, use_bias=False, epsilon=1e-6, name="norm")(x, train=train)
        x = x.astype(self.dtype)
        for i, width in enumerate(self.hidden):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"hidden{i}")(x))
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name="head")
        logits = head(x).astype(jnp.float32)
        return logits, {**acts, "features": features, "logits": logits}
