"""Models against torchvision's outputs, gradients and running statistics for the same weights."""

import pytest
from reference import check_inference, check_training

# Fixture: their name, the fixture's features and ours, attributes that differ from the published weights'.
VGG_FEATURES = {"feat_pool1": "stage1/pool", "feat_features": "stage5/pool"}
GOOGLENET_FEATURES = {
    "feat_conv1": "stem",
    "feat_inception3a": "stage2/block1",
    "feat_inception4e": "stage3/block5",
}
INFERENCE = {
    "tv_alexnet": ("alexnet", {"feat_pool1": "stem", "feat_features": "stage2/pool", "feat_fc7": "features"}, {}),
    "tv_vgg11": ("vgg11", VGG_FEATURES, {}),
    "tv_vgg16": ("vgg16", VGG_FEATURES, {}),
    "tv_vgg16_bn": ("vgg16_bn", VGG_FEATURES, {}),
    "tv_googlenet": ("googlenet", GOOGLENET_FEATURES, {"aux_logits": False, "transform_input": False}),
    "tv_googlenet_aux": ("googlenet", GOOGLENET_FEATURES, {"transform_input": False}),
    "tv_squeezenet1_0": ("squeezenet1_0", {"feat_features": "stage3/block1"}, {}),
    "tv_squeezenet1_1": ("squeezenet1_1", {"feat_features": "stage3/block4"}, {}),
    "tv_resnet18": (
        "resnet18",
        {"feat_stem": "stem", "feat_layer2": "stage2/block2", "feat_layer4": "stage4/block2"},
        {},
    ),
    "tv_resnet50": (
        "resnet50",
        {"feat_stem": "stem", "feat_layer2": "stage2/block4", "feat_layer4": "stage4/block3"},
        {},
    ),
    "tv_fcn_resnet50": ("fcn_resnet50", {"feat_aux": "auxiliary/logits"}, {}),
    "tv_deeplabv3_resnet50": ("deeplabv3_resnet50", {"feat_aux": "auxiliary/logits"}, {}),
    "tv_wide_resnet50_2": (
        "wide_resnet50_2",
        {"feat_stem": "stem", "feat_layer2": "stage2/block4", "feat_layer4": "stage4/block3"},
        {},
    ),
}
TRAINING = {
    "tv_alexnet_train": ("alexnet", {"dropout": 0.0}),
    "tv_vgg16_bn_train": ("vgg16_bn", {"dropout": 0.0}),
    "tv_googlenet_aux_train": ("googlenet", {"transform_input": False, "dropout": 0.0, "dropout_aux": 0.0}),
    "tv_resnet18_train": ("resnet18", {}),
    "tv_resnet50_train": ("resnet50", {}),
}


@pytest.mark.full
@pytest.mark.parametrize("fixture", INFERENCE)
def test_inference(fixture):
    name, features, kw = INFERENCE[fixture]
    check_inference(fixture, "torchvision", name, features, **kw)


@pytest.mark.full
@pytest.mark.parametrize("fixture", TRAINING)
def test_training(fixture):
    name, kw = TRAINING[fixture]
    check_training(fixture, "torchvision", name, **kw)


@pytest.mark.full
@pytest.mark.parametrize("fixture", ["tv_googlenet", "tv_googlenet_aux"])
def test_googlenet_as_published_normalises_its_input_again(fixture):
    check_inference(fixture, "torchvision", "googlenet", {}, "logits_transform_input", aux_logits="aux" in fixture)
