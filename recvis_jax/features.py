"""Writes the features of a split: what a layer of a trained model makes of every image.

  python -m recvis_jax.features --workdir=runs/mae --split=train --layers=features,block3 [--pool=mean]
  python -m recvis_jax.features --config=configs/x.py --config.init_from=hf://owner/repo --out=runs/x --split=test
  python -m recvis_jax.features --workdir=runs/mae --layers=features --out=photos.npz my/photos cat.jpg
  python -m recvis_jax.features --config=configs/fashion_mnist/fisher.py --out=runs/fisher --split=train

Per layer a memory-mapped `features/NAME.npy` (n d), the labels, and JSON with model, step, preprocessing, data hash
and checksums. `recvis_jax.probe` reuses them, and refuses them when they are stale or damaged.

A config with a section `learn` is of a classical representation: its vocabulary and its classifier are learnt first,
from the training split, and --out becomes a run that `probe`, `evaluate` and `predict` read (--workdir=runs/fisher).

Of images that are named (files, or folders of them) no data set is needed: --out=FILE.npz holds an array (n d) a layer,
and their `paths` (n).
"""

from pathlib import Path

from absl import flags

from recvis_jax import cli, errors
from recvis_jax.config import define_flag, read

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    define_flag("Instead of --workdir: a config whose init_from names the weights, or that is learnt.")
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("out", None, "Folder to write to; by default that of the run.")
    flags.DEFINE_string(
        "split", None,
        "train, val or test as the run's config has them, or a split expression. By default test, or val where there "
        "is no test split.",
    )  # fmt: skip
    flags.DEFINE_string("checkpoint", None, "best, last, a step, or random; by default the best.")
    flags.DEFINE_list("layers", ["features"], "Names of intermediates; a wrong one is answered with all of them.")
    flags.DEFINE_string("pool", "mean", "Of tokens or maps: mean, max, first, rest, first_rest, flatten.")
    flags.DEFINE_bool("overwrite", False, "Replace features that are there.")
    flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> int:
    if (FLAGS.workdir is None) == (FLAGS.config is None):
        raise errors.BadRequest("give one of --workdir=RUN and --config=FILE, as --workdir=runs/mae.")
    if argv[1:] and not (FLAGS.out or "").endswith(".npz"):
        raise errors.BadRequest(f"{errors.printable(argv[1])}: features of images go to a file, --out=FILE.npz.")
    cli.start_jax(FLAGS.compile_cache)
    from recvis_jax import represent, trained

    if argv[1:]:
        of_images(argv[1:])
        return 0
    config = read(FLAGS["config"], "") if FLAGS.workdir is None else None
    model, folder = represent.open_either(FLAGS.workdir, config, FLAGS.out, FLAGS.checkpoint, cli.progress)
    learnt, data = represent.SECTION in (config or {}), model.run.data  # which has written features already
    split = trained.canonical(FLAGS.split) if FLAGS.split else trained.default_split(data)
    source = trained.open_named(data, split)
    found = trained.write_features(
        model, folder, source, split, FLAGS.layers, FLAGS.pool, overwrite=FLAGS.overwrite, reuse=learnt,
        say=cli.progress,
    )  # fmt: skip
    print(f"{model.name} weights (step {model.step:,}) on {errors.printable(source.name)}:")
    for layer, f in found.items():
        n, d = f.values.shape
        print(f"  {layer}: {n:,} x {d} in {getattr(f.values, 'filename', folder)}")
    return 0


def of_images(names: list[str]) -> None:
    """Writes the features of images that are named to `--out`."""
    import numpy as np

    from recvis_jax import trained
    from recvis_jax.data import given

    if FLAGS.workdir is None:
        raise errors.BadRequest("features of images are those of a run: give --workdir=RUN.")
    if FLAGS["split"].present:
        raise errors.BadRequest("give images or --split, not both.")
    out = Path(FLAGS.out).expanduser().absolute()
    if not out.parent.is_dir():
        raise errors.BadRequest(f"--out={errors.printable(out)}: there is no such folder.")
    if out.exists() and not FLAGS.overwrite:
        raise errors.BadRequest(f"--out={errors.printable(out)} is there already; --overwrite replaces it.")
    paths = given.find(names)
    model, _ = trained.open_either(FLAGS.workdir, None, None, FLAGS.checkpoint)
    found = trained.features_of(model, paths, FLAGS.layers, FLAGS.pool, say=cli.progress)
    part = out.with_name(f".{out.name}.part")
    with part.open("wb") as file:
        np.savez(file, paths=np.array([str(p) for p in paths]), **found)
    part.replace(out)
    print(f"{model.name} weights (step {model.step:,}) on {len(paths):,} images, in {errors.printable(out)}:")
    for layer, values in found.items():
        print(f"  {layer}: {len(values):,} x {values.shape[1]}")


main.takes_arguments = True  # type: ignore[attr-defined]


if __name__ == "__main__":
    cli.run(main, define_flags)
