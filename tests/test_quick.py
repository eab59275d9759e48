"""What `--quick` leaves out, and that it leaves no part of the package untouched."""

import pathlib
import re

import programs
import pytest
import quick


class Item:
    """A test of that name with those marks."""

    def __init__(self, nodeid, *marks):
        self.nodeid, self.marks = nodeid, marks

    def get_closest_marker(self, name):
        return name in self.marks or None


def test_each_test_runs_with_its_first_parameters_that_are_not_slow():
    items = [
        Item("test_a.py::plain"), Item("test_a.py::of[1]"), Item("test_a.py::of[2]"), Item("test_b.py::of[1]"),
        Item("test_b.py::late[1]", "slow"), Item("test_b.py::late[2]"), Item("test_b.py::late[3]"),
        Item("test_b.py::all[1]", "every"), Item("test_b.py::all[2]", "every"),
        Item("test_b.py::all[3]", "every", "slow"), Item("test_b.py::long", "slow"),
        Item("test_b.py::whole[1]", "full"),
    ]  # fmt: skip
    assert [item.nodeid.partition("::")[2] for item in quick.chosen(items)] == [
        "plain", "of[1]", "of[1]", "late[2]", "all[1]", "all[2]",
    ]  # fmt: skip


def test_every_part_is_touched(request):
    """Every room by the tests that mirror it, and every program by a test that starts it."""
    package = programs.ROOT / "recvis_jax"
    rooms = {p.parent.name for p in package.glob("*/__init__.py")} | {"launch"}
    items = request.session.items
    if not rooms <= {pathlib.Path(item.path).parent.name for item in items}:
        pytest.skip("a part of the tests was asked for")
    found = {pathlib.Path(item.path) for item in quick.chosen(items)}
    assert rooms <= {path.parent.name for path in found}
    text = "".join(path.read_text() for path in found - {pathlib.Path(__file__)})
    for program in (p.stem for p in package.glob("*.py") if "def define_flags" in p.read_text() and p.stem != "cli"):
        assert re.search(rf'"(recvis_jax\.)?{program}"', text), program


def test_no_two_files_have_one_name():
    """Pytest imports a file of tests by its name alone, so that a second one of that name cannot be collected."""
    names = [path.name for path in pathlib.Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
