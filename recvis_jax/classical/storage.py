"""Learnt vocabularies on disk: words, mixtures and projections as safetensors files."""

import json
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from recvis_jax.errors import BadRequest, Failure, printable
from recvis_jax.pretrained import safetensors

Learnt = TypeVar("Learnt", bound=tuple)


def save(path: Path, learnt: Any, about: dict[str, Any] | None = None) -> None:
    """Writes `kmeans.Words`, a `gmm.Mixture` or a `pca.Projection`; an existing file is replaced atomically.

    Args:
      path: of the file.
      learnt: the tuple of arrays.
      about: what it was learnt from and how, as JSON types; `load` compares it.

    Example:
      >>> import tempfile
      >>> from recvis_jax.classical import pca
      >>> projection, folder = pca.fit(np.eye(3), 2), Path(tempfile.mkdtemp())
      >>> save(folder / "pca.safetensors", projection, {"seed": 0})
      >>> again = load(folder / "pca.safetensors", pca.Projection, {"seed": 0})
      >>> bool((again.axes == projection.axes).all())
      True
    """
    tensors = {name: np.asarray(x) for name, x in learnt._asdict().items()}
    kind = {"format": "recvis_jax", "kind": type(learnt).__name__, "about": json.dumps(about or {}, sort_keys=True)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise Failure(f"{printable(path.parent)} cannot be created: {e.strerror or e}.") from e
    safetensors.write(path, tensors, kind)


def load(path: Path, kind: type[Learnt], about: dict[str, Any] | None = None) -> Learnt:
    """Reads what `save` has written.

    Args:
      path: of the file.
      kind: `kmeans.Words`, `gmm.Mixture` or `pca.Projection`.
      about: what it must have been learnt from; None accepts anything.

    Raises:
      BadRequest: the file does not exist, is damaged, of another kind, or learnt from something else.
    """
    file, name = safetensors.File(path), printable(path)
    fields = kind._fields  # type: ignore[attr-defined]
    if file.metadata.get("kind") != kind.__name__ or set(file) != set(fields):
        raise BadRequest(f"{name} holds no {kind.__name__} with {', '.join(fields)}.")
    if about is not None and file.metadata.get("about") != json.dumps(about, sort_keys=True):
        raise BadRequest(f"{name} was learnt from something else; remove it, or choose another folder.")
    arrays = {field: np.array(file[field]) for field in fields}
    if any(np.isnan(a).any() for a in arrays.values()):  # before the first pass, a likelihood is -inf
        raise BadRequest(f"{name} holds numbers that are not finite.")
    return kind(**{field: jnp.asarray(a) for field, a in arrays.items()})
