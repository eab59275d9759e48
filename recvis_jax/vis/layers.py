"""Any layer of any network: its values, and the output as a function of them.

A layer is a name in the network's `acts`, or the path of a module as listed by `python -m recvis_jax.describe`
("block11/norm1"), which means its output. No model is changed: the network's program is evaluated with a changed value
of the layer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend
import numpy as np
from jaxtyping import Array, Float

from recvis_jax.errors import BadRequest, brief, nearest
from recvis_jax.vis import program
from recvis_jax.vis.structure import module_path

# (variables, images (b h w c)) -> (output, {layer: activations}), such as `functools.partial(model.apply,
# train=False)`.
Apply = Callable[[Any, Any], tuple[Any, dict[str, Any]]]

# The input of networks: floats, normalised as the network expects.
Images = Float[Array, "b h w c"] | Float[np.ndarray, "b h w c"]


class Grid(NamedTuple):
    """Arrangement of the tokens of an image: `extra` ones, such as the class token, then `rows` x `columns` patches."""

    extra: int
    rows: int
    columns: int


def names(apply: Apply, variables: Any, images: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all layers that the network names, in its order.

    Args:
      apply: the network.
      variables: its variables, or their shapes.
      images: (b h w c), or their shape.
    """
    found: dict[str, tuple[int, ...]] = {}

    def forward(variables: Any, images: Any) -> None:
        found.update({name: x.shape for name, x in apply(variables, images)[1].items()})  # the dict's order; trees sort

    jax.eval_shape(forward, variables, images)
    return found


@partial(jax.jit, static_argnames=("apply", "layer"))
def activations(apply: Apply, variables: Any, images: Images, layer: str) -> Array:
    """Returns the values of a layer: maps (b i j d), tokens (b n d), or vectors (b d).

    Args:
      apply: the network.
      variables: its variables.
      images: (b h w c), the network's input.
      layer: a name in `acts`, or the path of a module.

    Raises:
      BadRequest: there is no such layer; the message lists the layers.

    Example:
      >>> activations(apply, variables, images, "stage1/block1").shape
      (2, 14, 14, 6)
      >>> activations(apply, variables, images, "conv2").shape  # a module: before the relu
      (2, 14, 14, 6)
    """
    if layer in names(apply, variables, images):
        return apply(variables, images)[1][layer]
    split = _split(apply, variables, images, layer)
    return split.run(variables, images, lambda value: value)[2]


def from_layer(
    apply: Apply, variables: Any, images: Images, layer: str
) -> tuple[Array, Callable[[Array], tuple[Any, dict[str, Any]]]]:
    """Returns a layer's value, and (output, acts) as a function of an array that is added to it.

    Args: see `activations`.

    Raises:
      BadRequest: there is no such layer, or nothing is computed from it.

    Example: the gradient of a class's score with respect to a layer
      >>> value, moved = from_layer(apply, variables, images, "features")
      >>> jax.grad(lambda delta: moved(delta)[0][:, 3].sum())(jnp.zeros_like(value)).shape
      (2, 8)
    """
    split = _split(apply, variables, images, layer)
    if not split.read:
        raise BadRequest(
            f"nothing is computed from the value that the network names {layer!r}; blocks in a scan, for example, only "
            "copy their values out. For a model with scan=True, use models.scan.unstack(variables) and scan=False."
        )
    value = split.run(variables, images, lambda value: value)[2]
    return value, lambda delta: split.run(variables, images, lambda value: value + delta)[:2]


def modules(apply: Apply, variables: Any, images: Any) -> list[str]:
    """Returns the paths of the network's modules, in their order: additional layers besides those of `names`."""
    return _modules(program.traced(lambda v, x: apply(v, x), variables, images).closed.jaxpr)


class _Split(NamedTuple):
    """A network's program and its variable that is the layer; `read` says whether anything is computed from it."""

    program: program.Program
    variable: Any
    read: bool

    def run(self, variables: Any, images: Any, change: Callable[[Any], Any]) -> tuple[Any, dict[str, Any], Any]:
        """Returns (output, acts, the layer's value), with the layer's value changed."""
        kept = []

        def noted(value: Any) -> Any:
            kept.append(change(value))
            return kept[-1]

        flat = jax.tree.leaves((variables, images))
        found = program.evaluate(self.program.closed, flat, change={self.variable: noted})
        return (*jax.tree.unflatten(self.program.outputs, found), kept[0])


