"""Reads and writes published weights: `create`, `load` and `export`. `LIBRARIES` is the table of contents."""

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
from recvis_jax.errors import BadRequest, brief, choose, nearest
from recvis_jax.models import scan
from recvis_jax.pretrained import (
    adapt,
    big_transfer,
    big_vision,
    deit,
    detr,
    files,
    grids,
    keras_vars,
    mae,
    ndf,
    parts,
    rules,
    safetensors,
    timm,
    torch_nn,
    torchvision,
    transformers,
)

# A module of names has TABLES: class of our model -> table, or function of the model that returns one;
# NAMES: their name -> (our name, attributes); RENAMES: pairs (regular expression, replacement) for names in older
# files, or function of the model that returns them.
LIBRARIES: dict[str, ModuleType] = {
    "torchvision": torchvision,
    "timm": timm,
    "big_transfer": big_transfer,
    "big_vision": big_vision,
    "mae": mae,
    "deit": deit,
    "detr": detr,
    "transformers": transformers,
    "torch": torch_nn,
    "ndf": ndf,
    "keras_vars": keras_vars,
}


def create(library: str, name: str, **kw: Any) -> nn.Module:
    """Returns our model that is equal to the other library's model `name`.

    Args:
      library: a name of `LIBRARIES`.
      name: the other library's own name. A tag of the weights can set the number of classes, as in
        'resnetv2_50x1_bit.goog_in21k'; an unknown tag is ignored.
      **kw: attributes of our model that should differ from theirs, such as `num_classes` or `dtype`.

    Raises:
      BadRequest: unknown library, name or attribute.

    Example:
      >>> model = create("torchvision", "resnet34")
      >>> template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))
      >>> variables = load("resnet34.safetensors", model, template)  # doctest: +SKIP
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


def spelled(key: str, value: Any) -> str:
    """Returns an argument of `load` as written in Python: the `spell` for direct callers."""
    section, dot, inner = key.partition(".")
    if key == "num_classes":
        return f"a model of num_classes={value}"
    return f"{section}=dict({inner}={value})" if dot else f"{key}={value}"


def load(
    source: str | Path | Mapping[str, Any] | files.Checkpoint,
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    library: str = "",
    new_head: bool = False,
    resample: bool | tuple[int, int] | list | dict = False,
    adapt_stem: bool = False,
    ignore: str = "",
    image_size: tuple[int, int] | None = None,
    say: Callable[[str], None] = print,
    spell: Callable[[str, Any], str] = spelled,
) -> dict[str, Any]:
    """Returns `variables` with the values of a checkpoint, strictly: all names and shapes must agree.

    Prefixes that wrappers put before names are removed. If a file has several sets of weights, the averaged ones are
    taken, and `say` is told; `FILE#name` takes the set whose names begin with `name`.

    Args:
      source: a file (.safetensors, .npz, .pkl of arrays, .pth if torch is installed, .h5 if h5py is),
        `hf://owner/repo[/file]`, the folder of a run of ours, a dict from their name to array, or what `files.read`
        returns. Nothing in it is executed.
      model: the model that `variables` belong to.
      variables: its variables, or their `jax.eval_shape`: the template.
      library: the library whose names the checkpoint has; found from the names if not given.
      new_head: keeps the head of `variables`, for another number of classes.
      resample: interpolates position embeddings of another grid of patches as timm does: True, or the grids,
        dict(old=(rows, columns), new=(rows, columns)), either of which may be left out; (rows, columns) alone is the
        new one. A grid that is known neither from the source nor from `image_size` is assumed to be square.
      adapt_stem: adapts the first convolution to another number of input channels as timm does.
      ignore: regular expression of names in the checkpoint that the model need not have.
      image_size: rows and columns of the model's images; with them grids of patches are compared, which may differ
        even if the number of patches does not.
      say: called with a line about each choice and adaptation.
      spell: (key, value) -> how the user writes an argument of this function, for messages; empty if the user cannot
        set it.

    Raises:
      BadRequest: the source cannot be read or does not fit; the message lists missing and unexpected names, differing
        shapes, and what would help.
    """
    where = str(source) if isinstance(source, str | Path) else "the checkpoint"
    where, asked = brief(where, 200), grids.parse(resample)
    if isinstance(source, str | Path):
        checkpoint = files.read(str(source))
    else:
        checkpoint = source if isinstance(source, files.Checkpoint) else files.Checkpoint(source)
    template = trees.flatten(scan.unstack(variables))
    heads = {n: x for n, x in trees.flatten(variables).items() if re.search(adapt.HEAD, n)}
    grid = grids.of_model(model, image_size)
    trained = _grid_or_none(model, checkpoint.image_size)
    if checkpoint.ours:
        tensors: Mapping[str, Any] = trees.flatten(scan.unstack(trees.unflatten(checkpoint.tensors)))
        tensors = adapt.encoder_alone(tensors, template, say)
        planned = [rules.Move(n, (n,), rules.LAYOUTS[""]) for n in dict.fromkeys([*template, *_HEAD])]
    else:
        tensors, planned = _recognise(checkpoint, model, [*template], library, where, say)
        tensors = adapt.without_decoder(tensors, {m.theirs for m in planned}, say)
    of_heads = {m.theirs for m in planned if any(re.search(adapt.HEAD, n) for n in m.ours)}
    homeless = {m.theirs for m in planned if not template.keys() >= {*m.ours}}  # heads that the model does not have
    skipped = of_heads if new_head else homeless
    found = rules.fit([m for m in planned if new_head or m.theirs not in homeless], tensors, ignore, template, skipped)
    if new_head:
        found = adapt.keep_head(found, heads, [n for n in of_heads if n in tensors], say)
    found, complaints = adapt.fit_positions(found, template, asked, trained, grid, say, spell)
    if isinstance(model, grids.MIXING):
        complaints += adapt.check_mixing(trained, grid, asked)
    if adapt_stem:
        found = adapt.adapt_channels(found, template, say)
    if complaints:  # clearer than the difference in shapes
        found = found._replace(values={n: x for n, x in found.values.items() if not n.endswith("pos_embed")})
    nameless = [n for n in template if n not in found.values and n not in found.source]
    if nameless:  # heads of a library whose networks have none
        remedy = spell("new_head", True)
        complaints = [*complaints, f"it has no {', '.join(nameless)}{f'; {remedy} starts a new one' if remedy else ''}"]
    rules.check(found, template, where, complaints, adapt.remedies(found, template, tensors, of_heads, heads, spell))
    values = trees.unflatten({n: np.asarray(found.values[n]) for n in template})
    values = scan.stack(values) if getattr(model, "scan", False) else values
    return jax.tree.map(jnp.array, trees.merge(variables, values))


_HEAD = ("params/head/kernel", "params/head/bias")


def _grid_or_none(model: nn.Module, image_size: tuple[int, int] | None) -> grids.Grid | None:
    try:
        return grids.of_model(model, image_size)
    except BadRequest:  # the source's image size does not fit this model's patches
        return None


def export(
    variables: Mapping[str, Any], model: nn.Module, library: str, path: str | Path | None = None
) -> dict[str, np.ndarray]:
    """Returns the state dict that the other library loads strictly.

    Args:
      variables: of `model`.
      model: one that the other library also has.
      library: a name of `LIBRARIES`.
      path: file to write, .safetensors or .npz.

    Raises:
      BadRequest: the library has no such model, or a file of an unknown kind.

    Example:
      >>> model = create("torchvision", "resnet18", num_classes=3)
      >>> template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
      >>> variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
      >>> export(variables, model, "torchvision", "resnet18.safetensors")["fc.bias"].shape
      (3,)
      >>> # there: model.load_state_dict(safetensors.torch.load_file("resnet18.safetensors"))
    """
    if path is not None and Path(path).suffix not in (".safetensors", ".npz"):
        raise BadRequest(f"{path} has an unknown file type; .safetensors and .npz can be written.")
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
    """Returns the library's tensors for the variables of the model; see `rules.plan`."""
    tables = choose(LIBRARIES, library, "library").TABLES
    if type(model) not in tables:
        raise BadRequest(f"{library} has no table of names for {type(model).__name__}.")
    table = tables[type(model)]
    return rules.plan(table(model) if callable(table) else table, names, optional)


