"""A dense detector: every object is the point of its centre, with a size."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.conv_layers import he_fan_out
from recvis_jax.models.layer_head import feature_map, frozen_of
from recvis_jax.models.layers import Acts, Conv, global_avg_pool
from recvis_jax.models.norms import make_norm

VARIANTS: dict[str, dict[str, Any]] = {
    "centre_r18": dict(backbone=dict(name="resnet18")),
    "centre_r50": dict(backbone=dict(name="resnet50")),
}


class CentrePoints(nn.Module):
    """Features of a backbone, enlarged to a fine map, of whose every place three heads speak.

    Each enlargement doubles rows and columns (nearest pixel), adds the backbone's map of that size where there is one,
    through a 1x1 convolution, and smooths by a 3x3 convolution. (The paper's networks enlarge by transposed
    convolutions.)

    Attributes:
      backbone: `__call__(image, *, train) -> (output, acts)`; its output is not used.
      num_classes: k.
      layer: name in the backbone's `acts` of its feature map; empty for the last one.
      stride: pixels of the image for one of the fine map, a power of two.
      width: channels of the enlarged maps and of the heads.
      norm: of the enlarged maps, see `make_norm`.
      dtype: of the computation.

    Raises:
      BadRequest: sizes below 1, an unknown norm, or images that the map's pixels do not cover evenly.

    Reference: Zhou, Wang & Krähenbühl 2019, "Objects as points".
    """

    backbone: nn.Module
    num_classes: int
    layer: str = ""
    stride: int = 4
    width: int = 64
    norm: str = "batch"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        make_norm(self.norm)
        if min(self.num_classes, self.width, self.stride) < 1 or self.stride & (self.stride - 1):
            raise BadRequest(
                f"num_classes={self.num_classes} and width={self.width} must be at least 1, stride={self.stride} a "
                "power of two."
            )

    @property
    def frozen_parameters(self) -> str | None:
        """Regular expression of the parameters that the optimizer must not change: the backbone's frozen norms."""
        return frozen_of(self.backbone)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool, valid: Bool[Array, "b h w"] | None = None
    ) -> tuple[Float[Array, "b i j k"], Acts]:
        """Returns the scores of a centre of each class at every place, and the intermediates.

        Args:
          x: images.
          train: whether it is training.
          valid: false on padding, where nothing is found; None for none.

        Returns:
          logits, of which the sigmoid is the probability of a centre. Among the intermediates `sizes` (b i j 2), width
          and height in pixels of the image, and `offsets` (b i j 2), x y of the centre within its place in [0, 1).
        """
        image, acts = x, self.backbone(x, train=train)[1]
        maps = [a for a in acts.values() if a.ndim == 4]
        x = self.conv("project", 1)(feature_map(acts, self.layer, image.shape[1:3]))
        norm, step = make_norm(self.norm, dtype=self.dtype), 0
        while x.shape[1] * self.stride < image.shape[1]:
            x = x.repeat(2, 1).repeat(2, 2)
            if skip := [a for a in maps if a.shape[1:3] == x.shape[1:3]]:
                x = x + self.conv(f"skip{step}", 1)(skip[-1])
            x = nn.relu(norm(name=f"norm{step}")(self.conv(f"smooth{step}", 3)(x), train=train))
            acts[f"enlarged{step}"], step = x, step + 1
        if (x.shape[1] * self.stride, x.shape[2] * self.stride) != image.shape[1:3]:
            raise BadRequest(
                f"images of {image.shape[1]}x{image.shape[2]} give a map of {x.shape[1]}x{x.shape[2]}, not one of a "
                f"{self.stride}th: sides must be multiples of the backbone's stride."
            )
        acts["features"] = global_avg_pool(x)
        logits = self.head("heat", x, self.num_classes, -2.19)  # so that a centre is 10 % probable at first
        if valid is not None:
            logits = jnp.where(valid[:, :: self.stride, :: self.stride, None], logits, -1e4)
        acts["sizes"] = jax.nn.softplus(self.head("size", x, 2, 2.0)) * self.stride
        acts["offsets"] = nn.sigmoid(self.head("offset", x, 2, 0.0))
        return logits, {**acts, "logits": logits}

    def conv(self, name: str, size: int) -> nn.Conv:
        """Returns the convolution of that name."""
        kw = dict(padding=size // 2, kernel_init=he_fan_out, dtype=self.dtype, name=name)
        return Conv(self.width, (size, size), **kw)

    def head(self, name: str, x: Array, width: int, bias: float) -> Float[Array, "b i j d"]:
        """Returns the values of a head: a 3x3 convolution, ReLU and a 1x1 convolution that starts near `bias`."""
        x = nn.relu(self.conv(f"{name}_hidden", 3)(x))
        kw = dict(kernel_init=nn.initializers.normal(1e-3), bias_init=nn.initializers.constant(bias), dtype=self.dtype)
        return Conv(width, (1, 1), name="head" if name == "heat" else name, **kw)(x).astype(jnp.float32)
