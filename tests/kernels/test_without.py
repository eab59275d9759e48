"""The package without the folder `kernels`: it works, and computes the same numbers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_models

from recvis_jax import kernels, operations
from recvis_jax.kernels import onednn

PACKAGE = Path(kernels.__file__).parents[1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What a copy of the package without the folder computes, in a process of its own."""
    folder = tmp_path_factory.mktemp("without")
    shutil.copytree(PACKAGE, folder / "recvis_jax", ignore=shutil.ignore_patterns("kernels", "__pycache__"))
    (folder / "recvis_jax/kernels/__pycache__").mkdir(parents=True)  # what stays when git removes the files
    settings = {"PYTHONPATH": str(folder), "XLA_FLAGS": "--xla_backend_optimization_level=1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, small_models.__file__, str(folder / "found.npz")]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=300)
    assert done.stdout == "recvis_jax.operations\n", done.stderr[-2000:]
    return np.load(folder / "found.npz")


@pytest.mark.full
@pytest.mark.parametrize("name", small_models.SMALL)
@pytest.mark.every
def test_without_the_folder_outputs_and_gradients_are_the_same(plain, name, monkeypatch):
    monkeypatch.setattr(onednn, "_LEAST", 1)  # its products and convolutions, too
    found = small_models.compute(name)
    assert found.keys() == {key for key in plain.files if key.startswith(name)}
    for key, value in found.items():
        scale = max(np.abs(plain[key]).max(), 0.1)  # exact zeros, as of a bias of keys, are rounding errors
        np.testing.assert_allclose(value, plain[key], rtol=1e-4, atol=1e-5 * scale, err_msg=key)


def test_every_form_is_of_an_operation():
    marked = {name for name, f in vars(operations).items() if callable(getattr(f, "__wrapped__", None))}
    assert set(kernels.FORMS) <= marked
