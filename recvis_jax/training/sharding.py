"""How the state is split over devices: a mesh `data x fsdp x model`, and strategies as rules on names.

Batches are split over "data" and "fsdp" together; "model" splits the layers themselves.

- "replicate": every device keeps the whole state.
- "fsdp": every array (parameters, gradients, optimizer state, moving average) is split over "fsdp", along its longest
  dimension that is divisible by the axis (Rajbhandari et al. 2020, "ZeRO", stage 3). The compiler gathers a layer's
  parameters when it needs them.
- "tensor": `RULES` split attention, MLPs and residual blocks over "model" so that a block needs one sum over devices
  (Shoeybi et al. 2019, "Megatron-LM", section 3). If the mesh has "fsdp", other dimensions are split over it as above.

A rule is (regular expression, axes): if the expression matches in an array's path name, the array's last dimensions are
split over these mesh axes (None: not split). So one rule serves a layer's kernel, its optimizer state, and the stacked
kernels of scanned blocks. The first matching rule counts; a user's rules come before `RULES`.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recvis_jax import errors, trees
from recvis_jax.axes import BATCH_AXES

AXES = ("data", "fsdp", "model")
STRATEGIES = ("replicate", "fsdp", "tensor")

Rule = tuple[str, Sequence[str | None]]

# Columns of the first layer and rows of the second: no communication is needed in between.
RULES: tuple[Rule, ...] = (
    (r"(query|key|value)/kernel$", (None, "model")),
    (r"(query|key|value)/bias$", ("model",)),
    (r"attention/out/kernel$", ("model", None)),
    (r"fc1/kernel$", (None, "model")),
    (r"fc1/bias$", ("model",)),
    (r"fc2/kernel$", ("model", None)),
    (r"stage\d+_block\d+/conv1/kernel$", (None, None, None, "model")),
    (r"stage\d+_block\d+/conv1/bias$", ("model",)),
    (r"stage\d+_block\d+/conv2/kernel$", (None, None, "model", None)),
)

# Arrays with fewer elements are not split: the communication would cost more than the memory saved.
MIN_SIZE = 1024


class Layout(NamedTuple):
    """How a state is placed on a mesh.

    Attributes:
      mesh: the devices, with `AXES`.
      specs: a tree of `PartitionSpec`s with the structure of the state.
      whole: names of arrays of at least `MIN_SIZE` elements that could not be split as the strategy asks.
    """

    mesh: Mesh
    specs: Any
    whole: tuple[str, ...]

    @property
    def shardings(self) -> Any:
        """A tree of shardings with the structure of the state."""
        return jax.tree.map(lambda s: NamedSharding(self.mesh, s), self.specs, is_leaf=_is_spec)


def make_mesh(
    devices: Sequence[jax.Device] | None = None,
    *,
    strategy: str = "replicate",
    data: int | None = None,
    fsdp: int | None = None,
    model: int | None = None,
) -> Mesh:
    """Returns a mesh `data x fsdp x model` over all devices, or over those given.

    Args:
      devices: of the mesh; all by default. Neighbours in the list are neighbours along "model", then along "fsdp".
      strategy: decides which axis gets the remaining devices: "data", or "fsdp" for "fsdp", or "model" for "tensor".
      data, fsdp, model: sizes of the axes; their product is the number of devices. None: 1, or all remaining devices.

    Raises:
      BadRequest: sizes that do not multiply to the number of devices, or an axis that the strategy does not use.
    """
    devices = list(jax.devices() if devices is None else devices)
    errors.choose(dict.fromkeys(STRATEGIES), strategy, "sharding strategy")
    sizes = {"data": data, "fsdp": fsdp, "model": model}
    unused = {"replicate": ("fsdp", "model"), "fsdp": ("model",), "tensor": ()}[strategy]
    for axis in unused:
        if (sizes[axis] or 1) != 1:
            uses = "fsdp" if axis == "fsdp" else "tensor"
            raise errors.BadRequest(f"sharding.{axis}={sizes[axis]} splits nothing under {strategy!r}; see {uses!r}.")
    rest = {"replicate": "data", "fsdp": "fsdp", "tensor": "model"}[strategy]
    if sizes[rest] is not None and sizes["data"] is None:
        rest = "data"
    given = {axis: size for axis, size in sizes.items() if size is not None}
    known = int(np.prod(list(given.values())))
    if rest not in given and known > 0 and len(devices) % known == 0:
        given[rest] = len(devices) // known
    shape = [given.get(axis, 1) for axis in AXES]
    if min(shape) < 1 or np.prod(shape) != len(devices):
        asked = " x ".join(f"{axis}={size}" for axis, size in given.items())
        raise errors.BadRequest(f"the mesh {asked} of config.sharding does not fit {len(devices)} device(s).")
    return Mesh(_arrange(devices, shape), AXES)


def _arrange(devices: Sequence[jax.Device], shape: Sequence[int]) -> np.ndarray:
    """Orders devices along the axes: on TPUs by their links, if every process then reads one piece of a batch."""
    plain = np.asarray(devices).reshape(shape)
    if devices[0].platform == "tpu":
        linked = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        if all(_is_run(p) for p in parts_by_process(linked).values()):
            return linked
    return plain


def parts_by_process(devices: np.ndarray) -> dict[int, list[int]]:
    """Returns {process: parts of a batch held by its devices}; a batch has `data x fsdp` parts."""
    found: dict[int, set[int]] = {}
    for part, group in enumerate(devices.reshape(-1, devices.shape[-1])):
        for device in group:
            found.setdefault(device.process_index, set()).add(part)
    return {process: sorted(parts) for process, parts in found.items()}


def host_share(mesh: Mesh) -> tuple[int, int]:
    """Returns which part of every batch this process reads, as (index, number of parts).

    Processes whose devices split the same layers over "model" read the same part.

    Raises:
      BadRequest: the mesh gives processes unequal or scattered parts.
    """
    parts = parts_by_process(mesh.devices)
    mine = parts.get(jax.process_index(), [0])
    total = mesh.shape["data"] * mesh.shape["fsdp"]
    if not _is_run(mine) or mine[0] % len(mine) or total % len(mine) or len({len(p) for p in parts.values()}) > 1:
        shape = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        raise errors.BadRequest(
            f"the mesh {shape} of config.sharding gives the {len(parts)} processes unequal parts of a batch; let "
            "model and fsdp be divisors or multiples of the devices of one process."
        )
    return mine[0] // len(mine), total // len(mine)


def _is_run(parts: Sequence[int]) -> bool:
    """Whether sorted numbers have no gaps."""
    return parts[-1] - parts[0] == len(parts) - 1


def check_rules(rules: Sequence[Any]) -> tuple[Rule, ...]:
    """Returns a user's rules as tuples; `BadRequest` for one that is not (regular expression, axes)."""
    if not isinstance(rules, (tuple, list)):
        raise errors.BadRequest(f"sharding.rules is {errors.shown(rules)}; it takes pairs (regular expression, axes).")
    out = []
    for rule in rules:
        try:
            pattern, axes = rule
            re.compile(pattern)
            axes = tuple(axes)
        except (TypeError, ValueError, re.error) as e:
            raise errors.BadRequest(
                f"sharding.rules: {errors.shown(rule)} is not (regular expression, axes): {e}."
            ) from e
        if wrong := [a for a in axes if a is not None and a not in ("fsdp", "model")]:
            raise errors.BadRequest(f"sharding.rules: {wrong[0]!r} in {rule!r} is not 'fsdp', 'model' or None.")
        out.append((pattern, axes))
    return tuple(out)


