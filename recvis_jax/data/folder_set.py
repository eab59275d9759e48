"""Makes a data set from a folder of images: checks each image, turns it upright, compares it with the others."""

import dataclasses
import hashlib
import math
import re
import shutil
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from recvis_jax import errors
from recvis_jax.data import duplicates, image_file, writing
from recvis_jax.data.download import Say, progress
from recvis_jax.data.folder import Folder, class_of, scan, some

VERSION = "1.0.0"


@dataclasses.dataclass
class _Seen:
    """What was found while the images of a folder were read, by "split/class/name.jpg"."""

    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    pixels: dict[str, str] = dataclasses.field(default_factory=dict)
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    changed: int = 0
    turned: int = 0


def prepare(
    source: Path,
    root: Path,
    *,
    name: str | None = None,
    skip: bool = False,
    on_duplicate: str = "fail",
    overwrite: bool = False,
    say: Say = print,
) -> Path:
    """Prepares a folder of images as the data set `name` in `root` and returns its directory.

    Args:
      source: the folder, see `folder.scan`.
      root: the folder of prepared data sets.
      name: None derives it from the folder's name.
      skip: leaves out images that cannot be read; otherwise an error lists them.
      on_duplicate: what to do if the same picture is in several places, one of `duplicates.WAYS`.
      overwrite: replaces an existing data set of this name. Without it, one made from the same files is kept as it is.
      say: called with each line about the progress.

    Raises:
      BadRequest: see `folder.scan` and `duplicates.judge`; images that cannot be read; another data set of this name;
        or an invalid name.
      Failure: the disk is full.
    """
    found = scan(source)
    name = name_of(source, name)
    target = root / name / VERSION
    for note in found.notes:
        say(note)
    if not overwrite and (count := writing.existing(target)) is not None:
        check_same(target, fingerprint(_digests(found)), on_duplicate, count)
        say(f"already prepared at {errors.printable(target)}, {count:,} examples; use --overwrite to make it again")
        if "turned" not in writing.recorded(target):
            say("note: it was made before images were turned by their EXIF orientation")
        return target
    writing.make_room(root, found.size)

    with writing.staging(root, name) as stage, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about metadata
        seen, dropped = _Seen(), set[str]()
        written = _write(stage, name, source, found, seen, dropped)
        _check_readable(seen, found, skip, say)
        same = duplicates.find(seen.pixels)
        if on_duplicate == "drop" and (dropped := duplicates.to_drop(same)):
            shutil.rmtree(written.parent)
            seen = _Seen()
            written = _write(stage, name, source, found, seen, dropped)
        for line in duplicates.judge(same, on_duplicate, len(dropped)):
            say(line)
        _check_classes(seen, found, dropped)
        if seen.changed - seen.turned:
            say(f"{seen.changed - seen.turned:,} images were stored as png, not being 8-bit grey or RGB jpeg/png")
        if seen.turned:
            say(
                f"{seen.turned:,} images were turned by their EXIF orientation and stored as png, which is "
                "larger than jpeg; exiftran -ai turns jpegs without loss"
            )
        record = {
            "source": str(source.resolve()),
            "fingerprint": fingerprint(seen.digests),
            "encoded_anew": seen.changed,
            "turned": seen.turned,
            "skipped": seen.problems,
            "notes": list(found.notes),
            "duplicates": on_duplicate,
            "dropped": sorted(dropped),
        }
        return writing.move(written, target, stage, record)


def _write(stage: Path, name: str, source: Path, found: Folder, seen: _Seen, dropped: set[str]) -> Path:
    labels = {c: k for k, c in enumerate(found.classes)}
    splits = {
        split: writing.Split(images, _reader(split, found.roots[split], labels, seen, dropped), _shards(found, split))
        for split, images in found.images.items()
    }

    def features(tfds: Any) -> dict[str, Any]:
        label = tfds.features.ClassLabel(names=list(found.classes))
        return {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(None, None, 3)), "label": label}

    about = f"Images of the folder {errors.printable(source.name)}."
    return writing.write(stage, name, VERSION, splits, features, about)