def _recognise(
    checkpoint: files.Checkpoint,
    model: nn.Module,
    names: list[str],
    library: str,
    where: str,
    say: Callable[[str], None],
) -> tuple[Mapping[str, Any], list[rules.Move]]:
    """Returns the checkpoint in the names of the library that knows most of them, and that library's moves."""
    candidates = [library] if library else [n for n, m in LIBRARIES.items() if type(model) in m.TABLES]
    best: tuple[parts.Found, str, list[rules.Move]] = (parts.Found("", 0), "", [])
    for candidate in candidates:
        try:
            planned = moves(model, names, candidate, _HEAD)
        except BadRequest:  # this library does not have this variant
            if library:
                raise
            continue
        renames = LIBRARIES[candidate].RENAMES
        renames = renames(model) if callable(renames) else renames
        found = parts.find(checkpoint.tensors, {m.theirs for m in planned}, renames, checkpoint.tables, checkpoint.part)
        best = max(best, (found, candidate, planned), key=lambda b: b[0].known)
    found, nearest_library, planned = best
    wanted = [m for m in planned if {*m.ours} <= {*names}]
    if 2 * found.known < len(wanted) or not found.known:  # too few for a useful list of differences
        held = f"only {found.known} of the {len(wanted)}" if found.known else "none of the"
        there = ", ".join(brief(n, 60) for n in [*checkpoint.tensors][:4]) or "nothing"
        raise BadRequest(
            f"{where} holds {held} names that {nearest_library or ', '.join(candidates) or 'any library'} has for this "
            f"{type(model).__name__}; it holds {there}. Is it for another model?"
        )
    if found.others and not checkpoint.part:
        taken, *others = (brief(p.rstrip("./") or ".", 40) for p in (found.prefix, *found.others))
        say(f"{where} has several sets of weights: {taken} is used; FILE#{' or FILE#'.join(others[:3])} uses another")
    return parts.renamed(checkpoint.tensors, found.names, found.rename), planned
