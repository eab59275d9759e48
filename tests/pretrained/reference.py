"""Reads the fixtures of `tests/golden` and compares a model of ours with them."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from golden import fill

from recvis_jax import pretrained, trees
from recvis_jax.models import scan
from recvis_jax.pretrained import rules

GOLDEN = Path(__file__).parent.parent / "golden"


class Fixture:
    """One fixture: the manifest, the stored arrays, and what follows from them."""

    def __init__(self, name):
        self.manifest = json.loads((GOLDEN / f"{name}.json").read_text())
        self.arrays = np.load(GOLDEN / f"{name}.npz")
        weights = self.manifest.get("state_dict_from", name)
        self.weights = json.loads((GOLDEN / f"{weights}.json").read_text())
        self.runs = {"": self.manifest, **self.manifest.get("runs", {})}
        self.expected = {**self.manifest["outputs"], **self.manifest.get("features", {})}

    def state_dict(self, run=""):
        return fill.state_dict(self.weights, self.runs[run].get("gain", self.manifest["gain"]))

    def images(self, run=""):
        """The input x of a run, (b h w c)."""
        (spec,) = [s for s in self.runs[run]["inputs"] if s["name"] == "x"]
        return fill.make_input(spec).transpose(0, 2, 3, 1)

    def compare(self, key, got):
        """Holds an output or feature against the stored one; returns error / atol."""
        info, want = self.expected[key], self.arrays[key]
        got = np.asarray(got)
        if got.ndim == 4:
            got = got.transpose(0, 3, 1, 2)
        assert got.shape == tuple(info["shape"]), key
        if "steps" in info:
            got = fill.take(got, info["steps"])
        error = float(np.abs(got - want).max())
        print(f"{key}: {error:.2e} of {info['atol']:.2e}")
        assert error <= info["atol"], (key, error, info["atol"])
        return error / info["atol"]

    def compare_gradients(self, run, grads, moves):
        """Holds the norms of the gradients (a tree like params) against the stored ones."""
        names = self.manifest["grad_norm_parameters"]
        theirs = rules.export([m for m in moves if m.theirs in names], trees.flatten(scan.unstack({"params": grads})))
        flat = [theirs.pop(n).ravel() for n in names]
        # Summed in float64 without a copy in it: a large net's would be gigabytes.
        got = np.sqrt([np.einsum("i,i->", g, g, dtype=np.float64) for g in flat])
        want, rtol = self.arrays[f"{run}grad_norms"], np.array(self.expected[f"{run}grad_norms"]["rtol"])
        error = np.abs(got / want - 1)
        print(f"{run}grad_norms: {error} of {rtol}")
        assert (error <= rtol).all(), dict(zip(names, error / rtol, strict=True))


def template(model, size=224, channels=3):
    """Shapes of the model's variables."""
    x = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)


def load(model, state, size=224, **kw):
    return pretrained.load(state, model, template(model, size), say=lambda line: None, **kw)


def check_inference(name, library, theirs, features, output="logits", **kw):
    """Holds every run of an inference fixture against our model.

    Args:
      name: of the fixture.
      library, theirs: what `pretrained.create` is given, with the attributes `kw`.
      features: the fixture's name of an intermediate -> ours.
      output: the fixture's name of what our model computes.
    """
    fixture = Fixture(name)
    model = pretrained.create(library, theirs, **kw)
    forward = jax.jit(partial(model.apply, train=False))
    for run, spec in fixture.runs.items():
        size = spec["inputs"][0]["shape"][-1]
        logits, acts = forward(load(model, fixture.state_dict(run), size, library=library), fixture.images(run))
        fixture.compare(f"{run}{output}", logits)
        for key, act in features.items() if not run else ():
            fixture.compare(key, acts[act])


def check_training(name, library, theirs, **kw):
    """Holds loss, logits, norms of gradients and running statistics of a training fixture against our model."""
    fixture = Fixture(name)
    model = pretrained.create(library, theirs, **kw)

    def forward(params, state, x):
        (logits, acts), new = model.apply(
            {"params": params, **state}, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
        outputs = [logits, *(acts[k] for k in ("aux1/logits", "aux2/logits") if k in acts)]
        label = jnp.array([1, 3])
        losses = [-jnp.take_along_axis(jax.nn.log_softmax(o), label[:, None], 1).mean() for o in outputs]
        loss = losses[0] + 0.3 * sum(losses[1:])
        return loss, (outputs, {**state, **new})

    grad = jax.jit(jax.value_and_grad(forward, has_aux=True))
    for run in fixture.runs:
        variables = load(model, fixture.state_dict(run))
        params = variables.pop("params")
        (loss, (outputs, state)), grads = grad(params, variables, fixture.images(run))
        for key, out in zip(("logits", "aux_logits1", "aux_logits2"), outputs, strict=False):
            fixture.compare(f"{run}{key}", out)
        fixture.compare(f"{run}loss", loss)
        flat = trees.flatten(scan.unstack({"params": params, **state}))
        moves = pretrained.moves(model, flat, library)
        used = [m for m in moves if m.ours[0].startswith("params/")]
        fixture.compare_gradients(run, grads, used)
        after = {key.removeprefix(f"{run}after_"): key for key in fixture.expected if key.startswith(f"{run}after_")}
        theirs = rules.export([m for m in moves if m.theirs in after], flat)
        for name, key in after.items():
            fixture.compare(key, theirs[name])
