"""Names of the published BiT checkpoints: google-research/big_transfer's .npz files, which big_vision also reads."""

from typing import Any

from recvis_jax.models.bit import VARIANTS as BITS
from recvis_jax.models.bit import BiT
from recvis_jax.pretrained.rules import Table, squeeze

_UNIT = "resnet/block{i}/unit{j:02d}"


def _conv(letter: str, k: int) -> Table:
    """Returns the rows of convolution k of a unit and of the norm before it."""
    theirs, ours = f"{_UNIT}/{letter}", "params/stage{i}_block{j}"
    return (
        (f"{theirs}/standardized_conv2d/kernel", f"{ours}/conv{k}/kernel", ""),
        (f"{theirs}/group_norm/gamma", f"{ours}/norm{k}/scale", ""),
        (f"{theirs}/group_norm/beta", f"{ours}/norm{k}/bias", ""),
    )


BIT: Table = (
    ("resnet/root_block/standardized_conv2d/kernel", "params/stem/kernel", ""),
    *_conv("a", 1),
    *_conv("b", 2),
    *_conv("c", 3),
    (f"{_UNIT}/a/proj/standardized_conv2d/kernel", "params/stage{i}_block{j}/proj/kernel", ""),
    ("resnet/group_norm/gamma", "params/norm/scale", ""),
    ("resnet/group_norm/beta", "params/norm/bias", ""),
    ("resnet/head/conv2d/kernel", "params/head/kernel", squeeze(2)),
    ("resnet/head/conv2d/bias", "params/head/bias", ""),
)

TABLES = {BiT: BIT}

_SIZES = [name.removeprefix("bit_").upper().replace("X", "x") for name in BITS]

# Names of the files without .npz. S was trained on ImageNet, M on ImageNet-21k and, for ILSVRC2012, then on ImageNet.
# Names that end with an image size come from distillation; T marks its teachers.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name.format(size): (f"bit_{size.lower()}", attributes)
        for size in _SIZES
        for name, attributes in (
            ("{}", {}),
            ("BiT-S-{}", {}),
            ("BiT-M-{}", dict(num_classes=21_843)),
            ("BiT-M-{}-ILSVRC2012", {}),
        )
    },
    **{f"R50x1_{size}": ("bit_r50x1", {}) for size in (160, 224)},
    **{f"R152x2_T_{size}": ("bit_r152x2", {}) for size in (224, 384)},
}

# Some files number the convolutions.
RENAMES = ((r"/standardized_conv2d_\d+/", "/standardized_conv2d/"),)
