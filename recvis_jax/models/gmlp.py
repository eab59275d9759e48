"""gMLP: MLPs whose hidden units are gated by a linear map across tokens."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.models.attention import xavier_uniform
from recvis_jax.models.layers import Acts, Dense, activation
from recvis_jax.models.norms import LayerNorm
from recvis_jax.models.tokens import PatchEmbed, check_rates, check_tokens, drop_path, stack, zero_head

# Liu et al. 2021, table 1.
VARIANTS = {f"gmlp_{size}16": dict(width=width) for size, width in (("ti", 128), ("s", 256), ("b", 512))}


class Block(nn.Module):
    """x + fc2(u * gate(norm(v)^T)^T) with (u, v) = gelu(fc1(norm(x))).

    The gate, a linear map across tokens, starts near the constant 1. Its layer norm adds 1e-5 to the variance, the
    others add 1e-6.

    Attributes:
      hidden: width of fc1: of u and v together.
      dtype: of the computation.
    """

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], keep: Float[Array, "b 2"] | None = None
    ) -> tuple[Float[Array, "b n d"], Acts]:
        dense = partial(Dense, kernel_init=xavier_uniform, dtype=self.dtype)
        small = nn.initializers.normal(1e-6)
        y = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        u, v = jnp.split(activation("gelu")(dense(self.hidden, bias_init=small, name="fc1")(y)), 2, axis=-1)
        v = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="gate_norm")(v).swapaxes(1, 2)
        gate = Dense(x.shape[1], kernel_init=small, bias_init=nn.initializers.ones, dtype=self.dtype, name="gate")
        y = dense(x.shape[-1], bias_init=small, name="fc2")(u * gate(v).swapaxes(1, 2))
        x = x + drop_path(y, keep, 0)
        return x, {"out": x}


class GMLP(nn.Module):
    """Patches to tokens, blocks of a gated MLP, norm, mean, head.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out, and the features are the output.
      patch_size: rows and columns of a patch, in pixels.
      width: channels of a token; fc1 has 6 times as many.
      depth: number of blocks.
      drop_path: probability that the last block's branch is dropped for an example in training, growing linearly from
        0 in the first block.
      remat: computes the blocks' intermediates again in the backward pass instead of keeping them.
      scan: compiles one block and loops over stacked parameters (`recvis_jax.models.scan` converts them).
      dtype: of the computation.

    Raises:
      BadRequest: an image that is not made of whole patches, or has another number of them than the parameters; a
        probability outside [0, 1).

    Reference: Liu et al. 2021, "Pay attention to MLPs".
    """

    num_classes: int = 1000
    patch_size: int = 16
    width: int = 256
    depth: int = 30
    drop_path: float = 0.0
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_rates(drop_path=self.drop_path)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        images = f"{x.shape[1]}x{x.shape[2]} images"
        x = PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(x)
        check_tokens(self, x.shape[1], f"params/{'blocks' if self.scan else 'block0'}/gate/kernel", -2, images)
        block = partial(Block, hidden=6 * self.width, dtype=self.dtype)
        acts = {"stem": x}
        rate = self.drop_path if train else 0.0
        x, inner = stack(block, x, self.depth, rate=rate, remat=self.remat, scan=self.scan)
        x = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        features = x.mean(1, dtype=jnp.float32).astype(self.dtype)
        return zero_head({**acts, **inner, "tokens": x, "features": features}, self.num_classes, self.dtype)
