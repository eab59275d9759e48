"""Which settings and forms are used: those tried with this version of JAX, that pass their trials."""

import json
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest

from recvis_jax import operations, tried
from recvis_jax.kernels import onednn, own_gradient
from recvis_jax.training import processes

PLAIN = "jax 0.13.0 is not among those that were tried (0.10, 0.12): plain "


@pytest.fixture
def trials(monkeypatch, tmp_path):
    """No trial has been made yet; those that are started are listed, and end as `trials.ends` says."""

    found = types.SimpleNamespace(started=[], ends={})

    def start(names):
        found.started.append(names)
        return next((found.ends[n] for n in names if n in found.ends), ("", True))

    monkeypatch.setattr(tried, "_try", start)
    monkeypatch.setattr(tried, "_outcomes", {})
    monkeypatch.setattr(tried, "_processor", lambda: "flags : avx2 avx512f")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RECVIS_JAX_TRYING", raising=False)
    return found


def of(version, monkeypatch):
    monkeypatch.setattr(tried, "versions", lambda: (version, version))


def test_this_version_was_tried_and_uses_all_of_its_forms():
    lacks = [] if "avx512f" in tried._processor().split() else ["onednn not used: the processor has no avx512f"]
    assert tried.remarks() == lacks and len(tried.xla_flags()) == 3


def test_what_the_processor_cannot_do_is_not_used_and_not_tried(monkeypatch, trials):
    monkeypatch.setattr(tried, "_processor", lambda: "flags : avx avx2")
    assert not tried.usable("onednn") and trials.started == []
    assert "onednn not used: the processor has no avx512f" in tried.remarks()
    assert tried.usable("forms")


def test_a_version_that_nobody_tried_runs_plainly(monkeypatch, trials):
    of("0.13.0", monkeypatch)
    assert tried.xla_flags() == [] and not any(map(tried.usable, tried.FORMS))
    (line,) = tried.remarks()
    assert line.startswith(PLAIN) and "onednn" in line
    assert trials.started == []


@pytest.mark.parametrize("jax_version, jaxlib", [("0.10.2", "0.11.0"), ("0.13.0", "0.12.0.1"), ("0.100.0", "0.100.0")])
def test_both_versions_count(monkeypatch, trials, jax_version, jaxlib):
    monkeypatch.setattr(tried, "versions", lambda: (jax_version, jaxlib))
    assert tried.xla_flags() == [] and "plain" in tried.remarks()[0] and jaxlib in tried.remarks()[0]


