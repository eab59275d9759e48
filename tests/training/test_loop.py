"""The loop on a step that is plain arithmetic: what it evaluates, saves and records, and how it ends and goes on."""

import json
import os
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import errors
from recvis_jax.training import checkpoint, log, loop, sharding, signals
from recvis_jax.training.state import State


def begin():
    return State(jnp.int32(0), {"w": jnp.float32(1)}, {}, (), jnp.zeros(2, jnp.uint32))


@jax.jit
def step_fn(state, batch):
    """Multiplies the parameter by the batch, which is its own number plus one."""
    w = state.params["w"] * batch["x"]
    metrics = {"loss": (w, jnp.float32(1)), "seen": (batch["x"], jnp.float32(2))}
    return state.replace(step=state.step + 1, params={"w": w}), metrics


def stream(first):
    return ({"x": jnp.float32(1 + 0.01 * i)} for i in range(first, 1000))


def life(folder, total=12, values=None, make=stream, **kw):
    """One life of a run in `folder`: as `train` does it, with the metrics of evaluations given by step."""
    evaluations = []

    def evaluate(state, stop):
        step = int(state.step)
        if values is None or stop():
            return None
        evaluations.append(step)
        return {"accuracy": values(step), "loss": float(state.params["w"])}

    template = jax.eval_shape(begin)
    keeper = checkpoint.Checkpointer(folder, sharding.laid_out(template, sharding.make_mesh(jax.devices()[:1])))
    restored = keeper.restore_newest()
    resumed = restored.meta if restored else {}
    at = restored.step if restored else 0
    folder.mkdir(exist_ok=True)
    writer = log.Log(folder, total, at, resumed.get("loop", {}).get("evaluated", 0))
    given = dict(log_every=2, eval_every=4, checkpoint_every=3, batch_size=8) | kw
    try:
        done = loop.run(
            restored.state if restored else begin(), step_fn, make, total_steps=total, checkpointer=keeper, log=writer,
            resumed=resumed, evaluate=evaluate if values else None, **given,
        )  # fmt: skip
    except errors.Failure as e:
        done = e
    finally:
        keeper.wait()
        keeper.close()
        writer.close()
    saved = {d: sorted(int(p.name) for p in (folder / "checkpoints" / d).iterdir()) for d in ("last", "best")}
    records = [{k: v for k, v in r.items() if k not in log.TIMES} for r in log.read_records(folder / "metrics.jsonl")]
    return SimpleNamespace(done=done, evaluations=evaluations, saved=saved, records=records, at=at)


def rising(step):
    return step / 100


def test_evaluates_saves_and_records_when_it_should(tmp_path):
    got = life(tmp_path / "a", total=10, values=rising)
    assert got.evaluations == [4, 8, 10] and got.saved == {"last": [9, 10], "best": [10]}
    assert got.done.reason == "done" and int(got.done.state.step) == 10
    assert got.done.best == {"step": 10, "value": 0.1, "metrics": got.done.last["metrics"]}
    assert got.done.last["step"] == 10
    assert [(r["step"], r["split"]) for r in got.records] == [
        (2, "train"), (4, "train"), (4, "val"), (6, "train"), (8, "train"), (8, "val"), (10, "train"), (10, "val"),
    ]  # fmt: skip
    assert got.records[1]["seen"] == pytest.approx((1.02 + 1.03) / 4), "a mean is the sums' quotient"


def test_without_validation(tmp_path):
    got = life(tmp_path / "a", total=5, log_every=10)
    assert got.done.best is None and got.done.last is None and got.saved == {"last": [3, 5], "best": []}
    assert [r["step"] for r in got.records] == [5], "the end is always recorded"


@pytest.mark.parametrize("sign, best", [("max", 8), ("min", 12)])
def test_best_is_the_largest_or_smallest(sign, best, tmp_path):
    values = {4: 0.2, 8: 0.9, 12: 0.1}.get
    got = life(tmp_path / "a", values=values, best=("accuracy", sign))
    assert got.done.best["step"] == best and got.saved["best"] == [best]


def test_the_first_of_equals_is_best(tmp_path):
    assert life(tmp_path / "a", values=lambda _: 0.5).done.best["step"] == 4


def test_what_is_not_a_number_is_never_best(tmp_path):
    values = {4: float("nan"), 8: 0.5, 12: float("nan")}.get
    assert life(tmp_path / "a", values=values, best=("accuracy", "min")).done.best["step"] == 8


def test_a_finished_run_does_nothing_more(tmp_path):
    first = life(tmp_path / "a", values=rising)
    again = life(tmp_path / "a", values=rising, make=lambda first: iter(()))
    assert again.at == 12 and again.evaluations == [] and again.done.reason == "done"
    assert again.records == first.records and again.done.best == first.done.best and again.done.last == first.done.last


