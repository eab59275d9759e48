"""Names of Hugging Face transformers' checkpoints: ViT (with a head, or `ViTModel`), ViTMAE, ImageGPT and DETR."""

from typing import Any

import numpy as np

from recvis_jax.errors import BadRequest
from recvis_jax.models.detr import DETR
from recvis_jax.models.image_gpt import ImageGPT
from recvis_jax.models.mae import MAE
from recvis_jax.models.vit import ViT
from recvis_jax.pretrained import detr
from recvis_jax.pretrained.rules import Layout, Table
from recvis_jax.pretrained.timm_tokens import norm
from recvis_jax.pretrained.torchvision import conv, linear


def _layer(theirs: str, ours: str) -> Table:
    """Returns the rows of a block of attention and MLP."""
    return (
        *norm(f"{theirs}.layernorm_before", f"{ours}/norm1"),
        *linear(f"{theirs}.attention.attention.query", f"{ours}/attention/query"),
        *linear(f"{theirs}.attention.attention.key", f"{ours}/attention/key"),
        *linear(f"{theirs}.attention.attention.value", f"{ours}/attention/value"),
        *linear(f"{theirs}.attention.output.dense", f"{ours}/attention/out"),
        *norm(f"{theirs}.layernorm_after", f"{ours}/norm2"),
        *linear(f"{theirs}.intermediate.dense", f"{ours}/mlp/fc1"),
        *linear(f"{theirs}.output.dense", f"{ours}/mlp/fc2"),
    )


_ENCODER: Table = (
    ("vit.embeddings.cls_token", "params/cls_token", ""),
    *conv("vit.embeddings.patch_embeddings.projection", "patch_embed/proj"),
    *_layer("vit.encoder.layer.{i}", "block{i}"),
    *norm("vit.layernorm", "norm"),
)

VIT: Table = (
    *_ENCODER,
    ("vit.embeddings.position_embeddings", "params/pos_embed", ""),
    *linear("vit.pooler.dense", "pre_logits"),
    *linear("classifier", "head"),
)

VIT_MAE: Table = (
    *_ENCODER,
    ("vit.embeddings.position_embeddings", "constants/pos_embed", ""),
    *linear("decoder.decoder_embed", "decoder_embed"),
    ("decoder.mask_token", "params/mask_token", ""),
    ("decoder.decoder_pos_embed", "constants/decoder_pos_embed", ""),
    *_layer("decoder.decoder_layers.{i}", "decoder_block{i}"),
    *norm("decoder.decoder_norm", "decoder_norm"),
    *linear("decoder.decoder_pred", "decoder_pred"),
)


def vit(model: ViT) -> Table:
    """Returns the rows of a Vision Transformer.

    Raises:
      BadRequest: the model does not read the class token.
    """
    if model.pool != "cls":
        raise BadRequest(
            f"transformers' ViT reads the class token, pool='cls'; it does not support pool={model.pool!r}."
        )
    return VIT


# Linear layers of GPT-2 are (in, out), as ours; query, key and value are one, side by side.
_FUSED = Layout(lambda x, n: np.split(x, n, axis=-1), lambda *y: np.concatenate(y, axis=-1))
_PARTS = ("query", "key", "value")

IMAGE_GPT: Table = (
    ("transformer.wte.weight", "params/colours_embed/embedding", ""),
    ("transformer.wpe.weight", "params/positions/embedding", ""),
    ("transformer.h.{i}.ln_{k}.weight", "params/block{i}/norm{k}/scale", ""),
    *(
        (
            f"transformer.h.{{i}}.attn.c_attn.{theirs}",
            tuple(f"params/block{{i}}/attention/{p}/{x}" for p in _PARTS),
            _FUSED,
        )
        for theirs, x in (("weight", "kernel"), ("bias", "bias"))
    ),
    *linear("transformer.h.{i}.attn.c_proj", "block{i}/attention/out", ""),
    *linear("transformer.h.{i}.mlp.c_fc", "block{i}/mlp/fc1", ""),
    *linear("transformer.h.{i}.mlp.c_proj", "block{i}/mlp/fc2", ""),
    ("transformer.ln_f.weight", "params/norm/scale", ""),
    ("lm_head.weight", "params/head/kernel", "linear"),
)

TABLES = {ViT: vit, MAE: VIT_MAE, ImageGPT: IMAGE_GPT, DETR: detr.of_transformers}

_EPS = dict(norm_eps=1e-12)
_POOLED = dict(pre_logits=True, num_classes=0, **_EPS)  # ViTModel's `pooler_output`

# Repositories of the hub.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"google/vit-{theirs}-patch{p}-{rest}": (f"vit_{ours}{p}", kw)
        for theirs, ours in (("base", "b"), ("large", "l"))
        for p in (16, 32)
        for rest, kw in (("224", _EPS), ("384", _EPS), ("224-in21k", _POOLED))
    },
    "google/vit-huge-patch14-224-in21k": ("vit_h14", _POOLED),
    **{
        f"facebook/vit-mae-{theirs}": (ours, _EPS)
        for theirs, ours in (("base", "mae_b16"), ("large", "mae_l16"), ("huge", "mae_h14"))
    },
    **{f"openai/imagegpt-{size}": (f"igpt_{size[0]}", {}) for size in ("small", "medium", "large")},
    **detr.TRANSFORMERS_NAMES,
}

# Files of ViTModel and ImageGPTModel omit the first part.
RENAMES = (
    (r"^(embeddings|encoder|layernorm|pooler)\.", r"vit.\1."),
    (r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),
    *detr.TRANSFORMERS_RENAMES,
)
