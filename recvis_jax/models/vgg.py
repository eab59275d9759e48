"""VGG networks, and the earlier "medium" network of the same group."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.conv_layers import adaptive_avg_pool, ceil_max_pool, dense_head, he_fan_out, local_response_norm
from recvis_jax.models.layers import Acts, Conv, flatten, global_avg_pool
from recvis_jax.models.norms import make_norm
from recvis_jax.operations import max_pool

# Configurations A, B, D and E of the paper's table 1: convolutions in each stage.
BLOCKS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
VARIANTS: dict[str, dict[str, Any]] = {
    f"{name}{suffix}": dict(blocks=blocks, norm=norm)
    for name, blocks in BLOCKS.items()
    for suffix, norm in (("", "none"), ("_bn", "batch"))
}

_normal = nn.initializers.normal(0.01)


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each ending in a 2x2 max pool, then two fully connected layers and the head.

    Stage s has `width` 2^(s-1) channels, at most 8 `width`. If the image is not 224x224, the last maps are averaged to
    7x7. Without fully connected layers, the features are the mean of the last maps.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out.
      blocks: number of convolutions of each stage.
      width: channels of the first stage.
      hidden: units of the fully connected layers.
      fully_connected: whether there are any, beside the head.
      norm: of every convolution: 'none' as in the paper, 'batch', 'layer', 'instance' or 'group'.
      dropout: probability that an output of a fully connected layer, or of the mean without these, is dropped in
        training.
      bn_groups: parts of the global batch with batch-norm statistics of their own.
      dtype: of the computation.

    Raises:
      BadRequest: images too small for the pools, sizes below 1, an unknown norm, or a dropout outside [0, 1).

    Reference: Simonyan & Zisserman 2014, "Very deep convolutional networks for large-scale image recognition". Equal to
      torchvision's `vgg.py`.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (2, 2, 3, 3, 3)
    width: int = 64
    hidden: int = 4096
    fully_connected: bool = True
    norm: str = "none"
    dropout: float = 0.5
    bn_groups: int = 1
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        make_norm(self.norm)
        _check_dropout(self.dropout)
        if not self.blocks or min(*self.blocks, self.width, self.hidden) < 1 or self.num_classes < 0:
            raise BadRequest(
                f"blocks={self.blocks}, width={self.width} and hidden={self.hidden} must be at least 1, "
                f"num_classes={self.num_classes} at least 0."
            )

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        _check_size(x, 2 ** len(self.blocks))
        norm, acts = make_norm(self.norm, bn_groups=self.bn_groups, dtype=self.dtype), {}
        x = x.astype(self.dtype)
        for stage, blocks in enumerate(self.blocks, 1):
            width = self.width * min(2 ** (stage - 1), 8)
            for block in range(1, blocks + 1):
                name = f"stage{stage}_conv{block}"
                x = Conv(width, (3, 3), padding=1, kernel_init=he_fan_out, dtype=self.dtype, name=name)(x)
                x = nn.relu(norm(name=f"stage{stage}_norm{block}")(x, train=train))
                acts[f"stage{stage}/block{block}"] = x
            acts[f"stage{stage}/pool"] = x = max_pool(x, 2)
        acts["stem"] = acts["stage1/block1"]
        if not self.fully_connected:
            acts["features"] = nn.Dropout(self.dropout, deterministic=not train)(global_avg_pool(x))
            return dense_head(acts, self.num_classes, self.dtype, _normal, nn.initializers.zeros)
        return _classify(flatten(adaptive_avg_pool(x, 7)), acts, self, train)


class VGGM(nn.Module):
    """The network CNN-M: five convolutions of 96, 256, 512, 512 and 512 channels, two of them of stride 2.

    Local response normalisation follows the first two; a 3x3 max pool of stride 2 follows these and the last one.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out.
      hidden: units of the fully connected layers.
      dropout: probability that an output of a fully connected layer is dropped in training.
      dtype: of the computation.

    Raises:
      BadRequest: images smaller than 59x59, or a dropout outside [0, 1).

    Reference: Chatfield et al. 2014, "Return of the devil in the details", table 1.
    """

    num_classes: int = 1000
    hidden: int = 4096
    dropout: float = 0.5
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_dropout(self.dropout)
        if self.hidden < 1 or self.num_classes < 0:
            raise BadRequest(f"hidden={self.hidden} must be at least 1, num_classes={self.num_classes} at least 0.")

    def conv(self, i: int, width: int, size: int, stride: int = 1, padding: int = 1) -> nn.Conv:
        return Conv(width, (size, size), stride, padding, kernel_init=_normal, dtype=self.dtype, name=f"conv{i}")

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        _check_size(x, 59)
        acts = {}
        acts["stem"] = x = nn.relu(self.conv(1, 96, 7, 2, 0)(x.astype(self.dtype)))
        x = max_pool(local_response_norm(x), 3, 2)
        acts["stage1/block1"] = x = nn.relu(self.conv(2, 256, 5, 2)(x))
        x = ceil_max_pool(local_response_norm(x), 3, 2)
        for block in (1, 2, 3):
            acts[f"stage2/block{block}"] = x = nn.relu(self.conv(block + 2, 512, 3)(x))
        acts["stage2/pool"] = x = max_pool(x, 3, 2)
        return _classify(flatten(adaptive_avg_pool(x, 6)), acts, self, train)


def _classify(x: Float[Array, "b n"], acts: Acts, model: VGG | VGGM, train: bool) -> tuple[Float[Array, "b k"], Acts]:
    """Ends a network: two fully connected layers with ReLU and dropout, and the head."""
    for name in ("fc6", "fc7"):
        x = nn.relu(nn.Dense(model.hidden, kernel_init=_normal, dtype=model.dtype, name=name)(x))
        acts[name] = x = nn.Dropout(model.dropout, deterministic=not train)(x)
    acts["features"] = x
    return dense_head(acts, model.num_classes, model.dtype, _normal, nn.initializers.zeros)


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise BadRequest(f"dropout={dropout} is outside [0, 1).")


def _check_size(x: Float[Array, "b h w c"], smallest: int) -> None:
    if min(x.shape[1:3]) < smallest:
        raise BadRequest(f"images must be at least {smallest}x{smallest}, not {x.shape[1]}x{x.shape[2]}.")
