"""Eight simulated devices, a persistent compilation cache, and shapes checked at run time."""

import ctypes
import gc
import os
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


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="each test that is not slow, with its first parameters")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        kept = list(quick.chosen(items))
        config.hook.pytest_deselected(items=list(set(items) - set(kept)))
        items[:] = kept


# Bytes by which a worker may grow before it gives back what its tests have compiled.
GROWTH = 1.5 * 2**30


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


@pytest.fixture(autouse=True, scope="module")
def memory():
    """Gives back memory after each file."""
    yield
    give_back()


@pytest.fixture(scope="session")
def least():
    """The memory that a worker had after it last gave some back, in a list."""
    return [resident()]


@pytest.fixture(autouse=True)
def much_memory(least):
    """Gives back memory within a file whose tests compile much, such as those of a contract."""
    yield
    if resident() > least[0] + GROWTH:
        give_back()
        least[0] = resident()


@pytest.fixture(scope="session")
def program():
    """Runs a program: `program("train", *flags) -> (exit code, stdout, stderr)`; see `programs.Server`."""
    import programs

    server = programs.Server()
    yield server
    server.close()
