"""Data sets as sources of decoded examples, and batches of them.

`DATASETS` lists the sets that are known by name; every other name is looked up among the tfds data sets that are
prepared in `data_dir`. Which examples batch i holds and how they were augmented depends on (seed, i) alone.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """What is known of a data set without reading it: mock data and `--help` need no more."""

    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    splits: tuple[str, ...] = ("train", "test")
    embedded: bool = False  # comes with an installed package, needs no preparation
    boxes: bool = False  # several classes an image, and a box around each object


DATASETS: dict[str, Row] = {
    "digits": Row((8, 8, 1), 10, embedded=True),
    "fashion_mnist": Row((28, 28, 1), 10),
    "fashion_scenes": Row((96, 96, 1), 10, boxes=True),
    "mnist": Row((28, 28, 1), 10),
    "cifar10": Row((32, 32, 3), 10),
    "cifar100": Row((32, 32, 3), 100),
    "imagenet2012": Row((None, None, 3), 1000, splits=("train", "validation")),
}
