"""What README and docs quote is what was measured, what they link to is there, and README is short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUOTED = [
    (page.name, file, table)
    for page in PAGES
    for file, table in re.findall(
        r"<!-- (benchmarks/results/\w+\.md) -->\n\n(.*?)(?:\n\n|\n?\Z)", page.read_text(), re.DOTALL
    )
]


@pytest.mark.parametrize("page, file, table", QUOTED, ids=[f"{page}-{file}" for page, file, _ in QUOTED])
def test_quoted_tables_are_those_of_the_benchmarks(page, file, table):
    assert table.strip() == (ROOT / file).read_text().strip()


def test_some_tables_are_quoted():
    assert len(QUOTED) > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert re.match(r"https?:", link) or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configs_and_programs_that_are_named_are_there(page):
    text = page.read_text()
    for config in re.findall(r"configs/[\w/]+\.py", text):
        assert (ROOT / config).exists(), config
    for program in re.findall(r"python -m (recvis_jax\.\w+|launch\.\w+)", text):
        assert (ROOT / f"{program.replace('.', '/')}.py").exists(), program
    for benchmark in re.findall(r"benchmarks/\w+\.\w+", text):
        assert (ROOT / benchmark).exists(), benchmark


def test_the_front_page_is_short_and_every_page_is_reached_from_it():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for page in PAGES[1:]:
        assert f"](docs/{page.name})" in text, page.name


def test_every_page_is_in_the_navigation_of_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert f": {page.name}\n" in navigation, page.name
