"""Examples in docstrings are executed, and the library's public functions have one."""

import doctest
import importlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits
from vis import tiny

import recvis_jax as rv

PACKAGE = Path(rv.__file__).parent
MODULES = sorted(
    ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for p in PACKAGE.rglob("*.py")
    if ">>> " in p.read_text()
)


def a_run():
    """Digits and what a few steps learn of them, for the examples of the door."""
    digits = load_digits()
    images, labels = (digits.images * (255 / 16)).astype(np.uint8), digits.target
    data = rv.data.from_arrays(images, labels, val=0.1)
    run = rv.fit(rv.models.create("linear", num_classes=10), data, optax.adam(1e-2), epochs=1, progress=False)
    return {"images": images, "labels": labels, "data": data, "run": run}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    names = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "recvis_jax": rv, "rv": rv}
    if name.endswith((".library", ".stepping")):
        names |= a_run() | {verb: getattr(rv, verb) for verb in (*rv._VERBS, "models")}
    if ".vis." in name:
        names |= tiny.GLOBALS
    failed, tried = doctest.testmod(module, globs=names | vars(module))
    assert tried and not failed


@pytest.mark.parametrize("verb", rv._VERBS)
def test_the_door_shows_an_example(verb):
    found = getattr(rv, verb)
    assert ">>> " in inspect.getdoc(found), f"rv.{verb} has no example"
