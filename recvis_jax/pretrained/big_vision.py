"""Names of google-research/vision_transformer's and big_vision's .npz files: Vision Transformers and Mixers."""

from typing import Any

from recvis_jax.errors import BadRequest
from recvis_jax.models.mixer import SIZES as MIXER_SIZES
from recvis_jax.models.mixer import Mixer
from recvis_jax.models.vit import SIZES, ViT
from recvis_jax.pretrained.rules import Layout, Table, single


def _heads(heads: int) -> tuple[Layout, Layout, Layout]:
    """Returns the layouts of the kernel and bias before an attention, (d, k, e) and (k, e), and of the kernel after."""
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


def vit(model: ViT) -> Table:
    """Returns the rows of a Vision Transformer.

    With a class token the names are vision_transformer's, which big_vision reads as well: the parts of a block are
    counted together, and the positions, the class token's among them, lie below the encoder. Without, they are
    big_vision's own.

    Raises:
      BadRequest: the class token is there and not read.
    """
    if model.pool == "gap_norm":
        raise BadRequest("big_vision has no mean of the patches beside a class token (pool='gap_norm').")
    old = model.pool == "cls"
    attention, norm2, mlp = (1, 2, 3) if old else (0, 1, 0)
    block = "Transformer/encoderblock_{i}"
    return (
        ("cls", "params/cls_token", ""),
        (f"{'Transformer/posembed_input/' if old else ''}pos_embedding", "params/pos_embed", ""),
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


MIXER: Table = (
    *_pair("stem", "patch_embed/proj"),
    *_norm("MixerBlock_{i}/LayerNorm_{k}", "block{i}/norm{k+1}"),
    *_mlp("MixerBlock_{i}/token_mixing", "block{i}/mlp_tokens"),
    *_mlp("MixerBlock_{i}/channel_mixing", "block{i}/mlp_channels"),
    *_norm("pre_head_layer_norm", "norm"),
    *_pair("head", "head"),
)

TABLES = {ViT: vit, Mixer: MIXER}

_LETTERS = {"ti": "Ti", "s": "S", "b": "B", "l": "L", "h": "H"}
_TANH = dict(activation="gelu_tanh")

# 'ViT-B/16', or 'B/16' alone, as both write it in configs, and '_' for '/', as in names of files.
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
    # Beyer et al. 2022.
    **{
        f"vit_s16_i1k_{n}ep": ("vit_s16", dict(pool="gap", positions="sincos2d", pre_logits=True, **_TANH))
        for n in (90, 150, 300)
    },
}

# Checkpoints of a whole training state.
RENAMES = ((r"^(opt/target|target|params)/", ""),)
