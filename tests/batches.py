"""Batches of noise, what pipelines make of them, and boxes in the result, for the tests of device augmentation."""

import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax.data import augment

KEY = jax.random.key(5)


def make(b=32, h=12, w=14, c=3, seed=0, classes=5):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (b, h, w, c), dtype=np.uint8)),
        "label": jnp.asarray(rng.integers(0, classes, b), jnp.int32),
        "mask": jnp.ones(b, bool),
        "slot": jnp.arange(b, dtype=jnp.int32),
    }


def run(text, batch, key=KEY, num_classes=5):
    return jax.device_get(jax.jit(augment.parse(text, num_classes))(key, batch))


def unit(batch):
    return np.asarray(batch["image"], np.float32) * np.float32(1 / 255)


def box_of(changed):
    """(top, bottom, left, right) of the one solid box in a boolean image."""
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert changed[top:bottom, left:right].all()
    return top, bottom, left, right
