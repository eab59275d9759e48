"""Exact numbers of parameters of every registered model, against the published ones."""

import jax
import jax.numpy as jnp
import pytest

from recvis_jax import models, trees
from recvis_jax.errors import keywords
from recvis_jax.kernels import convolutions

# For 28x28x1 and for 32x32x3 images, 10 classes.
SMALL_IMAGES = {
    "linear": (784 * 10 + 10, 3072 * 10 + 10),
    "mlp": (784 * 512 + 512 + 512 * 256 + 256 + 2570, 3072 * 512 + 512 + 512 * 256 + 256 + 2570),
    "lenet5": (61_706, 456 + 2416 + 16 * 36 * 120 + 120 + 10_164 + 850),
    # stem 5x5, and by stage: convolution, residual convolution; norms with scale and bias; head without bias.
    "speednet": tuple(
        25 * c * 64 + 9 * (64 * 128 + 128**2 + 128**2 + 128 * 256) + 2 * (64 + 128 * 3 + 256) + 2560 for c in (1, 3)
    ),
    "convnet": (21_840, 760 + 5020 + 500 * 50 + 50 + 510),
    "resnet20": (269_434, 269_722),
    "resnet32": (463_866, 464_154),
    "resnet44": (658_298, 658_586),
    "resnet56": (852_730, 853_018),
    "resnet110": (1_727_674, 1_727_962),
}
SMALL_IMAGES |= {name.replace("resnet", "plain"): c for name, c in SMALL_IMAGES.items() if name.startswith("resnet")}

# For 224x224x3 images and 1000 classes, by who counted.