@pytest.mark.full
@pytest.mark.parametrize("stop_after", range(1, 13))
def test_stopped_anywhere_it_goes_on_the_same(stop_after, tmp_path):
    """`stop` is asked before each step and in evaluations; the n-th question is answered with yes."""
    values = {4: 0.3, 8: 0.1, 12: 0.2}.get
    whole = life(tmp_path / "whole", values=values)
    asked = iter(range(1, 1000))
    first = life(tmp_path / "cut", values=values, stop=lambda step: next(asked) >= stop_after)
    assert first.done.reason == "interrupted"
    assert first.saved["last"][-1:] == [int(first.done.state.step)], "saved at once, even before the first step"
    rest = life(tmp_path / "cut", values=values)
    assert rest.at == int(first.done.state.step)
    assert rest.done.reason == "done" and rest.records == whole.records and rest.saved == whole.saved
    assert np.array_equal(rest.done.state.params["w"], whole.done.state.params["w"])
    assert (rest.done.best, rest.done.last) == (whole.done.best, whole.done.last)
    assert sorted({*first.evaluations, *rest.evaluations}) == whole.evaluations


@pytest.mark.full
def test_early_stopping_counts_across_lives(tmp_path):
    values = {4: 0.5, 8: 0.4, 12: 0.6, 16: 0.1, 20: 0.2, 24: 0.6, 28: 0.9}.get
    whole = life(tmp_path / "whole", total=100, values=values, early_stop=3)
    assert whole.done.reason == "early stop" and int(whole.done.state.step) == 24
    assert whole.done.best["step"] == 12 and whole.saved["best"] == [12]
    asked = iter(range(1000))
    cut = life(tmp_path / "cut", total=100, values=values, early_stop=3, stop=lambda step: next(asked) > 24)
    assert cut.done.reason == "interrupted" and 16 < int(cut.done.state.step) < 24
    rest = life(tmp_path / "cut", total=100, values=values, early_stop=3)
    assert rest.done.reason == "early stop" and rest.records == whole.records
    again = life(tmp_path / "cut", total=100, values=values, early_stop=3)
    assert again.done.reason == "early stop" and again.at == 24 and again.records == whole.records


@pytest.mark.parametrize("bad", [1, 2, 6, 8, 9, 10])
@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_step(bad, what, tmp_path):
    def make(first):
        return ({"x": jnp.float32(what if i + 1 == bad else 1)} for i in range(first, 100))

    got = life(tmp_path / "a", values=rising, make=make, log_every=5)
    good = max((s for s in (3, 4, 6, 8, 9) if s < bad), default=None)
    kept = f"step {good}" if good else "none"
    assert isinstance(got.done, errors.Failure)
    assert f" is {what} at step {bad}; the run stops. Last good checkpoint: {kept}." in str(got.done)
    assert got.saved["last"][-1:] == ([good] if good else [])
    assert all(r["step"] < bad for r in got.records if r["split"] != log.FAILURE)
    # The cause removed, the same run goes on from there.
    rest = life(tmp_path / "a", values=rising)
    assert rest.at == (good or 0) and rest.done.reason == "done"


def test_a_best_checkpoint_that_was_lost_is_written_again(tmp_path):
    """Killed between the two saves of one step: the loop's record says best, and the best checkpoint is not there."""
    asked = iter(range(1000))
    values = {4: 0.9, 8: 0.1, 12: 0.2}.get
    life(tmp_path / "a", values=values, stop=lambda step: next(asked) > 4)
    best = tmp_path / "a/checkpoints/best/4"
    meta = json.loads((tmp_path / "a/checkpoints/last/4/meta/metadata").read_text())
    assert best.is_dir() and meta["loop"]["best"]["step"] == 4
    best.rename(tmp_path / "gone")
    assert life(tmp_path / "a", values=values).saved["best"] == [4]


def test_few_steps_are_under_way_at_once(tmp_path, monkeypatch):
    """Dispatching is asynchronous: without a limit, the batches of all steps would lie in the device's memory."""
    drawn, begun = [], []

    def make(first):
        for i in range(first, 100):
            drawn.append(i)
            yield {"x": jnp.float32(1)}

    def waiting(x):
        begun.append(len(drawn))
        return real(x)

    real = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", waiting)
    life(tmp_path / "a", total=30, make=make, log_every=100, checkpoint_every=100)
    assert begun[:3] == [5, 6, 7] and len(begun) > 20


def test_stop_signal_notes_sigterm_and_gives_it_back():
    before = signal.getsignal(signal.SIGTERM)
    with signals.StopSignal() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) is before
