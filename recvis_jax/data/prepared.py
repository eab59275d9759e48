"""Prepared data sets on disk: how one is found and checked by tfds, its digest, and the command that prepares it."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recvis_jax import errors, reading
from recvis_jax.data import DATASETS, writing


def digest_of(builder: Any) -> str:
    """Returns a hash of a prepared data set: classes, splits, names and sizes of its files, digests of its images.

    The same files prepared elsewhere, or by another version of tfds, have the same hash.
    """
    folder = Path(builder.data_dir)
    names = [(p.name, reading.read_bytes(p, "text bytes")) for p in sorted(folder.glob("*.txt"))]
    files = sorted((p.name, p.stat().st_size) for p in folder.glob("*array_record*"))
    splits = sorted((k, tuple(v.shard_lengths)) for k, v in builder.info.splits.items())
    made_of = writing.recorded(folder).get("fingerprint", "")
    return hashlib.sha256(repr((names, files, splits, made_of)).encode()).hexdigest()[:16]


def find_builder(tfds: Any, name: str, root: Path) -> Any:
    """Finds a prepared data set by name, `name/config` or `name:version`, whatever made it."""
    folder, _, version = name.partition(":")
    if len(name) > 200 or "\0" in name:
        raise errors.BadRequest(f"{errors.shown(name)} is not the name of a data set.")
    versions = (root / folder).glob("*/dataset_info.json") if os.path.isdir(root / folder) else ()
    found = sorted(versions, key=lambda p: [*map(_number, p.parent.name.split("."))])
    found = [p for p in found if not version or p.parent.name == version]
    if not found:
        prepared = sorted({p.parent.parent.name for p in root.glob("*/*/dataset_info.json")})
        there = (
            f"Prepared there: {_some(prepared)}.{errors.nearest(name, prepared)}"
            if prepared
            else "No data set is prepared there."
        )
        hint = "" if errors.nearest(name, prepared) else f" {prepare_hint(name, root)}"
        raise errors.BadRequest(f"no data set '{errors.printable(name)}' in {errors.printable(root)}. {there}{hint}")
    writing.check(found[-1].parent)
    reading.read_json(found[-1], "of a data set")
    _check_features(found[-1].with_name("features.json"))
    try:
        return tfds.builder_from_directory(found[-1].parent)
    except Exception as e:
        raise errors.BadRequest(
            f"{errors.printable(found[-1].parent)} is not a readable tfds data set: {errors.printable(first_line(e))}"
        ) from e


def _some(names: Sequence[str], count: int = 20) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(errors.printable, names[:count])) + more


def _check_features(path: Path) -> None:
    """Checks that a data set's features are tfds's own: tfds imports any module that a file names.

    Raises:
      BadRequest: the file names a class from another module, or cannot be read.
    """
    pending = [reading.read_json(path, "of a data set")]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()
            for key in ("pythonClassName", "type"):
                kind = value.get(key)
                if isinstance(kind, str) and "." in kind and not kind.startswith("tensorflow_datasets."):
                    raise errors.BadRequest(
                        f"{errors.printable(path)} names a feature of a library other than tfds, "
                        f"'{errors.printable(kind)[:100]}'; it is not loaded."
                    )


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def prepare_hint(name: str, root: Path) -> str:
    """Returns the sentence that says how a data set is prepared."""
    program, where = ("python", "-m", "recvis_jax.prepare"), f"--data_dir={root}"
    if name in DATASETS and not DATASETS[name].elsewhere:
        return f"Prepare it: {errors.command(*program, f'--dataset={name}', where, '--overwrite')}"
    return (
        "With TensorFlow installed, prepare it with: "
        f"{errors.command('tfds', 'build', name, '--file_format=array_record', where)}; for a folder of images: "
        f"{errors.command(*program, '--dataset=folder', '--source=PATH', f'--name={name}', where)} (coco, voc or yolo "
        "for annotated images)"
    )


def feature_of(features: Any, path: str, name: str) -> Any:
    """Returns a feature of the data set `name` by a path such as `objects/label`; `BadRequest` if there is none."""
    feature = features
    for key in path.split("/"):
        inner = getattr(feature, "feature", feature)
        if not hasattr(inner, "keys") or key not in inner.keys():
            there = ", ".join(features.keys())
            raise errors.BadRequest(f"{name} has no feature {path!r}.{errors.nearest(path, features)} It has: {there}.")
        feature = inner[key]
    return feature


def first_line(e: BaseException) -> str:
    """Returns the first line of an error's message."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
