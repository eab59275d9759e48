"""How many examples a config trains on, with or without the data."""

from typing import Any, NamedTuple

from recvis_jax import errors
from recvis_jax.data import DATASETS, sources, texts

# Examples of every split, for data that are not here. ImageNet: Russakovsky et al. 2015, "ImageNet large scale visual
# recognition challenge", table 2. WMT 2014: as tfds has it. COCO: cocodataset.org. Others: Xiao et al. 2017,
# "Fashion-MNIST"; LeCun et al. 1998; Krizhevsky 2009, "Learning multiple layers of features from tiny images".
SIZES: dict[str, dict[str, int]] = {
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
    "coco/2017": {"train": 118_287, "validation": 5_000},
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "mnist": {"train": 60_000, "test": 10_000},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "wmt14_translate/de-en": {"train": 4_508_785, "validation": 3_000, "test": 3_003},
}
_MOCK = 64  # made-up examples of a split, enough for shapes


class Examples(NamedTuple):
    """How many examples an epoch has, and the source of that number."""

    number: int
    source: str


def examples_of(data: dict[str, Any]) -> tuple[Examples, dict[str, Any]]:
    """Returns the size of a config's training split, and its `data` section, with mock images if the data are missing.

    Args:
      data: a config's section `data`.

    Raises:
      BadRequest: the data are missing and not in `SIZES`, or have no such split.
    """
    name, split = data.get("name", ""), data.get("train", "train")
    keys = {k: data[k] for k in ("data_dir", "image_key", "label_key", "fields", "most_objects", "mock") if k in data}
    try:
        if data.get("text") is not None:
            errors.check_kwargs(texts.Texts, data["text"], "config.data.text")
            keys = {k: keys[k] for k in ("data_dir", "mock") if k in keys}
            found = texts.open_split(name, split, texts.Texts(**data["text"]), **keys)
        else:
            found = sources.open_split(name, split, **keys)
    except errors.BadRequest as missing:
        if name not in SIZES:
            raise errors.BadRequest(
                f"{missing} Without them plan knows only the sizes of {', '.join(SIZES)}."
            ) from None
        parts = sources.parts_of(split, SIZES[name], name)
        count, source = sum(last - first for _, first, last in parts), f"the table of sizes, {name}/{split}"
        data = data | {"mock": _MOCK, "train": "train", "val": None, "test": None}
        if data.get("classes"):  # the mock data need an example of each
            data["mock"] = 50 * DATASETS[name].num_classes
            source += ", before some classes are chosen"
        if data.get("per_class"):
            count = data["per_class"] * len(data.get("classes") or range(DATASETS[name].num_classes))
            data["per_class"] = 0
        return Examples(count, source), data
    return Examples(found.length, f"the data set itself, {found.name}"), data
