"""Layers, multiplications and receptive fields against arithmetic by hand, published numbers and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import models
from recvis_jax.operations import avg_pool, max_pool
from recvis_jax.vis import structure


def of(model, shape, **kw):
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(lambda key, x: model.init(key, x, **kw), jax.random.key(0), image)

    def apply(v, x):
        y = model.apply(v, x, **kw)
        return y[0] if isinstance(y, tuple) else y

    return {layer.name: layer for layer in structure.layers(apply, variables, shape)}


def of_model(name, shape, **kw):
    return of(models.create(name, **kw), shape, train=False)


def test_three_3x3_see_what_one_7x7_sees_for_27_against_49_weights():
    c = 16
    three = of(nn.Sequential([nn.Conv(c, (3, 3), use_bias=False) for _ in range(3)]), (32, 32, c))
    one = of(nn.Sequential([nn.Conv(c, (7, 7), use_bias=False)]), (32, 32, c))
    assert [layer.field for layer in three.values()] == [(3, 3), (5, 5), (7, 7)]
    assert [layer.field for layer in one.values()] == [(7, 7)]
    assert sum(layer.parameters for layer in three.values()) == 27 * c**2
    assert sum(layer.parameters for layer in one.values()) == 49 * c**2
    assert sum(layer.macs for layer in one.values()) == 32 * 32 * 49 * c**2


def test_lenet_by_hand():
    found = of_model("lenet5", (28, 28, 1))
    rows = {k: (v.shape, v.parameters, v.macs, v.field, v.stride, v.padding) for k, v in found.items()}
    assert rows["conv1"] == ((28, 28, 6), 156, 28 * 28 * 6 * 25, (5, 5), (1, 1), (2, 2))
    assert rows["pool1"] == ((14, 14, 6), 0, 0, (6, 6), (2, 2), (2, 2))
    assert rows["conv2"] == ((10, 10, 16), 2416, 10 * 10 * 16 * 25 * 6, (14, 14), (2, 2), (2, 2))
    assert rows["pool2"] == ((5, 5, 16), 0, 0, (16, 16), (4, 4), (2, 2))
    assert rows["fc1"] == ((120,), 48120, 48000, None, None, None)


# Millions of multiplications of one image of 224x224, as published or as counted by others; and receptive fields
# (Araujo et al. 2019; ResNet-50 with its strides in the 3x3 convolutions).
@pytest.mark.parametrize(
    "name, macs, last, field",
    [
        ("resnet18", 1814, "stage4_block2/conv2", 435),
        ("resnet50", 4089, "stage4_block3/conv3", 427),
        ("vgg16", 15470, None, None),
        ("alexnet", 714, None, None),
        ("vit_b16", 17564, "patch_embed/proj", 16),
        ("vit_s16", 4600, "patch_embed/proj", 16),
    ],
)
def test_published_multiplications_and_fields(name, macs, last, field):
    found = of_model(name, (224, 224, 3), num_classes=1000)
    assert sum(layer.macs for layer in found.values()) == pytest.approx(macs * 1e6, rel=0.005)
    variables = jax.eval_shape(
        lambda: models.create(name).init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False)
    )
    assert sum(layer.parameters for layer in found.values()) == sum(
        x.size for x in jax.tree.leaves(variables["params"])
    )
    if last:
        assert found[last].field == (field, field)


def test_scanned_blocks_count_as_often_as_they_run():
    plain, scanned = (of_model("vit_ti16", (64, 64, 3), depth=3, scan=scan) for scan in (False, True))
    assert sum(v.macs for v in plain.values()) == sum(v.macs for v in scanned.values())
    assert sum(v.parameters for v in plain.values()) == sum(v.parameters for v in scanned.values())


class Net(nn.Module):
    """Everything that a convolutional net may do to a place, with rows and columns treated differently."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 5), strides=(2, 1), padding=((1, 1), (2, 2)), name="a")(x)
        x = max_pool(nn.relu(x), 3, 2, 1)
        x = nn.Conv(2, (3, 3), kernel_dilation=(1, 2), padding="VALID", name="b")(x)
        left, right = nn.Conv(2, (1, 1), name="c")(x), nn.Conv(2, (3, 1), name="d")(x)
        x = jnp.concatenate([left, right], -1)
        x = nn.max_pool(jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0))), (2, 2), (1, 1))
        return nn.Conv(1, (1, 1), name="e")(avg_pool(x, 2, 1).transpose(0, 2, 1, 3).transpose(0, 2, 1, 3))


@pytest.mark.full
def test_fields_are_where_gradients_are():
    shape, net = (61, 57, 1), Net()
    layer = of(net, shape)["e"]
    rng = np.random.default_rng(0)
    # Positive weights and inputs: no path is cancelled, and random inputs reach every place of a maximum in turn.
    params = jax.tree.map(lambda x: jnp.abs(x) + 0.1, net.init(jax.random.key(0), jnp.zeros((1, *shape))))
    at = (5, 7)
    seen = np.zeros(shape[:2], bool)
    grad = jax.jit(jax.grad(lambda x: net.apply(params, x)[0, at[0], at[1], 0]))
    for _ in range(200):
        seen |= np.asarray(grad(jnp.asarray(rng.random((1, *shape)) ** 8, jnp.float32)))[0, :, :, 0] != 0
    for axis in (0, 1):
        places = np.flatnonzero(seen.any(1 - axis))
        first = at[axis] * layer.stride[axis] - layer.padding[axis]
        assert (places.min(), places.max()) == (first, first + layer.field[axis] - 1)
