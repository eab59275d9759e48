"""Adapts a checkpoint to another head, grid of patches or number of input channels; only on request."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from recvis_jax.errors import BadRequest, brief
from recvis_jax.pretrained import grids
from recvis_jax.pretrained.parts import shape_of
from recvis_jax.pretrained.rules import Fit, differing

# Our heads: the classifier, and GoogLeNet's auxiliary heads, which only training uses.
HEAD = r"^params/(aux\d/)?head/"


def keep_head(found: Fit, heads: Mapping[str, Any], theirs: Iterable[str], say: Callable[[str], None]) -> Fit:
    """Uses our own values instead of the checkpoint's heads, whether or not it has any.

    Args:
      found: the checkpoint, without its heads.
      heads: our name -> initialised array, for all heads of the model; empty if it has none.
      theirs: names of heads that the checkpoint has.
      say: called with each line about what was done.

    Raises:
      BadRequest: `heads` are shapes without values.
    """
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in heads.values()):
        raise BadRequest("new_head=True keeps the head of `variables`: they must be initialised, not only shapes.")
    unused = sorted(theirs)
    sizes = {np.shape(x)[-1] for x in heads.values()}
    ours = f"new head of {sizes.pop()} outputs" if sizes else "the model has no head"
    shown = ", ".join(brief(n) for n in unused[:6])
    say(f"{ours}; " + (f"not used from the checkpoint: {shown}" if unused else "the checkpoint has none"))
    return found._replace(values={**found.values, **{n: np.asarray(x) for n, x in heads.items()}})


def fit_positions(
    found: Fit,
    template: Mapping[str, Any],
    asked: grids.Resample,
    trained: grids.Grid | None,
    model: grids.Grid | None,
    say: Callable[[str], None],
    spell: Callable[[str, Any], str],
) -> tuple[Fit, list[str]]:
    """Compares the grid of the checkpoint's positions with the model's, and interpolates on request.

    The checkpoint's grid is the given one, the one that the source recorded, or the one whose sines and cosines the
    positions equal. Otherwise it is assumed to be square, as in published weights, unless that would be a guess. The
    positions of a masked autoencoder are fixed: for another grid they are computed.

    Args:
      found: the checkpoint.
      template: our name -> array or shape.
      asked: the caller's request.
      trained: the grid that the source recorded.
      model: the model's grid, if the image size is known.
      say: called with each line about what was done.
      spell: (key, value) -> how the user writes an argument of `pretrained.load`.

    Returns:
      The checkpoint with the model's positions, and a list of what does not fit.

    Raises:
      BadRequest: the request contradicts the model or the checkpoint.
    """
    values, complaints = dict(found.values), []
    for name, x in found.values.items():
        shape, constant = np.shape(template[name]), name.startswith("constants/")
        if not name.endswith("pos_embed") or x.ndim != 3 or x.shape[::2] != shape[::2]:
            continue
        prefix = int(constant or "params/cls_token" in template)
        there, here = x.shape[1] - prefix, shape[1] - prefix
        new = _new_grid(asked, here, model, spell)
        if new is None and constant and not isinstance(template[name], jax.ShapeDtypeStruct):
            new = grids.of_fixed(np.asarray(template[name]), prefix)
        old = _old_grid(asked, there, trained, spell) or grids.of_fixed(x, prefix)
        if new is None and there == here and (old is None or grids.square(here) in (old, None)):
            continue  # the same, as far as is known
        new = new or grids.square(here)
        guess = old or (grids.square(there) if there != here or grids.square(there) == new else None)
        if new is None:
            how = spell("resample.new", "(rows, columns)")
            complaints.append(f"the model has {here} positions, which are not a square: give their grid by {how}")
        elif guess is None:
            how = spell("resample.old", "(rows, columns)")
            complaints.append(
                f"the grid of its {there} positions is not recorded, and the model's grid is {grids.text(new)}: "
                f"give it by {how}; {grids.text(new)} takes them unchanged"
                if there == here
                else f"its {there} positions are not a square: give their grid by {how}"
            )
        elif guess == new:
            continue
        elif constant and grids.of_fixed(x, prefix):
            values[name] = grids.fixed(new, shape[2], prefix)
            say(f"{name} computed for {grids.text(new)} patches; the checkpoint has {grids.text(guess)}")
        elif asked.wanted:
            values[name] = resample(x, guess, new, prefix)
            taken = "" if old else " (assumed square)"
            say(f"{name} resampled from {grids.text(guess)}{taken} to {grids.text(new)} positions")
        else:
            how = spell("resample", True)
            helps = f": {how} interpolates" if how else ""
            complaints.append(f"{name} is for {grids.text(guess)} patches, the model's for {grids.text(new)}{helps}")
    return found._replace(values=values), complaints


def _new_grid(
    asked: grids.Resample, n: int, model: grids.Grid | None, spell: Callable[[str, Any], str]
) -> grids.Grid | None:
    """Returns the grid of the model's n positions, from the caller or from the image size."""
    if asked.new and (math.prod(asked.new) != n or (model and asked.new != model)):
        real = f"its images are {grids.text(model)} patches" if model else f"it has {n} positions"
        raise BadRequest(f"{spell('resample.new', asked.new)} is not the model's grid: {real}.")
    return asked.new or (model if model and math.prod(model) == n else None)


