"""Names of torchvision's checkpoints (`torchvision.models`)."""

from typing import Any

from recvis_jax.models.resnet import VARIANTS as RESNETS
from recvis_jax.models.resnet import ResNet
from recvis_jax.pretrained.rules import Table


def batch_norm(theirs: str, ours: str) -> Table:
    """Returns the rows of a batch norm."""
    return (
        (f"{theirs}.weight", f"params/{ours}/scale", ""),
        (f"{theirs}.bias", f"params/{ours}/bias", ""),
        (f"{theirs}.running_mean", f"batch_stats/{ours}/mean", ""),
        (f"{theirs}.running_var", f"batch_stats/{ours}/var", ""),
        (f"{theirs}.num_batches_tracked", f"batch_stats/{ours}/mean", "count"),
    )


RESNET: Table = (
    ("conv1.weight", "params/stem/kernel", "conv"),
    *batch_norm("bn1", "stem_norm"),
    ("layer{i}.{j}.conv{k}.weight", "params/stage{i}_block{j+1}/conv{k}/kernel", "conv"),
    *batch_norm("layer{i}.{j}.bn{k}", "stage{i}_block{j+1}/norm{k}"),
    ("layer{i}.{j}.downsample.0.weight", "params/stage{i}_block{j+1}/proj/kernel", "conv"),
    *batch_norm("layer{i}.{j}.downsample.1", "stage{i}_block{j+1}/norm_proj"),
    ("fc.weight", "params/head/kernel", "linear"),
    ("fc.bias", "params/head/bias", ""),
)

# Class of our model -> table, or function of the model that returns one.
TABLES = {ResNet: RESNET}

# Their name -> our name and attributes.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in RESNETS}

# Regular expressions on their names, and what to write instead before looking a name up.
RENAMES: tuple[tuple[str, str], ...] = ()
