"""What builds the site: its links are checked, and it knows every program. `make docs` builds the whole."""

import doctest
import importlib

import programs
import pytest


@pytest.fixture(autouse=True)
def of_the_site(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(programs.ROOT / "docs"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.every
@pytest.mark.parametrize("name", ["docstrings", "hooks", "links", "notebook_pages"])
def test_examples_run(name):
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_every_program_and_room_has_its_page():
    hooks = importlib.import_module("hooks")
    package = programs.ROOT / "recvis_jax"
    started = {p.stem for p in package.glob("*.py") if "\n    cli.run(" in p.read_text()}
    assert set(hooks.PROGRAMS) == started
    assert set(hooks.LAUNCHERS) == {
        p.stem for p in (programs.ROOT / "launch").glob("*.py") if "\n    command.run(" in p.read_text()
    } - {"attempt"}
    assert set(hooks.ROOMS) == {p.parent.name for p in package.glob("*/__init__.py")}
    assert [name for name, _, _ in hooks.flags_of("launch.local")][:2] == ["processes", "devices"]


def test_what_is_wrong_with_a_site_is_named(tmp_path):
    links = importlib.import_module("links")
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        '<a href="sub/b.html#there"></a><a href="sub/b.html#gone"></a><a href="https://x.org"></a>'
    )
    (tmp_path / "sub/b.html").write_text(
        '<i id="there"></i><script src="https://x.org/s.js"></script><img src="../c.png">'
    )
    (tmp_path / "s.css").write_text("@font-face { src: url('https://x.org/f.woff') }")
    assert links.wrong(tmp_path) == [
        "a.html links to sub/b.html#gone, a place that the page does not have",
        "sub/b.html loads https://x.org/s.js",
        "sub/b.html links to ../c.png, which is not there",
        "s.css loads https://x.org/f.woff",
    ]
