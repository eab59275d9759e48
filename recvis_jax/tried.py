"""Settings and forms that depend on the internals of JAX, and the versions with which they were tested.

A form that is fast with one version of JAX may crash the process with the next: an unknown flag, an operation that XLA
no longer compiles, a custom call with another format. So each form is a row of `FORMS`, and `usable` tells whether it
may be used: only with the versions of jax and jaxlib in its row. A form that could crash a process is also tried in a
separate process, once per machine; the outcome is kept on disk. Without these forms, programs compute the same by plain
operations.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from recvis_jax import errors, reading


class Form(NamedTuple):
    """A row of the table.

    Attributes:
      what: description.
      versions: prefixes of the versions of jax and jaxlib with which it was tested -> a flag of XLA, or "" if it needs
        none.
      trial: function `module:name` that raises if the form is wrong; "" if it cannot crash a process.
      processor: feature that the processor must have, as named by Linux; "" for none.
    """

    what: str
    versions: dict[str, str]
    trial: str = ""
    processor: str = ""


def _all(flag: str = "") -> dict[str, str]:
    return dict.fromkeys(("0.10.", "0.12."), flag)


_TRIALS = "recvis_jax.kernels.trials"
FORMS = {
    "reductions": Form(
        "sums and maxima by YNNPACK", _all("--xla_cpu_experimental_ynn_fusion_type=reduce"), f"{_TRIALS}:try_settings"
    ),
    "registers": Form(  # for processors with AVX-512, where LLVM uses only half of each register; no effect on others
        "whole vector registers", _all("--xla_cpu_prefer_vector_width=512"), f"{_TRIALS}:try_settings"
    ),
    "barriers": Form(
        "optimization barriers kept until operations have been fused",
        # The second pass turns small loops into one piece of code and does not respect barriers.
        _all("--xla_disable_hlo_passes=cse_barrier_expander,small-while-loop-hoisting"),
        f"{_TRIALS}:try_settings",
    ),
    # Without AVX-512, threads of oneDNN wait for each other in batches of products, which XLA's threads cannot do: some
    # shapes hung or crashed the process, others did not, so a trial of a few shapes would not find it.
    "onednn": Form(
        "products and convolutions by oneDNN's custom calls", _all(), f"{_TRIALS}:try_onednn", processor="avx512f"
    ),
    "forms": Form("convolutions and products in forms that suit XLA's fusion", _all()),
    "own gradients": Form("gradients written by hand, as an operation of ours", _all()),
    "loops of draws": Form("initial parameters of equal layers drawn in one loop", _all()),
    "quick create": Form("initial parameters by a program that is hardly optimised", _all()),
    "calling thread": Form("steps in the thread that calls them", _all()),
    "store": Form("processes that watch each other by the store of JAX's coordination service", _all()),
    "gpu plans": Form("plans for GPUs without their autotuning", _all()),
}

# Environment variable in a process that tries forms: their names.
_TRYING = "RECVIS_JAX_TRYING"
_SECONDS = 120

# Signals caused by the process itself; others come from outside and prove nothing.
_FATAL = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP, signal.SIGSYS}


def versions() -> tuple[str, str]:
    """Returns the versions of jax and jaxlib: the loaded ones, or else the installed ones."""
    if (jax := sys.modules.get("jax")) and hasattr(jax, "lib"):
        return jax.__version__, jax.lib.__version__
    return _installed()


@cache
def _installed() -> tuple[str, str]:
    return importlib.metadata.version("jax"), importlib.metadata.version("jaxlib")


def usable(name: str) -> bool:
    """Whether a form may be used here: it was tested with these versions and passed its trial."""
    if _plainly or _flag(name) is None or not _able(name):
        return False
    if not FORMS[name].trial:
        return True
    if _TRYING in os.environ:
        return name in os.environ[_TRYING].split(",")
    return _passed(name)


_plainly: list[bool] = []  # one entry for each `plain` that is being executed


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Uses no form: what is traced inside consists of plain operations, for other machines and other readers."""
    _plainly.append(True)
    try:
        yield
    finally:
        _plainly.pop()


def xla_flags(given: str = "") -> list[str]:
    """Returns XLA's flags for the usable forms on CPUs, without flags that the user gave.

    Args:
      given: XLA_FLAGS of the user.
    """
    theirs = {flag.split("=")[0] for flag in given.split()}
    wanted = {name: flag for name in FORMS if (flag := _flag(name)) and flag.split("=")[0] not in theirs}
    if _TRYING not in os.environ:
        _try_together(list(wanted))
    return [flag for name, flag in wanted.items() if usable(name)]


