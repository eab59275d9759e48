"""Arithmetic against formulas worked by hand, and what is compiled against what is asked for."""

import jax
import jax.numpy as jnp
import pytest

from recvis_jax import build
from recvis_jax.planning import collectives, compiling, cost, flops, hlo, topology


def run_of(name="vit_ti16", devices=None, size=32, task="classify", **kw):
    """A run on mock images of CIFAR's kind, scaled to `size`."""
    model = {k.removeprefix("model__"): kw.pop(k) for k in list(kw) if k.startswith("model__")}
    data = dict(
        name="cifar10", mock=16, train="train", test=None, transform=f"resize_crop({size})", statistics="cifar10"
    )
    settings = dict(batch_size=16, steps=10**6, optim=dict(name="adamw", lr=1e-3), task=dict(name=task)) | kw
    settings.pop("accumulate", None)
    return build.make_run(
        data=data, model=dict(name=name, **model), devices=devices or jax.devices()[:1],
        accumulate=kw.get("accumulate", 1), **settings,
    )  # fmt: skip


def model_flops(run):
    batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in compiling.batch_of(run).items()}
    augmented = jax.eval_shape(run.data.augment, jax.random.key(0), batch)
    return flops.model_flops(run.task, run.template, augmented)


def block(n, d):
    """Multiplications of a block on n tokens of width d: query, key, value and out; scores and their sums; the MLP."""
    return 4 * n * d * d + 2 * n * n * d + 8 * n * d * d


@pytest.mark.full
def test_vision_transformers_by_formula():
    for name, width, depth in (("vit_s16", 384, 12), ("vit_b16", 768, 12)):
        run = run_of(
            name, size=224, model__pool="gap", model__positions="sincos2d", model__num_classes=1000, batch_size=2
        )
        expected = 196 * 768 * width + depth * block(196, width) + width * 1000
        assert model_flops(run) == pytest.approx(6 * 2 * expected, rel=0.02)


@pytest.mark.full
def test_a_masked_autoencoder_sees_a_quarter():
    run = run_of("mae_b16", size=224, task="mae", batch_size=2)
    encoder = 196 * 768 * 768 + 12 * block(1 + 49, 768)
    decoder = 50 * 768 * 512 + 8 * block(197, 512) + 197 * 512 * 768
    assert model_flops(run) == pytest.approx(6 * 2 * (encoder + decoder), rel=0.02)


@pytest.mark.full
def test_resnet50_by_formula():
    """Stages of (blocks, size, width): 1x1, 3x3 and 1x1 to four times the width; He et al. 2015, table 1."""
    total, channels = 112**2 * 49 * 3 * 64, 64
    for blocks, size, width in ((3, 56, 64), (4, 28, 128), (6, 14, 256), (3, 7, 512)):
        for i in range(blocks):
            before = size * 2 if i == 0 and width > 64 else size  # the stride is in the 3x3
            total += before**2 * channels * width + size**2 * (9 * width * width + 4 * width * width)
            total += size**2 * channels * 4 * width if i == 0 else 0
            channels = 4 * width
    total += channels * 1000
    assert total == pytest.approx(4.089e9, rel=1e-3)  # as torchvision counts
    run = run_of("resnet50", size=224, model__num_classes=1000, batch_size=2)
    assert model_flops(run) == pytest.approx(6 * 2 * total, rel=0.02)


def step_of(run, accumulate=1):
    return compiling.compile_step(run, topology.parse(f"cpu:{run.mesh.size}")[0], accumulate=accumulate)


WAYS = {
    "plain": {},
    "fsdp": dict(sharding="fsdp", batch_size=32),
    "scan": dict(model__scan=True),
    "remat": dict(model__remat=True),
    "scan and accumulate": dict(model__scan=True, accumulate=2),
    "all": dict(model__scan=True, model__remat=True, accumulate=2, sharding="fsdp", dtype="bfloat16"),
}


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_what_is_compiled_is_what_is_asked_for(way):
    """On four devices, whatever the way: products and loops of XLA's program add up to those of the step's own."""
    kw = WAYS[way]
    run = run_of(model__width=64, model__heads=2, model__depth=3, devices=jax.devices()[:4], **kw)
    found = step_of(run, kw.get("accumulate", 1))
    asked = flops.step_flops(found.traced)
    counts = hlo.count_runs(found.program)
    assert not counts.unknown
    assert 4 * cost.cost_of(found.program, counts).flops == pytest.approx(asked, rel=0.01)
    # Three passes but for the gradient of the images; with remat all but the last product of a block once more.
    whole, first = model_flops(run), 2 * run.batch_size * 4 * 768 * 64
    blocks = 2 * run.batch_size * 3 * (block(5, 64) - 4 * 5 * 64 * 64)
    assert asked == pytest.approx(whole - first + (blocks if kw.get("model__remat") else 0), rel=0.01)
    exchanged = collectives.collectives_of(found.program, counts, 4)
    assert exchanged and max(c.size for c in exchanged) == 4
    if not kw.get("sharding") and not kw.get("accumulate"):  # all gradients are summed once, and little else
        gradients = 4 * sum(x.size for x in jax.tree.leaves(run.template.params))
        assert sum(c.times * c.bytes for c in exchanged if c.kind == "all-reduce") == pytest.approx(gradients, rel=0.05)


def test_a_strided_convolution_and_its_gradients():
    """The same products in all three: none with padding, none with the holes of the gradient."""

    def f(x, k):
        return jax.lax.conv_general_dilated(x, k, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def gradients(x, k, g):
        return jax.vjp(f, x, k)[1](g)

    x, k = jnp.zeros((6, 7, 7, 2)), jnp.zeros((3, 3, 2, 5))
    forward = jax.make_jaxpr(f)(x, k).jaxpr
    both = jax.make_jaxpr(gradients)(x, k, jnp.zeros((6, 4, 4, 5))).jaxpr
    # 4 outputs of 3 taps, of which the first and the last meet the padding: 10 products an axis.
    expected = 10 * 10 * 2 * 5 * 6
    assert flops.count(forward, flops.macs_that_matter) == expected
    assert flops.count(both, flops.macs_that_matter) == (1 + 2) * expected, "vjp runs the forward pass too"


def test_programs_within_programs():
    def f(x):
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x, x)
        return jax.lax.scan(lambda c, _: (jax.checkpoint(lambda c: c @ c)(c), None), x, None, length=7)[0]

    assert flops.count(jax.make_jaxpr(f)(jnp.zeros((4, 4))).jaxpr, flops.macs_that_matter) == 8 * 4**3
