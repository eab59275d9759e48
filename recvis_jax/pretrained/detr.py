"""Names of DETR's checkpoints: facebookresearch/detr's own, and those of Hugging Face transformers."""

from typing import Any

from recvis_jax.models.detr import DETR
from recvis_jax.models.resnet import ResNet
from recvis_jax.pretrained.rules import Table
from recvis_jax.pretrained.timm_tokens import norm
from recvis_jax.pretrained.torch_nn import layer
from recvis_jax.pretrained.torchvision import RESNET, conv, linear, within


def _backbone(model: DETR, theirs: str) -> Table:
    """Returns the rows of a residual network; its norms are frozen and do not count batches."""
    rows = RESNET if isinstance(model.backbone, ResNet) else ()
    return within(tuple(row for row in rows if row[2] != "count"), theirs, "backbone")


def detr(model: DETR) -> Table:
    """Returns the rows of facebookresearch's names."""
    return (
        *_backbone(model, "backbone.0.body"),
        *conv("input_proj", "project"),
        ("query_embed.weight", "params/queries_embed", ""),
        *layer("transformer.encoder.layers.{i}", "encoder{i}"),
        *norm("transformer.encoder.norm", "encoder_norm"),
        *layer("transformer.decoder.layers.{i}", "decoder{i}"),
        *norm("transformer.decoder.norm", "decoder_norm"),
        *linear("class_embed", "head"),
        *linear("bbox_embed.layers.{i}", "box_head{i}"),
    )


def _attention(theirs: str, ours: str) -> Table:
    parts = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out"))
    return tuple(row for a, b in parts for row in linear(f"{theirs}.{a}", f"{ours}/{b}"))


def _layer(theirs: str, ours: str, last: int) -> Table:
    """Returns the rows of a layer of transformers' encoder or decoder, whose last norm is our norm `last`."""
    return (
        *_attention(f"{theirs}.self_attn", f"{ours}/attention"),
        *norm(f"{theirs}.self_attn_layer_norm", f"{ours}/norm1"),
        *_attention(f"{theirs}.encoder_attn", f"{ours}/cross_attention"),
        *(norm(f"{theirs}.encoder_attn_layer_norm", f"{ours}/norm2") if last == 3 else ()),
        *linear(f"{theirs}.fc{{k}}", f"{ours}/mlp/fc{{k}}"),
        *norm(f"{theirs}.final_layer_norm", f"{ours}/norm{last}"),
    )


def of_transformers(model: DETR) -> Table:
    """Returns the rows of the names of Hugging Face transformers."""
    return (
        *_backbone(model, "model.backbone.conv_encoder.model"),
        *conv("model.input_projection", "project"),
        ("model.query_position_embeddings.weight", "params/queries_embed", ""),
        *_layer("model.encoder.layers.{i}", "encoder{i}", 2),
        *_layer("model.decoder.layers.{i}", "decoder{i}", 3),
        *norm("model.decoder.layernorm", "decoder_norm"),
        *linear("class_labels_classifier", "head"),
        *linear("bbox_predictor.layers.{i}", "box_head{i}"),
    )


# A backbone of transformers' own, instead of timm's, has other names for the same.
_BODY = r"^(model\.backbone\.conv_encoder\.model\.)"
TRANSFORMERS_RENAMES = (
    (_BODY + r"embedder\.embedder\.convolution\.", r"\1conv1."),
    (_BODY + r"embedder\.embedder\.normalization\.", r"\1bn1."),
    *((_BODY + rf"encoder\.stages\.{i}\.layers\.", rf"\1layer{i + 1}.") for i in range(4)),
    (_BODY + r"(layer\d\.\d+)\.shortcut\.convolution\.", r"\1\2.downsample.0."),
    (_BODY + r"(layer\d\.\d+)\.shortcut\.normalization\.", r"\1\2.downsample.1."),
    *(
        (_BODY + rf"(layer\d\.\d+)\.layer\.{k}\.{theirs}\.", rf"\1\2.{ours}{k + 1}.")
        for k in range(3)
        for theirs, ours in (("convolution", "conv"), ("normalization", "bn"))
    ),
)

TABLES = {DETR: detr}

_SIZES = (("resnet50", "r50"), ("resnet101", "r101"), ("resnet50_dc5", "r50_dc5"), ("resnet101_dc5", "r101_dc5"))
# Their classes are numbered as COCO's categories, up to 90.
_COCO = dict(num_classes=91)
NAMES: dict[str, tuple[str, dict[str, Any]]] = {f"detr_{t}": (f"detr_{ours}", _COCO) for t, ours in _SIZES}

RENAMES: tuple[tuple[str, str], ...] = ()

TRANSFORMERS_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    f"facebook/detr-{theirs.replace('resnet', 'resnet-').replace('_', '-')}": (f"detr_{ours}", _COCO)
    for theirs, ours in _SIZES
}
