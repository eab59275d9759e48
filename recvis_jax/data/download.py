"""Finds the raw files of a data set: in a folder, in a Debian package, or by download; checks their sha256."""

import contextlib
import hashlib
import http.client
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from recvis_jax import errors, reading

Say = Callable[[str], None]


class RawFile(NamedTuple):
    """One file of a data set, as published by its authors.

    Attributes:
      name: name of the file, the end of its URLs.
      sha256: of the content; if `gzipped`, of the unpacked content, because programs write different gzip headers.
      urls: where to download it, tried in this order.
      gzipped: whether the published file is a gzip of one file; the unpacked file (without .gz) is accepted as well.
    """

    name: str
    sha256: str
    urls: tuple[str, ...]
    gzipped: bool = False

    def names(self) -> tuple[str, ...]:
        """Returns the names that the file may have in a folder."""
        plain = self.name.removesuffix(".gz")
        return (self.name, plain, plain.replace("-idx", ".idx")) if self.gzipped else (self.name,)


class Debian(NamedTuple):
    """A Debian package and the folder into which it puts the raw files."""

    package: str
    folder: Path


def obtain(
    name: str,
    files: Sequence[RawFile],
    *,
    data_dir: Path,
    source: Path | None = None,
    debian: Debian | None = None,
    say: Say = print,
) -> dict[str, bytes]:
    """Returns the content of the raw files of a data set by file name; gzipped files are unpacked.

    If `source` is given, only it is searched. Otherwise, in this order: the Debian package's folder, downloads of
    earlier calls, apt-get (fetching a package needs no root), the URLs.

    Args:
      name: the data set, for messages and for the folder of downloads.
      files: the files needed; all are taken from the same place.
      data_dir: downloads are kept in `<data_dir>/downloads/raw/<name>`.
      source: a folder with the files, or the file itself if there is only one.
      debian: the package that holds the files, if there is one.
      say: called with each line about the progress.

    Raises:
      BadRequest: `source` does not exist, lacks a file, or a file in it has the wrong content.
      Failure: nothing worked; the message lists what was tried and what to do.
    """
    if source is not None:
        return _from_source(name, files, source)
    tried: list[str] = []
    kept = data_dir / "downloads" / "raw" / name
    for folder in [debian.folder, kept] if debian else [kept]:
        if found := _from_folder(folder, files, tried):
            say(f"raw files: {errors.printable(folder)}")
            return found
    if debian and (unpacked := _from_apt(debian, kept, say, tried)):
        if found := _from_folder(unpacked, files, tried):
            say(f"raw files: {errors.printable(unpacked)}, from the Debian package {debian.package}")
            return found
    if found := _from_urls(files, kept, say, tried):
        return found
    urls = ", ".join(f.urls[0] for f in files)
    raise errors.Failure(
        f"the raw files of {name} could not be obtained. Tried: {'; '.join(tried)}. What to do: download {urls} on a "
        "machine with a network, copy the files into a folder here and give --source=FOLDER; or train "
        "configs/digits/lenet.py, which needs no download."
    )


def content(path: Path, file: RawFile) -> bytes:
    """Reads a raw file, unpacks it if it is gzipped, and checks its sha256.

    Raises:
      ValueError: it cannot be read, is too large, or has the wrong content; the message names the path and, for wrong
        content, both hashes.
    """
    shown = errors.printable(path)
    try:
        data = reading.read_bytes(path, "archive bytes")
    except errors.BadRequest as e:
        raise ValueError(str(e).removesuffix(".")) from None
    if file.gzipped and data[:2] == b"\x1f\x8b":
        data = _unpacked(data, shown)
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        what = "content, unpacked," if file.gzipped else "content"
        raise ValueError(f"{shown} has the wrong content: sha256 of the {what} is {found}, should be {file.sha256}")
    return data


