"""Names of PyTorch's own modules: `torch.nn.MultiheadAttention` and `torch.nn.Transformer`."""

from typing import Any

from recvis_jax.models.attention import MultiHeadAttention
from recvis_jax.models.transformer import Transformer
from recvis_jax.pretrained.rules import Table
from recvis_jax.pretrained.timm_tokens import fused, norm
from recvis_jax.pretrained.torchvision import linear


def _attention(theirs: str, ours: str) -> Table:
    """Returns the rows of an attention whose query, key and value are one tensor."""
    return (
        *fused(f"{theirs}.in_proj_weight", f"{theirs}.in_proj_bias", ours),
        *linear(f"{theirs}.out_proj", f"{ours}/out"),
    )


def layer(theirs: str, ours: str) -> Table:
    """Returns the rows of a layer of the encoder or decoder."""
    return (
        *_attention(f"{theirs}.self_attn", f"{ours}/attention"),
        *_attention(f"{theirs}.multihead_attn", f"{ours}/cross_attention"),
        *linear(f"{theirs}.linear{{k}}", f"{ours}/mlp/fc{{k}}"),
        *norm(f"{theirs}.norm{{k}}", f"{ours}/norm{{k}}"),
    )


ATTENTION: Table = (
    ("in_proj_weight", ("params/query/kernel", "params/key/kernel", "params/value/kernel"), "split_linear"),
    ("in_proj_bias", ("params/query/bias", "params/key/bias", "params/value/bias"), "split"),
    *linear("out_proj", "out"),
)

TRANSFORMER: Table = (
    *layer("encoder.layers.{i}", "encoder{i}"),
    *norm("encoder.norm", "encoder_norm"),
    *layer("decoder.layers.{i}", "decoder{i}"),
    *norm("decoder.norm", "decoder_norm"),
)

TABLES = {MultiHeadAttention: ATTENTION, Transformer: TRANSFORMER}

# Neither is a model of images, and `create` makes only those.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {}

RENAMES: tuple[tuple[str, str], ...] = ()
