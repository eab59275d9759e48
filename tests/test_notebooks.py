"""The lecture's notebooks: each executes, with the numbers that its cells assert, and defines next to nothing."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
_spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

NAMES = list(build.SOURCES)
MAY_IMPORT = {
    "recvis_jax",
    "numpy",
    "jax",
    "optax",
    "flax",
    "matplotlib",
    "sklearn",
    "skimage",
    *sys.stdlib_module_names,
}
executed = {}  # name -> notebook


def tree(name):
    return ast.parse(build.SOURCES[name].read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_executes_and_its_assertions_hold(name):
    executed[name] = build.execute(build.SOURCES[name])
    if why := build.missing(executed[name]):
        pytest.skip(why)
    outputs = [output for cell in executed[name].cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", ()) for output in outputs)


@pytest.mark.slow
def test_two_executions_are_equal():
    name = "03_layers"
    first = executed.get(name) or build.execute(build.SOURCES[name])
    assert build.differences(first, build.execute(build.SOURCES[name])) == []


@pytest.mark.every
@pytest.mark.parametrize("name", NAMES)
def test_calls_the_package_and_defines_nothing_long(name):
    imported = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 10, f"{node.name} has more than ten lines"
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported <= MAY_IMPORT and "recvis_jax" in imported


@pytest.mark.every
@pytest.mark.parametrize("name", NAMES)
def test_tells_a_story_and_holds_its_numbers(name):
    notebook = build.read(build.SOURCES[name])
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    told = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert len(told) >= len(code) / 2
    assert max(len(source.splitlines()) for source in code) <= 20
    assert sum("assert" in source for source in code) >= 5


def test_a_script_is_read_the_same_twice():
    first, second = (build.read(build.SOURCES[NAMES[0]]) for _ in range(2))
    assert first == second and [cell.id for cell in first.cells[:2]] == ["cell-00", "cell-01"]


def test_a_difference_is_found(tmp_path):
    source = tmp_path / "99_random.py"
    source.write_text("# %%\nimport os\nos.urandom(8)\n# %%\n1 + 1\n# %%\nobject()\n")
    assert build.differences(build.execute(source), build.execute(source)) == ["cell-00"]


def test_what_cannot_be_had_ends_a_notebook_with_its_name(tmp_path):
    source = tmp_path / "99_missing.py"
    said = "from recvis_jax.pretrained import packages\nraise packages.Unavailable('no such package')"
    source.write_text(f"# %%\n{said}\n# %%\n1 / 0\n")
    assert build.missing(build.execute(source)) == "no such package"
