"""Which strategies are tried, in which order they are listed; nothing is compiled."""

import pytest

from recvis_jax import errors
from recvis_jax.planning import planner, roofline, search, topology
from recvis_jax.planning.compiling import Memory
from recvis_jax.planning.cost import Cost
from recvis_jax.planning.sizes import Examples

(MACHINE,) = topology.parse("v5e:2x2")


def made(need, times):
    """Makes plans whose need and least time are functions of the config."""
    asked = []

    def make(config, machine):
        asked.append(
            (config["sharding"], config["model"].get("remat"), config["model"].get("scan"), config["accumulate"])
        )
        if config["batch_size"] % (4 * config["accumulate"]):
            raise errors.BadRequest("does not divide")
        memory = Memory(0, 0, 0, 0, 0, 0, 0, 0, 0, need=need(*asked[-1]), available=100)
        return planner.Plan(
            machine, planner.settings_of(config), {}, memory, 1, 64, 1, 1, Cost(1, 1), None, [], (0, ()),
            roofline.Bounds(times(*asked[-1]), 0.0, 0.0), Examples(64, ""), 1, 0.0,
        )  # fmt: skip

    return asked, make


def config(**changes):
    return dict(model=dict(name="vit_s16"), batch_size=64, sharding="replicate", accumulate=1) | changes


def test_all_strategies_the_cheapest_first():
    def need(sharding, remat, scan, accumulate):
        return 400 / (2 if sharding == "fsdp" else 1) / (4 if remat else 1) / accumulate + 1

    def times(sharding, remat, scan, accumulate):
        return 1 + 0.3 * bool(remat) + 0.1 * (sharding == "fsdp") + 0.01 * accumulate + 0.001 * bool(scan)

    asked, make = made(lambda *a: int(need(*a)), times)
    told = []
    found = search.search(config(), MACHINE, make, told.append)
    listed = [
        (p.settings["sharding"], p.settings["remat"], p.settings["scan"], p.settings["accumulate"]) for p in found
    ]
    # Needs 401, 201, 101 with 1, 2, 4 micro-batches replicated, so 8; half of that split, and a quarter with remat.
    enough = {("replicate", False): 8, ("fsdp", False): 4, ("replicate", True): 2, ("fsdp", True): 1}
    assert sorted(listed) == sorted(
        (sharding, remat, scan, enough[sharding, remat])
        for sharding in ("replicate", "fsdp") for remat in (False, True) for scan in (False, True)
    )  # fmt: skip
    assert listed[0] == ("replicate", False, False, 8) and [p.bounds.best for p in found] == sorted(
        p.bounds.best for p in found
    )
    assert len(asked) == len(told) == 2 * (4 + 3 + 2 + 1) and told[0] == "replicate + scan: lacks 301 B a device (0 s)"


def test_micro_batches_must_divide():
    assert search.micro_batches(config(), MACHINE, 16) == [1, 2, 4, 8, 16]
    assert search.micro_batches(config(batch_size=24), MACHINE, 16) == [1, 2]
    assert search.micro_batches(config(accumulate=3, batch_size=96), MACHINE, 16) == [3, 6, 12]
    asked, make = made(lambda *a: 1000, lambda *a: 1.0)
    assert search.search(config(batch_size=24), MACHINE, make) == [] and {a[3] for a in asked} == {1, 2}
    with pytest.raises(errors.BadRequest, match="does not divide"):
        search.search(config(batch_size=22), MACHINE, make)


def test_what_a_model_cannot_do_is_not_tried():
    asked, make = made(lambda *a: 1, lambda *a: 1.0)
    search.search(config(model=dict(name="lenet5")), MACHINE, make)
    assert asked == [("replicate", None, None, 1), ("fsdp", None, None, 1)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("fsdp", ["fsdp", "replicate"]),
        ({"strategy": "fsdp"}, [{"strategy": "fsdp"}, "replicate"]),
        ({"strategy": "tensor", "model": 2}, [{"strategy": "tensor", "model": 2}, "replicate", "fsdp"]),
    ],
)
def test_the_configs_own_sharding_comes_first(given, expected):
    found = list(search.variants(config(model=dict(name="lenet5"), sharding=given)))
    assert [c["sharding"] for c in found] == expected
