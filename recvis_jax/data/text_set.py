"""Makes a data set from texts and their translations: cleaned, without copies, with whole documents held out."""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recvis_jax import errors
from recvis_jax.data import catalogues, folder_set, parallel, sword, writing
from recvis_jax.data.download import Debian, Say, debian_folder
from recvis_jax.data.folder import some
from recvis_jax.data.parallel import Pair

VERSION = "1.0.0"
KINDS = ("catalogues", "parallel")  # the user's own texts
_HELD = {"test": 0.05, "validation": 0.03}  # smallest share of the pairs, in whole documents
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation",
           "dev": "validation", "test": "test"}  # fmt: skip

_LIBREOFFICE = Path("/usr/lib/libreoffice/program/resource/de/LC_MESSAGES")
_MODULES = Path("/usr/share/sword/modules/texts/ztext")


class Known(NamedTuple):
    """Texts in Debian packages.

    Attributes:
      packages: one package with catalogues, or two SWORD modules, source and target.
      languages: of source and target.
      description: for the record.
    """

    packages: tuple[Debian, ...]
    languages: tuple[str, str]
    description: str


KNOWN: dict[str, Known] = {
    "libreoffice_de": Known(
        (Debian("libreoffice-l10n-de", _LIBREOFFICE),),
        ("en", "de"),
        "Texts of LibreOffice's user interface, English and German (The Document Foundation, MPL 2.0).",
    ),
    "bible_es": Known(
        (
            Debian("sword-text-kjv", _MODULES / "engKJV2006eb"),
            Debian("sword-text-sparv", _MODULES / "spaRV1909eb"),
        ),
        ("en", "es"),
        "Verses of the King James Version and of the Reina-Valera of 1909, both in the public domain.",
    ),
}


def prepare(
    name: str,
    root: Path,
    source: Path | None,
    *,
    folder_name: str | None = None,
    skip: bool = False,
    on_duplicate: str = "drop",
    overwrite: bool = False,
    say: Say = print,
) -> Path:
    """Prepares texts as a data set in `root` and returns its directory.

    Args:
      name: one of `KNOWN` or `KINDS`.
      root: the folder of prepared data sets.
      source: for "catalogues", a folder with .mo or .po files, also in subfolders; for "parallel", a folder with
        train.en, train.de and the like, or a file with tab-separated columns; for known texts, a folder with the
        content of the packages, or None to look for the packages.
      folder_name: name of the user's own texts; None derives it from the folder's name.
      skip: leaves out pairs that cannot be used; otherwise an error lists them.
      on_duplicate: "drop" leaves out repeated pairs, and held-out pairs whose source is also in training; "keep" keeps
        all; "fail" is an error if a held-out source is also in training.
      overwrite: replaces an existing data set of this name.
      say: called with each line about the progress.

    Raises:
      BadRequest: texts that cannot be read or used, or a different data set of this name exists.
      Failure: the packages cannot be obtained, or the disk is full.
    """
    splits, languages, about = _read(name, root, source, say)
    of_user = name in KINDS
    set_name = folder_set.name_of(source or root, folder_name) if of_user else name
    good, notes = _checked(splits, skip)
    good, more = _without_copies(good, on_duplicate)
    for line in (*notes, *more):
        say(line)
    if missing := [s for s, pairs in good.items() if not pairs]:
        raise errors.BadRequest(f"the split {missing[0]} has no usable pair of texts; nothing was prepared.")
    made_of = _fingerprint(good)
    target = root / set_name / VERSION
    if not overwrite and (count := writing.existing(target)) is not None:
        if writing.recorded(target).get("fingerprint") != made_of:
            raise errors.BadRequest(
                f"{errors.printable(target)} holds different texts of the same name, {count:,} pairs; use --overwrite "
                "to replace them, or give these another --name."
            )
        say(f"already prepared at {errors.printable(target)}, {count:,} pairs; use --overwrite to make it again")
        return target
    writing.make_room(root, sum(len(p.source) + len(p.target) for pairs in good.values() for p in pairs) * 4)
    groups = {s: dict(Counter(p.group for p in pairs)) for s, pairs in good.items()}
    for split in good:
        if split != "train" and any(groups[split]):
            say(f"{split}: {some(sorted(groups[split]))}")
    record = {
        "kind": "texts", "languages": list(languages), "fingerprint": made_of, "notes": [*notes, *more],
        "duplicates": on_duplicate, "groups": groups,
    }  # fmt: skip
    with writing.staging(root, set_name) as stage:
        written = writing.write(stage, set_name, VERSION, _splits(good), _features, about)
        return writing.move(written, target, stage, record)


def _read(name: str, root: Path, source: Path | None, say: Say) -> tuple[dict[str, list[Pair]], tuple[str, str], str]:
    """Returns split -> pairs, the languages and a description; holds out documents if there are no splits."""
    if name == "parallel" and source is not None:
        given, languages = _parallel(source)
        return (_held_out(given["train"]) if set(given) == {"train"} else given), languages, f"Texts of {source.name}."
    if name == "catalogues" and source is not None:
        return _held_out(_catalogues(source)), ("source", "target"), f"Message catalogues of {source.name}."
    known = KNOWN[name]
    folders = [debian_folder(p, source, root / "downloads" / "raw" / p.package, say) for p in known.packages]
    pairs = _catalogues(folders[0]) if len(folders) == 1 else sword.pairs(*folders)
    return _held_out(pairs), known.languages, known.description


