"""Exact numbers of parameters of every registered model, against the published ones."""

import jax
import jax.numpy as jnp
import pytest

from recvis_jax import models, trees

# For 28x28x1 and for 32x32x3 images, 10 classes.
SMALL_IMAGES = {
    "linear": (784 * 10 + 10, 3072 * 10 + 10),
    "mlp": (784 * 512 + 512 + 512 * 256 + 256 + 2570, 3072 * 512 + 512 + 512 * 256 + 256 + 2570),
    "lenet5": (61_706, 456 + 2416 + 16 * 36 * 120 + 120 + 10_164 + 850),
    # stem 5x5, and by stage: convolution, residual convolution; norms with scale and bias; head without bias.
    "speednet": tuple(
        25 * c * 64 + 9 * (64 * 64 + 64**2 + 64 * 128 + 128**2 + 128 * 256) + 2 * (64 * 3 + 128 * 2 + 256) + 2560
        for c in (1, 3)
    ),
    "convnet": (21_840, 760 + 5020 + 500 * 50 + 50 + 510),
    "resnet20": (269_434, 269_722),
    "resnet32": (463_866, 464_154),
    "resnet44": (658_298, 658_586),
    "resnet56": (852_730, 853_018),
    "resnet110": (1_727_674, 1_727_962),
}
SMALL_IMAGES |= {name.replace("resnet", "plain"): c for name, c in SMALL_IMAGES.items() if name.startswith("resnet")}

# For 224x224x3 images and 1000 classes, as published by torchvision (num_params of its weights) and timm.
ALEXNET = {"alexnet": 61_100_840}
# Chatfield et al. give the layers, not the sum, which is this one.
VGG_M = {
    "vgg_m": 7 * 7 * 3 * 96 + 96
    + 5 * 5 * 96 * 256 + 256
    + 3 * 3 * 256 * 512 + 512
    + 2 * (3 * 3 * 512 * 512 + 512)
    + 6 * 6 * 512 * 4096 + 4096
    + 4096 * 4096 + 4096
    + 4096 * 1000 + 1000
}  # fmt: skip
VGG = {
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
}
GOOGLENET = {"googlenet": 13_004_888}
RESNET = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
}
BIT = {
    "bit_r50x1": 25_549_352,
    "bit_r50x3": 217_319_080,
    "bit_r101x1": 44_541_480,
    "bit_r101x3": 387_934_888,
    "bit_r152x2": 236_335_208,
    "bit_r152x4": 936_533_224,
}


def vit(width, depth, patch):
    """Kernel and bias of patches, class token and positions, blocks, norm, head."""
    tokens = (224 // patch) ** 2 + 1
    embedding = (3 * patch**2 + 1) * width + (1 + tokens) * width
    return embedding + depth * (12 * width**2 + 13 * width) + 2 * width + 1000 * (width + 1)


SIZES = {"ti": (192, 12), "s": (384, 12), "b": (768, 12), "l": (1024, 24), "h": (1280, 32)}
# By the formula, and those that google-research/vision_transformer lists in its tests.
VIT = {f"vit_{size}{patch}": vit(*wd, patch) for size, wd in SIZES.items() for patch in (8, 14, 16, 32)} | {
    "vit_ti16": 5_717_416,
    "vit_s16": 22_050_664,
    "vit_s32": 22_878_952,
    "vit_b8": 86_576_872,
    "vit_b16": 86_567_656,
    "vit_b32": 88_224_232,
    "vit_l16": 304_326_632,
    "vit_l32": 306_535_400,
    "vit_h14": 632_045_800,
}
HYBRID = {
    "vit_ti_r_s16": 6_337_704,
    "vit_s_r26_s32": 36_431_912,
    "vit_b_r50_s16": 98_659_112,
    "vit_l_r50_s32": 328_994_856,
}
# As published, without the position embeddings, which are fixed.
MAE = {
    "mae_b16": 111_907_840 - 197 * (768 + 512),
    "mae_l16": 329_541_888 - 197 * (1024 + 512),
    "mae_h14": 657_074_508 - 257 * (1280 + 512),
}
MIXER = {
    "mixer_s16": 18_528_264,
    "mixer_s32": 19_104_624,
    "mixer_b16": 59_880_472,
    "mixer_b32": 60_293_428,
    "mixer_l16": 208_196_168,
    "mixer_l32": 206_939_264,
    "gmixer_12": 12_701_080,
    "gmixer_24": 24_721_096,
}
RESMLP = {
    "resmlp_12": 15_350_872,
    "resmlp_24": 30_020_680,
    "resmlp_36": 44_690_488,
    "resmlp_b24": 129_138_280,
}
GMLP = {"gmlp_ti16": 5_867_328, "gmlp_s16": 19_422_656, "gmlp_b16": 73_075_392}
# Published as 7.7, 62 and 206 million.
FF_ONLY = {"ff_only_ti16": 7_676_332, "ff_only_b16": 61_943_020, "ff_only_l32": 206_213_048}
CONVMIXER = {
    "convmixer_768_32": 21_110_248,
    "convmixer_1024_20": 24_383_464,
    "convmixer_1536_20": 51_625_960,
}
TOKENS = {**VIT, **HYBRID, **MAE, **MIXER, **RESMLP, **GMLP, **FF_ONLY, **CONVMIXER}

IMAGENET = {**ALEXNET, **VGG_M, **VGG, **GOOGLENET, **RESNET, **BIT, **TOKENS}

# Variants by attributes.
OTHERS = [
    ("googlenet", {"aux_logits": False}, 6_624_904),
    ("bit_r50x1", {"num_classes": 21843}, 68_256_659),
    ("resnet50", {"num_classes": 0}, 25_557_032 - 2_049_000),
]


def count(name, shape, **kw):
    model = models.create(name, **kw)
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    return trees.count(variables["params"])


@pytest.mark.parametrize("name", models.MODELS)
def test_parameter_count(name):
    assert name in SMALL_IMAGES or name in IMAGENET, "a registered model needs a row"
    if name in IMAGENET:
        assert count(name, (224, 224, 3)) == IMAGENET[name]
    else:
        assert (count(name, (28, 28, 1)), count(name, (32, 32, 3))) == SMALL_IMAGES[name]


@pytest.mark.parametrize(("name", "kw", "expected"), OTHERS)
def test_parameter_count_of_variants(name, kw, expected):
    assert count(name, (224, 224, 3), **kw) == expected


def test_every_row_is_a_model():
    assert {*SMALL_IMAGES, *IMAGENET} == set(models.MODELS)


def test_counts_by_formula():
    # conv3x3 is 9 c_in c_out, a norm 2c; stages of n blocks of two convolutions at 16, 32 and 64 channels.
    for depth in (20, 56, 110):
        n = (depth - 2) // 6
        stages = 9 * (16 * 16 * 2 * n + 16 * 32 + 32 * 32 * (2 * n - 1) + 32 * 64 + 64 * 64 * (2 * n - 1))
        norms = 2 * (16 * (2 * n + 1) + 32 * 2 * n + 64 * 2 * n)
        assert SMALL_IMAGES[f"resnet{depth}"][1] == 27 * 16 + stages + norms + 650
