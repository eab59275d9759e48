"""Names of timm's models, tags of the published weights, and names in older versions."""

from typing import Any

from recvis_jax.models.bit import VARIANTS as BITS
from recvis_jax.models.convmixer import VARIANTS as CONVMIXERS
from recvis_jax.models.gmlp import VARIANTS as GMLPS
from recvis_jax.models.mixer import VARIANTS as MIXERS
from recvis_jax.models.resmlp import VARIANTS as RESMLPS
from recvis_jax.models.resnet import VARIANTS as RESNETS
from recvis_jax.models.vgg import VARIANTS as VGGS

_SIZES = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h"}
_SIGLIP = {"base_patch16": (224, 256, 384, 512), "base_patch32": (256,), "large_patch16": (256, 384, 512)}
# Only timm's newer SigLIP models use the original's GELU with tanh.
_TANH = ("base_patch32_siglip_256", "large_patch16_siglip_512")


def _siglip(patches: str, kind: str, size: int) -> tuple[str, dict[str, Any]]:
    """Returns the image tower: one feature vector per image, by attention or mean pooling."""
    width, patch = patches.split("_patch")
    act = dict(activation="gelu_tanh") if f"{patches}_siglip_{size}" in _TANH else {}
    return f"vit_{_SIZES[width]}{patch}", dict(pool="gap" if kind else "map", **act)


# Their name -> our name, and attributes that differ from ours.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in (*RESNETS, *VGGS)},
    "resnet50_gn": ("resnet50", dict(norm="group")),
    **{name.replace("bit_r", "resnetv2_") + "_bit": (name, {}) for name in BITS},
    **{
        f"vit_{width}_patch{patch}_{size}": (f"vit_{_SIZES[width]}{patch}", {})
        for width, patch, sizes in (
            ("tiny", 16, (224, 384)),
            ("small", 8, (224,)),
            ("small", 16, (224, 384)),
            ("small", 32, (224, 384)),
            ("base", 8, (224,)),
            ("base", 16, (224, 384)),
            ("base", 32, (224, 384)),
            ("large", 14, (224,)),
            ("large", 16, (224, 384)),
            ("large", 32, (224, 384)),
            ("huge", 14, (224,)),
        )
        for size in sizes
    },
    **{f"deit_{width}_patch16_224": (f"vit_{_SIZES[width]}16", {}) for width in ("tiny", "small", "base")},
    "deit_base_patch16_384": ("vit_b16", {}),
    "vit_base_patch16_gap_224": ("vit_b16", dict(pool="gap", heads=16)),
    "vit_huge_patch14_gap_224": ("vit_h14", dict(pool="gap")),
    "vit_huge_patch16_gap_448": ("vit_h16", dict(pool="gap")),
    **{
        f"vit_{patches}_siglip_{kind}{size}": _siglip(patches, kind, size)
        for patches, sizes in _SIGLIP.items()
        for kind in ("", "gap_")
        for size in sizes
    },
    **{
        f"vit_{name}_{size}": (ours, attributes)
        for name, ours, attributes, sizes in (
            ("tiny_r_s16_p8", "vit_ti_r_s16", {}, (224, 384)),
            ("small_r26_s32", "vit_s_r26_s32", {}, (224, 384)),
            ("base_r26_s32", "vit_b_r50_s16", dict(stages=(2, 2, 2, 2)), (224,)),
            ("base_r50_s16", "vit_b_r50_s16", {}, (224, 384)),
            ("large_r50_s32", "vit_l_r50_s32", {}, (224, 384)),
        )
        for size in sizes
    },
    **{f"{name}_224": (name, {}) for name in (*MIXERS, *GMLPS)},
    **{name.replace("_b", "_big_") + "_224": (name, {}) for name in RESMLPS},
    **{"convmixer_1024_20_ks9_p14" if name == "convmixer_1024_20" else name: (name, {}) for name in CONVMIXERS},
}

