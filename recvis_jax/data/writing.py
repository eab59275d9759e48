"""Writes data sets in tfds's format; each is moved to its place when complete, so what is there is never partial."""

import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recvis_jax import errors, reading
from recvis_jax.data.download import Say, progress

RECORD = "recvis_jax.json"  # what a prepared data set was made from, beside tfds's own files


class Split(NamedTuple):
    """One split to write.

    Attributes:
      keys: one key per example, the same as tfds's builder uses; they decide the order.
      read: yields the example of each key in turn, None for an example that is left out.
      shards: number of files.
    """

    keys: Sequence[int] | Sequence[str]
    read: Callable[[Sequence[Any]], Iterator[dict[str, Any] | None]]
    shards: int = 1


def shuffled(keys: Sequence[Any], split: str) -> list[Any]:
    """Returns `keys` in tfds's storage order: by the md5 of the split's name and the key."""

    def hashed(key: Any) -> bytes:
        return hashlib.md5(f"{split}{key}".encode("utf-8", "surrogateescape"), usedforsecurity=False).digest()

    return sorted(keys, key=hashed)


def write(
    stage: Path,
    name: str,
    version: str,
    splits: dict[str, Split],
    features: Callable[[Any], dict[str, Any]],
    description: str,
    homepage: str = "",
) -> Path:
    """Writes a data set below the folder `stage` and returns its directory there.

    Args:
      stage: see `staging`.
      name, version, description, homepage: for tfds's record.
      splits: the splits to write.
      features: function from the module tfds to the features of an example by name.

    Raises:
      Failure: the files cannot be written.
    """
    import tensorflow_datasets as tfds

    def shard(split: str, keys: Sequence[Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        for key, example in zip(keys, splits[split].read(keys), strict=True):
            advance(1)
            if example is not None:
                yield key, example

    # From 1 GB on, tfds's GeneratorBasedBuilder shuffles with temporary files, which it writes with TensorFlow.
    class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
        VERSION = tfds.core.Version(version)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=description,
                features=tfds.features.FeaturesDict(features(tfds)),
                supervised_keys=("image", "label") if "label" in features(tfds) else None,
                homepage=homepage,
            )

        def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[Any]]]]:
            out: dict[str, list[Callable[[], Iterator[Any]]]] = {}
            for split, (keys, _, shards) in splits.items():
                order = shuffled(keys, split)
                cuts = [len(order) * i // shards for i in range(shards + 1)]
                parts = [order[a:b] for a, b in itertools.pairwise(cuts)]
                out[split] = [lambda split=split, part=part: shard(split, part) for part in parts]  # type: ignore[misc]
            return out

    Builder.name = name
    total = sum(len(s.keys) for s in splits.values())
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with progress(f"write {name}", total, "examples") as advance, contextlib.redirect_stdout(io.StringIO()):
        builder = Builder(data_dir=str(stage), file_format="array_record")
        try:
            builder.download_and_prepare(download_config=config, file_format="array_record")
        except RuntimeError as e:  # array_record's error for a full disk
            raise errors.Failure(
                f"writing {name} below {errors.printable(stage.parent)} failed: {errors.printable(e)}"
            ) from e
    return Path(builder.data_dir)


def existing(target: Path) -> int | None:
    """Returns the number of examples of the data set in the directory `target`, None if it does not exist.

    Raises:
      BadRequest: it exists, but is incomplete or not in array_record.
    """
    if not target.exists():
        return None
    shown = errors.printable(target)
    try:
        info = reading.read_json(target / "dataset_info.json")
        shards = {s["name"]: list(map(int, s["shardLengths"])) for s in info["splits"]}
    except (ValueError, KeyError, TypeError):
        raise errors.BadRequest(f"{shown} exists but is not a data set; use --overwrite to replace it.") from None
    if info.get("fileFormat") != "array_record":
        raise errors.BadRequest(
            f"{shown} is prepared as {errors.printable(info.get('fileFormat', 'tfrecord'))[:40]}, which cannot be read "
            "without TensorFlow; use --overwrite to replace it with array_record."
        )
    for split, lengths in shards.items():
        files = [p for p in target.iterdir() if f"-{split}.array_record-" in p.name]
        if len(files) != len(lengths):
            raise errors.BadRequest(
                f"{shown} lacks files of the split {errors.printable(split)[:40]}; use --overwrite to make it again."
            )
    return sum(map(sum, shards.values()))


def make_room(root: Path, size: int) -> None:
    """Raises `Failure` if the disk of `root` has no space for `size` bytes."""
    if (free := shutil.disk_usage(root).free) < 1.1 * size + 1e6:
        raise errors.Failure(
            f"no room in {errors.printable(root)}: about {size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB free."
        )


@contextlib.contextmanager
def locked(root: Path, say: Say) -> Iterator[None]:
    """Allows only one preparation at a time in `root`; others wait."""
    handle = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another preparation in {errors.printable(root)}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a network file system without locks
            pass
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def staging(root: Path, name: str) -> Iterator[Path]:
    """Yields a hidden folder in `root`, removed at the end; the remains of a killed preparation are removed first."""
    stage = root / f".incomplete-{name}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def move(written: Path, target: Path, stage: Path, record: dict[str, Any]) -> Path:
    """Moves a complete data set, with `record`, to its place, which replaces an older one, and returns `target`."""
    (written / RECORD).write_text(json.dumps({**record, "files": _sums(written)}, indent=1) + "\n")
    target.parent.mkdir(parents=True, exist_ok=True)
    old = stage / "old"
    if target.exists():
        target.rename(old)
    try:
        written.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    return target


def _sums(folder: Path) -> dict[str, int | str]:
    """Returns file -> sha256; for files of examples the size, because they have checksums of their own inside."""
    return {
        p.name: p.stat().st_size if ".array_record-" in p.name else hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.iterdir())
        if p.name != RECORD
    }


def check(target: Path) -> None:
    """Checks that a prepared data set has only regular files, and, if we wrote it, exactly the files that we wrote.

    Raises:
      BadRequest: a file is damaged or missing; the message names it.
    """
    for path in sorted(target.iterdir()):
        reading.regular(path, "weights bytes", "of a data set")
    expected = recorded(target).get("files", {})
    found = _sums(target) if isinstance(expected, dict) else {}
    if wrong := [name for name, sum_ in expected.items() if found.get(name) != sum_]:
        what = "not what was written" if wrong[0] in found else "missing"
        raise errors.BadRequest(
            f"{errors.printable(target / wrong[0])[:300]} is {what}: the data set is damaged. Prepare it again with "
            f"--overwrite; if you changed the file yourself, delete {RECORD} beside it."
        )


def recorded(target: Path) -> dict[str, Any]:
    """Returns the `record` of a data set, empty if it has none."""
    try:
        return dict(reading.read_json(target / RECORD, limit="annotation bytes"))
    except errors.BadRequest:
        return {}
