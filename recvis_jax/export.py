"""Writes the weights of a run with the names of another library, which loads them strictly.

  python -m recvis_jax.export --weights=runs/r50 --library=torchvision --out=resnet50.safetensors

--weights is the folder of a run and means its best checkpoint; FOLDER@last and FOLDER@1000 choose others. The data set
is not needed. If the run keeps a moving average, that is written. In the other library:
`model.load_state_dict(safetensors.torch.load_file("resnet50.safetensors"))`.
"""

from pathlib import Path

from absl import flags

from recvis_jax import cli, errors

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_string("weights", None, "Folder of a run[@checkpoint].")
    flags.DEFINE_string("library", None, "Whose names: torchvision, timm, ...; by default the only one that fits.")
    flags.DEFINE_string("out", None, "File to write, .safetensors or .npz.")
    flags.DEFINE_bool("overwrite", False, "Replace the file if it is there.")


def main(argv: list[str]) -> None:
    del argv
    if not FLAGS.weights or not FLAGS.out:
        raise errors.BadRequest("give --weights=RUN and --out=FILE, as --weights=runs/r50 --out=r50.safetensors.")
    out = Path(FLAGS.out).expanduser().absolute()
    if out.suffix not in (".safetensors", ".npz"):
        raise errors.BadRequest(f"--out={out} has an unknown file type; .safetensors and .npz can be written.")
    if not out.parent.is_dir():
        raise errors.BadRequest(f"--out={out}: the folder {out.parent} does not exist.")
    if out.exists() and not FLAGS.overwrite:
        raise errors.BadRequest(f"--out={out} exists already; --overwrite replaces it.")
    cli.start_jax()
    from recvis_jax import pretrained, trained

    folder, which = trained.run_folder(FLAGS.weights)
    model = trained.of_run(folder, trained.read_config(folder), which)
    fitting = [name for name, table in pretrained.LIBRARIES.items() if type(model.run.model) in table.TABLES]
    if FLAGS.library is None and len(fitting) != 1:
        kind = type(model.run.model).__name__
        there = f"name one of {', '.join(fitting)} by --library" if fitting else "no library has one"
        raise errors.BadRequest(f"{folder} is a {kind}: {there}.")
    library = FLAGS.library or fitting[0]
    state = pretrained.export(model.variables, model.run.model, library, out)
    size = sum(x.nbytes for x in state.values())
    print(f"{folder}: checkpoint {model.name} of step {model.step}")
    print(f"{out}: {len(state)} arrays by the names of {library}, {size / 1e6:,.1f} MB")


if __name__ == "__main__":
    cli.run(main, define_flags)
