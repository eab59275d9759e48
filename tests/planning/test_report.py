"""Numbers as people read them."""

import pytest

from recvis_jax.planning import report


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (300 << 10, "300 KiB"),
        (5 << 29, "2.50 GiB"),
        (1 << 44, "16384.00 GiB"),
    ],
)
def test_memory_in_binary_units(n, expected):
    assert report.size(n) == expected


@pytest.mark.parametrize(
    ("n", "expected"),
    [(0, "0 "), (999, "999 "), (999.9, "1 k"), (4.089e9, "4.09 G"), (123_456_789, "123 M"), (2.5e15, "2,500 T")],
)
def test_numbers_by_thousands(n, expected):
    assert report.number(n) == expected and report.decimal(n) == expected + "B"


@pytest.mark.parametrize(("t", "expected"), [(2e-6, "2 us"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (0, "0 us")])
def test_short_times(t, expected):
    assert report.seconds(t) == expected
