"""One contract for every model of the table."""

import functools
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recvis_jax import models, trees, tried
from recvis_jax.errors import BadRequest, keywords
from recvis_jax.models import scan
from recvis_jax.models.mae import patchify

# The smallest of every class: attributes that make it small, and rows and columns of its images.
TOKENS = {"patch_size": 8, "width": 16, "depth": 2}
SMALL = {
    "linear": ({}, 28),
    "mlp": ({}, 28),
    "lenet5": ({}, 28),
    "convnet": ({}, 28),
    "speednet": ({"widths": (4, 8, 8), "blocks": (1, 0)}, 28),
    "resnet20": ({"depth": 8, "width": 4}, 28),
    "alexnet": ({"hidden": 256}, 64),
    "vgg_m": ({"hidden": 64}, 64),
    "vgg11": ({"width": 8, "blocks": (1, 1, 1, 1, 2), "hidden": 64}, 32),
    "googlenet": ({}, 64),
    "squeezenet1_1": ({"stem": (8, 3), "squeezes": (2, 2, 4), "pools": (2, 4)}, 32),
    "resnet18": ({"width": 4, "blocks": (1, 1)}, 32),
    "bit_r50x1": ({"width": 8, "norm_groups": 2, "blocks": (1, 1)}, 32),
    "vit_s16": ({**TOKENS, "heads": 2}, 24),
    "mixer_s16": ({**TOKENS, "tokens_dim": 4, "channels_dim": 8}, 24),
    "resmlp_12": (TOKENS, 24),
    "gmlp_s16": (TOKENS, 24),
    "ff_only_ti16": (TOKENS, 24),
    "convmixer_768_32": ({**TOKENS, "kernel_size": 3}, 24),
    "vit_s_r26_s32": ({"stages": (1, 1), "width": 16, "depth": 2, "heads": 2}, 32),
    "mae_b16": ({**TOKENS, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}, 24),
}
# The other forms of a class whose behaviour differs.
OTHERS = {
    "plain20": SMALL["resnet20"],
    "vgg11_bn": SMALL["vgg11"],
    "vgg13": ({"width": 8, "blocks": (1, 1), "fully_connected": False}, 32),
    "resnet50": ({"width": 4, "blocks": (1, 1)}, 32),
    "gmixer_12": SMALL["mixer_s16"],
}
SMALL |= OTHERS
AUTOENCODERS = ("mae_b16",)
CLASSIFIERS = [name for name in SMALL if name not in AUTOENCODERS]


def rows(names, slow=()):
    """Parameters of a test, those in `slow` so marked: they take longer than 20 seconds where nothing is cached."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


def create(name, num_classes=10, **kw):
    classes = {} if name in AUTOENCODERS else {"num_classes": num_classes}
    return models.create(name, **SMALL[name][0], **classes, **kw)


def rates(name, rate):
    """The attributes of the model that are probabilities of dropping something, all set to `rate`."""
    names = ("drop_path",) if name == "gmixer_12" else ("dropout", "dropout_aux", "drop_path")  # it drops no units
    return {k: rate for k in names if k in keywords(models.MODELS[name])}


def fill(spec, seed=0):
    """Variables of the given shapes, none of them special, drawn by numpy: compiling `init` takes far longer."""
    rng = np.random.default_rng(seed)

    def leaf(path, s):
        name, x = path[-1].key, rng.normal(0, 1, s.shape)
        if name == "kernel":
            return jnp.asarray(x * np.sqrt(2 / np.prod(s.shape[:-1])), s.dtype)
        return jnp.asarray(1 + 0.1 * np.abs(x) if name in ("scale", "var") else 0.1 * x, s.dtype)

    return jax.tree_util.tree_map_with_path(leaf, spec)


def images(name, batch):
    """Squares of random grey: noise of single pixels has the same mean everywhere, and some nets end in a mean."""
    size = SMALL[name][1] // 4
    grey = np.random.default_rng(1).standard_normal((batch, 4, 4, 1))
    return jnp.asarray(np.kron(grey, np.ones((1, size, size, 1))), jnp.float32)


def template(model, x):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))


def build(name, batch=2, **kw):
    model, x = create(name, **kw), images(name, batch)
    return model, fill(template(model, x)), x


def objective(output, acts, x, label):
    """The loss of a model's own output, and of everything that it is trained on."""
    if "mask" in acts:  # a masked autoencoder
        patch = x.shape[1] * x.shape[2] // output.shape[1]
        error = jnp.square(output - patchify(x, int(patch**0.5))).mean(-1)
        loss = (error * acts["mask"]).sum() / acts["mask"].sum()
        return loss, loss
    heads = [output, *(y for key, y in acts.items() if key.endswith("/logits"))]  # auxiliary ones too
    losses = [optax.softmax_cross_entropy_with_integer_labels(y, label).mean() for y in heads]
    return losses[0], sum(losses)


@functools.cache  # compiled once for all tests
def differentiated(name, **kw):
    """(params, other collections, x, label) -> ((total loss, (own loss, acts, new collections)), gradients)."""
    model = create(name, **{**rates(name, 0.0), **kw})

    return jax.jit(jax.value_and_grad(loss_of(model), has_aux=True))


