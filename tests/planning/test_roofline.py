"""Bounds by hand, from the published numbers that the table cites."""

import pytest

from recvis_jax.planning import roofline, topology
from recvis_jax.planning.collectives import Collective
from recvis_jax.planning.cost import Cost
from recvis_jax.planning.roofline import Place


def torus(rows, columns, cores=1):
    chips = [(r, c) for r in range(rows) for c in range(columns)]
    return [Place(at, 0, at) for at in chips for _ in range(cores)]


def machines(count, each=8):
    return [Place((i,), i // each, i) for i in range(count * each)]


def one(name):
    (found,) = topology.parse(name)
    return found


def all_of(n):
    return (tuple(range(n)),)


def test_arithmetic_and_memory():
    # v5e: 197 TFLOP/s and 819 GB/s; 8 devices without anything to exchange.
    found = roofline.bounds(Cost(3_940_000_000_000, 8_190_000_000), [], one("v5e:2x4"), torus(2, 4), "bfloat16")
    assert found == pytest.approx((0.02, 0.01, 0)) and found.limit == "compute"
    assert (found.best, found.serial) == pytest.approx((0.02, 0.03))
    # v3: a device is half a chip, of 123 TFLOP/s and 900 GB/s.
    found = roofline.bounds(Cost(123_000_000_000, 900_000_000), [], one("v3:2x2"), torus(2, 2, 2), "float32")
    assert found == pytest.approx((0.002, 0.002, 0))
    # H100: TF32 products of float32 at 494.7, of bfloat16 at 989.4 TFLOP/s.
    for dtype, expected in (("float32", 2e-3), ("bfloat16", 1e-3)):
        assert roofline.bounds(
            Cost(989_400_000_000, 0), [], one("h100:8"), machines(1), dtype
        ).compute == pytest.approx(expected)


def test_a_sum_on_tori():
    def time(name, where, groups):
        return roofline.exchange_time(Collective("all-reduce", 160_000_000, groups, 1), one(name), where)

    # Two links of 50 GB/s in a corner of 2x4, which has no ring: 2 * 160 MB * 7 / 8 of 100 GB/s.
    assert time("v5e:2x4", torus(2, 4), all_of(8)) == pytest.approx(280e6 / 100e9)
    # Both axes of 16x16 are rings: four links.
    assert time("v5e:16x16", torus(16, 16), all_of(256)) == pytest.approx(2 * 160e6 * 255 / 256 / 200e9)
    # Of 8x16 one is: three links. Along the other one alone: one link.
    assert time("v5e:8x16", torus(8, 16), all_of(128)) == pytest.approx(2 * 160e6 * 127 / 128 / 150e9)
    column = tuple(tuple(range(c, 128, 16)) for c in range(16))
    assert time("v5e:8x16", torus(8, 16), column) == pytest.approx(2 * 160e6 * 7 / 8 / 50e9)
    # v4 has rings only where all three axes are multiples of 4.
    places = [Place((x, y, z), 0, (x, y, z)) for x in range(4) for y in range(4) for z in range(4)]
    assert time("v4:4x4x4", places, all_of(64)) == pytest.approx(2 * 160e6 * 63 / 64 / 300e9)
    assert time("v4:2x4x4", places[:32], all_of(32)) == pytest.approx(2 * 160e6 * 31 / 32 / 150e9)


def test_devices_of_one_chip():
    def time(groups):
        c = Collective("all-gather", 164_000_000, groups, 1)
        return roofline.exchange_time(c, one("v3:2x2"), torus(2, 2, 2))

    pairs, halves = ((0, 1), (2, 3), (4, 5), (6, 7)), ((0, 2, 4, 6), (1, 3, 5, 7))
    assert time(pairs) == 0, "within a chip nothing goes over links"
    # A chip of 4 receives three quarters over two links of 82 GB/s; twice that if each of its devices wants its own.
    assert time(all_of(8)) == pytest.approx(123e6 / 164e9)
    assert time(halves) == pytest.approx(2 * 123e6 / 164e9)


def test_gpus():
    def time(count, kind="all-reduce"):
        c = Collective(kind, 800_000_000, all_of(8 * count), 1)
        return roofline.exchange_time(c, one(f"h100:{8 * count}"), machines(count))

    assert time(1) == pytest.approx(2 * 800e6 * 7 / 8 / 450e9)
    # Between two machines half of it, over 8 ports of 50 GB/s: 2 ms, less than the 3.3 ms within.
    assert time(2) == pytest.approx(2 * 800e6 * 15 / 16 / 450e9)
    single = Collective("all-reduce", 800_000_000, ((0, 8),), 1)
    assert roofline.exchange_time(single, one("h100:16"), machines(2)) == pytest.approx(2 * 400e6 / 50e9)


def test_a_permutation_sends_once():
    c = Collective("collective-permute", 50_000_000, ((0, 1), (1, 2), (2, 3), (3, 0)), 1)
    assert roofline.exchange_time(c, one("v5e:2x2"), torus(2, 2)) == pytest.approx(1e-3)


def test_collectives_take_their_time_as_often_as_they_run():
    c = Collective("all-gather", 80_000_000, all_of(8), 5)
    found = roofline.bounds(Cost(0, 0), [c, c], one("v5e:2x4"), torus(2, 4), "bfloat16")
    assert found.network == pytest.approx(10 * 70e6 / 100e9) and found.limit == "network"
