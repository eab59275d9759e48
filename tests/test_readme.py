"""What the README quotes is what was measured."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUOTED = re.findall(r"<!-- (benchmarks/results/\w+\.md) -->\n\n(.*?)\n\n", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("file, table", QUOTED, ids=[file for file, _ in QUOTED])
def test_quoted_tables_are_those_of_the_benchmarks(file, table):
    assert table.strip() == (ROOT / file).read_text().strip()