def test_a_plain_version_computes_the_same_by_plain_operations(monkeypatch):
    x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(8, 9, 9, 8), (3, 3, 8, 16)]))
    numbers = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))

    def loss(x, kernel):
        y = operations.convolve(x, kernel, (1, 1), "SAME", dimension_numbers=numbers).reshape(8, 81, 16)
        return jnp.sin(0.05 * operations.dot_rows(y, kernel[0, 0].T, (((2,), (0,)), ((), ())))).sum()

    def gradients():
        grad = jax.grad(lambda *a: loss(*a), (0, 1))  # a new function, traced anew
        return jax.jit(grad)(x, kernel), str(jax.make_jaxpr(grad)(x, kernel))

    found, text = gradients()
    assert "optimization_barrier" in text and "platform_index" in text
    of("0.13.0", monkeypatch)
    plain, text = gradients()
    assert not any(name in text for name in ("optimization_barrier", "platform_index", "own_gradient", "custom_jvp"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, plain)


def test_a_plain_version_differentiates_functions_as_they_are_written(monkeypatch):
    @own_gradient.own_gradient
    def double(x):
        return 2 * x

    double.define(lambda x: (2 * x, None), lambda kept, d: (7 * d,))  # wrong, to tell it apart
    assert jax.grad(double)(1.0) == 7
    of("0.13.0", monkeypatch)
    assert jax.grad(double)(1.0) == 2


def test_processes_of_a_plain_version_do_without_the_store_that_has_no_public_name(monkeypatch):
    import jax._src.distributed

    monkeypatch.setattr(jax._src.distributed.global_state, "client", "a store")
    assert processes._store() == "a store"
    of("0.13.0", monkeypatch)
    assert processes._store() is None
    watch = processes._Watch(0, 1)
    watch.meet("nobody else")
    watch.publish("why")
    watch.close()
    assert watch.verdict is None


def test_a_setting_whose_trial_dies_is_left_out_and_the_others_stay(monkeypatch, trials):
    trials.ends = {"barriers": ("its trial ended with -6: Unknown flag", True)}
    flags = tried.xla_flags()
    assert len(flags) == 2 and not any("barrier" in f for f in flags)
    assert trials.started == [["reductions", "registers", "barriers"], ["reductions"], ["registers"], ["barriers"]]
    assert "barriers not used: its trial ended with -6: Unknown flag" in tried.remarks()
    trials.started.clear()
    tried.forget()  # as another process
    assert tried.xla_flags() == flags and trials.started == []


def test_flags_of_the_user_stay_as_they_are(trials):
    flags = tried.xla_flags("--xla_cpu_prefer_vector_width=256 --xla_disable_hlo_passes=dce")
    assert flags == ["--xla_cpu_experimental_ynn_fusion_type=reduce"]
    assert trials.started == [["reductions"]]


def test_without_the_folder_of_trials_what_needs_one_is_not_used_and_nothing_is_started(trials, monkeypatch):
    gone = tried.Form("a form", {"0.": ""}, "recvis_jax.nowhere.trials:attempt")
    monkeypatch.setitem(tried.FORMS, "gone", gone)
    assert not tried.usable("gone") and trials.started == []
    assert "gone not used: trials.py of its trial is not there" in tried.remarks()


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\x00", b"[]", b'{"form": "onednn"}', b'{"form": "x", "failed": ""}']
)
def test_a_damaged_outcome_is_tried_again(trials, damage):
    assert tried.usable("onednn") and trials.started == [["onednn"]]
    path = tried._file("onednn")
    assert json.loads(path.read_text())["failed"] == ""
    path.write_bytes(damage)
    tried.forget()
    assert tried.usable("onednn") and trials.started == [["onednn"]] * 2
    assert json.loads(path.read_text())["failed"] == ""


def test_what_proves_nothing_is_not_kept(trials):
    trials.ends = {"onednn": ("it could not be tried (TimeoutExpired)", False)}
    assert not tried.usable("onednn")
    trials.ends = {}
    tried.forget()
    assert tried.usable("onednn")


def test_a_home_that_cannot_be_written_costs_only_the_trial(trials, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert tried.usable("onednn")


@pytest.mark.parametrize(
    "code, why, certain",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", f"its trial ended with {-signal.SIGSEGV}: ", True),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", f"its trial ended with {-signal.SIGKILL}: ", False),
        ("raise ValueError('another sum')", "its trial ended with 1: ValueError: another sum", True),
        ("import os; assert os.environ['RECVIS_JAX_TRYING'] == 'broken'", "", True),
    ],
)
def test_trials_are_processes_of_their_own(monkeypatch, tmp_path, code, why, certain):
    (tmp_path / "trial_of_a_test.py").write_text(f"def attempt():\n    {code}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(tried.FORMS, "broken", tried.Form("broken", {"0.": ""}, "trial_of_a_test:attempt"))
    assert tried._try(["broken"]) == (why, certain)


def test_onednn_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("RECVIS_JAX_ONEDNN", "0")
    assert not onednn.available.__wrapped__()


@pytest.mark.full
def test_a_version_that_nobody_tried_trains_and_debug_says_so(tmp_path):
    caller = tmp_path / "caller.py"
    caller.write_text(
        "import runpy, sys, jax\njax.__version__ = jax.lib.__version__ = '0.13.0'\n"
        f"sys.argv = ['train', '{programs.DIGITS}:smoke', '--workdir={tmp_path / 'run'}', '--debug']\n"
        "runpy.run_module('recvis_jax.train', run_name='__main__', alter_sys=True)\n"
    )
    text = programs.run(caller, JAX_PLATFORMS="cpu", XLA_FLAGS="")
    assert PLAIN in text and "finished (done)" in text and "XLA_FLAGS" not in text