def _old_grid(
    asked: grids.Resample, n: int, trained: grids.Grid | None, spell: Callable[[str, Any], str]
) -> grids.Grid | None:
    """Returns the grid of the checkpoint's n positions, from the caller or from the source."""
    trained = trained if trained and math.prod(trained) == n else None
    if asked.old and (math.prod(asked.old) != n or (trained and asked.old != trained)):
        real = f"it was trained on {grids.text(trained)} patches" if trained else f"it has {n} positions"
        raise BadRequest(f"{spell('resample.old', asked.old)} is not the checkpoint's grid: {real}.")
    return asked.old or trained


def check_mixing(trained: grids.Grid | None, model: grids.Grid | None, asked: grids.Resample) -> list[str]:
    """Returns what does not fit in a model that mixes patches, whose weights cannot be interpolated."""
    old = asked.old or trained
    if old and model and old != model and math.prod(old) == math.prod(model):
        return [f"its weights mix {grids.text(old)} patches, the model's {grids.text(model)}"]
    return []


def resample(
    positions: Float[np.ndarray, "1 n d"], old: tuple[int, int], new: tuple[int, int], prefix: int = 0
) -> Float[np.ndarray, "1 m d"]:
    """Interpolates position embeddings bicubically to another grid, with antialiasing if it is smaller.

    Args:
      positions: first those of `prefix` tokens outside the grid (the class token), which are kept, then those of the
        grid, row by row.
      old, new: rows and columns of the grids.
      prefix: number of tokens outside the grid.

    Reference: timm's `resample_abs_pos_embed`, which is torch's `interpolate(mode="bicubic", antialias=True)`.
    """
    head, grid = positions[:, :prefix], positions[0, prefix:].astype(np.float64).reshape(*old, -1)
    rows, columns = (cubic_weights(n, m) for n, m in zip(old, new, strict=True))
    out = np.einsum("ah,bw,hwd->abd", rows, columns, grid, optimize=True)
    return np.concatenate([head, out.reshape(1, -1, positions.shape[-1]).astype(positions.dtype)], axis=1)


def cubic_weights(old: int, new: int) -> Float[np.ndarray, "m n"]:
    """Weights of `old` samples in each of `new` ones, by Keys' cubic (a = -1/2) with pixel centres at half integers.

    With fewer new samples the kernel is stretched by old / new; at the borders, weights are normalised to sum to 1.
    """
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    t = np.abs(np.arange(old) - centres[:, None]) / scale
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


def adapt_channels(found: Fit, template: Mapping[str, Any], say: Callable[[str], None]) -> Fit:
    """Turns a convolution on RGB into one on another number of channels.

    For one channel, the three kernels are added. For another number c they are repeated in order (R G B R ...) and
    multiplied by 3 / c, so that an input with equal channels gives the same result.

    Reference: timm's `adapt_input_conv`.
    """
    values = dict(found.values)
    for name, x in found.values.items():
        shape = np.shape(template[name])
        if _other_channels(x, shape):
            c = shape[2]
            wide = x.sum(2, keepdims=True) if c == 1 else x[:, :, np.arange(c) % 3] * np.asarray(3 / c, x.dtype)
            values[name] = wide
            say(f"{name} adapted from 3 to {c} input channel{'s' * (c > 1)}")
    return found._replace(values=values)


