"""What README and the pages show works: Python is executed, commands fit the programs, their flags and configs."""

import re
import tomllib

import commands
import numpy as np
import programs
import pytest

from recvis_jax import classical
from recvis_jax.training.optimizers import OPTIMIZERS

PAGES = {page.stem: page for page in [programs.ROOT / "README.md", *sorted((programs.ROOT / "docs").glob("*.md"))]}
WITH_CODE = [name for name, page in PAGES.items() if commands.python_blocks(page.read_text()) and name != "library"]


def images_and_labels():
    """Images and labels that README speaks of and does not make."""
    labels = np.arange(300) % 10
    return {"images": np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8), "labels": labels}


# What the code of a page must have found, by the names that it leaves.
FOUND = {
    "README": lambda n: {"a history": len(n["run"].history) >= 3},
    "adding": lambda n: {
        "the model": n["run"].evaluate("val")["accuracy"] > 0.9,
        "the objective": n["found"].evaluate("val")["loss"] < 0.12,  # 0.17 is that of the middle of the image
        "the metric": 0.5 < n["sure"].evaluate("val")["confidence"] <= 1,
        "the probe": n["result"].score > 0.9,
    },
    "export": lambda n: {"what is served": next(iter(n["answer"])) == str(n["digits"].target[0])},
    "finetune": lambda n: {"a new head": n["variables"]["params"]["head"]["kernel"].shape[1] == 3},
    "look": lambda n: {"maps": n["found"].shape[:3] == (4, 8, 8), "completeness": float(n["gap"].max()) < 1e-2},
    "photographs": lambda n: {"the classes": n["run"].evaluate("val")["accuracy"] > 0.9},
    "pretrain": lambda n: {"features": n["features"].shape == (1797, 48)},
    "sequences": lambda n: {"a vocabulary": n["texts"].info.vocabulary.size <= 300},
    "words": lambda n: {"bags": n["bags"].shape == (8, 80), "points": n["local"].descriptors.shape == (8, 20, 128)},
}


@pytest.fixture
def tables():
    """Takes out again what a page adds to the tables of contents."""
    before = [(table, dict(table)) for table in (commands.probes.PROTOCOLS, OPTIMIZERS)]
    yield
    for table, rows in before:
        table.clear()
        table.update(rows)


@pytest.mark.full
@pytest.mark.parametrize("name", WITH_CODE)
def test_code_runs(name, tmp_path, monkeypatch, tables):
    """Of docs/library.md, test_library.py asks it."""
    monkeypatch.chdir(tmp_path)
    names = images_and_labels() if name == "README" else {}
    for block in commands.python_blocks(PAGES[name].read_text()):
        exec(compile(block, PAGES[name].name, "exec"), names)
    for what, holds in FOUND[name](names).items():
        assert holds, what


@pytest.mark.every
@pytest.mark.parametrize("name", PAGES)
def test_commands_are_those_of_the_programs(name):
    for line in commands.shell_lines(PAGES[name].read_text()):
        assert commands.check(line) or re.match(OTHERS, line), line


# Of other programs: an environment, the clouds' own tools.
OTHERS = r"python -m venv |pip |gcloud |(git|cd|ls|hf|curl|uvicorn) "


def test_few_commands_are_of_others_and_little_code_is_not_run():
    texts = [page.read_text() for page in PAGES.values()]
    lines = [line for text in texts for line in commands.shell_lines(text)]
    assert len(lines) > 60 and len([line for line in lines if re.match(OTHERS, line)]) < 8
    assert len([why for text in texts for why in commands.marked_blocks(text)]) <= 2


WRONG = {
    "python -m recvis_jax.trian --workdir=runs/x": "No module named",
    "python -m recvis_jax.train --wrkdir=runs/x": "Unknown command line flag 'wrkdir'",
    "python -m recvis_jax.train --config=configs/digits/lenet.py --config.optim.lrr=1": "unknown key config.optim.lrr",
    "python -m recvis_jax.train --config=configs/digits/lenet.py --config.model.widht=1": "unknown key model.widht",
    "python -m recvis_jax.train --config=configs/digits/lenet.py:deep": "unknown config argument 'deep'",
    "python -m recvis_jax.look --weights=runs/x --show=tpo9": "--show=tpo9",
    "python -m recvis_jax.prepare --dataset=mnits": "mnits",
    "python -m recvis_jax.evaluate runs/x": "takes no",
    "python -m launch.local --procs=2 --config=configs/digits/lenet.py": "Unknown command line flag 'procs'",
    "python benchmarks/lecture.py --comands": "has no --comands",
    "make trian": "make trian",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_command_that_would_fail_is_found(line):
    with pytest.raises(Exception, match=WRONG[line]):
        commands.check(line)


def test_tables_of_the_pages_are_complete():
    def unnamed(page, names):
        text = PAGES[page].read_text()
        return [name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]

    assert not unnamed("look", commands.SHOWS)
    assert not unnamed("pretrain", commands.probes.PROTOCOLS)
    assert not unnamed("words", [*classical.DESCRIPTORS, *classical.ENCODERS])
    assert not unnamed("capabilities", OPTIMIZERS)
    project = tomllib.loads((programs.ROOT / "pyproject.toml").read_text())["project"]
    assert not unnamed("code", project["optional-dependencies"])
