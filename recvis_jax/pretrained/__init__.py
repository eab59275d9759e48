"""Published weights in and out: `create`, `load` and `export`. `LIBRARIES` is the table of contents."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax import models, trees
from recvis_jax.errors import BadRequest, choose, nearest
from recvis_jax.models import scan
from recvis_jax.pretrained import (
    adapt,
    big_transfer,
    big_vision,
    deit,
    files,
    mae,
    rules,
    safetensors,
    timm,
    torch_nn,
    torchvision,
    transformers,
)

# A module of names has TABLES: class of our model -> table, or function of the model that returns one;
# NAMES: their name -> (our name, attributes); RENAMES: (regular expression, replacement) for what older files wrote, or
# function of the model that returns them.
LIBRARIES: dict[str, ModuleType] = {
    "torchvision": torchvision,
    "timm": timm,
    "big_transfer": big_transfer,
    "big_vision": big_vision,
    "mae": mae,
    "deit": deit,
    "transformers": transformers,
    "torch": torch_nn,
}

# What torch's wrappers for several devices and for compilation put before every name.
_WRAPPERS = ((r"^(module|_orig_mod)\.", ""),)


def create(library: str, name: str, **kw: Any) -> nn.Module:
    """Returns our model that is equal to the other library's `name`.

    Args:
      library: a name of `LIBRARIES`.
      name: the other library's own name, with the tag of the weights where it has any and another number of classes
        depends on it, as in 'resnetv2_50x1_bit.goog_in21k'; of a tag that is not known the part before the dot counts.
      **kw: attributes of our model that shall differ from theirs, such as `num_classes` or `dtype`.

    Raises:
      BadRequest: unknown library, name or attribute.

    Example:
      >>> model = pretrained.create("torchvision", "resnet34")
      >>> template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))
      >>> variables = pretrained.load("resnet34.safetensors", model, template)
    """
    names = choose(LIBRARIES, library, "library").NAMES
    known = name if name in names else name.partition(".")[0]
    if known not in names:
        without_tags = [n for n in names if "." not in n]
        raise BadRequest(
            f"unknown {library} model {name!r}.{nearest(name, without_tags)} "
            f"There are: {trees.shorten(without_tags, 40) or 'none'}."
        )
    ours, attributes = names[known]
    return models.create(ours, **{**attributes, **kw})


def load(
    source: str | Path | Mapping[str, Any] | files.Checkpoint,
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    library: str = "",
    new_head: bool = False,
    resample: bool | tuple[int, int] = False,
    adapt_stem: bool = False,
    ignore: str = "",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Returns `variables` with the values of a checkpoint, strictly: all names and shapes must agree.

    Args:
      source: a file (.safetensors, .npz, or .pth where torch is installed), `hf://owner/repo[/file]`, the folder of a
        run of our own, a dict from their name to array, or what `files.read` returns. Nothing in it is executed.
      model: the model that `variables` belong to.
      variables: its variables, or their `jax.eval_shape`: the template.
      library: whose names the checkpoint has; found out by the names where not given.
      new_head: keeps the head of `variables`, for another number of classes.
      resample: interpolates position embeddings of another grid as timm does; (rows, columns) where the new grid is
        not square.
      adapt_stem: adapts the first convolution to another number of input channels as timm does.
      ignore: regular expression of names in the checkpoint for which the model needs no place.
      say: is told of each adaptation that was made.

    Raises:
      BadRequest: the source cannot be read or does not fit; the message lists the missing names, the unexpected ones
        and the differing shapes.
    """
    where = str(source) if isinstance(source, str | Path) else "the checkpoint"
    if isinstance(source, str | Path):
        checkpoint = files.read(str(source))
    else:
        checkpoint = source if isinstance(source, files.Checkpoint) else files.Checkpoint(source)
    template = trees.flatten(scan.unstack(variables))
    heads = {n: x for n, x in trees.flatten(variables).items() if re.search(adapt.HEAD, n)}
    dropped = ("params/head/kernel", "params/head/bias") if new_head else ()
    tensors: Mapping[str, Any]
    if checkpoint.ours:
        tensors = trees.flatten(scan.unstack(trees.unflatten(checkpoint.tensors)))
        tensors = adapt.encoder_alone(tensors, template, say)
        planned = [rules.Move(n, (n,), rules.LAYOUTS[""]) for n in dict.fromkeys([*template, *dropped])]
    else:
        tensors, planned = _recognise(checkpoint.tensors, model, [*template], dropped, library, where)
    found = rules.fit(planned, tensors, ignore)
    if new_head:
        found = adapt.keep_head(found, heads, say)
    if resample:
        found = adapt.resample_positions(found, template, None if resample is True else resample, say)
    if adapt_stem:
        found = adapt.adapt_channels(found, template, say)
    rules.check(found, template, where)
    values = trees.unflatten({n: np.asarray(found.values[n]) for n in template})
    values = scan.stack(values) if getattr(model, "scan", False) else values
    return jax.tree.map(jnp.array, trees.merge(variables, values))


