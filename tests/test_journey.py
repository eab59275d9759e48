"""The way of a newcomer with photographs of their own, each step by the command that the one before printed."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest

from recvis_jax import models, pretrained

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
SIDE, EACH = 48, 50


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder to work in: the configs, and 200 crops of scikit-image's photographs, one class a photograph."""
    home = tmp_path_factory.mktemp("home")
    (home / "configs").symlink_to(programs.ROOT / "configs")
    data = Path(importlib.util.find_spec("skimage").submodule_search_locations[0]) / "data"
    rng = np.random.default_rng(0)
    for name in PHOTOGRAPHS:
        picture = cv2.imread(str(data / name))
        folder = home / "Fotos für Zuhause" / Path(name).stem
        folder.mkdir(parents=True)
        for i in range(EACH):
            top, left = (int(rng.integers(0, n - 2 * SIDE + 1)) for n in picture.shape[:2])
            crop = picture[top : top + 2 * SIDE, left : left + 2 * SIDE]
            (folder / f"Bild {i}.jpg").write_bytes(cv2.imencode(".jpg", cv2.resize(crop, (SIDE, SIDE)))[1].tobytes())
    return home


def weights(path):
    """Writes a small ResNet of 1,000 classes under torchvision's names."""
    net = models.create("resnet18", width=8)
    variables = net.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)), train=False)
    pretrained.export(variables, net, "torchvision", path)
    return path


@pytest.mark.full
def test_from_a_folder_of_photographs_to_a_probe(program, home):
    env = {"RECVIS_DATA_DIR": str(home / "Daten für alle")}
    said = []

    def follow(*more, replace=(), code=0):
        """Runs the command that the last program printed, with what the user adds to it; returns what came of it."""
        (line,) = (text for text in said[-1].out.splitlines() if text.startswith("next: "))
        python, m, module, *flags = shlex.split(line.removeprefix("next: "))
        assert (python, m) == ("python", "-m") and module.startswith("recvis_jax.")
        flags = [dict(replace).get(f, f) for f in flags]
        return run(module.removeprefix("recvis_jax."), *flags, *more, code=code)

    def run(name, *flags, code=0):
        got = program(name, *flags, cwd=home, **env)
        assert got.code == code and bool(got.err) == bool(code), (name, flags, got)
        if code:
            return got.err
        said.append(got)
        return name, got.out

    name, out = run("prepare", "--dataset=folder", "--source=Fotos für Zuhause")
    assert "200 examples" in out and "4 classes: astronaut, chelsea, coffee, rocket" in out

    init = f"--config.init_from={weights(home / 'ResNet für alle.safetensors')}"
    short = (
        "--config.model.width=8", "--config.epochs=None", "--config.steps=40", "--config.batch_size=32",
        "--config.data.transform=random_resized_crop(32, scale=(0.25, 1.0))",
        "--config.data.eval_transform=resize_crop(32, resize=36)", "--config.data.augment=flip",
        "--config.eval_every=40", "--config.checkpoint_every=40",
    )  # fmt: skip
    refused = follow(init, *short, code=2)
    (remedy,) = set(re.findall(r"--config\.init_from\.new_head=True", refused))
    assert not (home / "runs").exists()
    name, out = follow(init, remedy, *short, "--config.optim.lr=0.05")
    assert name == "train" and "initialised from" in out and "finished" in out
    (workdir,) = (home / "runs").iterdir()

    name, out = follow()
    assert name == "evaluate"
    accuracy = float(re.search(r"accuracy: ([\d.]+)", out)[1])
    assert accuracy > 0.3, out  # of 20 pictures, after few steps; chance is a quarter

    # Another machine: the run alone.
    elsewhere = home / "Kopie der Läufe" / workdir.name
    shutil.copytree(workdir, elsewhere)
    data = Path(env["RECVIS_DATA_DIR"])
    data.rename(home / "away")
    pictures = [f"Fotos für Zuhause/{name}/Bild 0.jpg" for name in ("coffee", "rocket")]
    shutil.move(workdir, home / "run")
    moved = {f"--weights={place}": f"--weights={elsewhere}" for place in (workdir, workdir.relative_to(home))}
    name, out = follow(*pictures[1:], replace={"IMAGE": pictures[0], **moved}.items())
    assert name == "predict" and all(f"{p}\n" in out for p in pictures)
    named = [re.match(r" +([\d.]+)%  (\w+)", line) for line in out.splitlines()]
    assert {m[2] for m in named if m} == {Path(p).stem for p in PHOTOGRAPHS}

    # And home again, where the data are.
    (home / "away").rename(data)
    name, out = follow("--protocols=knn")
    assert name == "probe" and "| features" in out
    assert (elsewhere / "probe.json").exists()
