"""Names of timm's checkpoints of Vision Transformers, hybrids, MLP networks and ConvMixer."""

from recvis_jax.models.convmixer import ConvMixer
from recvis_jax.models.gmlp import GMLP
from recvis_jax.models.hybrid import HybridViT
from recvis_jax.models.mixer import Mixer
from recvis_jax.models.resmlp import ResMLP
from recvis_jax.models.vit import ViT
from recvis_jax.pretrained.rules import Table, squeeze
from recvis_jax.pretrained.torchvision import batch_norm, conv, linear

_QKV = ("query", "key", "value")


def norm(theirs: str, ours: str) -> Table:
    """Returns the rows of a layer or group norm."""
    return ((f"{theirs}.weight", f"params/{ours}/scale", ""), (f"{theirs}.bias", f"params/{ours}/bias", ""))


def fused(weight: str, bias: str, ours: str, parts: tuple[str, ...] = _QKV) -> Table:
    """Returns the rows of linear layers `parts` below `ours` that are one layer in theirs."""
    return (
        (weight, tuple(f"params/{ours}/{p}/kernel" for p in parts), "split_linear"),
        (bias, tuple(f"params/{ours}/{p}/bias" for p in parts), "split"),
    )


def mlp(theirs: str, ours: str) -> Table:
    """Returns the rows of two fully connected layers."""
    return (*linear(f"{theirs}.fc1", f"{ours}/fc1"), *linear(f"{theirs}.fc2", f"{ours}/fc2"))


def vit_block(theirs: str, ours: str) -> Table:
    """Returns the rows of a block of attention and MLP."""
    return (
        *norm(f"{theirs}.norm1", f"{ours}/norm1"),
        *fused(f"{theirs}.attn.qkv.weight", f"{theirs}.attn.qkv.bias", f"{ours}/attention"),
        *linear(f"{theirs}.attn.proj", f"{ours}/attention/out"),
        *norm(f"{theirs}.norm2", f"{ours}/norm2"),
        *mlp(f"{theirs}.mlp", f"{ours}/mlp"),
    )


def vit(model: ViT) -> Table:
    """Returns the rows of a Vision Transformer; a norm after the mean and one before have different names."""
    return (
        ("cls_token", "params/cls_token", ""),
        ("pos_embed", "params/pos_embed", ""),
        *conv("patch_embed.proj", "patch_embed/proj"),
        *vit_block("blocks.{i}", "block{i}"),
        *norm("fc_norm" if model.pool == "gap_norm" else "norm", "norm"),
        ("attn_pool.latent", "params/pool/probe", ""),
        *linear("attn_pool.q", "pool/attention/query"),
        *fused("attn_pool.kv.weight", "attn_pool.kv.bias", "pool/attention", ("key", "value")),
        *linear("attn_pool.proj", "pool/attention/out"),
        *norm("attn_pool.norm", "pool/norm"),
        *mlp("attn_pool.mlp", "pool/mlp"),
        *linear("pre_logits.fc", "pre_logits"),
        *linear("head", "head"),
    )


def hybrid(model: HybridViT) -> Table:
    """Returns the rows of a hybrid; without stages the stem is the whole backbone."""
    backbone, block = "patch_embed.backbone", "patch_embed.backbone.stages.{i}.blocks.{j}"
    stem = f"{backbone}.stem" if model.stages else backbone
    return (
        (f"{stem}.conv.weight", "params/stem/kernel", "conv"),
        *norm(f"{stem}.norm", "stem_norm"),
        (f"{block}.conv{{k}}.weight", "params/stage{i+1}_block{j+1}/conv{k}/kernel", "conv"),
        *norm(f"{block}.norm{{k}}", "stage{i+1}_block{j+1}/norm{k}"),
        (f"{block}.downsample.conv.weight", "params/stage{i+1}_block{j+1}/proj/kernel", "conv"),
        *norm(f"{block}.downsample.norm", "stage{i+1}_block{j+1}/norm_proj"),
        *vit(model),
    )


# Also for the gated variant: its fc1 has the units first, then their gates, as in ours.
MIXER: Table = (
    *conv("stem.proj", "patch_embed/proj"),
    *norm("blocks.{i}.norm{k}", "block{i}/norm{k}"),
    *mlp("blocks.{i}.mlp_tokens", "block{i}/mlp_tokens"),
    *mlp("blocks.{i}.mlp_channels", "block{i}/mlp_channels"),
    *norm("norm", "norm"),
    *linear("head", "head"),
)


def _affine(theirs: str, ours: str) -> Table:
    return (
        (f"{theirs}.alpha", f"params/{ours}/scale", squeeze(2)),
        (f"{theirs}.beta", f"params/{ours}/bias", squeeze(2)),
    )


RESMLP: Table = (
    *conv("stem.proj", "patch_embed/proj"),
    ("blocks.{i}.ls{k}", "params/block{i}/scale{k}", ""),
    *_affine("blocks.{i}.norm{k}", "block{i}/norm{k}"),
    *linear("blocks.{i}.linear_tokens", "block{i}/linear_tokens"),
    *mlp("blocks.{i}.mlp_channels", "block{i}/mlp_channels"),
    *_affine("norm", "norm"),
    *linear("head", "head"),
)

GATED_MLP: Table = (
    *conv("stem.proj", "patch_embed/proj"),
    *norm("blocks.{i}.norm", "block{i}/norm"),
    *mlp("blocks.{i}.mlp_channels", "block{i}"),
    *norm("blocks.{i}.mlp_channels.gate.norm", "block{i}/gate_norm"),
    *linear("blocks.{i}.mlp_channels.gate.proj", "block{i}/gate"),
    *norm("norm", "norm"),
    *linear("head", "head"),
)

# Convolutions, activations and norms are numbered; the activation has no tensors.
CONVMIXER: Table = (
    *conv("stem.0", "stem"),
    *batch_norm("stem.2", "stem_norm"),
    *conv("blocks.{i}.0.fn.0", "block{i}/depthwise"),
    *batch_norm("blocks.{i}.0.fn.2", "block{i}/norm1"),
    *conv("blocks.{i}.1", "block{i}/pointwise"),
    *batch_norm("blocks.{i}.3", "block{i}/norm2"),
    *linear("head", "head"),
)

TABLES = {ViT: vit, HybridViT: hybrid, Mixer: MIXER, ResMLP: RESMLP, GMLP: GATED_MLP, ConvMixer: CONVMIXER}
