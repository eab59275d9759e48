"""Small models of each kind, and what they compute; a program, for copies of the package without `kernels`.

python small_models.py FILE.npz
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from recvis_jax import models, operations

# Name -> attributes.
SMALL = {
    "lenet5": dict(pool="max", activation="relu"),
    "resnet20": dict(depth=8, width=4),
    "vit_s16": dict(patch_size=4, width=16, depth=1, heads=2),
    "gmlp_ti16": dict(patch_size=4, width=16, depth=1),
    "mixer_s16": dict(patch_size=4, width=16, depth=1),
}


def compute(name: str) -> dict[str, np.ndarray]:
    """Returns the logits of a model for some images, and the gradients to its variables and the images, by path."""
    model = models.create(name, num_classes=5, **SMALL[name])
    draw = np.random.default_rng(0).standard_normal
    x = draw((8, 12, 12, 3), np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(1), x, train=False), x)
    # Kernels keep the magnitude of activations; scales, biases, means and variances are near 1.
    variables = jax.tree.map(
        lambda v: draw(v.shape, np.float32) / np.sqrt(v.size / v.shape[-1]) if v.ndim > 1
        else 1 + 0.1 * draw(v.shape, np.float32),
        shapes,
    )  # fmt: skip

    def loss(variables, x):
        logits = model.apply(variables, x, train=False)[0]
        return jnp.sin(logits).sum(), logits

    found = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x)
    return {name + jax.tree_util.keystr(path): np.asarray(v) for path, v in jax.tree_util.tree_leaves_with_path(found)}


if __name__ == "__main__":
    print(operations.fast.__module__)
    np.savez(sys.argv[1], **{key: value for name in SMALL for key, value in compute(name).items()})
