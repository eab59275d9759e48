"""The wheel works in an empty directory: configs and launchers are inside; the package says one version everywhere."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import programs
import pytest
import yaml

import recvis_jax
from recvis_jax import config, errors

ROOT = programs.ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the content of the wheel, made of a copy of what a checkout has."""
    if int(metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools is older than the 77 that builds the package")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for name in ("recvis_jax", "configs", "launch"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)]
    subprocess.run(pip, check=True, capture_output=True, timeout=300)
    (wheel,) = out.glob("*.whl")
    assert wheel.name == f"recvis_jax-{recvis_jax.__version__}-py3-none-any.whl"
    zipfile.ZipFile(wheel).extractall(out / "site")
    return out / "site"


def started(installed, folder, *words):
    """Runs Python with the wheel's content before all else, in an empty folder."""
    env = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300, cwd=folder, env=env)


def test_everything_is_in_the_wheel(installed):
    for folder, to in (("recvis_jax", "recvis_jax"), ("configs", "recvis_jax/configs"), ("launch", "launch")):
        there = {p.relative_to(ROOT / folder) for p in (ROOT / folder).rglob("*.py")}
        assert there <= {p.relative_to(installed / to) for p in (installed / to).rglob("*.py")}
    assert not (installed / "tests").exists() and not (installed / "configs").exists()


def test_configs_and_launchers_are_reached_from_anywhere(installed, tmp_path):
    script = (
        "from recvis_jax import config\n"
        "print(config.__file__, config.load('configs/fashion_mnist/mae_finetune.py:smoke').model.name)\n"
        "print(config.load('configs/imagenet/mae_vit_l16_pretrain.py').model.name)"  # of a sibling
    )
    got = started(installed, tmp_path, "-c", script)
    assert got.returncode == 0 and str(installed) in got.stdout, got.stderr
    words = ("-m", "launch.local", "--dry_run", "--config=configs/digits/lenet.py", "--workdir=runs/x")
    got = started(installed, tmp_path, *words)
    assert got.returncode == 0 and "recvis_jax.train" in got.stdout, got.stderr


@pytest.mark.full
def test_a_smoke_run_from_the_wheel(installed, tmp_path):
    words = ("-m", "recvis_jax.train", "--config=configs/digits/lenet.py:smoke", "--workdir=run", "--report=false")
    got = started(installed, tmp_path, *words)
    assert got.returncode == 0 and (tmp_path / "run" / "summary.json").exists(), got.stderr


def test_a_config_of_ones_own_comes_before_the_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load("configs/digits/lenet.py").model.name != "own"
    (tmp_path / "configs/digits").mkdir(parents=True)
    (tmp_path / "configs/digits/lenet.py").write_text("def get_config():\n    return {'model': {'name': 'own'}}")
    assert config.load("configs/digits/lenet.py").model.name == "own"


@pytest.mark.parametrize(
    "name, near",
    [
        ("configs/fashion_mnist/lenet.py", "configs/fashion_mnist/lenet5.py"),
        ("fashion_mnist/lenet5.py", "configs/fashion_mnist/lenet5.py"),
        ("fashion_mnist/lenet5", "configs/fashion_mnist/lenet5.py"),
        ("configs/fashion_mnist/lenet5:smoke", "configs/fashion_mnist/lenet5.py"),
    ],
)
def test_the_right_spelling_is_said(name, near):
    with pytest.raises(errors.BadRequest, match=rf"there is no config file .* Did you mean '{re.escape(near)}'\?"):
        config.load(name)


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == recvis_jax.__version__ == metadata.version("recvis_jax")
    assert citation["cff-version"] == "1.2.0" and {"title", "authors", "message"} <= citation.keys()
    assert recvis_jax.__version__ in (ROOT / "CHANGELOG.md").read_text()