def remarks() -> list[str]:
    """Returns a line for each form that is not used on this CPU, with the reason; for `--debug`."""
    for name in FORMS:
        usable(name)
    plain = [name for name in FORMS if _flag(name) is None]
    out = []
    if plain:
        known = sorted({v.rstrip(".") for form in FORMS.values() for v in form.versions})
        jax, jaxlib = versions()
        where = f"jax {jax}" + (f" with jaxlib {jaxlib}" if jaxlib != jax else "")
        out.append(f"{where} is not among those that were tried ({', '.join(known)}): plain {', '.join(plain)}")
    out += [f"{name} not used: the processor has no {FORMS[name].processor}" for name in FORMS if not _able(name)]
    return out + [f"{name} not used: {why}" for name, why in _outcomes.items() if why]


def _flag(name: str) -> str | None:
    """Returns the flag of a form for these versions, "" if it needs none, None if it was not tested with them."""
    known = FORMS[name].versions
    found = [next((known[start] for start in known if version.startswith(start)), None) for version in versions()]
    return found[1] if None not in found else None  # XLA is part of jaxlib


def _able(name: str) -> bool:
    """Whether the processor has the feature that a form needs."""
    return not (needed := FORMS[name].processor) or needed in _processor().split()


_outcomes: dict[str, str] = {}  # form -> why it is not used here, "" if it is


def _passed(name: str) -> bool:
    if name not in _outcomes:
        _try_together([name])
    return not _outcomes[name]


def _try_together(names: list[str]) -> None:
    """Tries forms without a known outcome: all with the same trial in one process, and each alone if that fails."""
    for name in names:
        if not _code(name).exists():  # without `kernels` there are no trials, and forms that need one are not used
            _outcomes[name] = f"{_code(name).name} of its trial is not there"
    for name in names:
        if name not in _outcomes and (why := _read(name)) is not None:
            _outcomes[name] = why
    for trial in {FORMS[name].trial for name in names}:
        new = [name for name in names if name not in _outcomes and FORMS[name].trial == trial]
        if len(new) > 1 and not _try(new)[0]:
            for name in new:
                _outcomes[name] = ""
                _write(name, "")
            continue
        for name in new:
            why, certain = _try([name])
            _outcomes[name] = why
            if certain:
                _write(name, why)


def _try(names: list[str]) -> tuple[str, bool]:
    """Tries forms in a separate process; returns what went wrong, "" if nothing, and whether that is certain."""
    module, _, function = FORMS[names[0]].trial.partition(":")
    paths = [str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "COVERAGE_"))}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(filter(None, map(_flag, names))),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "JAX_TRACEBACK_FILTERING": "off",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        _TRYING: ",".join(names),
    }
    command = [sys.executable, "-P", "-c", f"import {module} as trials; trials.{function}()"]
    try:
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"it could not be tried ({type(e).__name__})", False
    if done.returncode == 0:
        return "", True
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()] or [""]
    said = next((line for line in reversed(lines) if "Error" in line.split(":")[0]), lines[-1])
    certain = done.returncode > 0 or -done.returncode in _FATAL
    return f"its trial ended with {done.returncode}: {errors.printable(said)[:200]}", certain


def _file(name: str) -> Path:
    """Returns the file for the outcome of a trial; its name depends on everything that the outcome depends on."""
    code = _code(name).read_bytes()
    where = (*versions(), platform.python_version(), platform.machine(), _processor(), _flag(name), FORMS[name].trial)
    key = hashlib.sha256(json.dumps([name, *where]).encode() + code).hexdigest()[:24]
    return Path.home() / ".cache/recvis_jax/tried" / f"{name}-{key}.json"


def _code(name: str) -> Path:
    """Returns the file of a form's trial."""
    module = FORMS[name].trial.partition(":")[0].removeprefix("recvis_jax.")
    return Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")


@cache
def _processor() -> str:
    """Identifies this machine's processor by its model and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({x for x in lines if x.startswith(("model name", "flags", "Features", "CPU part"))}))


def _read(name: str) -> str | None:
    """Returns the stored outcome; None if there is none or it cannot be read, so that the form is tried again."""
    try:
        kept = reading.read_json(_file(name), "record bytes")
    except (errors.BadRequest, OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    if not isinstance(kept, dict) or kept.get("form") != name or not isinstance(kept.get("failed"), str):
        return None
    return kept["failed"]


def _write(name: str, why: str) -> None:
    try:
        path = _file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_text(json.dumps({"form": name, "failed": why}))
        part.replace(path)
    except (OSError, RuntimeError):
        pass  # the form is tried again next time


def forget(names: Iterable[str] = FORMS) -> None:
    """Makes this process forget the outcomes for these forms, and read or try them again."""
    for name in names:
        _outcomes.pop(name, None)
