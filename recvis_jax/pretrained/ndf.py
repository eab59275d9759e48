"""Names of the package ndf's weights: SqueezeNet 1.1, trained on ImageNet, as a pickle of [kernel, bias] a layer.

Its images are 227x227, blue first, less their mean of 0 to 255; pools leave incomplete windows out. Here the first
kernel's inputs are turned around instead, and the images are ours.
"""

from typing import Any

from recvis_jax.models.squeezenet import SqueezeNet
from recvis_jax.pretrained.rules import BGR, Layout, Table


def _conv(theirs: str, ours: str, layout: str | Layout = "") -> Table:
    return ((f"{theirs}/0", f"params/{ours}/kernel", layout), (f"{theirs}/1", f"params/{ours}/bias", ""))


SQUEEZENET: Table = (
    *_conv("conv1", "stem", BGR),
    *_conv("fire{i}/squeeze1x1", "fire{i}/squeeze"),
    *_conv("fire{i}/expand1x1", "fire{i}/expand1x1"),
    *_conv("fire{i}/expand3x3", "fire{i}/expand3x3"),
    *_conv("conv10", "head"),
)

TABLES = {SqueezeNet: SQUEEZENET}
NAMES: dict[str, tuple[str, dict[str, Any]]] = {"squeezenet1_1": ("squeezenet1_1", {"ceil": False})}
RENAMES: tuple[tuple[str, str], ...] = ()
