"""Checkpoints of our own runs as sources of weights."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from recvis_jax import reading, trees
from recvis_jax.errors import BadRequest, Failure, printable, shown
from recvis_jax.training import checkpoint, sharding
from recvis_jax.training.state import State


def image_size(workdir: Path) -> tuple[int, int] | None:
    """Returns rows and columns of the images that a run was trained on, from its `data.json`.

    Returns:
      None for an older run without that file.

    Raises:
      BadRequest: the file is damaged.
    """
    path = workdir / "data.json"
    if not path.exists():
        return None
    shape = reading.read_json(path, "what a run knows of its data").get("image_shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise BadRequest(f"{printable(path)}: image_shape is {shown(shape, 40)}, not [rows, columns, channels].")
    return shape[0], shape[1]


def read(workdir: Path, which: str = "") -> dict[str, np.ndarray]:
    """Returns the variables that a run evaluates: the moving average if it keeps one.

    The checkpoint describes its own arrays, so neither config nor optimizer is needed.

    Args:
      workdir: folder of the run; it is only read, and the run may be in progress.
      which: 'best', 'last' or a step; empty takes the best, or the last if there is no best.

    Returns:
      Our path name -> array: 'params/...', 'batch_stats/...'.

    Raises:
      BadRequest: there is no such checkpoint.
      Failure: it is damaged.
    """
    # One device of every process: all processes read together, and each needs everything.
    mesh = sharding.make_mesh(list({d.process_index: d for d in reversed(jax.devices())}.values()))
    saved: Any = {}
    for kind in ("best", "last"):
        folder = checkpoint.home(workdir) / kind
        steps = [int(p.name) for p in (folder.iterdir() if folder.exists() else ()) if p.name.isdecimal()]
        saved |= {(kind, step): folder / str(step) for step in sorted(steps)}
    wanted = which or ("best" if any(kind == "best" for kind, _ in saved) else "last")
    found = [key for key in saved if wanted in (key[0], str(key[1]))]
    if not found:
        there = sorted({step for _, step in saved})
        raise BadRequest(f"no checkpoint {wanted!r} in {workdir}: there are the steps {there}.")
    place = saved[found[-1]]
    try:
        with ocp.StandardCheckpointer() as reader:
            described = reader.metadata(place / "state").item_metadata.tree
        template = State(**jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), described))
    except Exception as e:  # a damaged description can raise anything
        raise Failure(f"the checkpoint {place} cannot be read ({' '.join(str(e).split())[:200]})") from e
    reader = checkpoint.Checkpointer(workdir, sharding.laid_out(template, mesh), read_only=True)
    try:
        params, model_state = reader.restore(wanted).state.evaluated
    finally:
        reader.close()
    return {name: np.asarray(x) for name, x in trees.flatten({"params": params, **model_state}).items()}
