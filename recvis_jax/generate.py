"""Draws images from a run that predicts pixels, or completes the upper halves of a split's images.

  python -m recvis_jax.generate --workdir=runs/pixels --number=16 --temperature=0.9
  python -m recvis_jax.generate --workdir=runs/pixels --complete --split=test --number=8

Writes generated.npz (`images` (n h w 1) in [0, 1], and `originals` if images are completed) and the figure
generated.png to the run's folder, or to --out. An image depends only on --seed and its number.
"""

from pathlib import Path

from absl import flags

from recvis_jax import cli, errors

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("checkpoint", None, "best, last or a step. By default the best, or the last.")
    flags.DEFINE_string("out", None, "Output folder; by default that of the run.")
    flags.DEFINE_integer("number", 16, "Number of images.", 1)
    flags.DEFINE_integer("batch_size", 64, "Images drawn at a time; only affects time and memory.", 1)
    flags.DEFINE_integer("seed", 0, "Seed of the draws.")
    flags.DEFINE_float("temperature", 1.0, "Divisor of the scores; 0 takes the most probable token.", 0.0)
    flags.DEFINE_integer("top_k", 0, "Number of most probable tokens to draw from; 0 for all.", 0)
    flags.DEFINE_float("top_p", 1.0, "Draws from the most probable tokens with this total probability.", 0.0, 1.0)
    flags.DEFINE_bool("complete", False, "Keeps the upper halves of a split's images.")
    flags.DEFINE_string("split", None, "Of --complete: train, val, test or a split expression; by default test.")
    flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> None:
    del argv
    if not FLAGS.workdir:
        raise errors.BadRequest("--workdir is missing: the folder of a run that predicts pixels.")
    if FLAGS.split and not FLAGS.complete:
        raise errors.BadRequest("--split is only for --complete; drawn images need no split.")
    if not FLAGS.top_p:
        raise errors.BadRequest("--top_p=0 leaves no token; it must be above 0.")
    cli.start_jax(FLAGS.compile_cache)
    import numpy as np

    from recvis_jax import drawing, trained
    from recvis_jax.vis import plot

    model, folder = trained.open_either(FLAGS.workdir, None, None, FLAGS.checkpoint)
    out = Path(FLAGS.out).expanduser() if FLAGS.out else folder
    if not out.is_dir():
        raise errors.BadRequest(f"--out={errors.printable(out)}: the folder does not exist.")
    found = drawing.draw(
        model.run, model.params, model.model_state, FLAGS.number, FLAGS.seed,
        split=(FLAGS.split or "test") if FLAGS.complete else None, batch_size=FLAGS.batch_size,
        temperature=FLAGS.temperature, top_k=FLAGS.top_k, top_p=FLAGS.top_p, say=cli.progress,
    )  # fmt: skip
    part = out / ".generated.npz.part"
    with part.open("wb") as file:
        np.savez(file, **found)
    part.replace(out / "generated.npz")
    plot.image_rows({k: v[:12] for k, v in found.items()}, out / "generated.png")
    print(f"{FLAGS.number:,} images of step {model.step:,} in {errors.printable(out / 'generated.npz')}")


if __name__ == "__main__":
    cli.run(main, define_flags)
