"""Masked autoencoder: an encoder of the visible patches, a small decoder of all."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recvis_jax.errors import BadRequest
from recvis_jax.models.attention import check_heads, xavier_uniform
from recvis_jax.models.layers import Acts, Dense, activation
from recvis_jax.models.norms import LayerNorm
from recvis_jax.models.tokens import PatchEmbed, check_tokens, patch_grid, prepend, sincos2d, stack
from recvis_jax.models.vit import SIZES, Block

# He et al. 2022: the encoders of the Vision Transformer; the decoder is the same for all.
VARIANTS = {f"mae_{size}{p}": dict(patch_size=p, **SIZES[size]) for size, p in (("b", 16), ("l", 16), ("h", 14))}


def patchify(images: Float[Array, "b h w c"], patch_size: int) -> Float[Array, "b n d"]:
    """Cuts images into patches, row by row; the values of a patch are in the order (row, column, channel).

    Raises:
      BadRequest: the image is not made of whole patches.
    """
    (rows, columns), (b, c) = patch_grid(images.shape[1:3], patch_size), images.shape[::3]
    x = images.reshape(b, rows, patch_size, columns, patch_size, c).swapaxes(2, 3)
    return x.reshape(b, rows * columns, patch_size * patch_size * c)


def unpatchify(patches: Float[Array, "b n d"], patch_size: int, size: tuple[int, int]) -> Float[Array, "b h w c"]:
    """Assembles patches into images of `size` (h, w); the inverse of `patchify`.

    Raises:
      BadRequest: an image of this size has another number of patches.
    """
    (rows, columns), (b, n, d) = patch_grid(size, patch_size), patches.shape
    if rows * columns != n or d % patch_size**2:
        raise BadRequest(
            f"{n} patches of {d} values do not make a {size[0]}x{size[1]} image of {patch_size}x{patch_size} patches."
        )
    x = patches.reshape(b, rows, columns, patch_size, patch_size, -1).swapaxes(2, 3)
    return x.reshape(b, *size, -1)


def random_masking(
    noise: Float[Array, "b n"], keep: int
) -> tuple[Int[Array, "b k"], Float[Array, "b n"], Int[Array, "b n"]]:
    """Keeps the `keep` patches with the least noise.

    Args:
      noise: a number for every patch, for instance from `jax.random.uniform`.
      keep: number of visible patches.

    Returns:
      ids_keep: the visible patches, by increasing noise.
      mask: 1 for a masked patch, 0 for a visible one.
      ids_restore: the place of every patch in the order of increasing noise; visible patches come first.
    """
    order = jnp.argsort(noise, axis=1)
    ids_restore = jnp.argsort(order, axis=1)
    return order[:, :keep], (ids_restore >= keep).astype(jnp.float32), ids_restore


class MAE(nn.Module):
    """Patches, positions, random masking, encoder; mask tokens, decoder, and the predicted values of every patch.

    Both position embeddings are fixed sines and cosines, not parameters. They are kept in the collection `constants`
    because published files contain them.

    Attributes:
      patch_size: rows and columns of a patch, in pixels.
      width, depth, heads: of the encoder.
      decoder_width, decoder_depth, decoder_heads: of the decoder.
      mask_ratio: fraction of the patches that the encoder does not see, in [0, 1).
      encoder_mask_tokens: gives the encoder a mask token in place of every masked patch, so that it has as many tokens
        as the decoder; the slower and worse variant of the ablation (table 1c, "encoder w/ [M]").
      norm_eps: added to the variance in layer norms.
      remat: computes the blocks' intermediates again in the backward pass instead of keeping them.
      scan: compiles one block and loops over stacked parameters (`recvis_jax.models.scan` converts them).
      dtype: of the computation.

    Raises:
      BadRequest: an image that is not made of whole patches, or has another number of them than the positions; a mask
        ratio that leaves no patch visible; heads that do not divide a width; noise whose shape is not (b n).

    Reference: He et al. 2022, "Masked autoencoders are scalable vision learners".
    """

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mask_ratio: float = 0.75
    encoder_mask_tokens: bool = False
    norm_eps: float = 1e-6
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_heads(self.width, self.heads)
        check_heads(self.decoder_width, self.decoder_heads)
        if not 0 <= self.mask_ratio < 1:
            raise BadRequest(f"mask_ratio={self.mask_ratio} is outside [0, 1).")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool, noise: Float[Array, "b n"] | None = None
    ) -> tuple[Float[Array, "b n d"], Acts]:
        """Returns the predicted patches, in the layout of `patchify`, and the intermediates.

        Args:
          x: images.
          train: whether it is training; then, unless noise is given, it is drawn from the stream "dropout".
          noise: a number for every patch; patches with the least noise are visible. In evaluation without noise, all
            are visible.

        Returns:
          pred: the values of every patch.
          acts: among others `mask` (b n), 1 where a patch was masked; `ids_restore` (b n); `latent`, the encoder's
            normalised output for the class token and the visible patches; `features`, that of the class token.
        """
        b, channels, grid = x.shape[0], x.shape[-1], patch_grid(x.shape[1:3], self.patch_size)
        images, n = f"{x.shape[1]}x{x.shape[2]} images", grid[0] * grid[1]
        if noise is None and train:
            noise = jax.random.uniform(self.make_rng("dropout"), (b, n))
        if noise is not None and noise.shape != (b, n):
            raise BadRequest(f"noise is of shape {noise.shape}; {b} {images} have {(b, n)} patches.")
        keep = n if noise is None else int(n * (1 - self.mask_ratio))
        if not keep:
            raise BadRequest(f"mask_ratio={self.mask_ratio} leaves none of {n} patches visible.")
        noise = jnp.broadcast_to(jnp.arange(n, dtype=jnp.float32), (b, n)) if noise is None else noise
        ids_keep, mask, ids_restore = random_masking(noise, keep)
        small = nn.initializers.normal(0.02)
        norm = partial(LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
        dense = partial(Dense, kernel_init=xavier_uniform, dtype=self.dtype)

        embed = PatchEmbed(self.width, self.patch_size, patch_xavier, dtype=self.dtype, name="patch_embed")
        acts: Acts = {"mask": mask, "ids_restore": ids_restore, "stem": (x := embed(x))}
        positions = self.positions("pos_embed", grid, self.width, images)
        if self.encoder_mask_tokens:
            token = self.param("mask_token", small, (1, 1, self.width)).astype(self.dtype)
            x = jnp.where(mask[..., None] > 0, token, x) + positions[:, 1:]
        else:
            x = jnp.take_along_axis(x + positions[:, 1:], ids_keep[..., None], axis=1)
        x = prepend(self.param("cls_token", small, (1, 1, self.width)).astype(self.dtype) + positions[:, :1], x)
        acts["latent"] = x = norm(name="norm")(self.blocks("block", x, self.depth, self.heads, train, acts))
        acts["features"] = x[:, 0]

        acts["decoder_embed"] = x = dense(self.decoder_width, name="decoder_embed")(x)
        if not self.encoder_mask_tokens:
            token = self.param("mask_token", small, (1, 1, self.decoder_width)).astype(self.dtype)
            patches = jnp.concatenate([x[:, 1:], jnp.broadcast_to(token, (b, n - keep, self.decoder_width))], axis=1)
            patches = jnp.take_along_axis(patches, ids_restore[..., None], axis=1)
            x = jnp.concatenate([x[:, :1], patches], axis=1)
        x = x + self.positions("decoder_pos_embed", grid, self.decoder_width, images)
        x = norm(name="decoder_norm")(
            self.blocks("decoder_block", x, self.decoder_depth, self.decoder_heads, train, acts)
        )
        pred = dense(self.patch_size**2 * channels, name="decoder_pred")(x)[:, 1:].astype(jnp.float32)
        return pred, {**acts, "pred": pred}

    def blocks(
        self, name: str, x: Float[Array, "b n d"], depth: int, heads: int, train: bool, acts: Acts
    ) -> Float[Array, "b n d"]:
        """Applies the blocks of the encoder or decoder, and adds their intermediates to `acts`."""
        block = partial(Block, heads=heads, act=activation("gelu"), norm_eps=self.norm_eps, dtype=self.dtype)
        x, inner = stack(partial(block, train=train), x, depth, remat=self.remat, scan=self.scan, name=name)
        acts |= inner
        return x

    def positions(self, name: str, grid: tuple[int, int], width: int, images: str) -> Float[Array, "1 m d"]:
        """Returns the position embeddings of the class token (zeros) and of the patches."""
        n = 1 + grid[0] * grid[1]
        check_tokens(self, n, f"constants/{name}", 1, images)
        table = self.variable("constants", name, lambda: jnp.pad(sincos2d(*grid, width), ((1, 0), (0, 0)))[None])
        return table.value.astype(self.dtype)


def patch_xavier(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Draws the patch embedding's kernel with Glorot's rule for a linear layer, not for a convolution."""
    return xavier_uniform(key, (shape[0] * shape[1] * shape[2], shape[3]), dtype).reshape(shape)