def _reader(
    split: str, root: Path, labels: dict[str, int], seen: _Seen, dropped: set[str]
) -> Callable[..., Iterator[Any]]:
    def read(keys: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        for key, image in zip(keys, image_file.load_all([root / k for k in keys]), strict=True):
            name = f"{split}/{key}"
            seen.digests[name] = image.digest
            if image.data is None:
                seen.problems[name] = f"{errors.printable(root / key)} ({image.problem})"
                yield None
                continue
            seen.pixels[name] = image.pixels
            if name in dropped:
                yield None
                continue
            seen.changed += image.changed
            seen.turned += image.turned
            yield {"id": key.encode("utf-8", "surrogateescape"), "image": image.data, "label": labels[class_of(key)]}

    return read


def _check_readable(seen: _Seen, found: Folder, skip: bool, say: Say) -> None:
    """Lists the images that cannot be read; raises BadRequest unless they are to be skipped."""
    bad = sorted(seen.problems.values())
    if bad and not skip:
        raise errors.BadRequest(
            f"{len(bad)} of {len(seen.digests):,} images cannot be read: {some(bad, 20)}. Repair or remove them, or "
            "leave them out with --on_error=skip. Nothing was prepared."
        )
    for line in bad:
        say(f"skipped {line}")
    if bad:
        say(f"skipped {len(bad)} of {len(seen.digests):,} images")
    _check_classes(seen, found, set())


def _check_classes(seen: _Seen, found: Folder, dropped: set[str]) -> None:
    """Raises BadRequest if a class has lost all its images."""
    for split, images in found.images.items():
        good = {class_of(i) for i in images if f"{split}/{i}" in seen.pixels and f"{split}/{i}" not in dropped}
        if gone := sorted({class_of(i) for i in images} - good):
            why = "whose images are all copies of others" if dropped else "without a readable image"
            raise errors.BadRequest(f"{errors.printable(found.roots[split])} has classes {why}: {some(gone)}.")


def check_same(target: Path, of_files: str, on_duplicate: str, count: int) -> None:
    """Raises BadRequest unless the data set in `target` was made in this way from files with this fingerprint."""
    record = writing.recorded(target)
    if record.get("fingerprint") != of_files:
        raise errors.BadRequest(
            f"{errors.printable(target)} holds another data set of the same name, {count:,} examples; use "
            "--overwrite to replace it, or give this one another --name."
        )
    if on_duplicate != "fail" and record.get("duplicates", on_duplicate) != on_duplicate:
        raise errors.BadRequest(
            f"{errors.printable(target)} was prepared with --duplicates={errors.printable(record['duplicates'])}; use "
            "--overwrite to make it again."
        )


def fingerprint(digests: dict[str, str]) -> str:
    """Returns a sha256 over the names ("split/class/name.jpg") and the sha256 of all files."""
    lines = (f"{name}\0{digest}\n".encode("utf-8", "surrogateescape") for name, digest in sorted(digests.items()))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _digests(found: Folder) -> dict[str, str]:
    return digests({f"{s}/{i}": found.roots[s] / i for s, images in found.images.items() for i in images})


def digests(paths: dict[str, Path]) -> dict[str, str]:
    """Returns the sha256 of files, by the given names."""
    out = {}
    with progress("compare", len(paths), "images") as advance:
        for key, digest in zip(paths, image_file.parallel(image_file.digest, list(paths.values())), strict=True):
            out[key] = digest
            advance(1)
    return out


def name_of(source: Path, given: str | None) -> str:
    """Returns the name of the data set made from a folder.

    Raises:
      BadRequest: an invalid name, or one that tfds already uses.
    """
    plain = unicodedata.normalize("NFKD", source.resolve().name.lower()).encode("ascii", "ignore").decode()
    name = given if given is not None else re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]{,99}", name):
        what = f"--name={errors.printable(given)[:100]} is not a valid name"
        if given is None:
            what = f"no name can be derived from '{errors.printable(source.resolve().name)}'"
        raise errors.BadRequest(f"{what}: give --name in small letters, digits and _, beginning with a letter.")
    import tensorflow_datasets as tfds

    try:
        tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError:
        return name
    except Exception:  # tfds knows it, but lacks something to load it
        pass
    raise errors.BadRequest(f"{name!r} is a data set of tfds; give another --name, such as my_{name}.")


def _shards(found: Folder, split: str) -> int:
    """Returns how many files to write for a split: a power of two, at most 1024, with at least 128 MB each."""
    return shards(found.size, len(found.images[split]), sum(map(len, found.images.values())))


def shards(size: int, count: int, total: int) -> int:
    """Returns how many files to write for `count` of `total` examples with `size` bytes in total."""
    wanted = max(1.0, size * count / total / 2**27)
    return min(1024, 2 ** math.floor(math.log2(wanted)), count)
