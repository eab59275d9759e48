"""Names of torchvision's checkpoints (`torchvision.models`)."""

from typing import Any

from recvis_jax.errors import BadRequest
from recvis_jax.models.alexnet import AlexNet
from recvis_jax.models.googlenet import GoogLeNet
from recvis_jax.models.resnet import VARIANTS as RESNETS
from recvis_jax.models.resnet import ResNet
from recvis_jax.models.segmenters import Segmenter
from recvis_jax.models.squeezenet import VARIANTS as SQUEEZENETS
from recvis_jax.models.squeezenet import SqueezeNet
from recvis_jax.models.vgg import VARIANTS as VGGS
from recvis_jax.models.vgg import VGG
from recvis_jax.pretrained.rules import Layout, Table, linear_after_flatten


def conv(theirs: str, ours: str) -> Table:
    """Returns the rows of a convolution with a bias."""
    return ((f"{theirs}.weight", f"params/{ours}/kernel", "conv"), (f"{theirs}.bias", f"params/{ours}/bias", ""))


def linear(theirs: str, ours: str, layout: str | Layout = "linear") -> Table:
    """Returns the rows of a fully connected layer."""
    return ((f"{theirs}.weight", f"params/{ours}/kernel", layout), (f"{theirs}.bias", f"params/{ours}/bias", ""))


def batch_norm(theirs: str, ours: str) -> Table:
    """Returns the rows of a batch norm."""
    return (
        (f"{theirs}.weight", f"params/{ours}/scale", ""),
        (f"{theirs}.bias", f"params/{ours}/bias", ""),
        (f"{theirs}.running_mean", f"batch_stats/{ours}/mean", ""),
        (f"{theirs}.running_var", f"batch_stats/{ours}/var", ""),
        (f"{theirs}.num_batches_tracked", f"batch_stats/{ours}/mean", "count"),
    )


def conv_norm(theirs: str, ours: str) -> Table:
    """Returns the rows of GoogLeNet's convolution with a batch norm."""
    return (
        (f"{theirs}.conv.weight", f"params/{ours}/conv/kernel", "conv"),
        *batch_norm(f"{theirs}.bn", f"{ours}/norm"),
    )


# Numbers count convolutions together with activations and pools.
ALEXNET: Table = (
    *conv("features.0", "conv1"),
    *conv("features.3", "conv2"),
    *conv("features.6", "conv3"),
    *conv("features.8", "conv4"),
    *conv("features.10", "conv5"),
    *linear("classifier.1", "fc6", linear_after_flatten(6, 6)),
    *linear("classifier.4", "fc7"),
    *linear("classifier.6", "head"),
)


def vgg_features(model: VGG) -> Table:
    """Returns the rows of a VGG network's convolutions; numbers also count norms, activations and pools."""
    rows: Table = ()
    n = 0
    for stage, blocks in enumerate(model.blocks, 1):
        for block in range(1, blocks + 1):
            rows += conv(f"features.{n}", f"stage{stage}_conv{block}")
            rows += batch_norm(f"features.{n + 1}", f"stage{stage}_norm{block}")
            n += 2 if model.norm == "none" else 3
        n += 1
    return rows


def vgg(model: VGG) -> Table:
    return (
        *vgg_features(model),
        *linear("classifier.0", "fc6", linear_after_flatten(7, 7)),
        *linear("classifier.3", "fc7"),
        *linear("classifier.6", "head"),
    )


GOOGLENET: Table = (
    *conv_norm("conv1", "stem"),
    *conv_norm("conv{i}", "conv{i}"),
    *(
        row
        for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
        for row in (
            *conv_norm(f"inception{block}.branch1", f"inception{block}/branch1_0"),
            *conv_norm(f"inception{block}.branch2.{{j}}", f"inception{block}/branch2_{{j}}"),
            *conv_norm(f"inception{block}.branch3.{{j}}", f"inception{block}/branch3_{{j}}"),
            *conv_norm(f"inception{block}.branch4.1", f"inception{block}/branch4_0"),
        )
    ),
    *conv_norm("aux{i}.conv", "aux{i}/conv"),
    *linear("aux{i}.fc1", "aux{i}/fc1", linear_after_flatten(4, 4)),
    *linear("aux{i}.fc2", "aux{i}/head"),
    *linear("fc", "head"),
)

