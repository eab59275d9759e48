"""Prepares a data set for training, without TensorFlow: downloads or reads it, checks it, writes it.

    python -m recvis_jax.prepare --dataset=fashion_mnist
    python -m recvis_jax.prepare --dataset=cifar10 --source=FOLDER_WITH_THE_ARCHIVE
    python -m recvis_jax.prepare --dataset=folder --source=my/pictures --name=pictures
    python -m recvis_jax.prepare --dataset=coco --source=my/annotated      # or voc, or yolo
    python -m recvis_jax.prepare --dataset=fashion_scenes
    python -m recvis_jax.prepare --dataset=deepforest --source=WHEEL
    python -m recvis_jax.prepare --dataset=libreoffice_de                  # or bible_es
    python -m recvis_jax.prepare --dataset=parallel --source=my/texts      # or catalogues

A folder of images holds one folder a class, or train, val and test folders that do; val makes the split "validation".
The result is an ordinary tfds data set in array_record files, `<data_dir>/<name>/<version>`, read by `tfds.data_source`
and by the programs here. fashion_scenes are pictures of several garments of Fashion-MNIST with their boxes and
masks, made of the same raw files; deepforest are tiles of aerial photographs with boxes of trees, which PyPI's
deepforest carries.

A folder of annotated pictures holds boxes, masks and keypoints as COCO (annotations/instances_train.json and the like),
VOC (Annotations/, JPEGImages/, ImageSets/Main/) or YOLO (data.yaml, images/, labels/) lay them out, or as exports of
annotation tools do. The data set then has the fields image, boxes, labels, masks, points and more, see
`recvis_jax.data.objects.declare`.

Texts and their translations come of message catalogues (.mo, .po), of two files whose lines translate each other
(train.en and train.de; test.en and test.de where they are held out), or of a file of tab-separated source, target and
document. libreoffice_de (English-German) and bible_es (English-Spanish) are made of Debian's packages. What occurs
twice is left out; whole catalogues, books or documents are held out for validation and testing.

Images of a folder may be jpeg, png, bmp, gif (its first frame), tiff, webp, ppm and avif, whatever their names. They
keep their bytes if they are 8-bit grey or RGB jpeg or png. All others are stored as png, as are those that their EXIF
orientation turns. They are read with 3 channels, grey ones too; transparency is dropped. A picture that is in both
train and test is an error unless --duplicates says otherwise.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from recvis_jax import cli, errors

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_string(
        "dataset",
        None,
        "What to prepare: fashion_mnist, mnist, cifar10, cifar100, fashion_scenes, deepforest, folder for a folder of "
        "images, coco, voc or yolo for a folder of annotated pictures, libreoffice_de, bible_es, or catalogues or "
        "parallel for texts and their translations.",
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where prepared data sets lie: by default $RECVIS_DATA_DIR, $TFDS_DATA_DIR or ~/tensorflow_datasets.",
    )
    flags.DEFINE_string(
        "source",
        None,
        "The folder of images, annotated pictures or texts; or a folder with the files as the authors publish them, "
        "instead of a download.",
    )
    flags.DEFINE_string("name", None, "For a folder: the name of the data set. Made from the folder's by default.")
    flags.DEFINE_string(
        "annotations", None, "With coco: how the names of the JSON files begin that are taken, as person_keypoints."
    )
    flags.DEFINE_enum(
        "on_error", "fail", ["fail", "skip"],
        "For a folder: what to do about images that cannot be read, or do not fit their annotation, and about texts "
        "that are empty or too long.",
    )  # fmt: skip
    flags.DEFINE_enum(
        "duplicates",
        None,
        ["fail", "drop", "keep"],
        "For a folder: what to do about the same picture or text in several places. fail, of pictures the default: an "
        "error if it is in two splits; drop, of texts the default: leaves out copies, of pictures those of test last, "
        "and pictures of two classes, of texts those that are in training, too; keep: takes all.",
    )
    flags.DEFINE_bool("overwrite", False, "Make the data set again if it is there.")
    flags.DEFINE_bool("report", True, "Write report.html beside the data: classes, samples, copies, odd images.")


def main(argv: list[str]) -> None:
    del argv
    from recvis_jax.data import builders, sources, writing

    if FLAGS.dataset is None:
        raise errors.BadRequest(f"--dataset is missing; it is one of {', '.join(builders.NAMES)}.")
    directory = builders.prepare(
        FLAGS.dataset,
        FLAGS.data_dir,
        FLAGS.source,
        folder_name=FLAGS.name,
        family=FLAGS.annotations,
        on_error=FLAGS.on_error,
        on_duplicate=FLAGS.duplicates,
        overwrite=FLAGS.overwrite,
        say=lambda line: print(line, flush=True),
    )
    found = builders.summary(directory)
    print(f"{found.name} {found.version} in {errors.printable(directory)}")
    for split, count in found.splits.items():
        print(f"  {split:<10} {count:>9,} examples")
    made_of = writing.recorded(directory)
    if made_of.get("kind") == "texts":
        print(f"  {' -> '.join(map(errors.printable, made_of['languages']))}")
        print(next_step(found.name, found.splits, directory.parents[1], sources.default_data_dir(), "text"))
        return
    names = [errors.printable(name) for name in found.class_names]
    more = f", ... {len(names) - 20} more" if len(names) > 20 else ""
    print(f"  {len(names)} class{'es' * (len(names) != 1)}: {', '.join(names[:20])}{more}")
    if fields := made_of.get("fields"):
        print(f"  fields: {', '.join(field['name'] for field in fields)}")
        print(next_step(found.name, found.splits, directory.parents[1], sources.default_data_dir(), "boxes"))
        print("in Python: see docs/library.md, Your own boxes and masks")
        return
    if FLAGS.report:
        print(_write_page(directory, found.name, list(found.splits)))
    print(next_step(found.name, found.splits, directory.parents[1], sources.default_data_dir()))


def _write_page(directory: Path, name: str, splits: list[str]) -> str:
    """Writes the page of a data set, and returns a line that says where it is."""
    from recvis_jax import surveying
    from recvis_jax.training import log

    path = directory / surveying.FILE
    try:
        log.write_atomically(path, surveying.of_data_set(directory, name, splits))
    except (errors.BadRequest, errors.Failure) as e:  # the data are good all the same
        return f"note: {errors.printable(path)} was not written: {e}"
    return f"report: {errors.printable(path)}"


def next_step(name: str, splits: Mapping[str, int], data_dir: Path, default: Path, kind: str = "image") -> str:
    """Returns a line with the command that trains on the data set.

    Args:
      name: of the data set.
      splits: split -> number of examples.
      data_dir: where it lies.
      default: where data sets lie by default.
      kind: "image", "boxes" or "text".
    """
    if "train" not in splits:
        return f"note: {name} has no training images; a run is trained on another data set of the same classes"
    other, batch = f"configs/folder/resnet18.py:name={name}", 64
    if kind == "boxes":
        other, batch = f"configs/folder/detector.py:name={name}", 16
    if kind == "text":
        other = f"configs/libreoffice/transformer.py:name={name}"
        if name not in _CONFIGS and "validation" not in splits:
            return (
                f"note: {name} has no validation texts; {other} takes a part of its training texts as --config.data.val"
            )
    config, run, *extra = _CONFIGS.get(name, (other, name))
    if name not in _CONFIGS and kind != "text":
        count = splits["train"]
        if "validation" in splits:
            extra += ["--config.data.train=train", "--config.data.val=validation"]
        else:
            count = count * 9 // 10  # the config keeps a tenth for validation
        if "test" in splits:
            extra.append("--config.data.test=test")
        if count < batch:
            extra.append(f"--config.batch_size={2 ** int(math.log2(max(count, 1)))}")
    if data_dir.resolve() != default.resolve():
        extra.append(f"--config.data.data_dir={data_dir}")
    return "next: " + errors.command(
        "python", "-m", "recvis_jax.train", f"--config={config}", f"--workdir=runs/{run}", *extra
    )


# Data set -> config, name of the run, and what to change in the config. Digits are not to be mirrored.
_CONFIGS: dict[str, tuple[str, ...]] = {
    "libreoffice_de": ("configs/libreoffice/transformer.py", "translate"),
    "bible_es": ("configs/bible/transformer.py", "bible"),
    "fashion_mnist": ("configs/fashion_mnist/lenet5.py", "lenet5"),
    "deepforest": ("configs/deepforest/centre.py", "trees_centre"),
    "fashion_scenes": ("configs/fashion_mnist/adaptation.py:run=scratch", "scratch"),
    "mnist": (
        "configs/fashion_mnist/lenet5.py",
        "mnist",
        "--config.data.name=mnist",
        "--config.data.statistics=mnist",
        "--config.data.augment=pad_crop(2)",
    ),
    "cifar10": ("configs/cifar10/resnet20.py", "cifar10"),
    "cifar100": (
        "configs/cifar10/resnet20.py",
        "cifar100",
        "--config.data.name=cifar100",
        "--config.data.statistics=cifar100",
    ),
}

if __name__ == "__main__":
    cli.run(main, define_flags)
