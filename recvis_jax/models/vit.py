"""Vision Transformer."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest, choose
from recvis_jax.models.attention import MultiHeadAttention, check_heads
from recvis_jax.models.layers import Acts, activation
from recvis_jax.models.norms import LayerNorm
from recvis_jax.models.tokens import (
    Mlp,
    PatchEmbed,
    check_rates,
    check_tokens,
    drop_path,
    patch_grid,
    prepend,
    sincos2d,
    stack,
    zero_head,
)

# Width, depth and heads: Dosovitskiy et al. 2020, table 1, for B, L and H; Touvron et al. 2020 for Ti and S.
SIZES = {
    "ti": dict(width=192, depth=12, heads=3),
    "s": dict(width=384, depth=12, heads=6),
    "b": dict(width=768, depth=12, heads=12),
    "l": dict(width=1024, depth=24, heads=16),
    "h": dict(width=1280, depth=32, heads=16),
}
VARIANTS = {f"vit_{size}{p}": dict(patch_size=p, **kw) for size, kw in SIZES.items() for p in (8, 14, 16, 32)}

# Whether there is a class token, and whether the final norm comes before the pooling.
POOLS = {"cls": (True, True), "gap": (False, True), "gap_norm": (True, False), "map": (False, True)}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with an MLP of 4 times the width.

    Attributes:
      heads: of the attention.
      act: elementwise function of the MLP.
      norm_eps: added to the variance in layer norms.
      dropout: probability that a unit of a branch is dropped, in training.
      train: whether it is training.
      dtype: of the computation.
    """

    heads: int
    act: Any
    norm_eps: float = 1e-6
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], keep: Float[Array, "b 2"] | None = None
    ) -> tuple[Float[Array, "b n d"], Acts]:
        norm = partial(LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
        y, weights = MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")(norm(name="norm1")(x))
        x = x + drop_path(nn.Dropout(self.dropout, deterministic=not self.train)(y), keep, 0)
        mlp = Mlp(4 * x.shape[-1], self.act, self.dropout, self.train, dtype=self.dtype, name="mlp")
        x = x + drop_path(mlp(norm(name="norm2")(x)), keep, 1)
        return x, {"out": x, "attention": weights}


class AttentionPool(nn.Module):
    """A learnt query attends to the tokens, with result x; returns x + mlp(norm(x)).

    Attributes: as those of `Block`.

    Reference: Lee et al. 2019, "Set transformer", section 3.2; Zhai et al. 2022, "Scaling vision transformers", 3.3.
    """

    heads: int
    act: Any
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        b, _, d = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, d))
        probe = jnp.broadcast_to(probe.astype(self.dtype), (b, 1, d))
        y, _ = MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")(probe, x)
        z = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")(y)
        return (y + Mlp(4 * d, self.act, dtype=self.dtype, name="mlp")(z))[:, 0]


class ViT(nn.Module):
    """Patches to tokens, positions, blocks of attention and MLP, norm, pooling, head.

    Attributes:
      num_classes: number of outputs; 0 leaves the head out, and the features are the output.
      patch_size: rows and columns of a patch, in pixels.
      width: of a token.
      depth: number of blocks.
      heads: of every attention.
      pool: what the head reads. 'cls': the class token after the final norm, as in the paper; 'gap': the mean of the
        tokens after the final norm, without a class token (Beyer et al. 2022); 'gap_norm': the final norm of the mean
        of the patch tokens; there is a class token, but it is not read (fine-tuned masked autoencoders); 'map': a
        learnt query that attends to the tokens after the final norm, without a class token (Zhai et al. 2022).
      positions: 'learned', for one fixed grid of patches, with the class token first; or 'sincos2d', fixed, for any
        grid.
      pre_logits: a dense layer of the same width and tanh before the head, as in the paper's pre-training.
      activation: elementwise function of the MLPs; published JAX weights were trained with 'gelu_tanh'.
      norm_eps: added to the variance in layer norms.
      dropout: probability that a unit of the embedded tokens or of a branch is dropped, in training.
      drop_path: probability that the last block's branches are dropped for an example in training, growing linearly
        from 0 in the first block.
      remat: computes the blocks' intermediates again in the backward pass instead of keeping them.
      scan: compiles one block and loops over stacked parameters (`recvis_jax.models.scan` converts them).
      dtype: of the computation.

    Raises:
      BadRequest: an image that is not made of whole patches, or has another number of them than the learned positions;
        an unknown pool, positions or activation; heads that do not divide the width; a probability outside [0, 1).

    Reference: Dosovitskiy et al. 2020, "An image is worth 16x16 words"; Beyer et al. 2022, "Better plain ViT baselines
    for ImageNet-1k", for 'gap' and 'sincos2d'.
    """

    num_classes: int = 1000
    patch_size: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    pool: str = "cls"
    positions: str = "learned"
    pre_logits: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-6
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        choose(POOLS, self.pool, "pool")
        if self.positions not in ("learned", "sincos2d"):
            raise BadRequest(f"unknown positions {self.positions!r}. There are: learned, sincos2d.")
        activation(self.activation)
        check_heads(self.width, self.heads)
        check_rates(dropout=self.dropout, drop_path=self.drop_path)
        super().__post_init__()

    def embed(self, x: Float[Array, "b h w c"], train: bool) -> tuple[Float[Array, "b n d"], tuple[int, int], Acts]:
        """Returns the tokens of the image, rows and columns of their grid, and named intermediates."""
        grid = patch_grid(x.shape[1:3], self.patch_size)
        x = PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(x)
        return x, grid, {"stem": x}

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        has_cls, norm_first = POOLS[self.pool]
        act, image = activation(self.activation), x
        x, grid, acts = self.embed(x, train)
        x = self.add_positions(x, grid, has_cls, f"{image.shape[1]}x{image.shape[2]} images")
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        kw = dict(heads=self.heads, act=act, norm_eps=self.norm_eps, dtype=self.dtype)
        block = partial(Block, dropout=self.dropout, train=train, **kw)
        rate = self.drop_path if train else 0.0
        x, inner = stack(block, x, self.depth, rate=rate, remat=self.remat, scan=self.scan)
        norm = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name="norm")
        acts |= inner
        acts["tokens"] = x = norm(x) if norm_first else x
        if self.pool == "cls":
            x = x[:, 0]
        elif self.pool == "map":
            x = AttentionPool(**kw, name="pool")(x)
        else:
            x = x[:, int(has_cls) :].mean(1, dtype=jnp.float32).astype(self.dtype)
        x = x if norm_first else norm(x)
        if self.pre_logits:
            x = nn.tanh(nn.Dense(self.width, dtype=self.dtype, name="pre_logits")(x))
        return zero_head({**acts, "features": x}, self.num_classes, self.dtype)

    def add_positions(
        self, x: Float[Array, "b n d"], grid: tuple[int, int], has_cls: bool, images: str
    ) -> Float[Array, "b m d"]:
        """Puts the class token first, if there is one, and adds position embeddings."""
        if has_cls:
            x = prepend(self.param("cls_token", nn.initializers.zeros, (1, 1, self.width)), x)
        if self.positions == "learned":
            check_tokens(self, x.shape[1], "params/pos_embed", 1, images)
            positions = self.param("pos_embed", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        else:
            positions = jnp.pad(sincos2d(*grid, self.width, last=True), ((int(has_cls), 0), (0, 0)))
        return x + positions.astype(self.dtype)
