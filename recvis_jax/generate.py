"""Draws images from a run that predicts pixels, completes or enlarges a split's images; or translates texts.

  python -m recvis_jax.generate --workdir=runs/pixels --number=16 --temperature=0.9
  python -m recvis_jax.generate --workdir=runs/pixels --complete --split=test --number=8
  python -m recvis_jax.generate --workdir=runs/upscale --split=test --number=8
  python -m recvis_jax.generate --workdir=runs/translate "File not found" --beams=4 --attention=cross:2

Images: writes generated.npz (`images` (n h w c) in [0, 1], and `originals` and `given` if a split's are completed or
enlarged) and the figure generated.png to the run's folder, or to --out. An image depends only on --seed and its number.

Texts: prints the translation of each text, and of each line of --texts=FILE. --attention draws the attention weights
for the first translation to attention.png.
"""

import sys
from pathlib import Path
from typing import Any

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
    flags.DEFINE_string("split", None, "Whose images are completed or enlarged: train, val, test or an expression.")
    flags.DEFINE_string("texts", None, "File of texts to translate, one a line.")
    flags.DEFINE_enum(
        "too_long", "fail", ["fail", "cut", "drop"],
        "Texts with more tokens than those of training: an error, cut, or left out, with an empty line instead.",
    )  # fmt: skip
    flags.DEFINE_integer("beams", 4, "Translations that the search keeps; 1 is greedy.", 1)
    flags.DEFINE_float("alpha", 0.6, "Of the length penalty of the search: larger ones favour long translations.", 0.0)
    flags.DEFINE_string(
        "attention", None,
        "What is drawn: encoder, decoder or cross, of all layers and heads, or KIND:LAYER or KIND:LAYER:HEAD from 0.",
    )  # fmt: skip
    flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> None:
    if not FLAGS.workdir:
        raise errors.BadRequest("--workdir is missing: the folder of a run that predicts pixels, or translates.")
    if not FLAGS.top_p:
        raise errors.BadRequest("--top_p=0 leaves no token; it must be above 0.")
    given = _texts(argv[1:])
    cli.start_jax(FLAGS.compile_cache)
    from recvis_jax import trained

    model, folder = trained.open_either(FLAGS.workdir, None, None, FLAGS.checkpoint)
    if model.run.data.info.vocabulary:
        _translate(model, folder, given)
    elif given:
        raise errors.BadRequest(f"{errors.printable(folder)} draws images and translates no texts.")
    else:
        _draw(model, folder)


main.takes_arguments = True  # type: ignore[attr-defined]


def _texts(words: list[str]) -> list[str]:
    """Returns the texts of the command line and of the file."""
    if not FLAGS.texts:
        return words
    from recvis_jax.data import parallel

    return [*words, *parallel.lines(Path(FLAGS.texts).expanduser())]


def _translate(model: Any, folder: Path, given: list[str]) -> None:
    """Prints translations, and draws attention weights."""
    from recvis_jax import translating
    from recvis_jax.vis import plot

    if not given:
        raise errors.BadRequest('name the texts: python -m recvis_jax.generate --workdir=RUN "File not found".')
    vocabulary = translating.vocabulary_of(model.run)
    if unknown := vocabulary.unknown("".join(given)):
        print(f"note: training had none of these characters: {errors.brief(unknown, 60)}")
    of_model = (model.run, model.params, model.model_state)
    long = set() if FLAGS.too_long == "fail" else translating.too_long(model.run, given)
    if long:
        done = "cut" if FLAGS.too_long == "cut" else "left out"
        print(f"note: {len(long):,} of {len(given):,} texts have more tokens than those of training: {done}")
    kept = [i for i in range(len(given)) if i not in long or FLAGS.too_long == "cut"]
    options = dict(beams=FLAGS.beams, alpha=FLAGS.alpha, cut=FLAGS.too_long == "cut", batch_size=FLAGS.batch_size)
    translated = translating.translate(*of_model, [given[i] for i in kept], **options, say=cli.progress)
    by_text = dict(zip(kept, translated, strict=True))
    found = [by_text.get(i, "") for i in range(len(given))]
    for translation in found:
        print(errors.printable(translation))
    if FLAGS.attention and found[0]:
        kind, *numbers = FLAGS.attention.split(":")
        if len(numbers) > 2 or not all(n.isascii() and n.isdigit() and len(n) < 5 for n in numbers):
            raise errors.BadRequest(
                f"--attention={errors.printable(FLAGS.attention)[:60]} is no KIND, KIND:LAYER or KIND:LAYER:HEAD."
            )
        seen = translating.attended(*of_model, given[0], found[0], kind, *map(int, numbers))
        path = _out(folder) / "attention.png"
        if plot.heat_maps(seen.maps, seen.rows, seen.columns, path):
            print(f"attention: {errors.printable(path)}")
        else:
            print("note: nothing is drawn, as matplotlib is not installed: pip install 'recvis_jax[plot]'.")


def _out(folder: Path) -> Path:
    out = Path(FLAGS.out).expanduser() if FLAGS.out else folder
    if not out.is_dir():
        raise errors.BadRequest(f"--out={errors.printable(out)}: the folder does not exist.")
    return out


def _draw(model: Any, folder: Path) -> None:
    """Draws images, and writes them with a figure."""
    import numpy as np

    from recvis_jax import drawing
    from recvis_jax.vis import plot

    out, enlarges = _out(folder), bool(getattr(model.run.model, "encoder_depth", 0))
    if FLAGS.split and not FLAGS.complete and not enlarges:
        raise errors.BadRequest("--split is only for --complete; drawn images need no split.")
    if FLAGS.complete and enlarges:
        raise errors.BadRequest("--complete is not for this run, which enlarges images; leave it out.")
    found = drawing.draw(
        model.run, model.params, model.model_state, FLAGS.number, FLAGS.seed,
        split=(FLAGS.split or "test") if FLAGS.complete or enlarges else None, batch_size=FLAGS.batch_size,
        temperature=FLAGS.temperature, top_k=FLAGS.top_k, top_p=FLAGS.top_p,
        say=cli.progress if sys.stderr.isatty() else None,
    )  # fmt: skip
    part = out / ".generated.npz.part"
    with part.open("wb") as file:
        np.savez(file, **found)
    part.replace(out / "generated.npz")
    plot.image_rows({k: v[:12] for k, v in found.items()}, out / "generated.png")
    print(f"{FLAGS.number:,} images of step {model.step:,} in {errors.printable(out / 'generated.npz')}")


if __name__ == "__main__":
    cli.run(main, define_flags)
