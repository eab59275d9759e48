"""Files of packages: installed ones, those of an earlier download, and those that cannot be had."""

import io
import subprocess
import tarfile

import numpy as np
import pytest

from recvis_jax.errors import BadRequest
from recvis_jax.pretrained import packages


def pip_of(files):
    """What pip would do: writes an archive with these files into the folder after -d."""

    def run(command, **_):
        folder = command[command.index("-d") + 1]
        name = command[-1].replace("==", "-")
        packages.Path(folder).mkdir(parents=True)
        with tarfile.open(f"{folder}/{name}.tar.gz", "w:gz") as archive:
            for path, content in files.items():
                entry = tarfile.TarInfo(f"{name}/{path}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_of_an_installed_package():
    assert packages.file("numpy", "0", "version.py").parent == packages.Path(np.__file__).parent


def test_is_downloaded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RECVIS_PACKAGES", str(tmp_path))
    monkeypatch.setattr(packages.subprocess, "run", pip_of({"no_such/weights.pkl": b"w", "setup.py": b""}))
    found = packages.file("no_such", "1.0", "weights.pkl")
    assert found.read_bytes() == b"w" and found.is_relative_to(tmp_path / "no_such-1.0")
    monkeypatch.setattr(packages.subprocess, "run", None)
    assert packages.file("no_such", "1.0", "weights.pkl") == found
    with pytest.raises(BadRequest, match="has no file 'other'"):
        packages.file("no_such", "1.0", "other")
    assert [p.name for p in tmp_path.iterdir()] == ["no_such-1.0"]


def test_what_cannot_be_had_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("RECVIS_PACKAGES", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "first\nERROR: no matching distribution\n")
    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(packages.Unavailable, match=r"no_such is not installed.*no matching distribution"):
        packages.file("no_such", "1.0", "weights.pkl")
