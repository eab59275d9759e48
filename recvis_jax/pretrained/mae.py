"""Names of facebookresearch/mae's checkpoints: the autoencoders, and the Vision Transformers fine-tuned from them."""

from typing import Any

import flax.linen as nn

from recvis_jax.models.mae import MAE as Autoencoder
from recvis_jax.models.mae import VARIANTS
from recvis_jax.models.vit import ViT
from recvis_jax.pretrained.rules import Table
from recvis_jax.pretrained.timm_tokens import norm, vit, vit_block
from recvis_jax.pretrained.torchvision import conv, linear

MAE: Table = (
    ("cls_token", "params/cls_token", ""),
    ("pos_embed", "constants/pos_embed", ""),
    *conv("patch_embed.proj", "patch_embed/proj"),
    *vit_block("blocks.{i}", "block{i}"),
    *norm("norm", "norm"),
    *linear("decoder_embed", "decoder_embed"),
    ("mask_token", "params/mask_token", ""),
    ("decoder_pos_embed", "constants/decoder_pos_embed", ""),
    *vit_block("decoder_blocks.{i}", "decoder_block{i}"),
    *norm("decoder_norm", "decoder_norm"),
    *linear("decoder_pred", "decoder_pred"),
)

TABLES = {Autoencoder: MAE, ViT: vit}

_SIZES = {"b": "base", "l": "large", "h": "huge"}
_NAMES = {name: f"vit_{_SIZES[name[4]]}_patch{name[5:]}" for name in VARIANTS}

# models_mae.py, and models_vit.py with mean pooling as in fine-tuning.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"mae_{theirs}{suffix}": (ours, {}) for ours, theirs in _NAMES.items() for suffix in ("", "_dec512d8b")},
    **{theirs: (ours.replace("mae", "vit"), dict(pool="gap_norm")) for ours, theirs in _NAMES.items()},
}


def _renames(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Returns renames from an encoder's final norm to that of a Vision Transformer which averages before its norm."""
    return ((r"^norm\.", "fc_norm."),) if isinstance(model, ViT) and model.pool == "gap_norm" else ()


RENAMES = _renames