def loss_of(model):
    """(params, other collections, x, label) -> (total loss, (own loss, acts, new collections))."""

    def loss(params, other, x, label):
        (output, acts), new = model.apply(
            {"params": params, **other}, x, train=True, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"]
        )
        own, total = objective(output, acts, x, label)
        return total, (own, acts, {**other, **new})

    return loss


def test_every_model_is_tested():
    classes = {getattr(constructor, "func", constructor).__name__ for constructor in models.MODELS.values()}
    assert {type(create(name)).__name__ for name in SMALL} == classes


@pytest.mark.parametrize("name", rows(SMALL))
def test_any_number_of_images(name):
    """The batch may be a symbol, as it is in exported files: no model counts its images in Python."""
    model, x = create(name), images(name, 2)
    shape = jax.ShapeDtypeStruct((jax.export.symbolic_shape("b")[0], *x.shape[1:]), x.dtype)
    with tried.plain():
        output, _ = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), template(model, x), shape)
    assert output.shape[0] == shape.shape[0]


@functools.cache
def forward_pass(name, dtype):
    """(variables, x) -> (output, acts) of a model of 7 classes. No rng streams: evaluation draws nothing."""
    model = create(name, num_classes=7, dtype=jnp.dtype(dtype))
    return jax.jit(lambda v, x: model.apply(v, x, train=False))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs(name, dtype):
    _, variables, x = build(name, num_classes=7, dtype=jnp.dtype(dtype))
    forward = forward_pass(name, dtype)
    output, acts = forward(variables, x)
    np.testing.assert_array_equal(forward(variables, x)[0], output)
    assert output.shape == ((2, 9, 64) if name in AUTOENCODERS else (2, 7)) and output.dtype == jnp.float32
    assert np.isfinite(output).all()
    assert {"stem", "features"} <= set(acts)
    assert acts["features"].ndim == 2 and len(acts["features"]) == 2
    np.testing.assert_array_equal(acts["pred" if name in AUTOENCODERS else "logits"], output)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
    if dtype == "bfloat16":
        exact, _ = forward_pass(name, "float32")(variables, x)
        np.testing.assert_allclose(output, exact, atol=0.05 * (1 + np.abs(exact).max()))


# What cannot change the output, so that its gradient is rounding alone: of a softmax, what is added to all its inputs,
# as keys' biases do for each query; of a norm over channels, what is added to all channels of a token; of a batch norm,
# the bias before it.
WITHOUT_EFFECT = {
    **dict.fromkeys(("vit_s16", "vit_s_r26_s32", "mae_b16"), "attention/key/bias"),
    **dict.fromkeys(("mixer_s16", "gmixer_12"), "mlp_tokens/fc2/bias"),
    "ff_only_ti16": "block1/mlp_tokens/fc2/bias",  # the last block's: others have norms over tokens after them
    "vgg11_bn": r"conv\d/bias",
}


@pytest.mark.parametrize("name", rows(SMALL, slow=("googlenet",)))
def test_every_parameter_gets_a_gradient(name):
    model, variables, x = build(name, batch=8)
    params = variables.pop("params")
    (_, (_, acts, new)), g = differentiated(name)(params, variables, x, jnp.arange(8))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(g))
    for where, leaf in trees.flatten(g).items():
        assert np.isfinite(leaf).all(), where
        idle = name in WITHOUT_EFFECT and re.search(WITHOUT_EFFECT[name], where)
        assert (np.abs(leaf).max() > 1e-6 * largest) != bool(idle), where
    _, evaluated = jax.eval_shape(lambda v: model.apply(v, x, train=False), {"params": params, **variables})
    assert acts.keys() == evaluated.keys()
    if name in CLASSIFIERS:  # an autoencoder sees fewer patches in training
        assert {k: v.shape for k, v in acts.items()} == {k: v.shape for k, v in evaluated.items()}
    assert new.keys() == variables.keys()
    for kind, tree in variables.items():
        for old, now in zip(jax.tree.leaves(tree), jax.tree.leaves(new[kind]), strict=True):
            assert old.shape == now.shape and np.any(old != now) == (kind == "batch_stats")


@pytest.mark.parametrize("name", rows(SMALL, slow=("googlenet",)))
def test_forward_mode_agrees_with_the_gradient(name):
    """Along the gradient g the loss rises by |g|^2."""
    _, variables, x = build(name, batch=8)
    params, label = variables.pop("params"), jnp.arange(8)
    _, g = differentiated(name)(params, variables, x, label)
    loss = loss_of(create(name, **rates(name, 0.0)))

    # Batch norms of nearly constant channels (vgg11_bn) make much of roundings, which unoptimised code has more of.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def along(g):
        return jax.jvp(lambda params: loss(params, variables, x, label)[0], (params,), (g,))[1]

    np.testing.assert_allclose(along(g), optax.global_norm(g) ** 2, rtol=1e-3)