# torchvision 0.28: `num_params` of the published weights (`models.get_model_weights(name).DEFAULT.meta`).
TORCHVISION = {
    "alexnet": 61_100_840,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "wide_resnet101_2": 126_886_696,
    "wide_resnet50_2": 68_883_240,
}
# timm 1.0.31: our name -> what was created with `num_classes=1000`, and the sum of its parameters' sizes; with a patch
# size where timm has no model of that name.
TIMM = {
    "vit_ti8": ("vit_tiny_patch16_224, patch_size=8", 5_719_720),
    "vit_ti14": ("vit_tiny_patch16_224, patch_size=14", 5_694_376),
    "vit_ti16": ("vit_tiny_patch16_224", 5_717_416),
    "vit_ti32": ("vit_tiny_patch16_224, patch_size=32", 6_131_560),
    "vit_s8": ("vit_small_patch8_224", 22_055_272),
    "vit_s14": ("vit_small_patch16_224, patch_size=14", 22_004_584),
    "vit_s16": ("vit_small_patch16_224", 22_050_664),
    "vit_s32": ("vit_small_patch32_224", 22_878_952),
    "vit_b8": ("vit_base_patch8_224", 86_576_872),
    "vit_b14": ("vit_base_patch16_224, patch_size=14", 86_475_496),
    "vit_b16": ("vit_base_patch16_224", 86_567_656),
    "vit_b32": ("vit_base_patch32_224", 88_224_232),
    "vit_l8": ("vit_large_patch16_224, patch_size=8", 304_338_920),
    "vit_l14": ("vit_large_patch14_224", 304_203_752),
    "vit_l16": ("vit_large_patch16_224", 304_326_632),
    "vit_l32": ("vit_large_patch32_224", 306_535_400),
    "vit_h8": ("vit_huge_patch14_224, patch_size=8", 632_214_760),
    "vit_h14": ("vit_huge_patch14_224", 632_045_800),
    "vit_h16": ("vit_huge_patch14_224, patch_size=16", 632_199_400),
    "vit_h32": ("vit_huge_patch14_224, patch_size=32", 634_960_360),
    "vit_ti_r_s16": ("vit_tiny_r_s16_p8_224", 6_337_704),
    "vit_s_r26_s32": ("vit_small_r26_s32_224", 36_431_912),
    "vit_b_r50_s16": ("vit_base_r50_s16_224", 98_659_112),
    "vit_l_r50_s32": ("vit_large_r50_s32_224", 328_994_856),
    "mixer_s16": ("mixer_s16_224", 18_528_264),
    "mixer_s32": ("mixer_s32_224", 19_104_624),
    "mixer_b16": ("mixer_b16_224", 59_880_472),
    "mixer_b32": ("mixer_b32_224", 60_293_428),
    "mixer_l16": ("mixer_l16_224", 208_196_168),
    "mixer_l32": ("mixer_l32_224", 206_939_264),
    "gmixer_12": ("gmixer_12_224", 12_701_080),
    "gmixer_24": ("gmixer_24_224", 24_721_096),
    "resmlp_12": ("resmlp_12_224", 15_350_872),
    "resmlp_24": ("resmlp_24_224", 30_020_680),
    "resmlp_36": ("resmlp_36_224", 44_690_488),
    "resmlp_b24": ("resmlp_big_24_224", 129_138_280),
    "gmlp_ti16": ("gmlp_ti16_224", 5_867_328),
    "gmlp_s16": ("gmlp_s16_224", 19_422_656),
    "gmlp_b16": ("gmlp_b16_224", 73_075_392),
    "convmixer_768_32": ("convmixer_768_32", 21_110_248),
    "convmixer_1024_20": ("convmixer_1024_20_ks9_p14", 24_383_464),
    "convmixer_1536_20": ("convmixer_1536_20", 51_625_960),
    "bit_r50x1": ("resnetv2_50x1_bit", 25_549_352),
    "bit_r50x3": ("resnetv2_50x3_bit", 217_319_080),
    "bit_r101x1": ("resnetv2_101x1_bit", 44_541_480),
    "bit_r101x3": ("resnetv2_101x3_bit", 387_934_888),
    "bit_r152x2": ("resnetv2_152x2_bit", 236_335_208),
    "bit_r152x4": ("resnetv2_152x4_bit", 936_533_224),
}
# google-research/vision_transformer, models_test.py: our name -> theirs, and the size they expect.
VISION_TRANSFORMER = {
    "vit_ti16": ("ViT-Ti_16", 5_717_416),
    "vit_s16": ("ViT-S_16", 22_050_664),
    "vit_s32": ("ViT-S_32", 22_878_952),
    "vit_b8": ("ViT-B_8", 86_576_872),
    "vit_b16": ("ViT-B_16", 86_567_656),
    "vit_b32": ("ViT-B_32", 88_224_232),
    "vit_l16": ("ViT-L_16", 304_326_632),
    "vit_l32": ("ViT-L_32", 306_535_400),
    "vit_h14": ("ViT-H_14", 632_045_800),
    "vit_ti_r_s16": ("R+ViT-Ti_16", 6_337_704),
    "vit_s_r26_s32": ("R26+ViT-S_32", 36_431_912),
    "vit_b_r50_s16": ("R50+ViT-B_16", 98_659_112),
    "vit_l_r50_s32": ("R50+ViT-L_32", 328_994_856),
    "mixer_b16": ("Mixer-B_16", 59_880_472),
    "mixer_b32": ("Mixer-B_32", 60_293_428),
    "mixer_l16": ("Mixer-L_16", 208_196_168),
}
# transformers 5.23: parameters of `ViTMAEForPreTraining` that require gradients; positions are fixed there as here.
TRANSFORMERS = {"mae_b16": 111_655_680, "mae_l16": 329_239_296, "mae_h14": 656_613_964}


