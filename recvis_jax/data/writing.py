"""Writes data sets in tfds's format, beside their place first, so that one that is in its place is whole."""

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
    """One split to be written.

    Attributes:
      keys: one key an example, as tfds's builder gives them; they decide the order.
      read: yields the example of each key in turn, None where there is none after all.
      shards: into how many files it goes.
    """

    keys: Sequence[int] | Sequence[str]
    read: Callable[[Sequence[Any]], Iterator[dict[str, Any] | None]]
    shards: int = 1


def shuffled(keys: Sequence[Any], split: str) -> list[Any]:
    """Returns `keys` in the order in which tfds stores them: by the md5 of the split's name and the key."""

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
      splits: what to write.
      features: the module tfds -> the features of an example by name.

    Raises:
      Failure: the files cannot be written.
    """
    import tensorflow_datasets as tfds

    def shard(split: str, keys: Sequence[Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        for key, example in zip(keys, splits[split].read(keys), strict=True):
            advance(1)
            if example is not None:
                yield key, example

    # tfds's GeneratorBasedBuilder shuffles through files, which it writes with TensorFlow, from 1 GB on.
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
        except RuntimeError as e:  # so array_record says that the disk is full
            raise errors.Failure(
                f"writing {name} below {errors.printable(stage.parent)} failed: {errors.printable(e)}"
            ) from e
    return Path(builder.data_dir)


def existing(target: Path) -> int | None:
    """Returns the number of examples of the data set in the directory `target`, None if there is no such directory.

    Raises:
      BadRequest: it is there, but is not whole or not in array_record.
    """
    if not target.exists():
        return None
    shown = errors.printable(target)
    try:
        info = reading.read_json(target / "dataset_info.json")
        shards = {s["name"]: list(map(int, s["shardLengths"])) for s in info["splits"]}
    except (ValueError, KeyError, TypeError):
        raise errors.BadRequest(f"{shown} is there but is no data set; use --overwrite to replace it.") from None
    if info.get("fileFormat") != "array_record":
        raise errors.BadRequest(
            f"{shown} is prepared as {errors.printable(info.get('fileFormat', 'tfrecord'))[:40]}, which cannot be read "
            "without TensorFlow; use --overwrite to replace it by array_record."
        )
    for split, lengths in shards.items():
        files = [p for p in target.iterdir() if f"-{split}.array_record-" in p.name]
        if len(files) != len(lengths):
            raise errors.BadRequest(
                f"{shown} lacks files of the split {errors.printable(split)[:40]}; use --overwrite to make it again."
            )
    return sum(map(sum, shards.values()))


def make_room(root: Path, size: int) -> None:
    """Raises `Failure` if the disk of `root` has no room for `size` bytes."""
    if (free := shutil.disk_usage(root).free) < 1.1 * size + 1e6:
        raise errors.Failure(
            f"no room in {errors.printable(root)}: about {size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB free."
        )


@contextlib.contextmanager
def locked(root: Path, say: Say) -> Iterator[None]:
    """Lets one preparation at a time work in `root`; others wait."""
    handle = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another preparation in {errors.printable(root)}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a network file system without such locks
            pass
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def staging(root: Path, name: str) -> Iterator[Path]:
    """Yields a hidden folder in `root`, gone in the end; what a killed preparation left there goes first."""
    stage = root / f".incomplete-{name}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def move(written: Path, target: Path, stage: Path, record: dict[str, Any]) -> Path:
    """Puts a data set that is whole, with `record`, into its place instead of an older one, and returns `target`."""
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
    """Returns file -> sha256, or the size of one that holds examples, which has checksums of its own inside."""
    return {
        p.name: p.stat().st_size if ".array_record-" in p.name else hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.iterdir())
        if p.name != RECORD
    }


def check(target: Path) -> None:
    """Checks that a prepared data set has regular files alone, and those that were written where it was written by us.

    Raises:
      BadRequest: a file is damaged or gone; the message names it.
    """
    for path in sorted(target.iterdir()):
        reading.regular(path, "weights bytes", "of a data set")
    expected = recorded(target).get("files", {})
    found = _sums(target) if isinstance(expected, dict) else {}
    if wrong := [name for name, sum_ in expected.items() if found.get(name) != sum_]:
        what = "not what was written" if wrong[0] in found else "gone"
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
