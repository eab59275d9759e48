"""Data sets as sources of decoded examples, and batches of them.

`DATASETS` lists the data sets known by name; any other name is searched among the tfds data sets prepared in
`data_dir`. Which examples batch i holds and how they were augmented depends on (seed, i) alone.
"""

from typing import Any, NamedTuple


class Row(NamedTuple):
    """What is known of a data set without reading it; enough for mock data and `--help`."""

    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    splits: tuple[str, ...] = ("train", "test")
    embedded: bool = False  # part of an installed package; needs no preparation
    elsewhere: bool = False  # prepared by tfds itself
    boxes: bool = False  # several classes per image, and a box around each object
    texts: bool = False  # texts and their translations, no images
    masks: bool = False  # and a mask of each object


DATASETS: dict[str, Row] = {
    "digits": Row((8, 8, 1), 10, embedded=True),
    "fashion_mnist": Row((28, 28, 1), 10),
    "fashion_scenes": Row((96, 96, 1), 10, boxes=True, masks=True),
    "mnist": Row((28, 28, 1), 10),
    "cifar10": Row((32, 32, 3), 10),
    "cifar100": Row((32, 32, 3), 100),
    "imagenet2012": Row((None, None, 3), 1000, splits=("train", "validation"), elsewhere=True),
    "caltech101": Row((None, None, 3), 102, elsewhere=True),
    "libreoffice_de": Row((0, 0, 0), 0, splits=("train", "validation", "test"), texts=True),
    "bible_es": Row((0, 0, 0), 0, splits=("train", "validation", "test"), texts=True),
    "wmt14_translate/de-en": Row((0, 0, 0), 0, splits=("train", "validation", "test"), texts=True, elsewhere=True),
    "coco/2017": Row((None, None, 3), 80, splits=("train", "validation"), boxes=True, elsewhere=True),
    "deepforest": Row((256, 256, 3), 1, splits=("train", "validation", "test"), boxes=True),
    "voc/2007": Row((None, None, 3), 20, splits=("train", "validation", "test"), boxes=True, elsewhere=True),
}


def open(name: Any, **kw: Any) -> Any:
    """Opens a data set: one known by name, a prepared one, or a folder of images.

    Args:
      name: a name in `DATASETS`, a tfds data set prepared in `data_dir`, or a folder: either with one subfolder of
        images per class, or with annotated pictures in the layout of COCO, VOC or YOLO. A folder is prepared first
        (checked, and written to `data_dir` once).
      **kw: the arguments of `data.opened.open_data`: splits, transforms, augmentation, statistics, ...

    Returns:
      A `data.opened.Data`: `train`, `val`, `test`, `batches(...)`.

    Raises:
      BadRequest: there is no such data set (the message gives the command that prepares it), or an unknown argument.

    Example:
      >>> data = open("digits", train="train[:90%]", val="train[90%:]")
      >>> data.train.length, data.test.length
      (1293, 360)
    """
    from pathlib import Path

    from recvis_jax import errors
    from recvis_jax.data import opened

    if not isinstance(name, str | Path):
        raise errors.BadRequest(f"a data set is opened by name or folder, not by {errors.shown(name)}.")
    folder = Path(name).expanduser()
    if str(name) not in DATASETS and folder.is_dir():
        from recvis_jax.data import annotated_folder, builders

        kind = annotated_folder.kind_of(folder) or "folder"
        made = builders.prepare(kind, kw.get("data_dir"), str(folder), say=lambda line: None)
        found = builders.summary(made)
        name, splits = found.name, found.splits
        for key, there in (("val", "validation"), ("test", "test")):
            kw.setdefault(key, there if there in splits else None)
        kw.setdefault("data_dir", str(made.parents[1]))
    errors.check_kwargs(opened.open_data, {"name": str(name), **kw}, "data", given=("recorded",))
    return opened.open_data(name=str(name), **kw)


def from_arrays(images: Any, labels: Any, **kw: Any) -> Any:
    """Makes a data set from numpy arrays; see `data.arrays.from_arrays`.

    Example:
      >>> from_arrays(np.zeros((20, 8, 8), np.uint8), np.arange(20) % 4, val=0.25).val.length
      5
    """
    from recvis_jax import errors
    from recvis_jax.data import arrays

    errors.check_kwargs(arrays.from_arrays, kw, "from_arrays", given=("images", "labels"))
    return arrays.from_arrays(images, labels, **kw)


def from_examples(examples: Any, fields: Any, **kw: Any) -> Any:
    """Makes a data set from examples with declared fields (boxes, masks, words, ...); see `data.arrays.from_examples`.

    Example:
      >>> from recvis_jax.data.fields import Field
      >>> words = Field("words", "tokens", (None,), "int32", most=4)
      >>> from_examples([{"words": [1, 2]}, {"words": [3]}], [words]).train.length
      2
    """
    from recvis_jax import errors
    from recvis_jax.data import arrays

    errors.check_kwargs(arrays.from_examples, kw, "from_examples", given=("examples", "fields"))
    return arrays.from_examples(examples, fields, **kw)


def from_texts(pairs: Any, **kw: Any) -> Any:
    """Makes a data set from texts and their translations; see `data.arrays.from_texts`.

    Example:
      >>> from_texts([("a cat", "eine Katze"), ("a dog", "ein Hund")] * 3, val=0.5).val.length
      3
    """
    from recvis_jax import errors
    from recvis_jax.data import arrays

    errors.check_kwargs(arrays.from_texts, kw, "from_texts", given=("pairs",))
    return arrays.from_texts(pairs, **kw)
