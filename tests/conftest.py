"""Eight simulated devices, a persistent compilation cache, and shapes checked at run time."""

import os
import signal
from pathlib import Path

# A shell starts what runs in its background deaf to Ctrl-C, and so would be the programs that tests send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)

from recvis_jax import cli

flags = f"--xla_force_host_platform_device_count=8 {' '.join(cli.CPU_XLA_FLAGS)}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache/recvis_jax/tests"))

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
install_import_hook("recvis_jax", "typecheck.check")


@pytest.fixture(scope="session")
def program():
    """Runs a program: `program("train", *flags) -> (exit code, stdout, stderr)`; see `programs.Server`."""
    import programs

    server = programs.Server()
    yield server
    server.close()
