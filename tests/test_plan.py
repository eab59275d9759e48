"""What `plan` prints and how it ends: on simulated devices, and for TPUs where their compiler is installed."""

import importlib.util
import inspect
import re

import programs
import pytest

from recvis_jax import build, train
from recvis_jax.planning import planner

ROOT = programs.ROOT
DIGITS = f"--config={ROOT}/configs/digits/lenet.py"
LINEAR = f"--config={ROOT}/configs/fashion_mnist/linear.py"


def test_a_config_on_simulated_devices(program):
    got = program("plan", DIGITS, "--topology=cpu:1,cpu:4", "--config.batch_size=96")
    assert got.code == 0 and not got.err, got
    one, four = re.split(r"\n(?=cpu:4)", got.out)
    assert re.search(r"^cpu:1: needs \S+ \wiB a device; no limit is known$", one, re.M)
    assert "nothing is exchanged" in one and "all-reduce among 4" in four
    for text in (one, four):
        text = " ".join(text.split())
        assert "lenet5, 21,386 parameters, batch 96; replicate, remat off, scan off, accumulate 1, float32" in text
        assert "compiled at O0" in text and "no peaks are published" in text
        assert re.search(r"[\d,]+ steps of 96; 1,\d+ images an epoch \(the data set itself", text)


@pytest.mark.full
def test_search_on_simulated_devices(program):
    flags = ("--config.batch_size=96", "--search", "--level=O1")
    got = program("plan", LINEAR, "--topology=cpu:4", *flags)
    assert got.code == 0, got
    assert "cpu:4: 2 strategies fit, the cheapest first (compiled at O1)" in got.out
    assert "replicate: fits" in got.err and "fsdp: fits" in got.err


@pytest.mark.full
def test_what_does_not_fit_is_said_with_the_shortfall(program):
    flags = (DIGITS, "--config.batch_size=96", "--memory=0.0005")
    got = program("plan", *flags, "--topology=cpu:1,cpu:2")
    assert got.code == 1, got
    lines = [line for line in got.out.splitlines() if line.startswith("cpu:")]
    assert len(lines) == 2
    for line, devices in zip(lines, (1, 2), strict=True):
        assert re.fullmatch(rf"cpu:{devices}: does not fit, needs \S+ \wiB of 524 KiB a device: lacks \S+ \wiB", line)
    assert got.err == f"error: {'; '.join(lines)}\n"
    got = program("plan", LINEAR, "--config.batch_size=8", "--memory=0.00001", "--topology=cpu:2", "--search")
    assert got.code == 1 and got.err.endswith("error: cpu:2: none of the strategies fits\n")


def test_every_key_of_a_config_is_known():
    """Those that decide about the step, and those that do not."""
    takes = set(inspect.signature(train.train).parameters) - {"workdir", "config", "report"}
    given = {"devices", "recorded", "built"}
    assert takes == set(inspect.signature(build.make_run).parameters) - given | planner._OTHER


REFUSED = {
    "no config": (["--topology=v5e:2x2"], r"--config is missing, for instance --config=configs/imagenet"),
    "no topology": ([DIGITS], r"--topology is missing, for instance --topology=v5e:2x4"),
    "unknown kind": ([DIGITS, "--topology=v5x:2x2"], r"unknown kind .* 'v5x'\. Did you mean 'v5.'\?"),
    "unknown slice": ([DIGITS, "--topology=v5e:3x3"], r"no slice v5e:3x3\. The nearest is v5e:2x4\."),
    "key": ([DIGITS, "--topology=cpu:1", "--config.modle=3"], r"unknown key config\.modle\. Did you mean 'model'"),
    "batch": ([DIGITS, "--topology=cpu:3", "--config.batch_size=64"], r"batch_size=64 is not divisible by 3 device"),
    "pmap": ([DIGITS, "--topology=cpu:1", "--config.compile=pmap"], r"add --config\.compile=jit"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what, program):
    flags, pattern = REFUSED[what]
    got = program("plan", *flags)
    assert got.code == 2 and not got.out, got
    assert len(got.err.splitlines()) == 1 and re.search(pattern, got.err), got.err


def installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


needs_tpu = pytest.mark.skipif(not installed("libtpu"), reason="libtpu is not installed (pip install 'jax[tpu]')")
needs_gpu = pytest.mark.skipif(
    not installed("jax_plugins.xla_cuda12"), reason="XLA for GPUs is not installed (pip install 'jax[cuda12-local]')"
)
MAE = f"--config={ROOT}/configs/fashion_mnist/mae_pretrain.py"


def run(*flags, code=0):
    return programs.run("-m", "recvis_jax.plan", *flags, code=code, XLA_FLAGS="")


def arithmetic(text):
    """What the step asks for and what was compiled, as parts of three forward passes."""
    found = re.search(r"asks for ([\d.]+) x that, compiled ([\d.]+) x", " ".join(text.split()))
    return map(float, found.groups())


@pytest.mark.slow
@needs_tpu
def test_a_masked_autoencoder_on_a_tpu():
    flags = ("--config.model.scan=True", "--config.model.remat=True", "--config.dtype=bfloat16")
    text = run(MAE, "--topology=v5e:2x2", *flags)
    assert re.search(r"^v5e:2x2: fits, needs \d+ MiB of 15\.75 GiB a device: leaves 15\.\d+ GiB$", text, re.M)
    asked, compiled = arithmetic(text)
    assert 1 < asked < 4 / 3 and compiled == pytest.approx(asked, rel=0.01)
    assert "all-reduce among 4" in text and re.search(r"bounds +arithmetic \S+ [mu]s, memory", text)


@pytest.mark.slow
@needs_tpu
def test_a_model_that_a_tpu_cannot_hold():
    flags = ("--config.batch_size=4096", "--config.eval_batch_size=64", "--config.model.scan=True")
    text = run(f"--config={ROOT}/configs/imagenet/vit_s16.py", "--topology=v5e:2x2", *flags, code=1)
    assert re.search(r"v5e:2x2: does not fit, needs [\d.]+ GiB of 15\.75 GiB a device: lacks [\d.]+ GiB", text)
    assert "error: v5e:2x2: does not fit" in text


@pytest.mark.slow
@needs_gpu
def test_a_network_with_batch_norm_on_gpus():
    flags = ("--config.dtype=bfloat16", "--config.eval_batch_size=512")
    text = run(f"--config={ROOT}/configs/fashion_mnist/resnet20.py", "--topology=h100:8", *flags)
    assert "h100:8: fits" in text and "all-reduce among 8" in text
    asked, compiled = arithmetic(text)
    assert compiled == pytest.approx(asked, rel=0.03)