def _unpacked(data: bytes, shown: str) -> bytes:
    """Unpacks a gzip file within the limits."""
    limit = reading.LIMITS["archive bytes"]
    unpacker = zlib.decompressobj(wbits=31)  # 16 + 15: gzip
    try:
        out = unpacker.decompress(data, limit)
    except zlib.error as e:
        raise ValueError(f"{shown} is not a complete gzip file ({e})") from e
    if unpacker.unconsumed_tail:
        raise ValueError(f"{shown} unpacks to more than {limit:,} bytes, the limit")
    if not unpacker.eof:
        raise ValueError(f"{shown} is not a complete gzip file (it ends too early)")
    return out


def _lies_in(folder: Path, file: RawFile) -> Path | None:
    return next((folder / n for n in file.names() if (folder / n).is_file()), None)


def _from_source(name: str, files: Sequence[RawFile], source: Path) -> dict[str, bytes]:
    if not source.exists():
        raise errors.BadRequest(f"--source={errors.printable(source)} does not exist.")
    folder = source if source.is_dir() else source.parent
    paths = {f.name: _lies_in(folder, f) for f in files}
    if not source.is_dir() and source not in paths.values():
        raise errors.BadRequest(
            f"--source={errors.printable(source)} is not a raw file of {name}; its raw files are: {', '.join(paths)}."
        )
    if missing := [n for n, path in paths.items() if path is None]:
        there = [errors.printable(p.name)[:40] for p in sorted(itertools.islice(folder.iterdir(), 1000))]
        shown = f"it holds {', '.join(there[:8])}{', ...' if len(there) > 8 else ''}" if there else "it is empty"
        raise errors.BadRequest(f"--source={errors.printable(source)} lacks {', '.join(missing)} of {name}; {shown}.")
    try:
        return {f.name: content(paths[f.name] or folder, f) for f in files}
    except ValueError as e:
        raise errors.BadRequest(f"{e}. It is damaged or does not belong to {name}.") from e


def _from_folder(folder: Path, files: Sequence[RawFile], tried: list[str]) -> dict[str, bytes] | None:
    found = {}
    for file in files:
        path = _lies_in(folder, file)
        if path is None:
            tried.append(
                f"{errors.printable(folder)} ({f'has no {file.name}' if folder.is_dir() else 'no such folder'})"
            )
            return None
        try:
            found[file.name] = content(path, file)
        except ValueError as e:
            tried.append(str(e))
            return None
    return found


