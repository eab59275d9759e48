"""Eight simulated devices, a persistent compilation cache, and shapes checked at run time."""

import ctypes
import gc
import os
import re
import resource
import signal
from pathlib import Path

# A shell starts what runs in its background deaf to Ctrl-C, and so would be the programs that tests send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)

from recvis_jax import tried

# Tests compile for longer than they compute: LLVM optimises nothing, and loops are emitted the short way (a flag that
# later versions lack, which would end the process). What users run is what the benchmarks and examples compile.
short = ["--xla_cpu_use_fusion_emitters=false"] if tried.versions()[1].startswith("0.10.") else []
flags = " ".join(
    ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0", *short, *tried.xla_flags()]
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache/recvis_jax/tests"))

import jax
import pytest
import quick
from jaxtyping import install_import_hook

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
install_import_hook("recvis_jax", "typecheck.check")


# Tracing makes many objects but little garbage: it is looked for less often, as in programs (`cli.start_jax`).
gc.set_threshold(50_000, 20, 100)


def pytest_collection_finish():
    """What all files have imported stays, so that no search for garbage looks at it."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="each test that is not slow, with its first parameters")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        kept = list(quick.chosen(items))
        config.hook.pytest_deselected(items=list(set(items) - set(kept)))
        items[:] = kept


# Bytes by which a worker may grow before it gives back what its tests have compiled: a third once it has MUCH in all.
GROWTH, MUCH = 1.5 * 2**30, 2.5 * 2**30


def resident():
    """Returns the bytes of memory that this process has, 0 where the system does not say."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


def give_back():
    """Gives back what tests have compiled, and with it most of a worker's memory."""
    jax.clear_caches()
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's
        libc.malloc_trim(0)


def spent():
    """Returns the processor's seconds of this process, and of those that it has started and that have ended."""
    return [sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]


@pytest.fixture(autouse=True, scope="module")
def memory(request):
    """Gives back memory after each file. TEST_COSTS=FILE collects the seconds of each, and its peak of memory."""
    costs, before = os.environ.get("TEST_COSTS"), spent()
    if costs:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    yield
    give_back()
    if costs:
        own, started = (now - then for now, then in zip(spent(), before, strict=True))
        peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]
        with open(costs, "a") as file:
            print(f"{own:7.1f} + {started:6.1f} s {int(peak) / 2**20:5.2f} GB {request.path.name}", file=file)


@pytest.fixture(scope="session")
def least():
    """The memory that a worker had after it last gave some back, in a list."""
    return [resident()]


@pytest.fixture(autouse=True)
def much_memory(least):
    """Gives back memory within a file whose tests compile much, such as those of a contract."""
    yield
    if resident() > max(least[0] + GROWTH / 3, min(least[0] + GROWTH, MUCH)):
        give_back()
        least[0] = resident()


@pytest.fixture(scope="session")
def program():
    """Runs a program: `program("train", *flags) -> (exit code, stdout, stderr)`; see `programs.Server`."""
    import programs

    server = programs.Server()
    yield server
    server.close()