def export(
    variables: Mapping[str, Any], model: nn.Module, library: str, path: str | Path | None = None
) -> dict[str, np.ndarray]:
    """Returns the state dict that the other library loads strictly.

    Args:
      variables: of `model`.
      model: one that the other library has too.
      library: a name of `LIBRARIES`.
      path: file to write, .safetensors or .npz.

    Raises:
      BadRequest: the library has no such model, or a file of an unknown kind.

    Example:
      >>> pretrained.export(variables, model, "torchvision", "resnet34.safetensors")
      >>> # there: model.load_state_dict(safetensors.torch.load_file("resnet34.safetensors"))
    """
    if path is not None and Path(path).suffix not in (".safetensors", ".npz"):
        raise BadRequest(f"{path} is of no known kind: .safetensors and .npz are written.")
    flat = trees.flatten(scan.unstack(variables))
    state = rules.export(moves(model, flat, library), flat)
    if path is not None and Path(path).suffix == ".npz":
        partial = Path(path).with_name(f"{Path(path).name}.partial")
        with partial.open("wb") as file:
            np.savez(file, **state)
        partial.replace(path)
    elif path is not None:
        safetensors.write(Path(path), state)
    return state


def moves(model: nn.Module, names: Iterable[str], library: str, optional: Iterable[str] = ()) -> list[rules.Move]:
    """Returns which tensors of the library hold which variables of the model; see `rules.plan`."""
    tables = choose(LIBRARIES, library, "library").TABLES
    if type(model) not in tables:
        raise BadRequest(f"{library} has no table of names for {type(model).__name__}.")
    table = tables[type(model)]
    return rules.plan(table(model) if callable(table) else table, names, optional)


def _recognise(
    source: Mapping[str, Any], model: nn.Module, names: list[str], optional: tuple[str, ...], library: str, where: str
) -> tuple[Mapping[str, Any], list[rules.Move]]:
    """Returns the checkpoint under the names of the library that knows most of them, and that library's moves."""
    candidates = [library] if library else [n for n, m in LIBRARIES.items() if type(model) in m.TABLES]
    best: tuple[int, str, Mapping[str, Any], list[rules.Move]] = (0, "", {}, [])
    for candidate in candidates:
        try:
            planned = moves(model, names, candidate, optional)
        except BadRequest:  # this library has no such variant
            if library:
                raise
            continue
        renames = LIBRARIES[candidate].RENAMES
        renames = renames(model) if callable(renames) else renames
        renamed = rules.Renamed(source, (*_WRAPPERS, *renames))
        best = max(best, (sum(m.theirs in renamed for m in planned), candidate, renamed, planned), key=lambda b: b[0])
    count, nearest_library, tensors, found = best
    if 2 * count < len(found) or not count:  # too little for a list of what differs to be of use
        held = f"only {count} of the {len(found)}" if count else "none of the"
        raise BadRequest(
            f"{where} holds {held} names that {nearest_library or ', '.join(candidates) or 'any library'} has for this "
            f"{type(model).__name__}; it holds {trees.shorten(list(source), 4) or 'nothing'}. Is it of another model?"
        )
    return tensors, found
