"""A trained model as a file that computes by itself: StableHLO, which JAX alone loads, and ONNX.

What such a file computes is a `Served`: uint8 images in, probabilities, boxes or maps out, for any number of images at
a time; the normalisation of pixels is inside. Only plain operations are exported (see `tried.plain`), so that the file
runs on other machines and processors than this one.
"""

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

import recvis_jax
from recvis_jax import errors, network, segments, trained, tried
from recvis_jax.data import augment
from recvis_jax.training import log

PLATFORMS = ("cpu", "cuda", "tpu")
ONNX_JAX = "0.10."  # jax2onnx uses private parts of JAX; 0.12 has others
MOST_BYTES = 2 * 10**9  # of weights: both formats count bytes with 31 bits
CLOSE = 1e-3  # largest difference between JAX's outputs and those of an ONNX file, relative to the largest output


class Served(NamedTuple):
    """What a file computes.

    Attributes:
      function: arrays (b ...), in the order of `inputs` -> {name: array (b ...)}.
      inputs: name -> shape and type, without the axis of the batch.
      outputs: the same of what it returns.
    """

    function: Callable[..., dict[str, Any]]
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: dict[str, jax.ShapeDtypeStruct]


def served(model: trained.Trained) -> Served:
    """Returns what a file of the model computes.

    Its input is `image` (b h w c) uint8, prepared as evaluation images are, but not normalised. A detector whose data
    have pictures that are padded also takes `frame` (b 4) float32: x0 y0 x1 y1, the part of the image that is picture.

    Its outputs are `logits` and `probabilities` (b k); or `prediction` (b k), of a model of numbers; or `boxes` (b q 4)
    in pixels of the image, `labels` and `scores` (b q); or `map` (b h w).

    Args:
      model: of a run.

    Raises:
      BadRequest: the model gives none of these, or is too large for the formats.
    """
    run, known = model.run, model.run.data.info
    if known.vocabulary:
        raise errors.BadRequest("the run is of texts, whose search is no single function; --format=hub writes it.")
    if run.task.gives == "other":
        raise errors.BadRequest(
            "the run was trained without labels and gives no classes: fine-tune or probe it first; --format=hub writes "
            "its weights."
        )
    # By way of the host: on the run's devices they may be split.
    params, model_state = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), (model.params, model.model_state))
    size = sum(x.nbytes for x in jax.tree.leaves((params, model_state)))
    if size > MOST_BYTES:
        raise errors.BadRequest(
            f"the weights have {size / 1e9:.1f} GB and such a file holds {MOST_BYTES / 1e9:.0f} GB; --format=hub "
            "writes them."
        )
    framed = run.task.gives == "boxes" and any(f.name == "frame" for f in known.fields)
    inputs = {"image": jax.ShapeDtypeStruct(known.image_shape, np.uint8)}
    inputs |= {"frame": jax.ShapeDtypeStruct((4,), np.float32)} if framed else {}
    named = _namer(model)

    def function(*arrays: Any) -> dict[str, Any]:
        batch = run.data.preprocess(dict(zip(inputs, arrays, strict=True)))
        return named(run.task.predict(params, model_state, batch))

    with tried.plain():
        found = jax.eval_shape(function, *_batched(inputs, 1).values())
    return Served(function, inputs, {k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in found.items()})


