"""Names of the published BiT checkpoints: google-research/big_transfer's .npz files, which big_vision reads too."""

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

# The file BiT-M-R50x1.npz holds the model R50x1; S, M and L are the sizes of the data that it was trained on.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{prefix}{name.removeprefix('bit_').upper().replace('X', 'x')}": (name, {})
    for name in BITS
    for prefix in ("", "BiT-S-", "BiT-M-", "BiT-L-")
}

# Some files number the convolutions.
RENAMES = ((r"/standardized_conv2d_\d+/", "/standardized_conv2d/"),)
