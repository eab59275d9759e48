"""Names of timm's checkpoints (`timm.create_model`)."""

from recvis_jax.models.bit import BiT
from recvis_jax.models.resnet import ResNet
from recvis_jax.models.vgg import VGG
from recvis_jax.pretrained import timm_names, timm_tokens
from recvis_jax.pretrained.rules import Table, linear_as_conv
from recvis_jax.pretrained.timm_tokens import norm
from recvis_jax.pretrained.torchvision import RESNET, linear, vgg_features

# The head is a 1x1 convolution.
BIT: Table = (
    ("stem.conv.weight", "params/stem/kernel", "conv"),
    *norm("stages.{i}.blocks.{j}.norm{k}", "stage{i+1}_block{j+1}/norm{k}"),
    ("stages.{i}.blocks.{j}.conv{k}.weight", "params/stage{i+1}_block{j+1}/conv{k}/kernel", "conv"),
    ("stages.{i}.blocks.{j}.downsample.conv.weight", "params/stage{i+1}_block{j+1}/proj/kernel", "conv"),
    *norm("norm", "norm"),
    *linear("head.fc", "head", "conv1x1"),
)


def vgg(model: VGG) -> Table:
    """Returns the rows of a VGG network; in timm its first two fully connected layers are convolutions."""
    return (
        *vgg_features(model),
        *linear("pre_logits.fc1", "fc6", linear_as_conv(7, 7)),
        *linear("pre_logits.fc2", "fc7", "conv1x1"),
        *linear("head.fc", "head"),
    )


TABLES = {BiT: BIT, ResNet: RESNET, VGG: vgg, **timm_tokens.TABLES}

NAMES = timm_names.NAMES

RENAMES: tuple[tuple[str, str], ...] = ()
