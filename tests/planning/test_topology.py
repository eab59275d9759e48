"""The grammar of machines' names, and what is refused."""

import re

import pytest

from recvis_jax import errors
from recvis_jax.planning import devices, topology


def test_names():
    pod, cube, gpus, two, cpus = topology.parse("v5e:16x16, v4:4x4x8,H100:8,v3:8x8,cpu:3")
    assert (pod.chips, pod.devices, pod.rings) == (256, 256, (True, True))
    assert (cube.chips, cube.devices, cube.rings) == (128, 128, (True, True, True))
    assert (gpus.name, gpus.kind, gpus.shape, gpus.devices) == ("h100:8", "h100", (8,), 8)
    assert (two.chips, two.devices, two.rings) == (64, 128, (False, False))
    assert cpus.devices == 3 and cpus.device.memory is None
    assert topology.parse("v5e:8x16")[0].rings == (False, True)
    assert topology.parse("v4:2x2x4")[0].rings == (False, False, False)


@pytest.mark.parametrize("kind", [k for k, d in devices.DEVICES.items() if d.axes])
def test_every_slice_that_is_offered_can_be_named(kind):
    for shape in topology.shapes(kind):
        (found,) = topology.parse(f"{kind}:{shape}")
        assert len(found.shape) == found.device.axes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", "--topology is missing, for instance"),
        ("v5:2x2", r"unknown kind of accelerator in --topology 'v5'\. Did you mean 'v5.'\? There are: a100"),
        ("v5e", r"--topology=v5e is not a kind and its chips, such as v5e:2x4\."),
        ("v5e:4", r"there is no slice v5e:4\. The nearest is v5e:2x2\. There are: 1x1, 2x2"),
        ("v5e:4x2", r"The nearest is v5e:2x4\."),
        ("v5e:3x3", r"The nearest is v5e:2x4\."),
        ("v5e:32x16", r"The nearest is v5e:16x16\."),
        ("v5e:2x2x2", r"The nearest is v5e:2x4\."),
        ("v4:4x4x5", r"The nearest is v4:4x4x4\."),
        ("v4:0x1x1", "is not a kind and its chips, such as v4:2x2x4"),
        ("h100:12", r"a machine has 8 h100, and h100:12 is not a whole number of machines\. The nearest is h100:16\."),
        ("h100:2x4", r"for h100 give the number of chips, such as h100:8\."),
        ("v5e:2x2,v5e:2x2", "names v5e:2x2 twice"),
    ],
)
def test_what_is_refused(names, message):
    with pytest.raises(errors.BadRequest) as found:
        topology.parse(names)
    assert re.search(message, str(found.value)), found.value


@pytest.mark.parametrize(
    ("platform", "module", "command"),
    [("tpu", "libtpu", r"pip install 'jax\[tpu\]=="), ("cuda", "jax_plugins", r"pip install 'jax\[cuda12-local\]==")],
)
def test_a_missing_compiler_is_named_with_its_command(monkeypatch, platform, module, command):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None if name.startswith(module) else 1)
    with pytest.raises(errors.BadRequest, match=command):
        topology.check_installed({platform, "cpu"})
    topology.check_installed({"cpu"})


def test_what_libraries_write_themselves_is_kept_from_the_user(capfd):
    import os

    with topology.quiet():
        os.write(2, b"W0000 noise\n")
    os.write(2, b"ours\n")
    assert capfd.readouterr().err == "ours\n"


def test_every_device_has_positive_peaks():
    for name, d in devices.DEVICES.items():
        if name != "cpu":
            assert min(d.flops, d.flops32, d.bandwidth, d.memory, d.link, d.per_chip) > 0
            assert bool(d.network) == (d.axes == 0), "machines of GPUs have a network, slices of TPUs links"
    assert set(devices.GPUS) == {k for k, d in devices.DEVICES.items() if d.platform == "cuda"}