def make_layout(template: Any, mesh: Mesh, strategy: str = "replicate", rules: Sequence[Rule] = ()) -> Layout:
    """Decides how every array of a state is split.

    Args:
      template: a tree of arrays or `ShapeDtypeStruct`s.
      mesh: as `make_mesh` gives it.
      strategy: one of `STRATEGIES`.
      rules: a user's rules, before those of the strategy.

    Raises:
      BadRequest: a user's rule matches no array.
    """
    names = list(trees.flatten(template))
    for pattern, _ in rules:
        if not any(re.search(pattern, name) for name in names):
            raise errors.BadRequest(f"sharding.rules: {pattern!r} matches none of the names {trees.shorten(names, 8)}.")
    found = (*rules, *(RULES if strategy == "tensor" else ()))
    whole: list[str] = []

    def spec_of(name: str, leaf: Any) -> PartitionSpec:
        shape, failed = leaf.shape, False
        spec: list[str | None] = [None] * len(shape)
        axes = next((axes for pattern, axes in found if re.search(pattern, name)), ())
        if len(axes) <= len(shape):
            for i, axis in enumerate(axes, len(shape) - len(axes)):
                if axis and shape[i] % mesh.shape[axis]:
                    failed = True
                elif axis and mesh.shape[axis] > 1:
                    spec[i] = axis
        large = np.prod(shape, dtype=np.int64) >= MIN_SIZE
        if strategy != "replicate" and mesh.shape["fsdp"] > 1 and "fsdp" not in spec and large:
            free = [i for i, axis in enumerate(spec) if axis is None and shape[i] % mesh.shape["fsdp"] == 0]
            if free:
                spec[max(free, key=lambda i: (shape[i], i))] = "fsdp"
            else:
                failed = True
        if failed and large:
            whole.append(name)
        while spec and spec[-1] is None:
            spec.pop()
        return PartitionSpec(*spec)

    specs = [spec_of(name, leaf) for name, leaf in trees.flatten(template).items()]
    return Layout(mesh, jax.tree.unflatten(jax.tree.structure(template), specs), tuple(whole))


def describe(found: Layout, template: Any) -> str:
    """Returns a one-line summary: how much of the state a device keeps, and which arrays are not split."""
    total = local = 0
    for leaf, sharding in zip(jax.tree.leaves(template), jax.tree.leaves(found.shardings), strict=True):
        total += leaf.size * leaf.dtype.itemsize
        local += int(np.prod(sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
    shape = " x ".join(f"{axis} {size}" for axis, size in found.mesh.shape.items())
    text = f"mesh {shape}; a device keeps {local / 1e6:,.1f} of {total / 1e6:,.1f} MB of state"
    if found.whole:
        text += f"; not split, as no dimension is divisible: {trees.shorten(found.whole, 4)}"
    return text


def laid_out(template: Any, shardings: Any) -> Any:
    """Returns `ShapeDtypeStruct`s with the given tree of shardings; given a mesh, all arrays are replicated on it."""
    if isinstance(shardings, Mesh):
        shardings = jax.tree.map(lambda _: NamedSharding(shardings, PartitionSpec()), template)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), template, shardings)


def batch_spec() -> PartitionSpec:
    """Returns how batches are split: along their first axis."""
    return PartitionSpec(BATCH_AXES)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)