def vit(width, depth, patch):
    """Kernel and bias of patches, class token and positions, blocks, norm, head."""
    tokens = (224 // patch) ** 2 + 1
    embedding = (3 * patch**2 + 1) * width + (1 + tokens) * width
    return embedding + depth * (12 * width**2 + 13 * width) + 2 * width + 1000 * (width + 1)


def ff_only(width, depth, patch):
    """As a ViT with an MLP and a norm over the n tokens in place of attention and its norm."""
    n = (224 // patch) ** 2 + 1
    block = 8 * width**2 + 5 * width + 2 * width + 8 * n**2 + 5 * n + 2 * n
    return vit(width, 0, patch) + depth * block


SIZES = {"ti": (192, 12), "s": (384, 12), "b": (768, 12), "l": (1024, 24), "h": (1280, 32)}
# By hand: no library counts them with these sizes, or not as one number.
FORMULAS = {
    # torchvision's weights have 6,624,904 without the heads that only training uses (tested below).
    "googlenet": 6_624_904
    + sum(128 * c + 2 * 128 + 2048 * 1024 + 1024 + 1024 * 1000 + 1000 for c in (512, 528)),
    # Chatfield et al. 2014, table 1, gives the layers, not the sum.
    "vgg_m": 7 * 7 * 3 * 96 + 96
    + 5 * 5 * 96 * 256 + 256
    + 3 * 3 * 256 * 512 + 512
    + 2 * (3 * 3 * 512 * 512 + 512)
    + 6 * 6 * 512 * 4096 + 4096
    + 4096 * 4096 + 4096
    + 4096 * 1000 + 1000,
    **{f"vit_{size}{patch}": vit(*wd, patch) for size, wd in SIZES.items() for patch in (8, 14, 16, 32)},
    "ff_only_ti16": ff_only(192, 12, 16),
    "ff_only_b16": ff_only(768, 12, 16),
    "ff_only_l32": ff_only(1024, 24, 32),
}  # fmt: skip
# As papers round them, in millions: Melas-Kyriazi 2021 and its repository, table 1.
ROUNDED = {"ff_only_ti16": 7.7, "ff_only_b16": 62, "ff_only_l32": 206}

# Our name -> {who counted: number}.
PUBLISHED = {}
for source, table in {
    "torchvision": TORCHVISION,
    "timm": TIMM,
    "vision_transformer": VISION_TRANSFORMER,
    "transformers": TRANSFORMERS,
    "formula": FORMULAS,
}.items():
    for name, number in table.items():
        PUBLISHED.setdefault(name, {})[source] = number if isinstance(number, int) else number[1]

# Variants by attributes: torchvision's `num_params` of GoogLeNet's weights; timm's `resnetv2_50x1_bit.goog_in21k`; one
# without the head of 2048 x 1000 weights and 1000 biases.
OTHERS = [
    ("googlenet", {"aux_logits": False}, 6_624_904),
    ("bit_r50x1", {"num_classes": 21843}, 68_256_659),
    ("resnet50", {"num_classes": 0}, 25_557_032 - 2_049_000),
]


@pytest.fixture(autouse=True)
def plain_convolutions(monkeypatch):
    """Leaves out the forms for CPUs: they have no parameters of their own, and take long to trace."""
    monkeypatch.setattr(convolutions, "_pads", lambda *args, **kw: None)


def count(name, shape, **kw):
    if "scan" in keywords(models.MODELS[name]):
        kw["scan"] = True  # one block is traced, with the parameters of all
    model = models.create(name, **kw)
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    return trees.count(variables["params"])


@pytest.mark.parametrize("name", models.MODELS)
def test_parameter_count(name):
    assert name in SMALL_IMAGES or name in PUBLISHED, "a registered model needs a row"
    if name in PUBLISHED:
        assert dict.fromkeys(PUBLISHED[name], count(name, (224, 224, 3))) == PUBLISHED[name]
    else:
        assert (count(name, (28, 28, 1)), count(name, (32, 32, 3))) == SMALL_IMAGES[name]


@pytest.mark.parametrize(("name", "kw", "expected"), OTHERS)
def test_parameter_count_of_variants(name, kw, expected):
    assert count(name, (224, 224, 3), **kw) == expected


def test_every_row_is_a_model():
    assert {*SMALL_IMAGES, *PUBLISHED} == set(models.MODELS)


def test_counts_by_formula():
    # conv3x3 is 9 c_in c_out, a norm 2c; stages of n blocks of two convolutions at 16, 32 and 64 channels.
    # He et al. 2015, table 6, in millions.
    rounded = {20: "0.27", 32: "0.46", 44: "0.66", 56: "0.85", 110: "1.7"}
    for depth, millions in rounded.items():
        n = (depth - 2) // 6
        stages = 9 * (16 * 16 * 2 * n + 16 * 32 + 32 * 32 * (2 * n - 1) + 32 * 64 + 64 * 64 * (2 * n - 1))
        norms = 2 * (16 * (2 * n + 1) + 32 * 2 * n + 64 * 2 * n)
        assert SMALL_IMAGES[f"resnet{depth}"][1] == 27 * 16 + stages + norms + 650
        assert f"{SMALL_IMAGES[f'resnet{depth}'][1] / 1e6:.{len(millions) - 2}f}" == millions
    for name, millions in ROUNDED.items():
        assert round(FORMULAS[name] / 1e6, 1 if millions < 10 else None) == millions
