"""The network of the examples in `recvis_jax.vis`, small enough to be compiled in a moment."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Tiny(nn.Module):
    """A convolution of 5x5, relu, max pool, a convolution, relu, mean, a layer, ten classes; all with biases."""

    @nn.compact
    def __call__(self, x, *, train):
        del train
        x = nn.relu(nn.Conv(4, (5, 5), name="conv1")(x))
        acts = {"stem": x}
        x = nn.max_pool(x, (2, 2), (2, 2))
        acts["stage1/block1"] = x = nn.relu(nn.Conv(6, (3, 3), name="conv2")(x))
        acts["features"] = x = nn.relu(nn.Dense(8, name="fc")(x.mean((1, 2))))
        acts["logits"] = x = nn.Dense(10, name="head")(x)
        return x, acts


class Linear(nn.Module):
    """Ten classes of the pixels alone."""

    @nn.compact
    def __call__(self, x, *, train):
        del train
        out = nn.Dense(10, name="head")(x.reshape(len(x), -1))
        return out, {"logits": out}


def variables(model, shape, seed=0):
    """Weights and biases drawn by numpy."""
    spec = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))
    rng = np.random.default_rng(seed)

    def draw(s):
        fan_in = np.prod(s.shape[:-1]) if len(s.shape) > 1 else 4
        return jnp.asarray(rng.normal(0, (2 / fan_in) ** 0.5, s.shape), jnp.float32)

    return jax.tree.map(draw, spec)


SHAPE = (28, 28, 1)
_model, _linear = Tiny(), Linear()
GLOBALS = {
    "jax": jax,
    "jnp": jnp,
    "apply": partial(_model.apply, train=False),
    "variables": variables(_model, SHAPE),
    "images": jnp.asarray(np.random.default_rng(1).normal(size=(2, *SHAPE)), jnp.float32),
    "linear": partial(_linear.apply, train=False),
    "weights": variables(_linear, SHAPE),
}