def _split(apply: Apply, variables: Any, images: Any, layer: str) -> _Split:
    traced = program.traced(lambda v, x: apply(v, x), variables, images)
    jaxpr = traced.closed.jaxpr
    _, acts = traced.named()
    if layer in acts:
        found = acts[layer]
        if isinstance(found, jax.extend.core.Literal) or found in jaxpr.invars or found in jaxpr.constvars:
            raise BadRequest(f"the layer {layer!r} is computed from nothing: it is an input or a constant.")
    else:
        found = _of_module(jaxpr, layer)
        if found is None:
            known = [*names(apply, variables, images), *_modules(jaxpr)]
            raise BadRequest(
                f"the network has no layer {brief(layer)!r}.{nearest(layer, known)} It names: "
                f"{', '.join(names(apply, variables, images))}; describe also lists its modules."
            )
    return _Split(traced, found, any(v is found for e in jaxpr.eqns for v in e.invars) or found is jaxpr.outvars[0])


def _modules(jaxpr: Any) -> list[str]:
    paths = dict.fromkeys(module_path(None, str(e.source_info.name_stack)) for e in jaxpr.eqns)
    return [path for path in paths if path]


def _of_module(jaxpr: Any, path: str) -> Any:
    """Returns the last variable of a module that is read outside the module; None if there is no such module."""
    inner, outer = [], set()
    for e in jaxpr.eqns:
        where = module_path(None, str(e.source_info.name_stack))
        if where == path or where.startswith(f"{path}/"):
            inner += e.outvars
        else:
            outer |= {v for v in e.invars if not isinstance(v, jax.extend.core.Literal)}
    outer |= {v for v in jaxpr.outvars if not isinstance(v, jax.extend.core.Literal)}
    return next((v for v in reversed(inner) if v in outer), None)


def grid(layers: dict[str, tuple[int, ...]], tokens: int, image: Sequence[int]) -> Grid:
    """Returns the arrangement of a network's tokens in the image.

    Args:
      layers: shapes of the named layers, see `names`.
      tokens: number of tokens of one layer.
      image: rows and columns of the image.

    Raises:
      BadRequest: no grid of square patches, with at most two other tokens, has this number of tokens.

    Example:
      >>> grid({"stem": (1, 196, 384)}, 197, (224, 224))
      Grid(extra=1, rows=14, columns=14)
    """
    stem = layers.get("stem", ())
    patches = [stem[1]] if len(stem) == 3 else [stem[1] * stem[2]] if len(stem) == 4 else []
    for n in [n for n in patches if n <= tokens <= n + 2] + [tokens, tokens - 1, tokens - 2]:
        rows = round((n * image[0] / image[1]) ** 0.5)
        if rows > 0 and n % rows == 0 and image[0] * (n // rows) == image[1] * rows:
            return Grid(tokens - n, rows, n // rows)
    raise BadRequest(f"{tokens} tokens do not form a grid of square patches of {image[0]}x{image[1]} images.")


def as_maps(x: Array, layers: dict[str, tuple[int, ...]], image: Sequence[int], layer: str) -> Float[Array, "b i j d"]:
    """Returns the values of a layer as maps: maps are unchanged, and tokens of patches are put in their places.

    Args:
      x: maps (b i j d) or tokens (b n d).
      layers: shapes of the named layers, see `names`.
      image: rows and columns of the image.
      layer: its name, for the message.

    Raises:
      BadRequest: a layer without places.
    """
    if x.ndim == 4:
        return x
    if x.ndim != 3:
        raise BadRequest(f"{layer!r} of shape {x.shape} has no places; use one of {', '.join(with_places(layers))}.")
    where = grid(layers, x.shape[1], image)
    return x[:, where.extra :].reshape(len(x), where.rows, where.columns, x.shape[-1])


def with_places(layers: dict[str, tuple[int, ...]]) -> list[str]:
    """Returns the names of the layers that are maps or tokens."""
    kinds = {name: len(shape) for name, shape in layers.items()}
    maps = [
        name for name, n in kinds.items() if n == 4 and not name.endswith("attention") and min(layers[name][1:3]) > 1
    ]
    return maps or [name for name, n in kinds.items() if n == 3]
