"""Eight simulated devices, a persistent compilation cache, and shapes checked at run time."""

import os
import sys
from pathlib import Path

flags = "--xla_force_host_platform_device_count=8 --xla_cpu_experimental_ynn_fusion_type=reduce"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache/recvis_jax/tests"))

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
install_import_hook("recvis_jax", "typecheck.check")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def python_env():
    """Environment for programs that a test starts: one device, this package, no terminal."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return {**env, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
