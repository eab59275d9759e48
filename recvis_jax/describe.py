"""Describes models: layers, shapes, parameters, multiplications, receptive fields, memory. Nothing is trained or read.

  python -m recvis_jax.describe --model=resnet50,vit_s16 --image_size=224
  python -m recvis_jax.describe --config=configs/fashion_mnist/lenet5.py

One model is listed layer by layer, with a legend. Several models are put side by side.
"""

import math
from typing import Any

from absl import flags

from recvis_jax import cli, columns, errors
from recvis_jax.config import define_flag, read

_MACS = "\nMACs: multiplications, each with an addition."
_FIELDS = """ sees: receptive field of an output in pixels, were the image large;
step: pixels from one output to the next; pad: pixels by which the first output's field reaches over the edge."""

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    define_flag("Config file: its model, images and optimizer.")
    flags.DEFINE_list("model", [], "Instead of a config: names of models, as resnet50,vit_s16.")
    flags.DEFINE_string("image_size", "224", "With --model: rows and columns of the images, as 224 or 160x240.")
    flags.DEFINE_integer("channels", 3, "With --model: channels of the images.", lower_bound=1)
    flags.DEFINE_integer("num_classes", 1000, "With --model: number of classes.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    if bool(FLAGS.model) == (FLAGS.config is not None):
        raise errors.BadRequest("give one of --model=NAME[,NAME...] and --config=FILE.")
    if FLAGS.config is not None and (
        given := [name for name in ("image_size", "channels", "num_classes") if FLAGS[name].present]
    ):
        raise errors.BadRequest(f"--{given[0]} goes with --model; a config says by itself what its images are.")
    cli.start_jax(None)
    config = None if FLAGS.model else read(FLAGS["config"], "configs/fashion_mnist/lenet5.py")
    if config and (config.get("data") or {}).get("text") is not None:
        print(_texts_table(config))
        return
    if FLAGS.model:
        shape = (*_image_size(FLAGS.image_size), FLAGS.channels)
        found = {name: _of_model(name, shape, FLAGS.num_classes) for name in FLAGS.model}
    else:
        found = _of_config(config or {})
    if len(found) == 1:
        (only,) = found.values()
        print(_layers_table(only["layers"]))
        print()
    print(_totals_table(found))


def describe(model: Any, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns the layers and totals of a model for one image.

    Args:
      model: a linen module, `__call__(image, *, train) -> (output, acts)`.
      image_shape: (h, w, c).

    Returns:
      layers: see `vis.structure.layers`. parameters, macs: sums. activations: bytes of the layers' outputs in float32,
      of one image. images: the shape.
    """
    import jax
    import jax.numpy as jnp

    from recvis_jax.vis import structure

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), image)
    layers = structure.layers(lambda v, x: model.apply(v, x, train=False)[0], variables, image_shape)
    return {
        "layers": layers,
        "images": image_shape,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"])),
        "macs": sum(layer.macs for layer in layers),
        "activations": sum(4 * math.prod(layer.shape) for layer in layers),
    }


def _of_model(name: str, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, Any]:
    from recvis_jax import models

    takes = errors.keywords(errors.choose(models.MODELS, name, "model"))
    kw = {"num_classes": num_classes} if "num_classes" in takes else {}  # a masked autoencoder has no classes
    found = describe(models.create(name, **kw), image_shape)
    numbers = 4 * found["parameters"]
    return found | {"state": {"sgd": numbers, "momentum": 2 * numbers, "adam": 3 * numbers}}


def _of_config(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    import jax

    from recvis_jax import build, represent
    from recvis_jax.data import DATASETS

    keys = errors.keywords(build.make_run)
    learnt = represent.SECTION in config
    config = {k: v for k, v in config.items() if k in keys}
    if config["data"].get("name") in DATASETS:  # known without being read
        config["data"] |= {"mock": 64, "train": "train", "val": None, "test": None}
    if learnt:
        run = represent.make_run(config)
        return {config["model"]["name"]: describe(run.model, run.data.image_shape) | _of_words(run)}
    config = {k: v for k, v in config.items() if k != "epochs"} | {"steps": 10**9}  # no schedule is too long for it
    run = build.make_run(**config)
    found = describe(run.model, run.data.image_shape)
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.template))
    average = " and average" if run.template.ema is not None else ""
    return {config["model"]["name"]: found | {"state": {config["optim"]["name"] + average: state}}}


def _texts_table(config: dict[str, Any]) -> str:
    """Returns what a model of two texts costs, by their length in tokens."""
    import jax
    import jax.numpy as jnp

    from recvis_jax import build
    from recvis_jax.planning import flops
    from recvis_jax.vis import structure

    keys = errors.keywords(build.make_run)
    config = {k: v for k, v in config.items() if k in keys and k != "epochs"} | {"steps": 10**9}
    if "mock" not in config["data"] and "vocabulary" in config["model"]:  # the data are not needed
        config["data"] |= {"mock": 64, "train": "train", "val": None, "test": None}
    run = build.make_run(**config)
    most = max(f.most or 0 for f in run.data.info.fields)

    def macs(n: int) -> int:
        tokens, there = jax.ShapeDtypeStruct((1, n), jnp.int32), jax.ShapeDtypeStruct((1, n), jnp.bool_)
        batch = {"source": tokens, "target": tokens, "source_mask": there, "target_mask": there}
        variables = {"params": run.template.params, **run.template.model_state}
        program = jax.make_jaxpr(lambda v, x: run.model.apply(v, x, train=False)[0])(variables, batch)
        return flops.count(program.jaxpr, structure.macs_of)

    lengths = [n for n in (1, 2**4, 2**5, 2**6, 2**7, 2**8, 2**9, 2**10) if n < most] + [most]
    rows = [["tokens of source and of target", "MACs of a pair", "MACs a token of the target"]]
    rows += [[f"{n:,}", _scaled(m := macs(n), 4), _scaled(m / n, 4)] for n in lengths]
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(run.template.params))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.template))
    more = f"parameters: {count:,}; the whole state of a training: {_scaled(size, 3, 'B')}"
    return f"{_table(rows)}\n{more}{_MACS}"


def _of_words(run: Any) -> dict[str, Any]:
    """Returns what else there is to know of a bag of words: descriptors, vocabulary and dimensions."""
    import jax
    import jax.numpy as jnp

    image = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32)
    found = jax.eval_shape(lambda x: run.model.apply({}, x, method="describe"), image).descriptors
    state = run.template.model_state.get("vocabulary", {})
    variables = {"params": run.template.params, **run.template.model_state}
    features = jax.eval_shape(lambda v, x: run.model.apply(v, x, train=False)[1]["features"], variables, image)
    return {
        "words": {
            "descriptors an image": f"{found.shape[1]:,} of {found.shape[2]:,} numbers",
            "numbers of the vocabulary": f"{sum(x.size for x in jax.tree.leaves(state)):,}",
            "dimensions of the representation": f"{features.shape[1]:,}",
        },
        "state": {},
    }


def _image_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if not (len(parts) <= 2 and all(p.isdigit() and int(p) > 0 for p in parts)):
        raise errors.BadRequest(
            f"--image_size={text} is neither a number of pixels, as 224, nor rows x columns, as 160x240."
        )
    return int(parts[0]), int(parts[-1])


def _layers_table(layers: list[Any]) -> str:
    def pair(p: tuple[int, int] | None) -> str:
        return "" if p is None else str(p[0]) if p[0] == p[1] else f"{p[0]}x{p[1]}"

    spatial = any(layer.stride for layer in layers)
    head = ["layer", "output", "parameters", "MACs", *(["sees", "step", "pad"] if spatial else [])]
    rows = [
        [
            layer.name,
            "x".join(map(str, layer.shape)),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.macs:,}" if layer.macs else "",
            *([pair(layer.field) or "all", pair(layer.stride), pair(layer.padding)] if spatial else []),
        ]
        for layer in layers
    ]
    return _table([head, *rows]) + "\n" + _MACS + (_FIELDS if spatial else "")


def _totals_table(found: dict[str, dict[str, Any]]) -> str:
    rows = [
        ["", *found],
        ["images", *("x".join(map(str, f["images"])) for f in found.values())],
        ["parameters", *(f"{f['parameters']:,}" for f in found.values())],
        ["MACs an image", *(_scaled(f["macs"], 4) for f in found.values())],
        ["FLOPs an image, 2 a MAC", *(_scaled(2 * f["macs"], 4) for f in found.values())],
        ["outputs of all layers an image, float32", *(_scaled(f["activations"], 3, "B") for f in found.values())],
    ]
    for name in next(iter(found.values())).get("words", ()):
        rows.append([name, *(f["words"][name] for f in found.values())])
    for kind in next(iter(found.values()))["state"]:
        rows.append([f"parameters and state of {kind}", *(_scaled(f["state"][kind], 3, "B") for f in found.values())])
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    return "\n".join(columns.aligned(rows, right=True))


def _scaled(n: float, digits: int, unit: str = "") -> str:
    """Returns a number by thousands, as 4.089 G or 102 MB."""
    prefixes = ("", "k", "M", "G", "T")
    power = next((i for i in range(4) if float(f"{n / 1000**i:.{digits}g}") < 1000), 4)
    return f"{n / 1000**power:,.{digits}g} {prefixes[power]}{unit}".rstrip()


if __name__ == "__main__":
    cli.run(main, define_flags)
