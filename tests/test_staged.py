"""The diagnosis names what is wrong with small trainings in which one thing is wrong, or none; see staged.py."""

import jax
import pytest
import staged

from recvis_jax import build

# A few of each kind in the quick suite; all of them take a minute.
QUICK = ("three epochs", "20 validation images", "15 % near copies", "shuffled labels", "SGD at 3")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """As users have, and faster than eight simulated ones."""
    make = build.open_mesh
    monkeypatch.setattr(build, "open_mesh", lambda sharding, devices=None: make(sharding, jax.devices()[:1]))


@pytest.fixture(scope="module")
def digits():
    return staged.images()


@pytest.mark.full
@pytest.mark.every
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in staged.names()],
)
def test_the_headline_is_what_is_wrong(name, digits, tmp_path):
    data = staged.train(name, tmp_path / "run", digits)
    found, known = staged.diagnose(tmp_path / "run", data)
    assert found[0].name == staged.right(name), (found, known.pictures, known.clean_train, known.clean_val)
