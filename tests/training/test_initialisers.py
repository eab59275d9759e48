"""Parameters drawn in loops are those drawn one by one, by a program that does not grow with depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recvis_jax import models
from recvis_jax.tasks.applying import initialiser
from recvis_jax.training import initialisers

KINDS = {
    "vit": dict(name="vit_ti8", depth=3, width=24),
    "scanned vit": dict(name="vit_ti8", depth=3, width=24, scan=True),
    "resnet": dict(name="resnet20", depth=14, width=4),
    "lenet": dict(name="lenet5"),
}


def make(name, **kw):
    net = models.create(name, num_classes=3, **kw)
    return initialiser(net, (16, 16, 3) if name != "lenet5" else (28, 28, 1))


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_same_to_the_bit(kind):
    init, key = make(**KINDS[kind]), jax.random.key(5)
    plain, looped = init(key), jax.jit(initialisers.looped(init))(key)
    jax.tree.map(np.testing.assert_array_equal, looped, plain)
    assert jax.tree.structure(plain) == jax.tree.structure(looped)


@pytest.mark.full
def test_program_does_not_grow_with_depth():
    shallow, deep = (make(**KINDS["vit"] | {"depth": depth}) for depth in (3, 9))
    few, many = (str(jax.make_jaxpr(initialisers.looped(init))(jax.random.key(0))) for init in (shallow, deep))
    assert few.count("while") == many.count("while") and few.count("scan[") == many.count("scan[") > 0


@pytest.mark.full
def test_what_is_alike_but_for_its_distribution_keeps_it():
    def init(key):
        a, b, c, d = (jax.random.fold_in(key, n) for n in range(4))
        scaled = 2 * jax.random.normal(b, (4,))
        return dict(
            a=jax.random.normal(a, (4,)),
            b=scaled,
            c=jax.random.normal(c, (4,)),
            d=jax.random.uniform(d, (4,)),
            e=jnp.ones(4),
            f=jax.random.normal(jax.random.fold_in(a, 7), (4,)),
            g=jax.random.normal(key, (4,)),
            h=jax.random.normal(jax.random.fold_in(key, jnp.arange(3)[1]), (4,)),
        )

    key = jax.random.key(1)
    jax.tree.map(np.testing.assert_array_equal, initialisers.looped(init)(key), init(key))
