"""Adaptations of a checkpoint to another head, grid of patches or number of input channels; only on request."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from recvis_jax.errors import BadRequest
from recvis_jax.pretrained.rules import Fit

# Our heads: the classifier, and those of GoogLeNet that only training uses.
HEAD = r"^params/(aux\d/)?head/"


def keep_head(found: Fit, heads: Mapping[str, Any], say: Callable[[str], None]) -> Fit:
    """Puts our own values in place of the checkpoint's heads, whether or not it has any.

    Args:
      found: the checkpoint.
      heads: our name -> initialised array, of all heads of the model; empty where it has none.
      say: is told.

    Raises:
      BadRequest: `heads` are shapes without values.
    """
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in heads.values()):
        raise BadRequest("new_head=True keeps the head of `variables`: they must be initialised, not shapes alone.")
    names = {name for name in found.source if re.search(HEAD, name)}
    theirs = {found.source[name] for name in names}
    unused = sorted(theirs.difference(found.missing))
    sizes = {np.shape(x)[-1] for x in heads.values()}
    ours = f"new head of {sizes.pop()} outputs" if sizes else "the model has no head"
    say(f"{ours}; " + (f"not used of the checkpoint: {', '.join(unused)}" if unused else "the checkpoint has none"))
    kept = {n: x for n, x in found.values.items() if n not in names}
    return found._replace(
        values={**kept, **{n: np.asarray(x) for n, x in heads.items()}},
        missing=[n for n in found.missing if n not in theirs],
        misshapen={n: s for n, s in found.misshapen.items() if n not in theirs},
    )


def resample_positions(
    found: Fit, template: Mapping[str, Any], grid: tuple[int, int] | None, say: Callable[[str], None]
) -> Fit:
    """Interpolates the position embeddings whose number differs from the model's; see `resample`.

    Args:
      found: the checkpoint.
      template: our name -> array or shape.
      grid: rows and columns of the model's patches; None for square images.
      say: is told.
    """
    values = dict(found.values)
    for name, x in found.values.items():
        shape = np.shape(template[name])
        if name.endswith("pos_embed") and x.ndim == 3 and x.shape[::2] == shape[::2] and x.shape != shape:
            prefix = int(f"{name.removesuffix('pos_embed')}cls_token" in template)
            new, old = grid or _square(shape[1] - prefix, name), _square(x.shape[1] - prefix, name)
            values[name] = resample(x, old, new, prefix)
            if values[name].shape != shape:
                raise BadRequest(f"resample={new} makes {values[name].shape[1]} positions; the model has {shape[1]}.")
            say(f"{name} resampled from {old[0]}x{old[1]} to {new[0]}x{new[1]} positions")
    return found._replace(values=values)


def _square(n: int, name: str) -> tuple[int, int]:
    side = math.isqrt(n)
    if side * side != n:
        raise BadRequest(f"the {n} positions of {name} are no square grid: give resample=(rows, columns).")
    return side, side


def resample(
    positions: Float[np.ndarray, "1 n d"], old: tuple[int, int], new: tuple[int, int], prefix: int = 0
) -> Float[np.ndarray, "1 m d"]:
    """Interpolates position embeddings bicubically to another grid, with antialiasing where it is smaller.

    Args:
      positions: first those of `prefix` tokens without a place (the class token's), which stay as they are, then those
        of the grid, row by row.
      old, new: rows and columns of the grids.
      prefix: number of tokens without a place.

    Reference: timm's `resample_abs_pos_embed`, that is torch's `interpolate(mode="bicubic", antialias=True)`.
    """
    head, grid = positions[:, :prefix], positions[0, prefix:].astype(np.float64).reshape(*old, -1)
    rows, columns = (cubic_weights(n, m) for n, m in zip(old, new, strict=True))
    out = np.einsum("ah,bw,hwd->abd", rows, columns, grid, optimize=True)
    return np.concatenate([head, out.reshape(1, -1, positions.shape[-1]).astype(positions.dtype)], axis=1)


def cubic_weights(old: int, new: int) -> Float[np.ndarray, "m n"]:
    """Weights of `old` samples in each of `new`, by Keys' cubic (a = -1/2) with pixel centres at half integers.

    For fewer samples the kernel is stretched by old / new; at the borders the weights inside are normalised to 1.
    """
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    t = np.abs(np.arange(old) - centres[:, None]) / scale
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


def adapt_channels(found: Fit, template: Mapping[str, Any], say: Callable[[str], None]) -> Fit:
    """Turns a convolution that reads RGB into one that reads another number of channels.

    For one channel the three kernels are added. For c others they are repeated in order (R G B R ...) and multiplied
    by 3 / c, so that an input of equal channels gives what it gave.

    Reference: timm's `adapt_input_conv`.
    """
    values = dict(found.values)
    for name, x in found.values.items():
        shape = np.shape(template[name])
        differs = [i for i, (a, b) in enumerate(zip(np.shape(x), shape, strict=False)) if a != b]
        if x.ndim == len(shape) == 4 and differs == [2] and x.shape[2] == 3:
            c = shape[2]
            wide = x.sum(2, keepdims=True) if c == 1 else x[:, :, np.arange(c) % 3] * np.asarray(3 / c, x.dtype)
            values[name] = wide
            say(f"{name} adapted from 3 to {c} input channel{'s' * (c > 1)}")
    return found._replace(values=values)


def encoder_alone(
    tensors: Mapping[str, Any], template: Mapping[str, Any], say: Callable[[str], None]
) -> Mapping[str, Any]:
    """Turns a masked autoencoder's variables, where they are for another model, into those of its encoder as a ViT's.

    Its fixed positions become the values at which learnt ones start; without a class token theirs goes too.

    Args:
      tensors: our name -> array; what is no masked autoencoder, or is for one, stays as it is.
      template: our name -> array or shape, of the model.
      say: is told.
    """
    if "params/decoder_embed/kernel" not in tensors or "params/decoder_embed/kernel" in template:
        return tensors
    out = {n: x for n, x in tensors.items() if not re.match(r"(params|constants)/(decoder_|mask_token)", n)}
    positions = out.pop("constants/pos_embed")
    if "params/cls_token" not in template:
        out.pop("params/cls_token")
        positions = positions[:, 1:]
    if "params/pos_embed" in template:
        out["params/pos_embed"] = positions
    say("a masked autoencoder: its encoder is taken, its decoder is not")
    return out
