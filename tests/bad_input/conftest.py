"""What all malformed inputs meet: no annotations checked, as users run it, and programs on PATH that tell on us."""

import logging as python_logging
import sys

import harness
import jaxtyping
import pytest
from absl import logging


@pytest.fixture(autouse=True, scope="package")
def as_users_run_it(tmp_path_factory):
    """What the annotations would find here is to be found without them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)  # as `cli.run` does, and so on
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    # What orbax leaves of reads that failed is said when garbage is collected; programs have ended by then.
    hook, sys.unraisablehook = sys.unraisablehook, lambda found: None
    with harness.stand_ins(tmp_path_factory.mktemp("bin")):
        yield
    sys.unraisablehook = hook
    logging.set_verbosity(before)
    jaxtyping.config.update("jaxtyping_disable", False)