def _catalogues(folder: Path) -> list[Pair]:
    if not folder.is_dir():
        raise errors.BadRequest(f"--source={errors.printable(folder)} is not a folder with .mo or .po files.")
    files = sorted(p for p in folder.rglob("*") if p.suffix in catalogues.ENDINGS)
    if not files:
        raise errors.BadRequest(f"--source={errors.printable(folder)} has no .mo or .po file.")
    compiled = {p.with_suffix("") for p in files if p.suffix == ".mo"}
    files = [p for p in files if p.suffix == ".mo" or p.with_suffix("") not in compiled]
    return [pair for p in files for pair in catalogues.read(p, p.relative_to(folder).with_suffix("").as_posix())]


def _parallel(source: Path) -> tuple[dict[str, list[Pair]], tuple[str, str]]:
    if source.is_file():
        return {"train": list(parallel.columns(source))}, ("source", "target")
    if not source.is_dir():
        raise errors.BadRequest(f"--source={errors.printable(source)} does not exist.")
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(p for p in source.iterdir() if p.is_file()):
        if split := _SPLITS.get(path.stem.lower()):
            found[split].append(path)
    out, endings = {}, set[tuple[str, ...]]()
    for split, paths in found.items():
        if len(paths) == 1 and paths[0].suffix == ".tsv":
            out[split] = list(parallel.columns(paths[0]))
            endings.add(("source", "target"))
        elif len(paths) == 2:
            out[split] = list(parallel.two_files(*paths))
            endings.add(tuple(p.suffix[1:] for p in paths))
        else:
            raise errors.BadRequest(
                f"--source={errors.printable(source)} has {some([p.name for p in paths])} for the split {split}; it "
                f"takes two files, as {split}.de and {split}.en, or {split}.tsv."
            )
    if "train" not in out or len(endings) > 1:
        there = some(sorted(p.name for paths in found.values() for p in paths)) if found else "nothing of the kind"
        raise errors.BadRequest(
            f"--source={errors.printable(source)} takes train.de and train.en (and val, test; the same endings), or "
            f"train.tsv; it has {there}."
        )
    first, second = endings.pop()
    return out, (first, second)


def _held_out(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Holds out whole documents, ordered by the md5 of their names, until each share is reached.

    If no pair names its document, each source text is its own document.
    """
    named = any(p.group for p in pairs)
    of: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        of[pair.group if named else pair.source].append(pair)
    order = sorted(of, key=lambda g: hashlib.md5(g.encode(), usedforsecurity=False).digest())
    out: dict[str, list[Pair]] = {}
    for split, share in _HELD.items():
        out[split] = []
        while order[1:] and len(out[split]) < share * len(pairs):
            out[split] += of[order.pop(0)]
    return {"train": [p for g in sorted(order) for p in of[g]], **dict(reversed(out.items()))}


def _checked(splits: dict[str, list[Pair]], skip: bool) -> tuple[dict[str, list[Pair]], list[str]]:
    """Returns the usable pairs and a note; raises BadRequest for others unless they are to be skipped."""
    wrong = [text for pairs in splits.values() for p in pairs if (text := parallel.problem(p))]
    if not wrong:
        return splits, []
    count = sum(map(len, splits.values()))
    if not skip:
        raise errors.BadRequest(
            f"{len(wrong):,} of {count:,} pairs cannot be used: {some(wrong, 5)}. Correct them, or leave them out with "
            "--on_error=skip. Nothing was prepared."
        )
    note = f"left out {len(wrong):,} of {count:,} pairs: {some(wrong, 5)}"
    return {s: [p for p in pairs if not parallel.problem(p)] for s, pairs in splits.items()}, [note]


def key(text: str) -> str:
    """Returns the letters and digits of a text in lower case, by which copies are found.

    Example:
      >>> key("Save As...") == key("save as")
      True
    """
    small = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", " ", small).strip() or small


def _without_copies(splits: dict[str, list[Pair]], way: str) -> tuple[dict[str, list[Pair]], list[str]]:
    """Returns the pairs without copies, and held-out pairs without sources that are in training."""
    if way == "keep":
        return splits, []
    out: dict[str, list[Pair]] = {}
    notes, trained = [], set[str]()
    for split in ("train", "validation", "test"):
        if split not in splits:
            continue
        seen, kept, leaked = set[Any](), [], 0
        for pair in splits[split]:
            of, whole = key(pair.source), (key(pair.source), key(pair.target))
            if of in trained:
                leaked += 1
                if way == "fail":
                    raise errors.BadRequest(
                        f"{pair.where}: this text of {split} is also in training: {errors.shown(pair.source)}. "
                        "--duplicates=drop leaves such texts out of the held-out splits."
                    )
            elif whole not in seen:
                kept.append(pair)
            seen.add(whole)
        copies = len(splits[split]) - len(kept) - leaked
        if copies or leaked:
            also = f", and {leaked:,} whose source is in training" if leaked else ""
            notes.append(f"{split}: left out {copies:,} copies{also}")
        out[split] = kept
        trained |= {key(p.source) for p in kept}
    return out, notes


def _splits(good: dict[str, list[Pair]]) -> dict[str, writing.Split]:
    def reader(pairs: list[Pair]) -> Any:
        def read(keys: Sequence[int]) -> Iterator[dict[str, Any]]:
            for k in keys:
                yield {"source": pairs[k].source, "target": pairs[k].target, "group": pairs[k].group}

        return read

    return {s: writing.Split(range(len(pairs)), reader(pairs)) for s, pairs in good.items()}


def _features(tfds: Any) -> dict[str, Any]:
    return {name: tfds.features.Text() for name in ("source", "target", "group")}


def _fingerprint(splits: dict[str, list[Pair]]) -> str:
    lines = (repr((s, p.source, p.target, p.group)).encode() for s, pairs in splits.items() for p in pairs)
    return hashlib.sha256(b"\n".join(lines)).hexdigest()