RESNET: Table = (
    ("conv1.weight", "params/stem/kernel", "conv"),
    *batch_norm("bn1", "stem_norm"),
    ("layer{i}.{j}.conv{k}.weight", "params/stage{i}_block{j+1}/conv{k}/kernel", "conv"),
    *batch_norm("layer{i}.{j}.bn{k}", "stage{i}_block{j+1}/norm{k}"),
    ("layer{i}.{j}.downsample.0.weight", "params/stage{i}_block{j+1}/proj/kernel", "conv"),
    *batch_norm("layer{i}.{j}.downsample.1", "stage{i}_block{j+1}/norm_proj"),
    *linear("fc", "head"),
)


def squeezenet(model: SqueezeNet) -> Table:
    """Returns the rows of a SqueezeNet, whose fire modules are numbered among pools."""
    rows = conv("features.0", "stem")
    n = 2
    for i in range(2, 2 + len(model.squeezes)):
        n += i in model.pools
        for part in ("squeeze", "expand1x1", "expand3x3"):
            rows += conv(f"features.{n}.{part}", f"fire{i}/{part}")
        n += 1
    return (*rows, *conv("classifier.1", "head"))


def _unit(theirs: str, ours: str, norm: str = "") -> Table:
    """Returns the rows of a convolution without bias, numbered `theirs`, and of the batch norm `norm` behind it."""
    return ((f"{theirs}.weight", f"params/{ours}/conv/kernel", "conv"), *batch_norm(norm, f"{ours}/norm"))


def _fcn_head(theirs: str, ours: str) -> Table:
    return (
        *_unit(f"{theirs}.0", f"{ours}/hidden", f"{theirs}.1"),
        *conv(f"{theirs}.4", f"{ours}/classes"),
    )


def within(table: Table, theirs: str, ours: str) -> Table:
    """Returns a table with a prefix before their names, and a module around our variables."""

    def inner(name: str) -> str:
        kind, _, rest = name.partition("/")
        return f"{kind}/{ours}/{rest}"

    return tuple((f"{theirs}.{name}", inner(variable), layout) for name, variable, layout in table)  # type: ignore[arg-type]


def segmenter(model: Segmenter) -> Table:
    """Returns the rows of FCN and DeepLabV3 on a residual network.

    Raises:
      BadRequest: a head that torchvision does not have.
    """
    if model.head not in ("fcn", "deeplabv3"):
        raise BadRequest(f"torchvision has no segmenter with a head like {model.head!r}.")
    rows = (*within(RESNET, "backbone", "backbone"), *_fcn_head("aux_classifier", "auxiliary_head"))
    if model.head == "fcn":
        return (*rows, *_fcn_head("classifier", "head"))
    pool, first = "classifier.0", len(model.rates) + 1
    return (
        *rows,
        *_unit(f"{pool}.convs.{{i}}.0", "head/branch{i}", f"{pool}.convs.{{i}}.1"),
        *_unit(f"{pool}.convs.{first}.1", "head/pooled", f"{pool}.convs.{first}.2"),
        *_unit(f"{pool}.project.0", "head/project", f"{pool}.project.1"),
        *_unit("classifier.1", "head/hidden", "classifier.2"),
        *conv("classifier.4", "head/classes"),
    )


TABLES = {
    AlexNet: ALEXNET,
    VGG: vgg,
    GoogLeNet: GOOGLENET,
    ResNet: RESNET,
    SqueezeNet: squeezenet,
    Segmenter: segmenter,
}

_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "alexnet": ("alexnet", {}),
    **{name: (name, {}) for name in VGGS},
    # Like the published weights: with both auxiliary heads, and for images in [-1, 1].
    "googlenet": ("googlenet", dict(aux_logits=True, transform_input=True)),
    **{name: (name, {}) for name in RESNETS},
    **{name: (name, {}) for name in SQUEEZENETS},
    # The published ones have an auxiliary head, and the classes of VOC with the background.
    **{
        f"{head}_resnet{depth}": (f"{head}_r{depth}", dict(num_classes=21, auxiliary_layer=layer, dropout=dropout))
        for head, dropout in (("fcn", 0.1), ("deeplabv3", 0.5))
        for depth, layer in ((50, "stage3/block6"), (101, "stage3/block23"))
    },
}

# Models with a second set of weights, which DEFAULT means.
RETRAINED = ("resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2")

# Their name, or name.WEIGHTS in timm's notation: resnet50.IMAGENET1K_V2.
NAMES = {
    **_MODELS,
    **{f"{name}.{weights}": model for name, model in _MODELS.items() for weights in ("IMAGENET1K_V1", "DEFAULT")},
    **{f"{name}.IMAGENET1K_V2": _MODELS[name] for name in RETRAINED},
}

RENAMES: tuple[tuple[str, str], ...] = ()
