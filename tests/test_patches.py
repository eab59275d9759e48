"""The best patches of a layer, against all of its values."""

import numpy as np
import pytest
from vis import tiny

from recvis_jax import patches, vis
from recvis_jax.errors import BadRequest

APPLY, VARIABLES = tiny.GLOBALS["apply"], tiny.GLOBALS["variables"]
LAYER = "stage1/block1"


def test_units_and_their_patches():
    images = np.random.default_rng(0).random((7, *tiny.SHAPE), np.float32)
    found = patches.best(APPLY, VARIABLES, tiny.SHAPE, lambda: iter([images[:3], images[3:]]), LAYER, most=4, k=2)
    values = np.asarray(vis.activations(APPLY, VARIABLES, images, LAYER))
    strongest = values.max((0, 1, 2))
    order = [u for u in np.argsort(-strongest) if strongest[u] > 0][:4]
    assert found.units.tolist() == order
    # 3x3 of windows of 2x2 with 5x5 around each pixel: 10x10, two pixels apart, beginning four before the edge.
    assert found.window.size == (10, 10) and found.crops.shape == (len(order), 2, 10, 10, 1)
    for unit, crops in zip(order, found.crops, strict=True):
        image = values[..., unit].max((1, 2)).argmax()
        row, column = np.unravel_index(values[image, ..., unit].argmax(), values.shape[1:3])
        padded = np.pad(images[image, ..., 0], ((4, 10), (4, 10)))
        np.testing.assert_array_equal(crops[0, ..., 0], padded[2 * row : 2 * row + 10, 2 * column : 2 * column + 10])


def test_the_last_layer_whose_units_see_a_part():
    assert patches.last_layer_of_parts(APPLY, VARIABLES, tiny.SHAPE) == LAYER
    assert patches.last_layer_of_parts(APPLY, VARIABLES, (10, 10, 1)) == "stem"  # of which those see all
    assert patches.last_layer_of_parts(tiny.GLOBALS["linear"], tiny.GLOBALS["weights"], tiny.SHAPE) is None


def test_silent_units_have_no_patches():
    silent = {"params": {**VARIABLES["params"], "conv2": {k: -abs(v) for k, v in VARIABLES["params"]["conv2"].items()}}}
    with pytest.raises(BadRequest, match=r"no unit of 'stage1/block1' is above zero"):
        patches.best(APPLY, silent, tiny.SHAPE, lambda: iter([np.ones((2, *tiny.SHAPE), np.float32)]), LAYER)
