"""A Slurm cluster for the tests that submit jobs."""

import os

import cluster
import pytest


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A cluster that lives as long as the tests."""
    if cluster.missing() and not os.environ.get("CI"):
        pytest.skip(f"not installed: {', '.join(cluster.missing())} (apt-get install slurm-wlm munge)")
    assert not cluster.missing(), "CI installs Slurm, see .ci/run"
    running = cluster.Cluster(tmp_path_factory.mktemp("slurm"))
    yield running
    running.close()
