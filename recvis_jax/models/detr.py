"""DETR: a convolutional backbone, a Transformer, and a fixed set of queries that each say one object or none."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.attention import check_heads
from recvis_jax.models.conv_layers import torch_bias, torch_dense, torch_kernel
from recvis_jax.models.layer_head import feature_map, frozen_of
from recvis_jax.models.layers import Acts, Conv, batch_split, global_avg_pool
from recvis_jax.models.norms import LayerNorm
from recvis_jax.models.tokens import check_rates
from recvis_jax.models.transformer import Layer

_SMALL = dict(name="resnet18", norm="frozen")
VARIANTS: dict[str, dict[str, Any]] = {
    "detr_r50": dict(backbone=dict(name="resnet50", norm="frozen")),
    "detr_r101": dict(backbone=dict(name="resnet101", norm="frozen")),
    "detr_r50_dc5": dict(backbone=dict(name="resnet50", norm="frozen", output_stride=16)),
    "detr_r101_dc5": dict(backbone=dict(name="resnet101", norm="frozen", output_stride=16)),
    "detr_tiny": dict(backbone=_SMALL, queries=20, width=128, heads=4, encoder_depth=2, decoder_depth=2, hidden=256),
}


def sine_positions(valid: Bool[Array, "b h w"], width: int) -> Float[Array, "b h w d"]:
    """Position embeddings of a picture in a padded image: the row in the first half of the width, then the column.

    Rows and columns are counted among the valid pixels and scaled to (0, 2 pi], so that they do not depend on the
    padding. Position p gives sin(p / 10000^(2 i / f)) and the cosine in columns 2 i and 2 i + 1 of f = d / 2.

    Args:
      valid: false on padding.
      width: d, divisible by 4.

    Example:
      >>> sine_positions(jnp.ones((1, 2, 3), bool), 8).shape
      (1, 2, 3, 8)

    Reference: Carion et al. 2020, appendix A.4, and its code, `PositionEmbeddingSine(normalize=True)`.
    """
    frequencies = 10_000.0 ** (2 * (np.arange(width // 2) // 2) / (width // 2))
    parts = []
    for axis in (1, 2):
        place = jnp.cumsum(valid, axis=axis, dtype=jnp.float32)
        last = jax.lax.slice_in_dim(place, place.shape[axis] - 1, place.shape[axis], axis=axis)
        angles = (place / (last + 1e-6) * (2 * math.pi))[..., None] / jnp.asarray(frequencies, jnp.float32)
        both = jnp.stack([jnp.sin(angles[..., 0::2]), jnp.cos(angles[..., 1::2])], axis=-1)
        parts.append(both.reshape(*place.shape, width // 2))
    return jnp.concatenate(parts, axis=-1)


def reduced(valid: Bool[Array, "b h w"], size: tuple[int, ...]) -> Bool[Array, "b i j"]:
    """Returns which pixels of a feature map of `size` (i, j) are valid: each is the image's pixel at its first corner.

    Example:
      >>> reduced(jnp.arange(6)[None, None] < jnp.full((1, 6, 1), 3), (2, 2))[0].tolist()
      [[True, False], [True, False]]
    """
    rows, columns = (np.arange(n) * full // n for n, full in zip(size, valid.shape[1:], strict=True))
    return valid[:, rows][:, :, columns]


class DETR(nn.Module):
    """Features of a backbone, an encoder, a decoder of learned queries, and two heads that all decoder layers share.

    Attributes:
      backbone: `__call__(image, *, train) -> (output, acts)`; its output is not used.
      num_classes: k; the output has k + 1 scores, of which the last is "no object".
      layer: name in the backbone's `acts` of its feature map; empty for the last one.
      queries: number of queries, the most objects that are found in an image.
      width: of the tokens.
      heads: of every attention.
      encoder_depth, decoder_depth: numbers of layers.
      hidden: width inside the MLPs.
      pre_norm: norms before the branches instead of after the sums.
      dropout: probability that a unit of a branch, or inside an MLP, is dropped, in training. (Attention weights are
        not dropped, as they are in the reference code.)
      dtype: of the computation.

    Raises:
      BadRequest: heads that do not divide the width, a width that 4 does not divide, a number below 1, or a backbone
        without feature maps.

    Reference: Carion et al. 2020, "End-to-end object detection with transformers". Equal to facebookresearch/detr.
    """

    backbone: nn.Module
    num_classes: int
    layer: str = ""
    queries: int = 100
    width: int = 256
    heads: int = 8
    encoder_depth: int = 6
    decoder_depth: int = 6
    hidden: int = 2048
    pre_norm: bool = False
    dropout: float = 0.1
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.width, self.heads)
        check_rates(dropout=self.dropout)
        if self.width % 4:
            raise BadRequest(f"width={self.width}; positions on two axes need a width divisible by 4.")
        if min(self.num_classes, self.queries, self.encoder_depth, self.decoder_depth, self.hidden) < 1:
            raise BadRequest("num_classes, queries, encoder_depth, decoder_depth and hidden must be at least 1.")

    @property
    def frozen_parameters(self) -> str | None:
        """Regular expression of the parameters that the optimizer must not change: the backbone's frozen norms."""
        return frozen_of(self.backbone)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool, valid: Bool[Array, "b h w"] | None = None
    ) -> tuple[Float[Array, "b q k"], Acts]:
        """Returns the scores of every query's classes, and the intermediates.

        Args:
          x: images.
          train: whether dropout is on.
          valid: false on the padding around pictures of different sizes, to which no token attends; None for none.

        Returns:
          logits, of k classes and of "no object". Among the intermediates `boxes` (b q 4): centre, width and height as
          fractions of the whole image, and both of every decoder layer, `decoder{i}/logits` and `decoder{i}/boxes`.
        """
        acts = self.backbone(x, train=train)[1]
        features = feature_map(acts, self.layer, x.shape[1:3])
        valid = jnp.ones(features.shape[:3], bool) if valid is None else reduced(valid, features.shape[1:3])
        kw = dict(kernel_init=torch_kernel, bias_init=torch_bias(features.shape[-1]), dtype=self.dtype)
        acts["projected"] = features = Conv(self.width, (1, 1), name="project", **kw)(features)
        positions = sine_positions(valid, self.width).reshape(x.shape[0], -1, self.width).astype(self.dtype)
        keys = valid.reshape(x.shape[0], 1, 1, -1)
        memory = self.encode(features.reshape(x.shape[0], -1, self.width), positions, keys, train, acts)
        acts["features"] = global_avg_pool(memory[:, None])
        layers = self.decode(memory, positions, keys, train, acts)
        logits, boxes = self.read(jnp.stack(layers))
        for i in range(self.decoder_depth):
            acts |= {f"decoder{i}/logits": logits[i], f"decoder{i}/boxes": boxes[i]}
        acts |= {"boxes": boxes[-1], "logits": logits[-1]}
        return logits[-1], acts

    def encode(self, x: Array, positions: Array, keys: Array, train: bool, acts: Acts) -> Float[Array, "b n d"]:
        """Returns the memory, and adds the layers' outputs to `acts`."""
        x = batch_split(x)
        for i in range(self.encoder_depth):
            x, inner = self.block(f"encoder{i}", train)(x, keys, positions=positions)
            acts |= {f"encoder{i}": x, **{f"encoder{i}/{name}": a for name, a in inner.items()}}
        acts["memory"] = x = self.norm("encoder_norm")(x) if self.pre_norm else x
        return x

    def decode(
        self, memory: Array, positions: Array, keys: Array, train: bool, acts: Acts
    ) -> list[Float[Array, "b q d"]]:
        """Returns the normalised output of every decoder layer, which are also added to `acts`."""
        queries = self.param("queries_embed", nn.initializers.normal(1.0), (self.queries, self.width))
        queries = jnp.asarray(queries, self.dtype)[None]
        x = batch_split(jnp.zeros((memory.shape[0], *queries.shape[1:]), self.dtype))
        norm, out = self.norm("decoder_norm"), []
        for i in range(self.decoder_depth):
            block = self.block(f"decoder{i}", train)
            x, inner = block(x, None, memory, keys, positions=queries, memory_positions=positions)
            out.append(norm(x))
            acts |= {f"decoder{i}": out[-1], **{f"decoder{i}/{name}": a for name, a in inner.items()}}
        return out

    def read(self, x: Float[Array, "l b q d"]) -> tuple[Float[Array, "l b q k"], Float[Array, "l b q 4"]]:
        """Returns logits and boxes of the tokens of all decoder layers."""
        dense = partial(torch_dense, fan_in=self.width, dtype=self.dtype)
        logits = dense(self.num_classes + 1, name="head")(x).astype(jnp.float32)
        for i in range(2):
            x = nn.relu(dense(self.width, name=f"box_head{i}")(x))
        return logits, nn.sigmoid(dense(4, name="box_head2")(x).astype(jnp.float32))

    def block(self, name: str, train: bool) -> Layer:
        """Returns the Transformer's layer of that name."""
        kw = dict(pre_norm=self.pre_norm, dropout=self.dropout, train=train, dtype=self.dtype, name=name)
        return Layer(self.heads, self.hidden, nn.relu, **kw)

    def norm(self, name: str) -> LayerNorm:
        """Returns the layer norm of that name."""
        return LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)
