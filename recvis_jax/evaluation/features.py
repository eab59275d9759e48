"""Features on disk: computed once, memory-mapped, and refused where they no longer belong to model and data.

Of every layer there are three files in the folder `features/` of a run: `NAME.npy` (n d) float32, `NAME.labels.npy`
(n) or (n k), and `NAME.json` with what they were computed from, written last.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recvis_jax import errors
from recvis_jax.training import processes


class Features(NamedTuple):
    """Features of one split.

    Attributes:
      values: (n d) float32, memory-mapped.
      labels: (n) classes, or (n k) multi-hot.
      origin: what they were computed from.
    """

    values: np.ndarray
    labels: np.ndarray
    origin: dict[str, Any]


def make_extract(
    layers_of: Callable[[Any, dict], Mapping[str, jax.Array]], preprocess: Callable[[dict], dict], mesh: Mesh
) -> Callable[[Any, dict], Mapping[str, jax.Array]]:
    """Returns the compiled `extract(variables, batch) -> {layer: (b d)}`, whole on every host.

    Args:
      layers_of: (variables, batch) -> {layer: (b d)}, in evaluation mode.
      preprocess: batch -> batch as the model takes it.
      mesh: devices.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    extract = jax.jit(lambda variables, batch: layers_of(variables, preprocess(batch)), out_shardings=whole)
    return processes.compiled_together(extract)


def path_of(folder: Path, split: str, layer: str, pool: str, weights: str) -> Path:
    """Returns the `.npy` file of a layer's features, named by what a user chose."""
    name = "-".join([split, layer, pool, weights])
    return folder / "features" / ("".join(c if c.isalnum() or c in "-_." else "_" for c in name) + ".npy")


def rows_of(
    batches: Iterable[dict], extract: Callable[[dict], Mapping[str, jax.Array]]
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields (labels, {layer: features}) of each batch, in numpy and without padding, the same on every host.

    Args:
      batches: of a split, in its order; `mask` says where the last one is padded.
      extract: batch -> {layer: (b d)}.
    """
    whole: Any = None
    for batch in batches:
        label, keep = batch["label"], batch["mask"]
        if jax.process_count() > 1:  # they are split over the hosts
            whole = whole or jax.jit(lambda x: x, out_shardings=NamedSharding(keep.sharding.mesh, PartitionSpec()))
            label, keep = whole((label, keep))
        label, keep, found = jax.device_get((label, keep, dict(extract(batch))))
        yield label[keep], {layer: np.asarray(x, np.float32)[keep] for layer, x in found.items()}


def collect(
    batches: Iterable[dict], extract: Callable[[dict], Mapping[str, jax.Array]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns ({layer: (n d)}, labels (n)) of all batches, in memory."""
    labels, rows = zip(*rows_of(batches, extract), strict=True)
    return {layer: np.concatenate([r[layer] for r in rows]) for layer in rows[0]}, np.concatenate(labels)


def write(
    paths: Mapping[str, Path],
    origins: Mapping[str, dict[str, Any]],
    rows: Iterable[tuple[np.ndarray, dict[str, np.ndarray]]],
    length: int,
    say: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes the features of a whole split, several layers in one pass; the first host does.

    Args:
      paths: layer -> `.npy` file; what is there is replaced when the new one is whole.
      origins: layer -> what the features are computed from, for the JSON.
      rows: what `rows_of` yields.
      length: number of examples.
      say: is told how many examples are done, after each batch.
    """
    files: dict[str, np.memmap] = {}
    labels: list[np.ndarray] = []
    main, done = jax.process_index() == 0, 0
    parts = {layer: path.with_suffix(".part") for layer, path in paths.items()}
    for label, found in rows:
        labels.append(label)
        for layer, x in found.items() if main else ():
            if layer not in files:
                paths[layer].parent.mkdir(parents=True, exist_ok=True)
                files[layer] = np.lib.format.open_memmap(parts[layer], "w+", np.float32, (length, x.shape[1]))
            files[layer][done : done + len(x)] = x
        done += len(label)
        say(done)
    if done != length:
        raise errors.Failure(f"{done} examples were read where {length} were expected.")
    for layer, path in paths.items() if main else ():
        files[layer].flush()
        path.with_suffix(".json").unlink(missing_ok=True)  # nothing vouches for the files while they are replaced
        part = path.with_suffix(".labels.part")
        with part.open("wb") as file:
            np.save(file, np.concatenate(labels))
        part.replace(path.with_suffix(".labels.npy"))
        parts[layer].replace(path)
        part = path.with_suffix(".json.part")
        part.write_text(json.dumps(origins[layer], indent=2) + "\n")
        part.replace(path.with_suffix(".json"))


def read(path: Path, origin: dict[str, Any]) -> Features | None:
    """Opens features, memory-mapped; None where there are none.

    Args:
      path: the `.npy` file.
      origin: what they should have been computed from.

    Raises:
      BadRequest: they are stale: computed from something else, which the message names.
    """
    if not path.with_suffix(".json").exists():
        return None
    try:
        found = json.loads(path.with_suffix(".json").read_text())
        values = np.load(path, mmap_mode="r")
        labels = np.load(path.with_suffix(".labels.npy"))
    except (OSError, ValueError) as e:
        raise errors.BadRequest(f"{path} cannot be read ({e}); delete it, or give --overwrite.") from e
    differs = _differences(found, json.loads(json.dumps(origin)))
    if differs or len(values) != len(labels):
        what = "; ".join(differs[:4]) or f"{len(values)} features, {len(labels)} labels"
        raise errors.BadRequest(f"the features in {path} are stale ({what}); delete them, or give --overwrite.")
    return Features(values, labels, found)


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    out: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key}: {a!r} there, {b!r} now")
    return out