@pytest.mark.parametrize("name", [n for n in SMALL if rates(n, 0.5)])
def test_training_needs_a_key_where_something_is_dropped(name):
    model, x = create(name, **rates(name, 0.5)), images(name, 2)
    variables = template(model, x)

    def train(**kw):
        return jax.eval_shape(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"], **kw), variables)

    assert train(rngs={"dropout": jax.random.key(0)})
    with pytest.raises(flax.errors.InvalidRngError):
        train()


# Adam's learning rate and the most steps; large nets learn 8 images in fewer, and each of theirs takes long.
OVERFIT = {"alexnet": (1e-3, 120), "vgg_m": (5e-4, 150), "googlenet": (1e-3, 100), "speednet": (3e-2, 150)}
LOOK = 10  # steps between looks at what is learnt


# SqueezeNet rectifies the scores of its classes: one that starts below zero on all eight images is never learnt.
LEARNING = [name for name in SMALL if name != "squeezenet1_1"]


@pytest.mark.parametrize("name", rows(LEARNING, slow=("alexnet", "googlenet", "vgg_m")))
def test_eight_images_are_learnt_by_heart(name):
    model, x = create(name, **rates(name, 0.0)), images(name, 8)
    lr, steps = OVERFIT.get(name, (1e-2, 150))
    optimizer = optax.adam(optax.cosine_decay_schedule(lr, steps))
    quick = {"xla_backend_optimization_level": 0}  # to compile, where it runs once
    init = jax.jit(lambda key: model.init(key, x, train=False), compiler_options=quick)
    variables = dict(init(jax.random.key(0)))
    params, label, losses = variables.pop("params"), jnp.arange(8), []
    state = optimizer.init(params)
    evaluate = jax.jit(lambda v: model.apply(v, x, train=False))

    @jax.jit
    def update(params, grads, state):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def learnt():
        if losses[-1] >= 0.3 or name not in CLASSIFIERS:
            return losses[-1] < 0.3
        output, _ = evaluate({"params": params, **variables})
        return bool((output.argmax(-1) == label).all())

    for step in range(steps):
        (_, (loss, _, variables)), grads = differentiated(name)(params, variables, x, label)
        losses.append(float(loss))
        params, state = update(params, grads, state)
        if step % LOOK == LOOK - 1 and learnt():
            break
    assert losses[0] > 0.9, "at the start it knows nothing: ln 10 for classes, 1 for images of variance 1"
    assert losses[-1] < 0.3 and learnt()


# What compiles or computes the same in another way, for one row of every class that can.
FORMS = [(n, f) for n in SMALL if n not in OTHERS for f in ("remat", "scan") if f in keywords(models.MODELS[n])]


@pytest.mark.parametrize("name, form", FORMS)
def test_other_forms_give_the_same_gradients(name, form):
    """With the same units dropped under remat; under scan blocks draw other numbers, so that nothing is dropped."""
    _, variables, x = build(name, batch=8)
    params, label = variables.pop("params"), jnp.arange(8)
    drop = rates(name, 0.2 if form == "remat" else 0.0)
    (expected, _), grads = differentiated(name, **drop)(params, variables, x, label)
    if form == "scan":
        params, grads, variables = scan.stack(params), scan.stack(grads), scan.stack(variables)
    (total, _), found = differentiated(name, **drop, **{form: True})(params, variables, x, label)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    found, grads = trees.flatten(found), trees.flatten(grads)
    assert found.keys() == grads.keys()
    largest = max(np.abs(leaf).max() for leaf in grads.values())
    for where, leaf in grads.items():
        np.testing.assert_allclose(found[where], leaf, rtol=1e-4, atol=1e-5 * largest, err_msg=where)


@pytest.mark.every
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (2, 32, 32, 3), (2, 33, 47, 3), (1, 96, 96, 3)])
def test_other_sizes_work_or_say_why(name, shape):
    model = create(name)

    def run():
        x = jnp.zeros(shape)
        return model.init_with_output(jax.random.key(0), x, train=False)

    try:
        (output, _), _ = jax.eval_shape(run)
    except BadRequest as e:
        assert "at least" in str(e) and f"{shape[1]}x{shape[2]}" in str(e)
        assert shape[1] != 96, "which is large enough, and made of whole patches"
    else:
        patches = (shape[1] // 8 * shape[2] // 8, 64 * shape[3])
        assert output.shape == (shape[0], *(patches if name in AUTOENCODERS else (10,)))


@pytest.mark.full
def test_unknown_names_and_values():
    with pytest.raises(BadRequest, match="resnet20"):
        models.create("resnet21")
    with pytest.raises(BadRequest, match="num_classes"):
        models.create("lenet5", num_clases=3)
    with pytest.raises(BadRequest, match="hidden"):
        models.create("mlp", hidden="512")
    for bad in ({"depth": 21}, {"shortcut": "C"}, {"norm": "bach"}, {"activation": "rely"}):
        with pytest.raises(BadRequest):
            jax.eval_shape(
                lambda kw=bad: models.create("resnet20", **kw).init(
                    jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False
                )
            )
