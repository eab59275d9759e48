"""The structure of a model: shapes, parameters, multiplications and receptive fields of its layers.

Nothing is computed: the model is traced to JAX's own program (a jaxpr), whose equations have the path of their module,
and this program is read once from the image to the output.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp

from recvis_jax.vis.receptive_field import EVERYTHING, Axis, Field, follow, pools


class Layer(NamedTuple):
    """One layer, for one image.

    Attributes:
      name: path of the module.
      shape: of its output, without the batch.
      parameters: number of parameters of the module itself.
      macs: multiplications (each with an addition) of its convolutions and matrix products.
      field: rows and columns that an output may depend on in a large image; None for all of it.
      stride: rows and columns of the image from one output to the next; None if outputs have no place.
      padding: rows and columns by which the first output's field reaches beyond the image's edge; None if outputs have
        no place.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    field: tuple[int, int] | None
    stride: tuple[int, int] | None
    padding: tuple[int, int] | None


def layers(apply: Callable[[Any, Any], Any], variables: Any, image_shape: tuple[int, int, int]) -> list[Layer]:
    """Lists the layers of a model in the order of their computation.

    Args:
      apply: (variables, image (1 h w c)) -> output, a linen module's `apply` in evaluation mode.
      variables: the model's, or their `jax.eval_shape`; parameters under "params".
      image_shape: (h, w, c).

    Returns:
      A layer for each module with its own parameters or multiplications, and for each pooling between them. A module
      that is called several times is listed once, with all its multiplications.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    program = jax.make_jaxpr(apply)(variables, image).jaxpr
    reader = _Reader(image_shape[:2], _parameters(variables["params"]))
    reader.read(program, [None] * (len(program.invars) - 1) + [(Axis(1), Axis(2))], None, 1)
    return [reader.layer(name) for name in reader.order]


def _parameters(params: Any) -> dict[str, int]:
    """Returns the number of parameters by path of the module that owns them."""
    out: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = "/".join(str(k.key) for k in path[:-1])
        out[name] = out.get(name, 0) + math.prod(leaf.shape)
    return out


class _Reader:
    """Reads a program equation by equation and collects the facts by module path."""

    def __init__(self, image: tuple[int, int], parameters: dict[str, int]):
        self.image, self.parameters = image, parameters
        self.order: list[str] = []
        self.count: dict[str, int] = {}
        self.between: tuple[str, str, str] | None = None  # path, kind and name of the current pooling
        self.macs: dict[str, int] = {}
        self.last: dict[str, tuple[tuple[int, ...], Field]] = {}
        self.everything = Axis(None, 1, 0, image[0] - 1), Axis(None, 1, 0, image[1] - 1)

    def layer(self, name: str) -> Layer:
        shape, field = self.last[name]
        placed = field is not None and all(a.dim is not None for a in field)

        def pair(of: Callable[[Axis], int], shown: bool) -> tuple[int, int] | None:
            return (int(of(field[0])), int(of(field[1]))) if shown and field is not None else None

        whole = field is None or any(
            a.dim is None and a.high - a.low + 1 >= n for a, n in zip(field, self.image, strict=True)
        )
        return Layer(
            name=name or "(model)",
            shape=shape[1:],
            parameters=self.parameters.get(name, 0),
            macs=self.macs.get(name, 0),
            field=pair(lambda a: a.high - a.low + 1, not whole),
            stride=pair(lambda a: a.jump, placed),
            padding=pair(lambda a: -a.low, placed),
        )

    def note(self, path: str, e: Any, given: Sequence[Field], found: Field) -> None:
        """Lists the layer at `path`, or the pooling that begins or continues; the last equation has its output."""
        if path in self.parameters or path in self.macs:
            name, self.between = path, None
            if name in self.last and any(
                owner.startswith(f"{path}/" if path else "") for owner in self.parameters if owner != path
            ):
                return  # a module's own work precedes its submodules; the rest is theirs
        elif pools(given, found):
            kind = "flatten" if e.primitive.name == "reshape" else "pool"
            if self.between is None or self.between[:2] != (path, kind):
                self.count[kind] = self.count.get(kind, 0) + 1
                self.between = path, kind, f"{path}/{kind}{self.count[kind]}".lstrip("/")
            name = self.between[2]
        elif self.between and self.between[0] == path:
            name = self.between[2]
        else:
            self.between = None
            return
        if name not in self.last:
            self.order.append(name)
        self.last[name] = e.outvars[0].aval.shape, found

    def read(self, program: Any, fields: Sequence[Field], outer: str | None, times: int) -> list[Field]:
        """Reads a (nested) program whose inputs have `fields`; returns those of its outputs."""
        known: dict[Any, Field] = dict(zip(program.invars, fields, strict=True))
        for e in program.eqns:
            given = [None if isinstance(v, jax.extend.core.Literal) else known.get(v) for v in e.invars]
            path = module_path(outer, str(e.source_info.name_stack))
            inner = _nested(e)
            if inner is not None:
                repeat = times * (e.params["length"] if e.primitive.name == "scan" else 1)
                seen = len(e.invars) - len(inner.invars)
                loop = e.primitive.name in ("scan", "while")
                start = [self.everything if f and loop else f for f in given]
                found = self.read(inner, start[seen:], path, repeat)
                found = [self.everything if f and loop else f for f in found]
            else:
                found = [self.everything if f is EVERYTHING else f for f in follow(e, given)]
                macs = macs_of(e) * times
                if macs:
                    self.macs[path] = self.macs.get(path, 0) + macs
                if found and found[0] is not None:
                    self.note(path, e, given, found[0])
            known.update(zip(e.outvars, found, strict=True))
        return [None if isinstance(v, jax.extend.core.Literal) else known.get(v) for v in program.outvars]


def module_path(outer: str | None, stack: str) -> str:
    """Returns the module's path: without the model's own name, and without the names of methods and einsums."""
    parts = [p for p in stack.split("/") if p and not set(p) & set(".(,")]
    return "/".join(parts[1:] if outer is None else [outer, *parts] if outer else parts)


def default_branch(e: Any) -> Any:
    """Returns the default program (closed) of a `lax.platform_dependent` equation; None for other equations."""
    platforms = e.params.get("branches_platforms")
    return e.params["branches"][platforms.index(None)] if platforms and None in platforms else None


def _nested(e: Any) -> Any:
    if (default := default_branch(e)) is not None:
        return default.jaxpr
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr"):
        if key in e.params:
            found = e.params[key]
            return getattr(found, "jaxpr", found)
    return None


def macs_of(e: Any) -> int:
    """Returns the multiplications of a convolution (including those with padding) or matrix product; 0 for others."""
    if e.primitive.name not in ("dot_general", "conv_general_dilated"):
        return 0
    out = math.prod(e.outvars[0].aval.shape)
    if e.primitive.name == "dot_general":
        (contracted, _), _ = e.params["dimension_numbers"]
        return out * math.prod(e.invars[0].aval.shape[d] for d in contracted)
    kernel = e.invars[1].aval.shape
    return out * math.prod(kernel) // kernel[e.params["dimension_numbers"].rhs_spec[0]]


class Window(NamedTuple):
    """The part of a large image that an output of a layer depends on, in pixels of rows and columns.

    Attributes:
      size: of the receptive field.
      stride: from one output's field to the next.
      padding: by which the first output's field reaches beyond the edge.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def window(values: Callable[[Any, Any], Any], variables: Any, image_shape: tuple[int, int, int]) -> Window | None:
    """Returns what each output of a layer sees; None if it is the whole image, or if outputs have no place.

    Args:
      values: (variables, image (1 h w c)) -> the layer's values, see `layers.activations`.
      variables: the model's, or their shapes.
      image_shape: (h, w, c).

    Example:
      >>> window(lambda v, x: jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, 2, 2, 1)), {}, (9, 9, 1))
      Window(size=(1, 1), stride=(2, 2), padding=(0, 0))
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    program = jax.make_jaxpr(values)(variables, image).jaxpr
    reader = _Reader(image_shape[:2], {})
    (field,) = reader.read(program, [None] * (len(program.invars) - 1) + [(Axis(1), Axis(2))], None, 1)
    if field is None or any(a.dim is None for a in field):
        return None
    r, c = field
    return Window((r.high - r.low + 1, c.high - c.low + 1), (r.jump, c.jump), (-r.low, -c.low))
