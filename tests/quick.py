"""What `pytest --quick` runs: every test that is not slow, once."""

from collections.abc import Iterable, Iterator

import pytest


def chosen(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """Yields of each test its first parameters, all of them where it is marked `every`, none where `slow` or `full`."""
    seen = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        left_out = item.get_closest_marker("slow") or item.get_closest_marker("full")
        if not left_out and (test not in seen or item.get_closest_marker("every")):
            seen.add(test)
            yield item