def _namer(model: trained.Trained) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns a function from what the task predicts to what is exported."""
    gives = model.run.task.gives
    if gives in ("boxes", "map"):
        names = ("boxes", "labels", "scores") if gives == "boxes" else ("map",)
        return lambda found: {name: found[name] for name in names}
    kind = network.kind(model)

    def named(found: dict[str, Any]) -> dict[str, Any]:
        values = jnp.asarray(found.get("logits", found.get("prediction")), jnp.float32)
        if kind == "value":
            return {"prediction": values}
        return {"logits": values, "probabilities": (jax.nn.sigmoid if kind == "sigmoid" else jax.nn.softmax)(values)}

    return named


def _batched(shapes: dict[str, jax.ShapeDtypeStruct], size: Any) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for name, x in shapes.items()}


def stablehlo(what: Served) -> bytes:
    """Returns the function as `jax.export` serialises it, for any number of images, on CPUs, NVIDIA GPUs and TPUs.

    It is called by `jax.export.deserialize(data).call(image)`, with JAX alone.
    """
    from jax import export

    shapes = _batched(what.inputs, export.symbolic_shape("b")[0])
    with tried.plain():
        return bytes(export.export(jax.jit(what.function), platforms=PLATFORMS)(*shapes.values()).serialize())


@contextlib.contextmanager
def _unchanged(*modules: Any) -> Iterator[None]:
    """Puts back what is replaced in modules meanwhile; jax2onnx leaves a `jnp.cumsum` that takes fewer arguments."""
    before = [dict(vars(module)) for module in modules]
    try:
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            for name, value in was.items():
                if vars(module).get(name) is not value:
                    setattr(module, name, value)


def onnx(what: Served) -> bytes:
    """Returns the function as an ONNX file, whose first axis is open.

    Raises:
      BadRequest: jax2onnx is not installed.
      Failure: it cannot convert the model.
    """
    for name in ("jax2onnx", "onnx_ir"):  # which tell of parts of other libraries that they lack
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with _unchanged(jnp, jax.nn, jax.lax):
            import jax2onnx
    except ImportError:
        raise errors.BadRequest("--format=onnx needs jax2onnx: pip install 'recvis_jax[onnx]'.") from None
    from jax import export

    shapes = [*_batched(what.inputs, export.symbolic_shape("b")[0]).values()]
    names = {"input_names": [*what.inputs], "output_names": [*what.outputs]}

    def function(*arrays: Any) -> tuple:
        return tuple(what.function(*arrays).values())

    def by_primitives() -> Callable[..., Any]:
        return jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(function)(*shapes))

    said = ""
    # It prints what it does. It has nodes of their own for flax's layers, and none for loops of them, which primitives
    # express.
    for make in (lambda: function, by_primitives):
        try:
            with tried.plain(), _unchanged(jnp, jax.nn, jax.lax), contextlib.redirect_stdout(io.StringIO()):
                jax.lax.stop_gradient = lambda x: x  # whose value it loses; no gradient is exported
                return jax2onnx.to_onnx(make(), shapes, model_name="recvis_jax", **names).SerializeToString()
        except Exception as e:  # of any kind, for an operation that it does not know
            said = said or f"{type(e).__name__}: {errors.brief(e, 300)}"
    if not jax.__version__.startswith(ONNX_JAX):
        said = f"it was tried with JAX {ONNX_JAX}*, this is {jax.__version__}; {said}"
    raise errors.Failure(f"jax2onnx cannot convert this model ({said}); --format=stablehlo writes it.")


def difference(what: Served, data: bytes) -> float | None:
    """Returns the largest difference between the outputs of an ONNX file and those of JAX, of three random images.

    Differences are relative to the largest value of an output, or absolute where that is below 1. Classes and maps
    count as the share of those that differ.

    Returns:
      None if onnxruntime is not installed.

    Raises:
      Failure: the file does not run.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    rng = np.random.default_rng(0)
    given: dict[str, np.ndarray] = {"image": rng.integers(0, 256, (3, *what.inputs["image"].shape)).astype(np.uint8)}
    h, w = what.inputs["image"].shape[:2]
    given |= {"frame": np.array([[0, 0, w, h]] * 3, np.float32)} if "frame" in what.inputs else {}
    wanted = jax.jit(what.function)(*given.values())
    try:
        found = onnxruntime.InferenceSession(data).run([*what.outputs], given)
    except Exception as e:
        raise errors.Failure(f"onnxruntime cannot run the file: {errors.brief(e, 300)}") from e
    return max(_apart(np.asarray(x), y) for x, y in zip((wanted[name] for name in what.outputs), found, strict=True))


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return math.inf
    if np.issubdtype(a.dtype, np.integer):
        return float((a != b).mean())
    return float(abs(a - b).max() / max(1, abs(a).max()))


def about(model: trained.Trained, what: Served) -> dict[str, Any]:
    """Returns what a user of the file needs to know of it, in JSON's types."""
    known, section = model.run.data.info, model.config.get("model") or {}
    mean, std = augment.statistics(known.statistics)
    objects = model.run.task.gives == "map"
    h, w, channels = known.image_shape
    return log.plain_json(
        {
            "model": section.get("name", type(model.run.model).__name__),
            "checkpoint": model.name,
            "step": model.step,
            "inputs": _shown(what.inputs),
            "outputs": _shown(what.outputs),
            "classes": segments.names_of(model) if objects else known.class_names,
            "preprocessing": {
                "size": [h, w],
                "colours": "RGB" if channels == 3 else "grey" if channels == 1 else f"{channels} channels",
                "before": known.eval_transform or f"resize({(h, w)})",
                "inside": {"scale": 1 / 255, "mean": mean, "std": std},
            },
            "data": known.name,
            "made_by": {"recvis_jax": recvis_jax.__version__, "jax": jax.__version__},
        }
    )


def _shown(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    return {name: {"shape": ["b", *x.shape], "dtype": str(np.dtype(x.dtype))} for name, x in shapes.items()}


class Written(NamedTuple):
    """A file that was written.

    Attributes:
      what: what it computes.
      size: of it, in bytes.
      apart: see `difference`; None for StableHLO, and for ONNX without onnxruntime.
      beside: path of the JSON.
    """

    what: Served
    size: int
    apart: float | None
    beside: Path


def write(model: trained.Trained, path: Path) -> Written:
    """Writes a file of the format that its ending says, .stablehlo or .onnx, and a JSON of the same name beside it.

    Args:
      model: of a run, with variables and name.
      path: of the file.

    Raises:
      BadRequest: another ending; or see `served` and `onnx`.
      Failure: it cannot be written, or computes something else than JAX does.
    """
    if path.suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise errors.BadRequest(f"{errors.printable(path)} has an unknown file type; {known} can be written.")
    what = served(model)
    data = FORMATS[path.suffix](what)
    apart = difference(what, data) if path.suffix == ".onnx" else None
    if apart is not None and not apart <= CLOSE:
        raise errors.Failure(f"the ONNX file computes something else than JAX: outputs differ by {apart:.1e}.")
    log.write_atomically(path, data)
    log.write_json(path.with_suffix(".json"), about(model, what))
    return Written(what, len(data), apart, path.with_suffix(".json"))


FORMATS: dict[str, Callable[[Served], bytes]] = {".stablehlo": stablehlo, ".onnx": onnx}
