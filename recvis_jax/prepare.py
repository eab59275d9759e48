"""Prepares a data set for training, without TensorFlow: downloads or reads it, checks it, writes it.

    python -m recvis_jax.prepare --dataset=fashion_mnist
    python -m recvis_jax.prepare --dataset=cifar10 --source=FOLDER_WITH_THE_ARCHIVE
    python -m recvis_jax.prepare --dataset=folder --source=my/pictures --name=pictures
    python -m recvis_jax.prepare --dataset=fashion_scenes

A folder of images holds one folder a class, or train, val and test folders that do. The result is an ordinary tfds
data set in array_record files, `<data_dir>/<name>/<version>`, read by `tfds.data_source` and by the programs here.
fashion_scenes are pictures of several garments of Fashion-MNIST with their boxes, made of the same raw files.
Images of a folder keep their bytes if they are 8-bit grey or RGB jpeg or png; all others are stored as png. They are
read with 3 channels, grey ones too; transparency is dropped and EXIF rotation is not applied.
"""

from pathlib import Path

from absl import flags

from recvis_jax import cli

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_string(
        "dataset",
        None,
        "What to prepare: fashion_mnist, mnist, cifar10, cifar100, fashion_scenes, or folder for a folder of images.",
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where prepared data sets lie: by default $RECVIS_DATA_DIR, $TFDS_DATA_DIR or ~/tensorflow_datasets.",
    )
    flags.DEFINE_string(
        "source",
        None,
        "The folder of images; or a folder with the files as the authors publish them, instead of a download.",
    )
    flags.DEFINE_string("name", None, "For a folder: the name of the data set. Made from the folder's by default.")
    flags.DEFINE_enum(
        "on_error", "fail", ["fail", "skip"], "For a folder: what to do about images that cannot be read."
    )
    flags.DEFINE_bool("overwrite", False, "Make the data set again if it is there.")


def main(argv: list[str]) -> None:
    del argv
    from recvis_jax import errors
    from recvis_jax.data import builders, sources

    if FLAGS.dataset is None:
        raise errors.BadRequest(f"--dataset is missing; it is one of {', '.join(builders.NAMES)}.")
    directory = builders.prepare(
        FLAGS.dataset,
        FLAGS.data_dir,
        FLAGS.source,
        folder_name=FLAGS.name,
        on_error=FLAGS.on_error,
        overwrite=FLAGS.overwrite,
        say=lambda line: print(line, flush=True),
    )
    found = builders.summary(directory)
    print(f"{found.name} {found.version} in {directory}")
    for split, count in found.splits.items():
        print(f"  {split:<10} {count:>9,} examples")
    names = found.class_names
    more = f", ... {len(names) - 20} more" if len(names) > 20 else ""
    print(f"  {len(names)} classes: {', '.join(names[:20])}{more}")
    print("next: " + next_command(found.name, list(found.splits), directory.parents[1], sources.default_data_dir()))


def next_command(name: str, splits: list[str], data_dir: Path, default: Path) -> str:
    """Returns a command that trains on the data set."""
    config, run, extra = _CONFIGS.get(name, (f"configs/folder/resnet18.py:name={name}", name, ""))
    if name not in _CONFIGS:
        if "val" in splits:
            extra += " --config.data.train=train --config.data.val=val"
        if "test" in splits:
            extra += " --config.data.test=test"
    if data_dir.resolve() != default.resolve():
        extra += f" --config.data.data_dir={data_dir}"
    return f"python -m recvis_jax.train --config={config} --workdir=runs/{run}{extra}"


# Digits are not to be mirrored.
_MNIST = "--config.data.statistics=mnist --config.data.augment='pad_crop(2)'"
_CIFAR100 = "--config.data.statistics=cifar100"
# Data set -> config, name of the run, and what to change in the config.
_CONFIGS = {
    "fashion_mnist": ("configs/fashion_mnist/lenet5.py", "lenet5", ""),
    "fashion_scenes": ("configs/fashion_mnist/adaptation.py:run=scratch", "scratch", ""),
    "mnist": ("configs/fashion_mnist/lenet5.py", "mnist", f" --config.data.name=mnist {_MNIST}"),
    "cifar10": ("configs/cifar10/resnet20.py", "cifar10", ""),
    "cifar100": (
        "configs/cifar10/resnet20.py",
        "cifar100",
        " --config.data.name=cifar100 --config.data.statistics=cifar100",
    ),
}

if __name__ == "__main__":
    cli.run(main, define_flags)
