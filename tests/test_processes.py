"""Runs of several processes: the same training as that of one, and ends that any one of them may meet."""

import json
import signal
import time

import numpy as np
import programs
import pytest

PROGRAM = ("-m", "recvis_jax.train", "--report=false")
MODELS = {
    "vit": dict(name="vit_s16", patch_size=7, width=32, depth=2, heads=4, drop_path=0.2),
    "resnet": dict(name="resnet20", depth=8, width=8),
}
# Largest difference of any parameter after 3 steps; batch norm makes more of other orders of summing.
TOLERANCE = {"vit": 3e-6, "resnet": 1e-4}

# (processes, devices of each, changes of the config)
WAYS = {
    "2 x 2, fsdp": (2, 2, dict(sharding="fsdp")),
    "2 x 4, tensor, streamed": (2, 4, dict(sharding=dict(strategy="tensor", data=2, fsdp=2, model=2), cache="none")),
    "4 x 1, pmap": (4, 1, dict(compile="pmap")),
}
# Each way by one model; how a model is split over devices, of one process or of several, tests/training/test_step.py
# asks of more.
PAIRS = (("vit", "2 x 2, fsdp"), ("vit", "2 x 4, tensor, streamed"), ("resnet", "4 x 1, pmap"))


def config(folder, model, steps=3, cache="device", **changes):
    """Writes a config of a few steps on made-up images, and returns the flag that names it."""
    data = dict(name="fashion_mnist", mock=64, statistics="fashion_mnist", augment="pad_crop(2)|flip", cache=cache)
    sections = dict(
        seed=3, steps=steps, batch_size=32, eval_batch_size=24, ema_decay=0.9, log_every=2,
        data=dict(**data, train="train[:75%]", val="train[75%:]", test="test", threads=2),
        model=MODELS[model], optim=dict(name="momentum", lr=0.01), task=dict(name="classify"),
        eval_every=steps, checkpoint_every=steps, **changes,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    return programs.write_config(folder / "config.py", sections)


def train(folder, ways, *command):
    """Trains to the end, and returns what each process printed."""
    processes, devices, _ = ways
    started = programs.start_together(processes, devices, *PROGRAM, *command, f"--workdir={folder}")
    return [programs.finish(p) for p in started]


def difference(a, b, prefix=""):
    names = [k for k in a if k.startswith(prefix)]
    assert names and a.keys() == b.keys()
    return max(float(np.abs(a[k].astype(float) - b[k].astype(float)).max()) for k in names)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs of one process on one device, by model."""
    out = {}
    for model in MODELS:
        out[model] = tmp_path_factory.mktemp(model)
        train(out[model], (1, 1, {}), config(out[model], model))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("model, way", PAIRS)
def test_several_processes_train_as_one(alone, tmp_path, model, way):
    texts = train(tmp_path / "run", WAYS[way], config(tmp_path, model, **WAYS[way][2]))
    assert f"in {WAYS[way][0]} processes" in texts[0] and "finished (done)" in texts[0]
    assert not any("step" in t or "finished" in t for t in texts[1:])  # process 0 speaks for all
    expected, found = (programs.arrays(d, "last") for d in (alone[model], tmp_path / "run"))
    assert difference(expected, found, "['params']") < TOLERANCE[model]
    assert difference(expected, found, "['ema']") < 10 * TOLERANCE[model]
    summaries = [json.loads((d / "summary.json").read_text()) for d in (alone[model], tmp_path / "run")]
    for split in ("val", "test"):  # padding included: 24 does not divide the 16 and 64 examples
        a, b = (s["final"][split] for s in summaries)
        assert a["accuracy"] == pytest.approx(b["accuracy"]) and a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.slow
def test_several_processes_begin_from_the_weights_of_a_run(alone, tmp_path):
    flags = (config(tmp_path, "vit", steps=1), "--config.optim.lr=1e-12", "--config.sharding=fsdp")
    texts = train(tmp_path / "run", (2, 2, {}), *flags, f"--config.init_from={alone['vit']}")
    assert f"initialised from {alone['vit']}" in texts[0]
    average, found = (programs.arrays(d, "last") for d in (alone["vit"], tmp_path / "run"))
    params = {k: found[k] for k in found if k.startswith("['params']")}
    assert difference(params, {k: average[f"['ema']{k}"] for k in params}) < 1e-8


# A process of two that compiles for longer than sums over CPUs wait for each other, which is 30 s.
SLOW = """
import sys, time
import jax, numpy as np
from recvis_jax.training import processes, sharding
at, count, index = (flag.partition("=")[2] for flag in sys.argv[1:])
processes.start(at, int(count), int(index))
mesh = sharding.make_mesh()
split = jax.sharding.NamedSharding(mesh, sharding.batch_spec())
summed = jax.jit(lambda x: x.sum(), out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

class Slowly:
    def __call__(self, x):
        return summed(x)

    def lower(self, x):
        time.sleep(35 * int(index))
        return summed.lower(x)

x = jax.make_array_from_callback((4,), split, lambda i: np.arange(4.0)[i])
together = processes.compiled_together(Slowly())
print("sums", together(x), together(2 * x))
"""


@pytest.mark.slow
def test_no_process_runs_what_another_still_compiles():
    for process in programs.start_together(2, 2, "-c", SLOW):
        assert "sums 6.0 12.0" in programs.finish(process)


def until(process, line):
    """Reads what a process prints up to a line that holds `line`."""
    seen = ""
    while line not in seen:
        read = process.stdout.readline()
        assert read, seen
        seen += read
    return seen


@pytest.mark.slow
def test_a_run_moves_between_machines(tmp_path):
    """2 x 2 devices under fsdp, one of the processes told to stop; then 1 x 1, stopped too; then 1 x 8."""
    workdir, flag = tmp_path / "run", config(tmp_path, "vit", steps=150)
    command = (*PROGRAM, flag, f"--workdir={workdir}")
    both = programs.start_together(2, 2, *command, "--config.sharding=fsdp")
    until(both[0], "step 4/150 train")
    both[1].send_signal(signal.SIGTERM)
    texts = [programs.finish(p) for p in both]
    assert "stopped by SIGTERM at step" in texts[0] and "stopped" not in texts[1]
    (one,) = programs.start_together(1, 1, *command, "--config.sharding=replicate")
    seen = until(one, "train: ")
    assert "resuming from step" in seen
    one.send_signal(signal.SIGTERM)
    programs.finish(one)
    assert not (workdir / "summary.json").exists()
    (text,) = train(workdir, (1, 8, {}), flag, "--config.sharding=fsdp")
    assert "resuming from step" in text and "finished (done) at step 150" in text
    whole = tmp_path / "whole"
    train(whole, (1, 1, {}), flag)
    expected, found = (programs.arrays(d, "last") for d in (whole, workdir))
    assert difference(expected, found, "['params']") < 2e-4  # 150 steps
    steps = [[r["step"] for r in programs.records(d)] for d in (whole, workdir)]
    assert steps[0] == steps[1]
    losses = [[r["loss"] for r in programs.records(d)] for d in (whole, workdir)]
    np.testing.assert_allclose(losses[0][:20], losses[1][:20], rtol=1e-3)


@pytest.mark.slow
def test_the_death_of_a_process_ends_the_others_and_is_named(tmp_path):
    flag = config(tmp_path, "vit", steps=100_000)
    both = programs.start_together(2, 1, *PROGRAM, flag, f"--workdir={tmp_path / 'run'}")
    until(both[0], "step 4/100000 train")
    both[1].kill()
    began = time.monotonic()
    text = programs.finish(both[0], code=1)
    assert time.monotonic() - began < 30
    assert "error: process 1 of 2 (" in text and f"pid {both[1].pid}) has died" in text


@pytest.mark.full
def test_flags_that_name_the_others(tmp_path):
    train = ("-m", "recvis_jax.train", f"--config={programs.ROOT}/tests/small.py", f"--workdir={tmp_path}")
    for flags, expected in {
        ("--coordinator=127.0.0.1:1",): "--num_processes is missing",
        ("--coordinator=here", "--num_processes=2", "--process_id=0"): "is not HOST:PORT",
        ("--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=2"): "not in 0..1",
        ("--distributed=off", "--num_processes=2"): "--distributed=off excludes --coordinator",
    }.items():
        text = programs.finish(programs.fork(*train, *flags), code=2)
        assert expected in text and len(text.splitlines()) == 1
