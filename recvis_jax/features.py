"""Writes the features of a split: what a layer of a trained model makes of every image.

  python -m recvis_jax.features --workdir=runs/mae --split=train --layers=features,block3 [--pool=mean]
  python -m recvis_jax.features --config=configs/x.py --config.init_from=hf://owner/repo --out=runs/x --split=test

Per layer a memory-mapped `features/NAME.npy` (n d), the labels, and JSON with model, step, preprocessing and data
hash. `recvis_jax.probe` reuses them, and refuses them when they are stale.
"""

from absl import flags

from recvis_jax import cli, errors
from recvis_jax import config as configs

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    configs.define_flag("Instead of --workdir: a config whose init_from names the weights.")
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("out", None, "Folder to write to; by default that of the run.")
    flags.DEFINE_string("split", "train", "train, val or test as the config has them, or a split expression.")
    flags.DEFINE_string("checkpoint", None, "best, last, a step, or random; by default the best.")
    flags.DEFINE_list("layers", ["features"], "Names of intermediates; a wrong one is answered with all of them.")
    flags.DEFINE_string("pool", "mean", "Of tokens or maps: mean, max, first, rest, first_rest, flatten.")
    flags.DEFINE_bool("overwrite", False, "Replace features that are there.")
    flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> int:
    del argv
    if (FLAGS.workdir is None) == (FLAGS.config is None):
        raise errors.BadRequest("give one of --workdir=RUN and --config=FILE, as --workdir=runs/mae.")
    cli.start_jax(FLAGS.compile_cache)
    from recvis_jax import trained

    config = configs.read(FLAGS["config"], "") if FLAGS.workdir is None else None
    model, folder = trained.open_either(FLAGS.workdir, config, FLAGS.out, FLAGS.checkpoint)
    source = trained.open_named(model.run.data, FLAGS.split)
    found = trained.write_features(
        model, folder, source, FLAGS.split, FLAGS.layers, FLAGS.pool, overwrite=FLAGS.overwrite, say=cli.progress
    )
    print(f"{model.name} weights (step {model.step:,}) on {source.name}:")
    for layer, f in found.items():
        n, d = f.values.shape
        print(f"  {layer}: {n:,} x {d} in {getattr(f.values, 'filename', folder)}")
    return 0


if __name__ == "__main__":
    cli.run(main, define_flags)
