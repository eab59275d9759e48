"""Writes a run as a file for other programs: its weights, the whole computation, or a folder for the Hugging Face hub.

  python -m recvis_jax.export --weights=runs/r50 --format=safetensors --library=torchvision --out=resnet50.safetensors
  python -m recvis_jax.export --weights=runs/lenet5 --format=stablehlo --out=lenet5.stablehlo
  python -m recvis_jax.export --weights=runs/lenet5 --format=onnx --out=lenet5.onnx
  python -m recvis_jax.export --weights=runs/lenet5 --format=hub --out=lenet5

--weights is the folder of a run and means its best checkpoint; FOLDER@last and FOLDER@1000 choose others. The data set
is not needed. If the run keeps a moving average, that is written.

safetensors (or .npz) are the weights by the names of another library, which loads them strictly:
`model.load_state_dict(safetensors.torch.load_file("resnet50.safetensors"))`.

stablehlo and onnx compute without this package: uint8 images of the run's size in, any number at a time, probabilities
(or boxes, or maps) out; pixels are normalised inside. Names of classes, shapes and preparation lie beside, in a .json.
JAX loads the one (`jax.export.deserialize(data).call(image)`) on CPUs, NVIDIA GPUs and TPUs, onnxruntime the other.

hub is a folder of weights, config, preprocessing and model card. It is opened like a run, by --weights=FOLDER,
--workdir=FOLDER, --config.init_from=FOLDER and `recvis_jax.open`, and can be uploaded: `hf upload OWNER/NAME FOLDER`.
"""

from pathlib import Path
from typing import Any

from absl import flags

from recvis_jax import cli, errors

FLAGS = flags.FLAGS

# Format -> endings of its file; a folder has none.
FORMATS = {"safetensors": (".safetensors", ".npz"), "stablehlo": (".stablehlo",), "onnx": (".onnx",), "hub": ("",)}


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_string("weights", None, "Folder of a run[@checkpoint].")
    flags.DEFINE_enum("format", None, [*FORMATS], "What is written; by default what --out's ending says.")
    flags.DEFINE_string("library", None, "Of safetensors, whose names: torchvision, ...; by default the one that fits.")
    flags.DEFINE_string("out", None, "File to write, .safetensors, .npz, .stablehlo or .onnx; of the hub a folder.")
    flags.DEFINE_bool("overwrite", False, "Replace what is there.")


def main(argv: list[str]) -> None:
    del argv
    if not FLAGS.weights or not FLAGS.out:
        raise errors.BadRequest("give --weights=RUN and --out=FILE, as --weights=runs/r50 --out=r50.safetensors.")
    out = Path(FLAGS.out).expanduser().absolute()
    kind = _format(out, FLAGS.format)
    if FLAGS.library and kind != "safetensors":
        raise errors.BadRequest(f"--library is of --format=safetensors; {kind} has names of its own.")
    if not out.parent.is_dir():
        raise errors.BadRequest(f"--out={out}: the folder {out.parent} does not exist.")
    written = [p for p in ((out / "config.json",) if kind == "hub" else (out, out.with_suffix(".json"))) if p.exists()]
    if out.is_file() if kind == "hub" else out.is_dir():
        raise errors.BadRequest(f"--out={out} is a {'file' if out.is_file() else 'folder'}, which {kind} is not.")
    if written and not FLAGS.overwrite:
        raise errors.BadRequest(f"--out={written[0]} exists already; --overwrite replaces it.")
    cli.start_jax()
    from recvis_jax import trained

    folder, which = trained.run_folder(FLAGS.weights)
    if out == folder:
        raise errors.BadRequest(f"--out={out} is the run itself; name another folder.")
    config = trained.read_config(folder)
    if kind == "onnx":  # whose runtimes have no bfloat16 on CPUs
        config = {**config, "dtype": "float32"}
    model = trained.of_run(folder, config, which)
    print(f"{errors.printable(folder)}: checkpoint {model.name} of step {model.step}")
    {"safetensors": _weights, "hub": _hub}.get(kind, _computation)(model, folder, out)


def _format(out: Path, given: str | None) -> str:
    """Returns the format that the flags mean."""
    named = next((name for name, endings in FORMATS.items() if out.suffix in endings and out.suffix), None)
    kind = given or named
    if kind is None or (kind != "hub" and out.suffix not in FORMATS[kind]):
        asked = f" for --format={given}" if given else ""
        endings = ", ".join(e for name, es in FORMATS.items() if given in (None, name) for e in es if e)
        raise errors.BadRequest(
            f"--out={errors.printable(out)} has an unknown file type{asked}; {endings} can be written"
            f"{'' if given else ', and with --format=hub a folder'}."
        )
    return kind


def _weights(model: Any, folder: Path, out: Path) -> None:
    """Writes the weights by the names of another library."""
    from recvis_jax import pretrained

    fitting = [name for name, table in pretrained.LIBRARIES.items() if type(model.run.model) in table.TABLES]
    if FLAGS.library is None and len(fitting) != 1:
        kind = type(model.run.model).__name__
        there = f"name one of {', '.join(fitting)} by --library" if fitting else "no library has one"
        other = "" if fitting else "; --format=hub writes its weights by our own names"
        raise errors.BadRequest(f"{folder} is a {kind}: {there}{other}.")
    library = FLAGS.library or fitting[0]
    state = pretrained.export(model.variables, model.run.model, library, out)
    size = sum(x.nbytes for x in state.values())
    print(f"{out}: {len(state)} arrays by the names of {library}, {size / 1e6:,.1f} MB")


def _computation(model: Any, folder: Path, out: Path) -> None:
    """Writes the whole computation, in the format of the file's ending."""
    from recvis_jax import exporting

    written = exporting.write(model, out)
    for role, shapes in (("in", written.what.inputs), ("out", written.what.outputs)):
        for name, x in shapes.items():
            print(f"  {role:3} {name}: {x.dtype} (b, {', '.join(map(str, x.shape))})")
    print(f"{out}: {written.size / 1e6:,.1f} MB; what is known of it: {written.beside.name}")
    if out.suffix == ".onnx":
        apart = written.apart
        print("not checked: onnxruntime is not installed" if apart is None else f"onnxruntime differs by {apart:.1e}")


def _hub(model: Any, folder: Path, out: Path) -> None:
    """Writes the folder for the hub."""
    from recvis_jax import publishing

    for name, size in publishing.write(model, folder, out).items():
        print(f"{out / name}: {size / 1e6:,.3f} MB")
    print("next: " + errors.command("hf", "upload", "OWNER/NAME", out))


if __name__ == "__main__":
    cli.run(main, define_flags)
