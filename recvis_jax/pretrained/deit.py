"""Names of facebookresearch/deit's checkpoints: DeiT without distillation token (timm's names), and ResMLP."""

from typing import Any

from recvis_jax.models.resmlp import ResMLP
from recvis_jax.models.vit import ViT
from recvis_jax.pretrained.rules import Table
from recvis_jax.pretrained.timm_tokens import mlp, vit
from recvis_jax.pretrained.torchvision import conv, linear


def _affine(theirs: str, ours: str) -> Table:
    return ((f"{theirs}.alpha", f"params/{ours}/scale", ""), (f"{theirs}.beta", f"params/{ours}/bias", ""))


RESMLP: Table = (
    *conv("patch_embed.proj", "patch_embed/proj"),
    ("blocks.{i}.gamma_{k}", "params/block{i}/scale{k}", ""),
    *_affine("blocks.{i}.norm{k}", "block{i}/norm{k}"),
    *linear("blocks.{i}.attn", "block{i}/linear_tokens"),
    *mlp("blocks.{i}.mlp", "block{i}/mlp_channels"),
    *_affine("norm", "norm"),
    *linear("head", "head"),
)

TABLES = {ResMLP: RESMLP, ViT: vit}

# From models.py and resmlp_models.py.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"deit_{theirs}_patch16_224": (f"vit_{ours}16", {}) for theirs, ours in (("tiny", "ti"), ("small", "s"))},
    **{f"deit_base_patch16_{size}": ("vit_b16", {}) for size in (224, 384)},
    **{name: (name, {}) for name in ("resmlp_12", "resmlp_24", "resmlp_36")},
    "resmlpB_24": ("resmlp_b24", {}),
}

RENAMES: tuple[tuple[str, str], ...] = ()
