"""Names of google-research/vision_transformer's and big_vision's .npz files: ViT, hybrids and Mixer."""

import math
from typing import Any

import flax.linen as nn
import numpy as np

from recvis_jax.errors import BadRequest
from recvis_jax.models.hybrid import HybridViT
from recvis_jax.models.mixer import SIZES as MIXER_SIZES
from recvis_jax.models.mixer import Mixer
from recvis_jax.models.vit import SIZES, ViT
from recvis_jax.pretrained.rules import Layout, Table, single

# Old versions of flax stored these vectors as (1, ..., 1, c).
_VECTOR = single(lambda x: np.squeeze(x, tuple(range(x.ndim - 1))), lambda y: y)


def _heads(heads: int) -> tuple[Layout, Layout, Layout]:
    """Returns the layouts of an attention's input kernel (d, k, e), input bias (k, e), and output kernel."""
    return (
        single(lambda x: x.reshape(len(x), -1), lambda y: y.reshape(len(y), heads, -1)),
        single(lambda x: x.reshape(-1), lambda y: y.reshape(heads, -1)),
        single(lambda x: x.reshape(-1, x.shape[-1]), lambda y: y.reshape(heads, -1, y.shape[-1])),
    )


def _pair(theirs: str, ours: str, names: tuple[str, str] = ("kernel", "bias")) -> Table:
    return tuple((f"{theirs}/{name}", f"params/{ours}/{name}", "") for name in names)


def _norm(theirs: str, ours: str) -> Table:
    return _pair(theirs, ours, ("scale", "bias"))


def _attention(theirs: str, ours: str, heads: int) -> Table:
    before, bias, after = _heads(heads)
    return (
        *((f"{theirs}/{x}/kernel", f"params/{ours}/{x}/kernel", before) for x in ("query", "key", "value")),
        *((f"{theirs}/{x}/bias", f"params/{ours}/{x}/bias", bias) for x in ("query", "key", "value")),
        (f"{theirs}/out/kernel", f"params/{ours}/out/kernel", after),
        (f"{theirs}/out/bias", f"params/{ours}/out/bias", ""),
    )


def _mlp(theirs: str, ours: str) -> Table:
    return (*_pair(f"{theirs}/Dense_0", f"{ours}/fc1"), *_pair(f"{theirs}/Dense_1", f"{ours}/fc2"))


def _with_class_token(positions: np.ndarray) -> np.ndarray:
    """Adds a position of zeros for the class token if there are positions only for the patches of a square grid.

    big_vision adds the class token after the positions. A square number n cannot include a class token, as n - 1 is
    then not a square (except for n = 1).
    """
    n = positions.shape[1]
    return np.pad(positions, ((0, 0), (1, 0), (0, 0))) if math.isqrt(n) ** 2 == n else positions


_POSITIONS = single(_with_class_token, lambda y: y)


def _old(model: ViT) -> bool:
    return model.pool == "cls"


def vit(model: ViT) -> Table:
    """Returns the rows of a Vision Transformer.

    With a class token the names are vision_transformer's, which big_vision also reads: all parts of a block are
    numbered together, and the positions, including the class token's, are below the encoder. Without a class token
    they are big_vision's own. Both kinds of files can be loaded into both kinds of models.

    Raises:
      BadRequest: the model has a class token and does not read it.
    """
    if model.pool == "gap_norm":
        raise BadRequest("big_vision cannot average the patches if there is a class token (pool='gap_norm').")
    old = _old(model)
    attention, norm2, mlp = (1, 2, 3) if old else (0, 1, 0)
    block = "Transformer/encoderblock_{i}"
    return (
        ("cls", "params/cls_token", ""),
        ("Transformer/posembed_input/pos_embedding", "params/pos_embed", _POSITIONS)
        if old
        else ("pos_embedding", "params/pos_embed", ""),
        *_pair("embedding", "patch_embed/proj"),
        *_norm(f"{block}/LayerNorm_0", "block{i}/norm1"),
        *_attention(f"{block}/MultiHeadDotProductAttention_{attention}", "block{i}/attention", model.heads),
        *_norm(f"{block}/LayerNorm_{norm2}", "block{i}/norm2"),
        *_mlp(f"{block}/MlpBlock_{mlp}", "block{i}/mlp"),
        *_norm("Transformer/encoder_norm", "norm"),
        ("MAPHead_0/probe", "params/pool/probe", ""),
        *_attention("MAPHead_0/MultiHeadDotProductAttention_0", "pool/attention", model.heads),
        *_norm("MAPHead_0/LayerNorm_0", "pool/norm"),
        *_mlp("MAPHead_0/MlpBlock_0", "pool/mlp"),
        *_pair("pre_logits", "pre_logits"),
        *_pair("head", "head"),
    )


def _group_norm(theirs: str, ours: str) -> Table:
    return tuple((f"{theirs}/{name}", f"params/{ours}/{name}", _VECTOR) for name in ("scale", "bias"))