def remedies(
    found: Fit,
    template: Mapping[str, Any],
    tensors: Mapping[str, Any],
    of_heads: set[str],
    heads: Mapping[str, Any],
    spell: Callable[[str, Any], str],
) -> list[str]:
    """Returns sentences on what would make a checkpoint fit, in the user's own notation.

    Args:
      found: the checkpoint in our layout.
      template: our name -> array or shape.
      tensors: of the checkpoint.
      of_heads: names of the heads in the checkpoint's library.
      heads: our name -> array or shape, for the model's heads.
      spell: (key, value) -> how the user writes an argument of `pretrained.load`.
    """
    differs = differing(found, template)
    theirs = {found.source[n] for n in differs} | {*found.missing} | {*found.misshapen} | {*found.unexpected}
    out = []
    if theirs & of_heads:
        sizes = [shape_of(tensors, n)[0] for n in of_heads if n in tensors and len(shape_of(tensors, n)) == 1]
        there = f"outputs: {sizes[0]} there" if sizes else "no head there"
        here = {np.shape(x)[-1] for x in heads.values()}
        new, count = spell("new_head", True), spell("num_classes", sizes[0]) if sizes else ""
        ways = [f"{new} starts a new head" if new else "", f"{count} makes as many" if count else ""]
        if ways := [w for w in ways if w]:
            out.append(f"{there}, {here.pop() if here else 'none'} here: {', or '.join(ways)}")
    if any(_other_channels(x, np.shape(template[n])) for n, x in differs.items()) and spell("adapt_stem", True):
        out.append(f"{spell('adapt_stem', True)} adapts the first convolution")
    if {*found.unexpected} - of_heads and spell("ignore", "REGEX") and not (theirs - of_heads - {*found.unexpected}):
        out.append(f"{spell('ignore', 'REGEX')} leaves names out")
    return out


def _other_channels(x: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a kernel (h w 3 d) differs from `shape` only in the number of input channels."""
    differs = [i for i, (a, b) in enumerate(zip(np.shape(x), shape, strict=False)) if a != b]
    return x.ndim == len(shape) == 4 and differs == [2] and x.shape[2] == 3


def without_decoder(tensors: Mapping[str, Any], used: set[str], say: Callable[[str], None]) -> Mapping[str, Any]:
    """Drops the decoder of another library's masked autoencoder if the model has none.

    Args:
      tensors: the library's name -> array.
      used: names that the model has in the library.
      say: called with each line about what was done.
    """
    decoder = [n for n in tensors if re.match(r"(decoder_|decoder\.|mask_token$|vit\.embeddings\.mask_token$)", n)]
    if not any(n.endswith("decoder_embed.weight") for n in decoder) or used.intersection(decoder):
        return tensors
    say("a masked autoencoder: its encoder is taken, its decoder is not")
    encoder = {n: tensors[n] for n in tensors if n not in {*decoder}}
    for token, positions in _CLASS_TOKENS.items():
        if token in encoder and token not in used and positions in used & encoder.keys():
            say("its class token is left out with its position: the model has none")
            del encoder[token]
            encoder[positions] = encoder[positions][:, 1:]
    return encoder


# The class token of other libraries' masked autoencoders, and the positions whose first is its own.
_CLASS_TOKENS = {"cls_token": "pos_embed", "vit.embeddings.cls_token": "vit.embeddings.position_embeddings"}


def encoder_alone(
    tensors: Mapping[str, Any], template: Mapping[str, Any], say: Callable[[str], None]
) -> Mapping[str, Any]:
    """Converts a masked autoencoder's variables to those of its encoder as a ViT, unless the model is an autoencoder.

    Its fixed positions become the initial values of learnt ones; without a class token, its position is dropped.

    Args:
      tensors: our name -> array; returned unchanged if they are not a masked autoencoder's, or if the model is one.
      template: our name -> array or shape, of the model.
      say: called with each line about what was done.
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
