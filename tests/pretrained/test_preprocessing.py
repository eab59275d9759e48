"""Preprocessing and number of classes of published weights, against what their libraries say."""

import csv
from pathlib import Path

import numpy as np
import pytest

from recvis_jax import pretrained
from recvis_jax.data import augment, transforms
from recvis_jax.pretrained import preprocessing, timm_names

# timm 1.0.31: `timm.models.get_pretrained_cfg(f"{name}.{tag}")` of all published weights of these families, the default
# first; the tag is empty where there are none. crop_mode is 'center' and both sides are equal everywhere.
with (Path(__file__).parent / "timm_pretrained_cfg.csv").open() as f:
    TIMM = [*csv.DictReader(f)]

STATISTICS = {
    "inception": ([0.5] * 3, [0.5] * 3),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "none": ([0.0] * 3, [1.0] * 3),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
}

# Library, name, transform, statistics.
OTHERS = [
    # torchvision 0.28: `get_model_weights(name)[weights].transforms()`, bilinear with antialiasing.
    *(
        ("torchvision", f"{name}{weights}", "resize_crop(224, resize=256, method='bilinear')", "imagenet")
        for name in ("alexnet", "googlenet", "resnet18", "resnet34", "vgg11", "vgg13_bn", "vgg16", "vgg19_bn")
        for weights in ("", ".IMAGENET1K_V1", ".DEFAULT")
    ),
    *(
        ("torchvision", f"{name}{weights}", f"resize_crop(224, resize={resize}, method='bilinear')", "imagenet")
        for name in ("resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2")
        for weights, resize in (("", 232), (".DEFAULT", 232), (".IMAGENET1K_V2", 232), (".IMAGENET1K_V1", 256))
    ),
    # facebookresearch/mae, util/datasets.py; facebookresearch/deit, datasets.py and README_resmlp.md: interpolation 3.
    ("mae", "vit_base_patch16", "resize_crop(224, resize=256, method='bicubic')", "imagenet"),
    ("deit", "deit_small_patch16_224", "resize_crop(224, resize=256, method='bicubic')", "imagenet"),
    ("deit", "deit_base_patch16_384", "resize_crop(384, resize=438, method='bicubic')", "imagenet"),
    ("deit", "resmlp_24", "resize_crop(224, resize=248, method='bicubic')", "imagenet"),
    # The hub's preprocessor_config.json: size (both sides), image_mean, resample 2.
    ("transformers", "google/vit-base-patch16-224", "resize((224, 224), method='bilinear')", "inception"),
    ("transformers", "google/vit-base-patch16-224-in21k", "resize((224, 224), method='bilinear')", "inception"),
    ("transformers", "google/vit-large-patch32-384", "resize((384, 384), method='bilinear')", "inception"),
    ("transformers", "facebook/vit-mae-base", "resize((224, 224), method='bilinear')", "imagenet"),
    # vision_transformer, vit_jax/input_pipeline.py; big_vision, configs/vit_s16_i1k.py.
    ("big_vision", "ViT-B/16", "resize((224, 224), method='bilinear')", "inception"),
    ("big_vision", "Mixer-B_16", "resize((224, 224), method='bilinear')", "inception"),
    ("big_vision", "vit_s16_i1k_90ep", "resize_crop(224, resize=256, method='bilinear')", "inception"),
    # big_transfer, bit_hyperrule.py and bit_pytorch/train.py; timm's cfgs of the same files for the others.
    ("big_transfer", "BiT-M-R50x1-ILSVRC2012", "resize((480, 480), method='bilinear')", "inception"),
    ("big_transfer", "BiT-M-R50x1", "resize_crop(224, resize=256, method='bilinear')", "inception"),
    ("big_transfer", "R50x1_224", "resize_crop(224, resize=256, method='bicubic')", "inception"),
    ("big_transfer", "R152x2_T_384", "resize_crop(384, resize=384, method='bicubic')", "inception"),
]


def values(statistics):
    """Mean and standard deviation, three of each."""
    pair = augment.STATISTICS[statistics] if isinstance(statistics, str) else statistics
    return tuple([*x] * (3 // len(x)) for x in pair)


def names(row):
    """What the row is called: the default also without its tag."""
    default = timm_names.TAGS.get(row["name"], "").partition(" ")[0]
    tagged = [f"{row['name']}.{row['tag']}"] if row["tag"] else []
    return [row["name"], *tagged] if row["tag"] == default else tagged


@pytest.mark.parametrize("row", TIMM, ids=lambda row: f"{row['name']}.{row['tag']}")
def test_timm(row):
    for name in names(row):
        found = preprocessing.of("timm", name)
        assert (found.size, found.crop, found.method) == (
            int(row["size"]), float(row["crop_pct"]), row["interpolation"]
        )  # fmt: skip
        assert values(found.statistics) == STATISTICS[row["statistics"]] and not found.squash
        assert pretrained.create("timm", name).num_classes == int(row["num_classes"])


def test_every_name_of_timm_is_in_the_table():
    first = {}
    for row in TIMM:
        first.setdefault(row["name"], []).append(row["tag"])
    assert set(first) == set(timm_names.MODELS)
    assert {n: tags for n, tags in first.items() if tags != [""]} == {n: t.split() for n, t in timm_names.TAGS.items()}
    known = {name for row in TIMM for name in names(row)}
    assert known == set(timm_names.NAMES) - set(timm_names.ALIASES)


def test_older_names_of_timm():
    # A sample of `timm.models._registry._deprecated_models`.
    for old, new in {
        "tv_resnet50": "resnet50.tv_in1k",
        "swsl_resnet18": "resnet18.fb_swsl_ig1b_ft_in1k",
        "resnetv2_50x1_bitm_in21k": "resnetv2_50x1_bit.goog_in21k",
        "vit_base_patch16_224_in21k": "vit_base_patch16_224.augreg_in21k",
        "vit_huge_patch14_224_in21k": "vit_huge_patch14_224.orig_in21k",
        "vit_base_r50_s16_224_in21k": "vit_base_r50_s16_224.orig_in21k",
        "vit_small_patch8_224_dino": "vit_small_patch8_224.dino",
        "resmlp_big_24_distilled_224": "resmlp_big_24_224.fb_distilled_in1k",
        # There it is now the weights of ImageNet's 1,000 classes; the older name's have 21,843.
        "mixer_b16_224_in21k": "mixer_b16_224.goog_in21k",
    }.items():
        assert timm_names.full(old) == new
        assert pretrained.create("timm", old) == pretrained.create("timm", new)
        assert preprocessing.of("timm", old) == preprocessing.of("timm", new)


@pytest.mark.parametrize(("library", "name", "transform", "statistics"), OTHERS)
def test_other_libraries(library, name, transform, statistics):
    found = preprocessing.of(library, name)
    assert (found.transform(), found.statistics) == (transform, statistics)
    assert pretrained.create(library, name) is not None


def test_transforms_are_ones_that_configs_know():
    rng, image = np.random.default_rng(0), np.zeros((600, 500, 3), np.uint8)
    for library, _, how in preprocessing.TABLE:
        out = transforms.parse(how.transform()).fn(rng, {"image": image})["image"]
        assert out.shape == (how.size, how.size, 3), (library, how)
        values(how.statistics)


def test_what_is_unknown_is_as_torchvisions():
    assert preprocessing.of("", "resnet50") == preprocessing.Preprocessing()
