"""Convolutional models against timm's outputs and gradients for the same weights."""

import pytest
from reference import check_inference, check_training


@pytest.mark.full
def test_bit_inference():
    features = {"feat_stem": "stem", "feat_stage1": "stage2/block4", "feat_norm": "norm"}
    check_inference("timm_resnetv2_50x1_bit", "timm", "resnetv2_50x1_bit", features)


@pytest.mark.full
def test_bit_training():
    check_training("timm_resnetv2_50x1_bit_train", "timm", "resnetv2_50x1_bit")


@pytest.mark.full
def test_group_norm_inference():
    features = {"feat_stem": "stem", "feat_layer2": "stage2/block4", "feat_layer4": "stage4/block3"}
    check_inference("timm_resnet50_gn", "timm", "resnet50_gn", features)