def _run(command: Sequence[str], cwd: Path | None = None) -> tuple[bool, str]:
    """Runs a command quietly; returns whether it succeeded, and its last line of output."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, text=True, timeout=900, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as e:
        return False, str(e)
    return done.returncode == 0, (done.stdout.strip().splitlines() or [""])[-1]


def _from_apt(debian: Debian, kept: Path, say: Say, tried: list[str]) -> Path | None:
    """Installs the package (root) or unpacks it into `kept` (anyone); returns the folder of its files, or None."""
    package = debian.package
    if not shutil.which("apt-get"):
        tried.append("the Debian package " + package + " (no apt-get here)")
        return None
    root = os.geteuid() == 0
    known, _ = _run(["apt-cache", "show", package])
    if not known and root:
        say("apt-get update")
        _run(["apt-get", "update"])
        known, _ = _run(["apt-cache", "show", package])
    if not known:
        tried.append(f"apt-get (knows no package {package}{'' if root else '; try sudo apt-get update'})")
        return None
    if root:
        say(f"apt-get install -y {package}")
        done, line = _run(["apt-get", "install", "-y", package])
        if not done:
            _run(["apt-get", "update"])
            done, line = _run(["apt-get", "install", "-y", package])
        if not done:
            tried.append(f"apt-get install {package} ({line})")
        return debian.folder if done else None
    say(f"apt-get download {package}")
    with tempfile.TemporaryDirectory() as tmp:
        done, line = _run(["apt-get", "download", package], Path(tmp))
        deb = next(Path(tmp).glob("*.deb"), None)
        if done and deb:
            done, line = _run(["dpkg-deb", "-x", str(deb), "x"], Path(tmp))
        if not done or not deb:
            tried.append(f"apt-get download {package} ({line})")
            return None
        shutil.copytree(Path(tmp) / "x" / debian.folder.relative_to("/"), kept, dirs_exist_ok=True)
    return kept


def debian_folder(debian: Debian, source: Path | None, kept: Path, say: Say) -> Path:
    """Returns the folder with the files of a Debian package, without checking them.

    Args:
      debian: the package.
      source: the only folder to search: with these files, or with the unpacked package.
      kept: where this or an earlier call unpacks the package.
      say: takes a line of progress.

    Raises:
      BadRequest: `source` does not hold the files.
      Failure: the package is not installed and cannot be obtained.
    """
    if source is not None:
        below = source / debian.folder.relative_to("/")
        found = [p for p in (below, source / debian.folder.name, source) if p.is_dir() and any(p.glob("*.*"))]
        if not found:
            raise errors.BadRequest(
                f"--source={errors.printable(source)} has no {debian.folder.name} with the files of {debian.package}."
            )
        return found[0]
    for folder in (debian.folder, kept):
        if folder.is_dir() and any(folder.iterdir()):
            say(f"raw files: {errors.printable(folder)}")
            return folder
    tried: list[str] = [f"{errors.printable(debian.folder)} (no such folder)"]
    if unpacked := _from_apt(debian, kept, say, tried):
        return unpacked
    raise errors.Failure(
        f"the Debian package {debian.package} cannot be obtained. Tried: {'; '.join(tried)}. What to do: download it "
        "from https://packages.debian.org on a machine with a network, unpack it (dpkg-deb -x), give --source=FOLDER."
    )


def _from_urls(files: Sequence[RawFile], kept: Path, say: Say, tried: list[str]) -> dict[str, bytes] | None:
    kept.mkdir(parents=True, exist_ok=True)
    found = {}
    for file in files:
        there = _from_folder(kept, [file], [])
        data = there[file.name] if there else _from_url(file, kept, say, tried)
        if data is None:  # the other files would fail as well
            return None
        found[file.name] = data
    return found


def _from_url(file: RawFile, kept: Path, say: Say, tried: list[str]) -> bytes | None:
    part = kept / (file.name + ".part")
    try:
        for url in file.urls:
            say(f"download {url}")
            try:
                _download(url, part)
                data = content(part, file)
            except ValueError as e:
                tried.append(str(e).replace(errors.printable(part), url))
            except (OSError, http.client.HTTPException) as e:
                if isinstance(e, OSError) and e.filename is not None and not isinstance(e, urllib.error.HTTPError):
                    raise  # an error of the disk, not of the network
                tried.append(f"{url} ({e.reason if type(e) is urllib.error.URLError else e})")
            else:
                part.replace(kept / file.name)
                return data
    finally:
        part.unlink(missing_ok=True)
    return None


def _download(url: str, path: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "recvis_jax"})
    with urllib.request.urlopen(request, timeout=30) as response, path.open("wb") as out:
        total, limit = int(response.headers.get("Content-Length") or 0), reading.LIMITS["archive bytes"]
        with progress(url.rsplit("/", 1)[-1], total, "bytes") as advance:
            while block := response.read(1 << 18):
                out.write(block)
                advance(len(block))
                if out.tell() > limit:
                    raise ValueError(f"{url} gives more than {limit:,} bytes, the limit")
        if total and out.tell() != total:
            raise http.client.IncompleteRead(b"", total - out.tell())


@contextlib.contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Shows progress on stderr: a bar on a terminal, elsewhere a line every 10 seconds. Yields `advance(count)`."""
    if sys.stderr.isatty():
        from rich import console
        from rich import progress as bars

        size = bars.DownloadColumn() if unit == "bytes" else bars.MofNCompleteColumn()
        columns = ("{task.description}", bars.BarColumn(), size, bars.TimeRemainingColumn())
        with bars.Progress(*columns, console=console.Console(stderr=True), transient=True) as shown:
            task = shown.add_task(label, total=total or None)
            yield lambda count: shown.advance(task, count)
        return
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= 10:
            last = time.monotonic()
            amounts = [f"{n / 1e6:.0f} MB" if unit == "bytes" else f"{n:,} {unit}" for n in (done, total) if n]
            print(f"{label}: {' of '.join(amounts)}", file=sys.stderr, flush=True)

    yield advance
