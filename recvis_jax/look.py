"""Looks inside a network: what its units like, where it looks, what it dreams of. Writes PNGs and a page of them.

  python -m recvis_jax.look --weights=runs/r20
  python -m recvis_jax.look --weights=runs/r20 --show=gradcam,occlusion --class=3 shoe.png my/photos
  python -m recvis_jax.look --weights=runs/r20 --show=maximise --layer=stage2/block1 --units=3,7,12
  python -m recvis_jax.look --model=torchvision/resnet50 --weights=resnet50.safetensors --out=looks cat.jpg
  python -m recvis_jax.look --model=torchvision/vgg16 --weights=FILE --out=looks --show=style --style=waves.jpg cat.jpg

Images are the named files or folders, or the first --count images of a --split of the run's data. Without --show, the
figures that suit the network are drawn. The page is look.html, in --out or in the run's folder look/. `rv.vis` has the
same as functions that return arrays.
"""

from pathlib import Path

from absl import flags

from recvis_jax import cli, errors

FLAGS = flags.FLAGS
_OF = {
    "units": ("maximise", "top9"),
    "style": ("style",),
    "steps": ("maximise", "invert", "dream", "style"),
}  # flag -> figures


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_string("weights", None, "Folder of a run[@checkpoint], a file, or hf://owner/repo[/file].")
    flags.DEFINE_string("model", None, "With a file: name of the model, ours or library/name.")
    flags.DEFINE_list("show", [], "Figures; a wrong name lists them all. By default, those that suit the network.")
    flags.DEFINE_string(
        "layer",
        None,
        "Name of an intermediate or of a module, for figures of a layer; the default depends on the figure.",
    )
    flags.DEFINE_integer("class", None, "Class whose score is explained; by default the predicted one.", lower_bound=0)
    flags.DEFINE_list("units", [], "For maximise and top9: channels of --layer (for maximise without, classes).")
    flags.DEFINE_string("style", None, "For style: file of the picture with the style.")
    flags.DEFINE_integer("steps", None, "Steps of figures that make images, if not the default.", lower_bound=1)
    flags.DEFINE_string("split", None, "Split of the images: train, val, test or an expression.")
    flags.DEFINE_integer("count", 8, "Number of images of the split.", lower_bound=1)
    flags.DEFINE_integer("image_size", None, "With a file: rows and columns, if not the weights' own.", lower_bound=1)
    flags.DEFINE_string("out", None, "Output folder; by default look/ in the run's folder.")
    flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> None:
    from recvis_jax.data import given

    if not FLAGS.weights:
        raise errors.BadRequest("--weights is missing: the folder of a run, a file or hf://owner/repo.")
    if argv[1:] and FLAGS.split:
        raise errors.BadRequest("give images or --split, not both.")
    for flag, takers in _OF.items():
        if FLAGS[flag].value and not set(takers) & set(FLAGS.show):
            raise errors.BadRequest(f"--{flag} is only for --show={' or '.join(takers)}.")
    paths = given.find(argv[1:]) if argv[1:] else []
    style = given.find([FLAGS.style]) if FLAGS.style else []
    units = _units(FLAGS.units)
    cli.start_jax(FLAGS.compile_cache)
    from recvis_jax import figure, looking, network, trained

    run = trained.find_run(FLAGS.weights)
    if run and FLAGS.model:
        raise errors.BadRequest(f"--model is not needed: the run {run[0]} says by itself what it is.")
    if not run and not FLAGS.model:
        name = errors.printable(FLAGS.weights)
        raise errors.BadRequest(f"--model is missing, as torchvision/resnet50: {name} is no folder of a run.")
    if not run and not FLAGS.out:
        raise errors.BadRequest("--out is missing: the output folder.")
    out = Path(FLAGS.out).expanduser() if FLAGS.out else run[0] / "look"  # type: ignore[index]
    for name in FLAGS.show:
        errors.choose(looking.SHOWS, name, "figure")
    if run:
        opened = network.of_run(*run)
    else:
        opened = network.of_published(FLAGS.model, FLAGS.weights, FLAGS.image_size)
    print(f"{errors.printable(opened.origin)}: {opened.name}")
    needs_data = FLAGS.split or not paths or "top9" in FLAGS.show
    split = looking.open_split(opened, FLAGS.split, print) if needs_data else None
    if paths:
        images, names = looking.given_images(opened, paths), [path.name for path in paths]
    else:
        images, names = looking.example_images(opened, split, FLAGS.count)
    request = figure.Request(
        opened, images, names, cli.progress, split, FLAGS.layer, FLAGS["class"].value, units,
        looking.given_images(opened, style[:1]) if style else None, FLAGS.steps,
    )  # fmt: skip
    chosen = FLAGS.show or looking.usual(request)
    page = looking.write(looking.show(request, chosen), request, out)
    print(f"{errors.printable(page)}: {', '.join(chosen)}; open it in a browser")


def _units(given: list[str]) -> list[int]:
    if wrong := [u for u in given if not u.isdecimal()]:
        raise errors.BadRequest(f"--units={errors.brief(wrong[0])}: channels are whole numbers from 0, as in 3,7,12.")
    return [int(u) for u in given]


main.takes_arguments = True  # type: ignore[attr-defined]


if __name__ == "__main__":
    cli.run(main, define_flags)
