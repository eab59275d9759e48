"""MLP-Mixer, and the same network with gated MLPs."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest
from recvis_jax.models.layers import Acts, Dense, activation
from recvis_jax.models.norms import LayerNorm
from recvis_jax.models.tokens import Mlp, PatchEmbed, check_rates, check_tokens, drop_path, stack, zero_head

# Tolstikhin et al. 2021, table 1; the gated ones are timm's.
SIZES = {
    "s": dict(width=512, depth=8, tokens_dim=256, channels_dim=2048),
    "b": dict(width=768, depth=12, tokens_dim=384, channels_dim=3072),
    "l": dict(width=1024, depth=24, tokens_dim=512, channels_dim=4096),
}
_GATED = dict(width=384, tokens_dim=192, channels_dim=768, gated=True)
VARIANTS = {
    **{f"mixer_{size}{p}": dict(patch_size=p, **kw) for size, kw in SIZES.items() for p in (16, 32)},
    **{f"gmixer_{depth}": dict(depth=depth, **_GATED) for depth in (12, 24)},
}


class GatedMlp(nn.Module):
    """fc2(a * silu(b)) with (a, b) = fc1(x), on the last axis.

    Attributes:
      hidden: width of a and of b.
      kernel_init: initialiser of both kernels.
      dtype: of the computation.

    Reference: Shazeer 2020, "GLU variants improve transformer", with the gate in the second half.
    """

    hidden: int
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        dense = partial(Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        a, b = jnp.split(dense(2 * self.hidden, name="fc1")(x), 2, axis=-1)
        return dense(x.shape[-1], name="fc2")(a * nn.silu(b))


class Block(nn.Module):
    """x + mlp_tokens(norm(x)^T)^T, then x + mlp_channels(norm(x)).

    Attributes:
      tokens_dim: hidden width of the MLP over tokens.
      channels_dim: hidden width of the MLP over channels.
      act: elementwise function of MLPs that are not gated.
      gated: whether the MLPs are gated.
      dropout: probability that a unit of an MLP is dropped, in training.
      train: whether it is training.
      dtype: of the computation.
    """

    tokens_dim: int
    channels_dim: int
    act: Any
    gated: bool = False
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], keep: Float[Array, "b 2"] | None = None
    ) -> tuple[Float[Array, "b n d"], Acts]:
        norm = partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
        if self.gated:
            mlp = partial(GatedMlp, dtype=self.dtype)
        else:
            inits = dict(kernel_init=nn.initializers.lecun_normal(), bias_init=nn.initializers.zeros)
            kw = dict(act=self.act, dropout=self.dropout, train=self.train, dtype=self.dtype)
            mlp = partial(Mlp, **inits, **kw)  # type: ignore[assignment]
        y = norm(name="norm1")(x).swapaxes(1, 2)
        x = x + drop_path(mlp(self.tokens_dim, name="mlp_tokens")(y).swapaxes(1, 2), keep, 0)
        x = x + drop_path(mlp(self.channels_dim, name="mlp_channels")(norm(name="norm2")(x)), keep, 1)
        return x, {"out": x}


class Mixer(nn.Module):
    """Patches to tokens, blocks of an MLP across tokens and one across channels, norm, mean, head.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out, and the features are the output.
      patch_size: rows and columns of a patch, in pixels.
      width: channels of a token.
      depth: number of blocks.
      tokens_dim: hidden width of the MLPs across tokens.
      channels_dim: hidden width of the MLPs across channels.
      activation: elementwise function of the MLPs; published JAX weights were trained with 'gelu_tanh'.
      gated: whether the MLPs are gated, by silu; gated MLPs have no dropout of units.
      dropout: probability that a unit of an MLP is dropped, in training.
      drop_path: probability that the last block's branches are dropped for an example in training, growing linearly
        from 0 in the first block.
      remat: computes the blocks' intermediates again in the backward pass instead of keeping them.
      scan: compiles one block and loops over stacked parameters (`recvis_jax.models.scan` converts them).
      dtype: of the computation.

    Raises:
      BadRequest: an image that is not made of whole patches, or has another number of them than the parameters; an
        unknown activation; a probability outside [0, 1).

    Reference: Tolstikhin et al. 2021, "MLP-Mixer: an all-MLP architecture for vision".
    """

    num_classes: int = 1000
    patch_size: int = 16
    width: int = 512
    depth: int = 8
    tokens_dim: int = 256
    channels_dim: int = 2048
    activation: str = "gelu"
    gated: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_rates(dropout=self.dropout, drop_path=self.drop_path)
        activation(self.activation)
        if self.gated and self.dropout:
            raise BadRequest("gated MLPs have no dropout of units; use drop_path, which drops branches.")
        if self.gated and self.activation != "gelu":
            raise BadRequest(f"gated MLPs always use silu; activation={self.activation!r} has no effect.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        images = f"{x.shape[1]}x{x.shape[2]} images"
        x = PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(x)
        first = "blocks" if self.scan else "block0"
        check_tokens(self, x.shape[1], f"params/{first}/mlp_tokens/fc1/kernel", -2, images)
        act = activation(self.activation)
        kw = dict(act=act, gated=self.gated, dropout=self.dropout, train=train, dtype=self.dtype)
        block = partial(Block, tokens_dim=self.tokens_dim, channels_dim=self.channels_dim, **kw)
        acts = {"stem": x}
        rate = self.drop_path if train else 0.0
        x, inner = stack(block, x, self.depth, rate=rate, remat=self.remat, scan=self.scan)
        x = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        features = x.mean(1, dtype=jnp.float32).astype(self.dtype)
        return zero_head({**acts, **inner, "tokens": x, "features": features}, self.num_classes, self.dtype)
