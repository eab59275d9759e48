"""Models against torchvision's outputs, gradients and running statistics for the same weights."""

import pytest
from reference import check_inference, check_training

INFERENCE = {
    "tv_resnet18": ("resnet18", {"feat_stem": "stem", "feat_layer2": "stage2/block2", "feat_layer4": "stage4/block2"}),
    "tv_resnet50": ("resnet50", {"feat_stem": "stem", "feat_layer2": "stage2/block4", "feat_layer4": "stage4/block3"}),
}
TRAINING = {"tv_resnet18_train": "resnet18", "tv_resnet50_train": "resnet50"}


@pytest.mark.parametrize("fixture", INFERENCE)
def test_inference(fixture):
    check_inference(fixture, "torchvision", *INFERENCE[fixture])


@pytest.mark.parametrize("fixture", TRAINING)
def test_training(fixture):
    check_training(fixture, "torchvision", TRAINING[fixture])