_AUGREG = "augreg_in21k_ft_in1k"
_BIT = "goog_in21k_ft_in1k goog_in21k"
_GLUON = "a1h_in1k a1_in1k a2_in1k a3_in1k tv_in1k tv2_in1k gluon_in1k"
# Tags of the published weights; a name without a tag means the first. Models that are not listed have none.
TAGS = {
    "resnet18": "a1_in1k a2_in1k a3_in1k tv_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k",
    "resnet34": "a1_in1k a2_in1k a3_in1k bt_in1k ra4_e3600_r224_in1k tv_in1k gluon_in1k",
    "resnet50": "a1_in1k a1h_in1k a2_in1k a3_in1k b1k_in1k b2k_in1k c1_in1k c2_in1k d_in1k ram_in1k am_in1k ra_in1k "
    "bt_in1k tv_in1k tv2_in1k bamboo fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k",
    "resnet101": _GLUON,
    "resnet152": _GLUON,
    "resnet50_gn": "a1h_in1k",
    "wide_resnet50_2": "racm_in1k tv_in1k tv2_in1k",
    "wide_resnet101_2": "tv_in1k tv2_in1k",
    **dict.fromkeys(VGGS, "tv_in1k"),
    "resnetv2_50x1_bit": f"goog_distilled_in1k {_BIT}",
    "resnetv2_50x3_bit": _BIT,
    "resnetv2_101x1_bit": _BIT,
    "resnetv2_101x3_bit": _BIT,
    "resnetv2_152x2_bit": f"goog_teacher_in21k_ft_in1k goog_teacher_in21k_ft_in1k_384 {_BIT}",
    "resnetv2_152x4_bit": _BIT,
    "vit_tiny_patch16_224": f"{_AUGREG} augreg_in21k",
    "vit_tiny_patch16_384": _AUGREG,
    "vit_small_patch8_224": "dino",
    "vit_small_patch16_224": f"{_AUGREG} augreg_in1k augreg_in21k dino",
    "vit_small_patch16_384": f"{_AUGREG} augreg_in1k",
    "vit_small_patch32_224": f"{_AUGREG} augreg_in21k",
    "vit_small_patch32_384": _AUGREG,
    "vit_base_patch8_224": f"augreg2_in21k_ft_in1k {_AUGREG} augreg_in21k dino",
    "vit_base_patch16_224": f"augreg2_in21k_ft_in1k {_AUGREG} orig_in21k_ft_in1k augreg_in1k orig_in21k augreg_in21k "
    "sam_in1k bamboo dino mae",
    "vit_base_patch16_384": f"{_AUGREG} orig_in21k_ft_in1k augreg_in1k",
    "vit_base_patch32_224": f"{_AUGREG} augreg_in1k orig_in21k augreg_in21k sam_in1k",
    "vit_base_patch32_384": f"{_AUGREG} augreg_in1k",
    "vit_large_patch16_224": f"{_AUGREG} orig_in21k augreg_in21k mae",
    "vit_large_patch16_384": _AUGREG,
    "vit_large_patch32_224": "orig_in21k",
    "vit_large_patch32_384": "orig_in21k_ft_in1k",
    "vit_huge_patch14_224": "orig_in21k mae",
    "vit_huge_patch14_gap_224": "in1k_ijepa in22k_ijepa",
    "vit_huge_patch16_gap_448": "in1k_ijepa",
    **{name: "fb_in1k" for name in MODELS if name.startswith("deit_")},
    **{f"vit_base_patch16_siglip_{kind}256": "v2_webli webli webli_i18n" for kind in ("", "gap_")},
    **{
        f"vit_{patches}_siglip_{kind}{size}": tags
        for patches, sizes, tags in (
            ("base_patch16", (224, 384, 512), "v2_webli webli"),
            ("base_patch32", (256,), "v2_webli"),
            ("large_patch16", (256, 384), "v2_webli webli"),
            ("large_patch16", (512,), "v2_webli"),
        )
        for kind in ("", "gap_")
        for size in sizes
    },
    "vit_tiny_r_s16_p8_224": f"{_AUGREG} augreg_in21k",
    "vit_tiny_r_s16_p8_384": _AUGREG,
    "vit_small_r26_s32_224": f"{_AUGREG} augreg_in21k",
    "vit_small_r26_s32_384": _AUGREG,
    "vit_base_r50_s16_224": "orig_in21k",
    "vit_base_r50_s16_384": "orig_in21k_ft_in1k",
    "vit_large_r50_s32_224": f"{_AUGREG} augreg_in21k",
    "vit_large_r50_s32_384": _AUGREG,
    "mixer_b16_224": f"{_BIT} miil_in21k miil_in21k_ft_in1k",
    "mixer_l16_224": _BIT,
    "gmixer_24_224": "ra3_in1k",
    "gmlp_s16_224": "ra3_in1k",
    "resmlp_12_224": "fb_in1k fb_distilled_in1k fb_dino",
    "resmlp_24_224": "fb_in1k fb_distilled_in1k fb_dino",
    "resmlp_36_224": "fb_in1k fb_distilled_in1k",
    "resmlp_big_24_224": "fb_in1k fb_distilled_in1k fb_in22k_ft_in1k",
    **{name: "in1k" for name in MODELS if name.startswith("convmixer_")},
}