def hybrid(model: HybridViT) -> Table:
    """Returns the rows of a hybrid.

    Theirs adds 1e-6 to the variance in group norms, and 1e-5 to the standard deviation of kernels. Ours uses timm's
    1e-5, and 1e-8 inside the square root: equal to five digits for variances near 1.
    """
    theirs, ours = "block{i}/unit{j}", "stage{i}_block{j}"
    return (
        ("conv_root/kernel", "params/stem/kernel", ""),
        *_group_norm("gn_root", "stem_norm"),
        (f"{theirs}/conv{{k}}/kernel", f"params/{ours}/conv{{k}}/kernel", ""),
        *_group_norm(f"{theirs}/gn{{k}}", f"{ours}/norm{{k}}"),
        (f"{theirs}/conv_proj/kernel", f"params/{ours}/proj/kernel", ""),
        *_group_norm(f"{theirs}/gn_proj", f"{ours}/norm_proj"),
        *vit(model),
    )


MIXER: Table = (
    *_pair("stem", "patch_embed/proj"),
    *_norm("MixerBlock_{i}/LayerNorm_{k}", "block{i}/norm{k+1}"),
    *_mlp("MixerBlock_{i}/token_mixing", "block{i}/mlp_tokens"),
    *_mlp("MixerBlock_{i}/channel_mixing", "block{i}/mlp_channels"),
    *_norm("pre_head_layer_norm", "norm"),
    *_pair("head", "head"),
)

TABLES = {ViT: vit, HybridViT: hybrid, Mixer: MIXER}

_LETTERS = {"ti": "Ti", "s": "S", "b": "B", "l": "L", "h": "H"}
_TANH = dict(activation="gelu_tanh")
_HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "R+ViT-Ti_16": ("vit_ti_r_s16", {}),
    "R26+ViT-S_32": ("vit_s_r26_s32", {}),
    "R26+ViT-B_32": ("vit_b_r50_s16", dict(stages=(2, 2, 2, 2))),
    "R50+ViT-B_16": ("vit_b_r50_s16", {}),
    "R50+ViT-L_32": ("vit_l_r50_s32", {}),
}

# 'ViT-B/16' or 'B/16', as in the configs of both, and '_' instead of '/', as in file names.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{prefix}{_LETTERS[size]}{slash}{p}": (f"vit_{size}{p}", _TANH)
        for size in SIZES
        for p in (8, 14, 16, 32)
        for prefix in ("", "ViT-")
        for slash in "/_"
    },
    **{
        f"Mixer-{_LETTERS[size]}{slash}{p}": (f"mixer_{size}{p}", _TANH)
        for size in MIXER_SIZES
        for p in (16, 32)
        for slash in "/_"
    },
    # Also as in the file names of Steiner et al. 2021: R26_S_32.
    **{
        name: (ours, {**attributes, **_TANH})
        for theirs, (ours, attributes) in _HYBRIDS.items()
        for name in (theirs, theirs.replace("_", "/"), theirs.replace("+ViT-", "_"))
    },
    **{
        f"ViT-{_LETTERS[size]}_{p}-gap-norep": (f"vit_{size}{p}", dict(pool="gap", **_TANH))
        for size in ("s", "b")
        for p in (16, 32)
    },
    # Beyer et al. 2022.
    **{
        f"vit_s16_i1k_{n}ep": ("vit_s16", dict(pool="gap", positions="sincos2d", pre_logits=True, **_TANH))
        for n in (90, 150, 300)
    },
}

# Checkpoints of a whole training state, or with an image and a text tower.
_WHOLE = ((r"^(opt/target|target|params)/(img/)?", ""),)
_TO_OLD = (
    (r"^(Transformer/)?pos_embedding$", "Transformer/posembed_input/pos_embedding"),
    (r"(?<=encoderblock_)(\d+)/LayerNorm_1/", r"\1/LayerNorm_2/"),
    (r"(?<=encoderblock_)(\d+)/MultiHeadDotProductAttention_0/", r"\1/MultiHeadDotProductAttention_1/"),
    (r"(?<=encoderblock_)(\d+)/MlpBlock_0/", r"\1/MlpBlock_3/"),
)
_TO_NEW = (
    (r"^Transformer/(posembed_input/)?pos_embedding$", "pos_embedding"),
    (r"(?<=encoderblock_)(\d+)/LayerNorm_2/", r"\1/LayerNorm_1/"),
    (r"(?<=encoderblock_)(\d+)/MultiHeadDotProductAttention_1/", r"\1/MultiHeadDotProductAttention_0/"),
    (r"(?<=encoderblock_)(\d+)/MlpBlock_3/", r"\1/MlpBlock_0/"),
    # From versions in which attention pooling was not a module.
    (r"^(probe$|MlpBlock_0/|MultiHeadDotProductAttention_0/|LayerNorm_0/)", r"MAPHead_0/\1"),
)


def _renames(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Returns renames that turn both naming schemes into that of the model's table."""
    if not isinstance(model, ViT):
        return _WHOLE
    return (*_WHOLE, *(_TO_OLD if _old(model) else _TO_NEW))


RENAMES = _renames
