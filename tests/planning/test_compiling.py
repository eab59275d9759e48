"""What a device keeps, and what compilers say of programs that are too large."""

import jax
import pytest
import small

from recvis_jax import errors
from recvis_jax.planning import compiling, planner, report, topology

GiB = 1 << 30


def test_messages_of_programs_that_are_too_large():
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (65.63G) exceeds "
        "available HBM (15.75G)."
    )
    assert compiling.parse_too_large(text) == (int(65.63 * GiB), int(15.75 * GiB))
    older = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 2.00T of "
    assert compiling.parse_too_large(f"{older}15.48G hbm. Exceeded hbm capacity by 1.98T.") == (
        2 << 40,
        int(15.48 * GiB),
    )
    need, there = compiling.parse_too_large(text.replace("65.63", "15.75"))
    assert need > there == int(15.75 * GiB), "numbers are rounded; what does not fit lacks something"
    assert compiling.parse_too_large("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem") is None
    assert compiling.parse_too_large("INTERNAL: (1G) exceeds available HBM (2G)") is None


def config(**changes):
    """An MLP on digits: parameters, momentum, statistics and a moving average."""
    out = {k: v for k, v in small.sections(**changes).items()}
    return out | {"batch_size": 32}


@pytest.fixture(scope="module")
def replicated():
    return planner.make_plan(config(), topology.parse("cpu:8")[0])


@pytest.mark.full
def test_what_a_device_keeps(replicated):
    m = replicated.memory
    layers = (64 * 64 + 64) + (64 * 32 + 32) + (32 * 10 + 10)
    norms, running = 2 * (64 + 32), 2 * (64 + 32)
    assert replicated.parameters == layers + norms
    assert m.parameters == 4 * (layers + norms)
    assert m.parameters <= m.optimizer <= m.parameters + 64  # momentum, and counters
    assert 4 * running <= m.statistics <= 4 * running + 64  # with the key and the step
    assert 0 <= m.average - m.parameters - 4 * running < 64
    assert m.batch == 32 // 8 * (64 + 4 + 1 + 4)  # an image of 8x8, label, mask, slot
    assert m.ahead == 2 * m.batch and m.available is None
    parts = m.parameters + m.optimizer + m.statistics + m.average + m.batch + m.ahead + m.temporaries
    assert m.need == parts + m.program + m.padding


@pytest.mark.full
def test_a_device_keeps_its_part(replicated):
    split = planner.make_plan(config() | {"sharding": "fsdp"}, topology.parse("cpu:8")[0])
    whole = replicated.memory
    small_ones = 64 + 32 + (32 * 10 + 10) + 2 * (64 + 32)  # are not split
    assert split.memory.parameters == 4 * ((64 * 64 + 64 * 32) // 8 + small_ones)
    assert split.memory.batch == whole.batch
    assert split.mesh == {"data": 1, "fsdp": 8, "model": 1} and split.settings["sharding"] == "fsdp"


def test_data_that_are_cached_on_devices_count(replicated):
    changed = config()
    changed["data"] |= {"cache": "device", "transform": ""}
    found = planner.make_plan(changed, topology.parse("cpu:8")[0])
    assert found.memory.ahead - replicated.memory.ahead == round(0.9 * 1437) * (64 + 4)


@pytest.mark.full
def test_a_program_that_does_not_fit(replicated):
    machine = topology.parse("cpu:8")[0]
    tight = machine._replace(device=machine.device._replace(memory=replicated.memory.need - 1024))
    found = planner.make_plan(config(), tight)
    assert not found.fits and found.memory.shortfall == 1024
    assert report.verdict(found).startswith("cpu:8: does not fit, needs ") and "lacks 1.0 KiB" in report.verdict(found)
    assert "lacks 1.0 KiB" in report.describe(found, "O0")
    enough = machine._replace(device=machine.device._replace(memory=replicated.memory.need))
    found = planner.make_plan(config(), enough)
    assert found.fits
    tpu = found._replace(machine=machine._replace(device=machine.device._replace(platform="tpu")))
    for level, warned in (("O0", True), ("default", False)):
        text = " ".join(report.describe(tpu, level).split())
        assert ("Here only 0 B are left: too little to be sure" in text) == warned


def test_a_compiler_that_gives_up(replicated, monkeypatch):
    """As libtpu does: an error instead of a program, from which the need is read."""

    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    message = "RESOURCE_EXHAUSTED: ... HLO temporaries (20.00G) exceeds available HBM (15.75G)."
    found = planner.make_plan(config(), topology.parse("cpu:8")[0])
    assert not found.fits and found.cost is None and found.bounds is None
    assert found.memory.shortfall == int(4.25 * GiB) + found.memory.ahead
    assert found.memory.parameters == replicated.memory.parameters and found.step_flops == replicated.step_flops
    text = report.describe(found, "O0")
    assert "does not fit, needs 20.00 GiB of 15.75 GiB a device: lacks 4.25 GiB" in text
    message = "INTERNAL: something else"
    with pytest.raises(errors.Failure, match="compiling for cpu:8 failed: INTERNAL: something else"):
        planner.make_plan(config(), topology.parse("cpu:8")[0])


def test_the_length_of_the_run(replicated):
    assert (replicated.steps, replicated.examples.number) == (60, 1293)
    found = planner.make_plan(config(steps=small.GONE) | {"epochs": 2.0}, topology.parse("cpu:1")[0])
    assert found.steps == round(2 * 1293 / 32)
    assert found.hours(3.6) == pytest.approx(found.steps / 1000)
    assert not found.exchanged and "nothing is exchanged" in report.describe(found, "O0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(compile="pmap"), r"add --config\.compile=jit"),
        (dict(batch_sise=3), r"unknown key config\.batch_sise\. Did you mean 'batch_size'"),
        (dict(epochs=2.0), r"one of config\.epochs and config\.steps"),
        (dict(batch_size=30), r"config\.batch_size=30 is not divisible by 8 device\(s\)"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(errors.BadRequest, match=message):
        planner.make_plan(config() | changes, topology.parse("cpu:8")[0])
