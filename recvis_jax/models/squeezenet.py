"""SqueezeNet: AlexNet's accuracy with fifty times fewer parameters."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.conv_layers import ceil_max_pool, he_fan_out
from recvis_jax.models.layers import Acts, Conv, global_avg_pool
from recvis_jax.operations import max_pool

# Stem (width, size), and before which fire modules (2 to 9) there is a max pool.
VARIANTS: dict[str, dict[str, Any]] = {
    "squeezenet1_0": dict(stem=(96, 7), pools=(2, 5, 9)),
    "squeezenet1_1": dict(stem=(64, 3), pools=(2, 4, 6)),
}
_last = nn.initializers.normal(0.01)


class Fire(nn.Module):
    """relu(squeeze(x)) by a 1x1 convolution, then relu of a 1x1 and a 3x3 convolution of it, side by side.

    Attributes:
      squeeze: channels of the first; the output has eight times as many.
      dtype: of the computation.
    """

    squeeze: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        def conv(width: int, size: int, name: str, x: Array) -> Array:
            kw = dict(padding=size // 2, kernel_init=he_fan_out, dtype=self.dtype, name=name)
            return nn.relu(Conv(width, (size, size), **kw)(x))

        x = conv(self.squeeze, 1, "squeeze", x)
        return jnp.concatenate([conv(4 * self.squeeze, s, f"expand{s}x{s}", x) for s in (1, 3)], axis=-1)


class SqueezeNet(nn.Module):
    """A stem of stride 2, fire modules with max pools among them, a 1x1 convolution, relu, global mean.

    Attributes:
      num_classes: number of outputs; 0 leaves the last convolution out.
      stem: channels, and rows and columns of the kernel, of the first convolution, which is not padded.
      squeezes: channels of the first convolutions of fire modules 2, 3, ...
      pools: fire modules, from 2, before which there is a max pool.
      ceil: whether pools take windows that reach over the right and bottom edge.
      dropout: probability that an input of the last convolution is dropped in training.
      dtype: of the computation.

    Raises:
      BadRequest: images smaller than 32x32, or a dropout outside [0, 1).

    Reference: Iandola et al. 2016, "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters". Equal to
      torchvision's `squeezenet.py`.
    """

    num_classes: int = 1000
    stem: tuple[int, int] = (96, 7)
    squeezes: tuple[int, ...] = (16, 16, 32, 32, 48, 48, 64, 64)
    pools: tuple[int, ...] = (2, 5, 9)
    ceil: bool = True
    dropout: float = 0.5
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1 or self.num_classes < 0:
            raise BadRequest(f"dropout={self.dropout} must be in [0, 1), num_classes={self.num_classes} at least 0.")
        if not self.squeezes or min(*self.squeezes, *self.stem) < 1:
            raise BadRequest(f"squeezes={self.squeezes} and stem={self.stem} must be at least 1.")
        if 2 not in self.pools:
            raise BadRequest(f"pools={self.pools}: there is one before fire module 2, behind the stem.")

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        if min(x.shape[1:3]) < 32:
            raise BadRequest(f"SqueezeNet needs images of at least 32x32, not {x.shape[1]}x{x.shape[2]}.")
        width, size = self.stem
        kw = dict(padding="VALID", kernel_init=he_fan_out, dtype=self.dtype)
        acts: Acts = {}
        acts["stem"] = x = nn.relu(Conv(width, (size, size), strides=2, name="stem", **kw)(x.astype(self.dtype)))
        stage = block = 0
        for i, squeeze in enumerate(self.squeezes, 2):
            if i in self.pools:
                x = ceil_max_pool(x, 3, 2) if self.ceil else max_pool(x, 3, 2)
                stage, block = stage + 1, 0
            block += 1
            acts[f"stage{stage}/block{block}"] = x = Fire(squeeze, self.dtype, name=f"fire{i}")(x)
        acts["features"] = global_avg_pool(x)
        if not self.num_classes:
            return acts["features"].astype(jnp.float32), acts
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.relu(Conv(self.num_classes, (1, 1), kernel_init=_last, dtype=self.dtype, name="head")(x))
        acts["logits"] = logits = global_avg_pool(x).astype(jnp.float32)
        return logits, acts
