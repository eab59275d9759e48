"""Parts of a source by class: only a few classes, or only a few examples of each."""

import zlib
from collections.abc import Sequence

import numpy as np

from recvis_jax import errors
from recvis_jax.data.sources import Indices, Source

_CHUNK = 1000  # examples read at a time for their labels


def subset(source: Source, classes: Sequence[int | str] = (), per_class: int = 0, seed: int = 0) -> Source:
    """Returns the examples of some classes, or a small balanced number of examples of every class.

    Args:
      source: a source with one class per image.
      classes: numbers or names of the classes to keep, which become 0, 1, ... in this order; empty for all.
      per_class: examples of each class, drawn with `seed`; 0 for all. A smaller number draws a subset of the examples
        of a larger one.
      seed: for the draw.

    Raises:
      BadRequest: unknown or repeated classes, a class with fewer examples than requested, labels that are not classes.
    """
    if not classes and not per_class:
        return source
    if source.multi_label or not source.num_classes or all(f.name != "label" for f in source.fields):
        raise errors.BadRequest(f"data.classes and data.per_class need one class per image; {source.name} has not.")
    if per_class < 0:
        raise errors.BadRequest(f"data.per_class={per_class} is negative.")
    kept = [_number(source, c) for c in classes] or list(range(source.num_classes))
    if len(set(kept)) < len(kept):
        raise errors.BadRequest(f"data.classes={list(classes)} names a class twice.")
    labels = np.concatenate(
        [
            [int(e["label"]) for e in source.read(np.arange(i, min(i + _CHUNK, source.length)))]
            for i in range(0, source.length, _CHUNK)
        ]
    )
    rows = []
    for i, c in enumerate(kept):
        members = np.flatnonzero(labels == c)
        if len(members) < max(per_class, 1):
            name = source.class_names[c] if source.class_names else c
            raise errors.BadRequest(f"{source.name} has {len(members)} examples of class {name}, not {per_class or 1}.")
        # One generator per class, like `evaluation.fewshot.draw`: probes and training see the same examples.
        rows.append(np.random.default_rng((seed, i)).permutation(members)[: per_class or None])
    order = np.sort(np.concatenate(rows))
    new = {c: i for i, c in enumerate(kept)}

    def read(indices: Indices) -> list[dict]:
        found = source.read(order[np.asarray(indices, int)])
        return [{**e, "label": np.int32(new[int(e["label"])])} for e in found]

    what = [f"{len(kept)} classes"] if classes else []
    what += [f"{per_class} a class, seed {seed}"] if per_class else []
    names = tuple(source.class_names[c] for c in kept) if source.class_names else ()
    return source._replace(
        name=f"{source.name} ({', '.join(what)})",
        length=len(order),
        read=read,
        num_classes=len(kept),
        class_names=names,
        digest=f"{source.digest}+{zlib.crc32(order.tobytes()):08x}",
    )


def _number(source: Source, name: int | str) -> int:
    known = {n: i for i, n in enumerate(source.class_names)}
    if name in known:
        return known[str(name)]
    if isinstance(name, int) and 0 <= name < source.num_classes:
        return name
    raise errors.BadRequest(
        f"{source.name} has no class {name!r}.{errors.nearest(str(name), known)} "
        f"There are: {', '.join(source.class_names) or f'0 to {source.num_classes - 1}'}."
    )
