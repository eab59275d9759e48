"""GoogLeNet, the first Inception network, with batch normalisation."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.conv_layers import adaptive_avg_pool, ceil_max_pool, dense_head, torch_bias
from recvis_jax.models.layers import Acts, Conv, flatten, global_avg_pool
from recvis_jax.models.norms import BatchNorm
from recvis_jax.operations import max_pool

# Channels of each block, columns of the paper's table 1: 1x1; 3x3 reduced, 3x3; 5x5 reduced, 5x5; projected pool.
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}

_normal = nn.initializers.normal(0.01)


class ConvNorm(nn.Module):
    """Convolution without bias that keeps the size, batch norm with epsilon 1e-3, ReLU."""

    width: int
    size: int
    stride: int = 1
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b i j d"]:
        kw = dict(use_bias=False, kernel_init=_normal, dtype=self.dtype, name="conv")
        x = Conv(self.width, (self.size, self.size), self.stride, self.size // 2, **kw)(x)
        return nn.relu(BatchNorm(self.bn_groups, epsilon=1e-3, dtype=self.dtype, name="norm")(x, train=train))


class Inception(nn.Module):
    """1x1, 3x3 and "5x5" convolutions and a max pool side by side; their channels are concatenated.

    The paper's 5x5 convolution is 3x3 here, as in torchvision's published weights.

    Attributes:
      widths: a row of `INCEPTION`.
      conv: constructor of `ConvNorm`.
    """

    widths: tuple[int, ...]
    conv: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w d"]:
        a, b0, b, c0, c, d = self.widths
        branches = (("branch1", x, (a, 1)), ("branch2", x, (b0, 1), (b, 3)), ("branch3", x, (c0, 1), (c, 3)),
                    ("branch4", max_pool(x, 3, 1, padding=1), (d, 1)))  # fmt: skip
        out = []
        for name, y, *convs in branches:
            for i, (width, size) in enumerate(convs):
                y = self.conv(width, size, name=f"{name}_{i}")(y, train=train)
            out.append(y)
        return jnp.concatenate(out, axis=-1)


class AuxHead(nn.Module):
    """A classifier on an intermediate layer: mean over 4x4 bins, 1x1 convolution, fully connected layer, head."""

    num_classes: int
    dropout: float
    conv: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b k"]:
        x = flatten(self.conv(128, 1, name="conv")(adaptive_avg_pool(x, 4), train=train))
        dense = partial(nn.Dense, kernel_init=_normal, dtype=self.dtype)
        x = nn.relu(dense(1024, bias_init=torch_bias(2048), name="fc1")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return dense(self.num_classes, bias_init=torch_bias(1024), name="head")(x).astype(jnp.float32)


class GoogLeNet(nn.Module):
    """A stem of three convolutions, nine Inception blocks in three stages, global mean, head; two auxiliary heads.

    The auxiliary heads read blocks 4a and 4d; their outputs are the intermediates "aux1/logits" and "aux2/logits".
    In training, the paper adds 0.3 times their losses; prediction does not use them.

    Attributes:
      num_classes: number of outputs; 0 leaves all heads out.
      aux_logits: whether there are auxiliary heads.
      transform_input: converts images normalised by ImageNet's mean and standard deviation to (x - 0.5) / 0.5, the
        input of torchvision's published weights.
      dropout: probability that a feature is dropped before the head in training.
      dropout_aux: the same in the auxiliary heads.
      bn_groups: parts of the global batch with batch-norm statistics of their own.
      dtype: of the computation.

    Raises:
      BadRequest: images smaller than 15x15, a dropout outside [0, 1), or `transform_input` without 3 channels.

    Reference: Szegedy et al. 2014, "Going deeper with convolutions"; Ioffe & Szegedy 2015 for the norms. Equal to
      torchvision's `googlenet.py`.
    """

    num_classes: int = 1000
    aux_logits: bool = True
    transform_input: bool = False
    dropout: float = 0.2
    dropout_aux: float = 0.7
    bn_groups: int = 1
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1 or not 0 <= self.dropout_aux < 1 or self.num_classes < 0:
            raise BadRequest(
                f"dropout={self.dropout} and dropout_aux={self.dropout_aux} must be in [0, 1), "
                f"num_classes={self.num_classes} at least 0."
            )

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        if min(x.shape[1:3]) < 15:
            raise BadRequest(f"GoogLeNet needs images of at least 15x15, not {x.shape[1]}x{x.shape[2]}.")
        if self.transform_input:
            if x.shape[-1] != 3:
                raise BadRequest(f"transform_input=True needs images of 3 channels, not {x.shape[-1]}.")
            mean, std = jnp.array([0.485, 0.456, 0.406]), jnp.array([0.229, 0.224, 0.225])
            x = x * (std / 0.5) + (mean - 0.5) / 0.5
        conv = partial(ConvNorm, bn_groups=self.bn_groups, dtype=self.dtype)
        acts: Acts = {}
        acts["stem"] = x = conv(64, 7, 2, name="stem")(x.astype(self.dtype), train=train)
        acts["stage1/block1"] = x = conv(64, 1, name="conv2")(ceil_max_pool(x, 3, 2), train=train)
        acts["stage1/block2"] = x = conv(192, 3, name="conv3")(x, train=train)
        x = ceil_max_pool(x, 3, 2)
        for block, widths in INCEPTION.items():
            if block in ("4a", "5a"):
                x = ceil_max_pool(x, 3 if block == "4a" else 2, 2)
            x = Inception(widths, conv, name=f"inception{block}")(x, train=train)
            acts[f"stage{int(block[0]) - 1}/block{'abcde'.index(block[1]) + 1}"] = x
            if block in ("4a", "4d") and self.aux_logits and self.num_classes:
                name = "aux1" if block == "4a" else "aux2"
                aux = AuxHead(self.num_classes, self.dropout_aux, conv, self.dtype, name=name)
                acts[f"{name}/logits"] = aux(x, train=train)
        acts["features"] = nn.Dropout(self.dropout, deterministic=not train)(global_avg_pool(x))
        return dense_head(acts, self.num_classes, self.dtype, _normal)
