"""The feed-forward-only network: a Vision Transformer with an MLP across tokens in place of attention."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.models.conv_layers import dense_head
from recvis_jax.models.layers import Acts, activation
from recvis_jax.models.norms import LayerNorm
from recvis_jax.models.tokens import (
    Mlp,
    PatchEmbed,
    check_rates,
    check_tokens,
    drop_path,
    prepend,
    stack,
    trunc_normal,
)

VARIANTS = {
    "ff_only_ti16": dict(width=192),
    "ff_only_b16": dict(width=768),
    "ff_only_l32": dict(patch_size=32, width=1024, depth=24),
}


class Block(nn.Module):
    """x + mlp_channels(norm(x)), then, transposed, x + mlp_tokens(norm(x)); both MLPs are 4 times as wide inside.

    The second norm is over the tokens of a channel.

    Attributes:
      dropout: probability that a unit of an MLP is dropped, in training.
      train: whether it is training.
      dtype: of the computation.
    """

    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], keep: Float[Array, "b 2"] | None = None
    ) -> tuple[Float[Array, "b n d"], Acts]:
        norm = partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
        inits = dict(kernel_init=trunc_normal, bias_init=nn.initializers.zeros)
        kw = dict(act=activation("gelu"), dropout=self.dropout, train=self.train, dtype=self.dtype, **inits)
        x = x + drop_path(Mlp(4 * x.shape[-1], name="mlp_channels", **kw)(norm(name="norm1")(x)), keep, 0)
        x = x.swapaxes(1, 2)
        x = x + drop_path(Mlp(4 * x.shape[-1], name="mlp_tokens", **kw)(norm(name="norm2")(x)), keep, 1)
        x = x.swapaxes(1, 2)
        return x, {"out": x}


class FFOnly(nn.Module):
    """Patches to tokens, a class token, positions, blocks of two MLPs, norm, and the head on the class token.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out, and the features are the output.
      patch_size: rows and columns of a patch, in pixels.
      width: channels of a token.
      depth: number of blocks.
      dropout: probability that a unit of the embedded tokens or of an MLP is dropped, in training.
      drop_path: probability that the last block's branches are dropped for an example in training, growing linearly
        from 0 in the first block.
      remat: computes the blocks' intermediates again in the backward pass instead of keeping them.
      scan: compiles one block and loops over stacked parameters (`recvis_jax.models.scan` converts them).
      dtype: of the computation.

    Raises:
      BadRequest: an image that is not made of whole patches, or has another number of them than the parameters; a
        probability outside [0, 1).

    Reference: Melas-Kyriazi 2021, "Do you even need attention? A stack of feed-forward layers does surprisingly well on
    ImageNet".
    """

    num_classes: int = 1000
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_rates(dropout=self.dropout, drop_path=self.drop_path)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        images = f"{x.shape[1]}x{x.shape[2]} images"
        x = PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(x)
        acts = {"stem": x}
        x = prepend(self.param("cls_token", trunc_normal, (1, 1, self.width)), x)
        check_tokens(self, x.shape[1], "params/pos_embed", 1, images)
        x = x + self.param("pos_embed", trunc_normal, (1, *x.shape[1:])).astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        block = partial(Block, dropout=self.dropout, train=train, dtype=self.dtype)
        rate = self.drop_path if train else 0.0
        x, inner = stack(block, x, self.depth, rate=rate, remat=self.remat, scan=self.scan)
        x = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        acts = {**acts, **inner, "tokens": x, "features": x[:, 0]}
        return dense_head(acts, self.num_classes, self.dtype, trunc_normal, nn.initializers.zeros)