# Number of classes by tag, if it is not ImageNet's 1,000; 0 is no head. Of ImageNet-21k, Google used 21,843 classes and
# MIIL 11,221.
CLASSES = {
    "augreg_in21k": 21_843,
    "goog_in21k": 21_843,
    "miil_in21k": 11_221,
    **dict.fromkeys(("orig_in21k", "dino", "mae", "webli", "v2_webli", "webli_i18n", "in1k_ijepa", "in22k_ijepa"), 0),
}
_BAMBOO = {"resnet50.bamboo": 0, "vit_base_patch16_224.bamboo": 115_217}

# Names in older versions -> current name and tag.
ALIASES = {
    **{f"tv_resnet{depth}": f"resnet{depth}.tv_in1k" for depth in (34, 50, 101, 152)},
    **{f"gluon_resnet{depth}_v1b": f"resnet{depth}.gluon_in1k" for depth in (18, 34, 50, 101, 152)},
    **{f"ssl_resnet{depth}": f"resnet{depth}.fb_ssl_yfcc100m_ft_in1k" for depth in (18, 50)},
    **{f"swsl_resnet{depth}": f"resnet{depth}.fb_swsl_ig1b_ft_in1k" for depth in (18, 50)},
    **{f"{name}m": f"{name}.goog_in21k_ft_in1k" for name in TAGS if name.endswith("_bit")},
    **{f"{name}m_in21k": f"{name}.goog_in21k" for name in TAGS if name.endswith("_bit")},
    "resnetv2_50x1_bit_distilled": "resnetv2_50x1_bit.goog_distilled_in1k",
    "resnetv2_152x2_bit_teacher": "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k",
    "resnetv2_152x2_bit_teacher_384": "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384",
    **{f"{name}_in21k": f"{name}.orig_in21k" for name, tags in TAGS.items() if "orig_in21k" in tags.split()},
    **{f"{name}_in21k": f"{name}.augreg_in21k" for name, tags in TAGS.items() if "augreg_in21k" in tags.split()},
    **{f"vit_base_patch{patch}_224_sam": f"vit_base_patch{patch}_224.sam_in1k" for patch in (16, 32)},
    **{f"{name}_dino": f"{name}.dino" for name, tags in TAGS.items() if "dino" in tags.split()},
    "vit_base_resnet50_224_in21k": "vit_base_r50_s16_224.orig_in21k",
    "vit_base_resnet50_384": "vit_base_r50_s16_384.orig_in21k_ft_in1k",
    **{f"mixer_{size}16_224_in21k": f"mixer_{size}16_224.goog_in21k" for size in ("b", "l")},
    "mixer_b16_224_miil": "mixer_b16_224.miil_in21k_ft_in1k",
    "mixer_b16_224_miil_in21k": "mixer_b16_224.miil_in21k",
    **{f"resmlp_{depth}_distilled_224": f"resmlp_{depth}_224.fb_distilled_in1k" for depth in (12, 24, 36, "big_24")},
    **{f"resmlp_{depth}_224_dino": f"resmlp_{depth}_224.fb_dino" for depth in (12, 24)},
    "resmlp_big_24_224_in22ft1k": "resmlp_big_24_224.fb_in22k_ft_in1k",
}


def full(name: str) -> str:
    """Returns the current name with its tag: replaces older names, and adds the default tag if there is none."""
    name = ALIASES.get(name, name)
    return name if "." in name or name not in TAGS else f"{name}.{TAGS[name].split()[0]}"


def _of(name: str) -> tuple[str, dict[str, Any]]:
    """Returns our model and its attributes for a full name."""
    ours, attributes = MODELS[name.partition(".")[0]]
    classes = CLASSES.get(name.partition(".")[2], _BAMBOO.get(name, 1000))
    return ours, attributes if classes == 1000 else {**attributes, "num_classes": classes}


NAMES = {
    name: _of(full(name))
    for name in (*MODELS, *(f"{name}.{tag}" for name, tags in TAGS.items() for tag in tags.split()), *ALIASES)
}
