"""Optimizers and schedules against formulas worked by hand and against optax's own compositions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recvis_jax import trees
from recvis_jax.errors import BadRequest
from recvis_jax.training.optim import OPTIMIZERS, SCHEDULES, ema_update, make_optimizer, make_schedule


def tree(seed):
    """Parameters of every kind an optimizer may treat apart, with values that a careless sum would change."""
    rng = np.random.default_rng(seed)
    shapes = {
        "conv": {"kernel": (2, 2, 2, 3), "bias": (3,)},
        "norm": {"scale": (3,), "bias": (3,)},
        "attn": {"query": {"kernel": (3, 2, 2)}},
        "embed": {"embedding": (3, 4)},
        "head": {"kernel": (4, 2), "bias": (2,)},
    }
    p = jax.tree.map(lambda s: rng.normal(size=s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))
    p["norm"]["bias"] = np.array([0.0, -0.0, 1e-30], np.float32)
    return p


P, G = tree(0), tree(1)
make = functools.partial(make_optimizer, params=P, total_steps=100, schedule="constant")


def run(opt, params, gradients):
    """Returns the parameters after each gradient; not jitted, which for so few steps would take longer."""
    params, gradients = jax.tree.map(jnp.asarray, (params, gradients))
    state, path = opt.init(params), []
    for g in gradients:
        updates, state = opt.update(g, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def same(a, b, **kw):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{"rtol": 1e-5, "atol": 1e-7, **kw}), a, b)


# --- every optimizer ---

RATES = {"sgd": 0.1, "momentum": 0.03, "nesterov": 0.03, "lars": 3.0}
HARD = {"weight_decay": 0.1, "clip_norm": 1.0, "lr_multipliers": (("bias$", 2.0),)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_contract(name):
    opt = make(name, lr=RATES.get(name, 0.03), freeze="^norm/", **HARD)
    state = jax.jit(opt.init)(P)
    names = list(trees.flatten(state))  # unique names, or it raises
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    assert not [n for n in names if "norm/" in n], "frozen parameters have no state"
    assert any(n.endswith("lr/count") for n in names)

    def loss(p):
        return sum(np.sum((x - t) ** 2) for x, t in zip(jax.tree.leaves(p), jax.tree.leaves(G), strict=True))

    @jax.jit
    def train(params, state):
        updates, state = opt.update(jax.tree.map(lambda x, t: 2 * (x - t), params, G), state, params)
        return optax.apply_updates(params, updates), state, updates

    describe = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    params, before = P, describe(state)
    for _ in range(20):
        params, state, updates = train(params, state)
    assert describe(state) == before
    assert describe(updates) == describe(P)
    params = jax.device_get(params)
    assert loss(params) < 0.9 * loss(P)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    changed = {n for n, x in trees.flatten(params).items() if x.tobytes() != trees.flatten(P)[n].tobytes()}
    assert changed == {n for n in trees.flatten(P) if not n.startswith("norm/")}


@pytest.mark.parametrize("decay_style", ["coupled", "decoupled"])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_decay_leaves_biases_and_norms_alone(name, decay_style):
    zero = jax.tree.map(np.zeros_like, G)
    (after,) = run(make(name, lr=0.1, weight_decay=0.5, decay_style=decay_style), P, [zero])
    changed = {n for n, x in trees.flatten(after).items() if not np.array_equal(x, trees.flatten(P)[n])}
    assert changed == {"conv/kernel", "attn/query/kernel", "embed/embedding", "head/kernel"}
    (after,) = run(make("sgd", lr=0.1, weight_decay=0.5, decay=None), P, [zero])
    same(after, jax.tree.map(lambda p: p * (1 - 0.1 * 0.5), P))


# --- two steps by hand: p, g1, g2 -> the parameters after each; all kernels decay ---

LR, WD = 0.1, 0.01


def by_hand(name, p, g1, g2):
    p, g1, g2 = (x.astype(np.float64) for x in (p, g1, g2))
    if name == "sgd":
        q = p - LR * (g1 + WD * p)
        return q, q - LR * (g2 + WD * q)
    if name in ("momentum", "nesterov"):
        ahead = 1 if name == "nesterov" else 0
        v = g1 + WD * p
        q = p - LR * ((g1 + WD * p + 0.8 * v) if ahead else v)
        g2 = g2 + WD * q
        v = 0.8 * v + g2
        return q, q - LR * ((g2 + 0.8 * v) if ahead else v)
    if name in ("adam", "adamw"):
        coupled = name == "adam"
        path, m, v = [p], 0, 0
        for t, g in enumerate([g1, g2], 1):
            p = path[-1]
            g = g + WD * p * coupled
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
            d = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
            path.append(p - LR * (d + WD * p * (not coupled)))
        return path[1:]
    if name == "lion":
        q = p - LR * (np.sign(0.2 * g1) + WD * p)
        m = 0.05 * g1
        return q, q - LR * (np.sign(0.8 * m + 0.2 * g2) + WD * q)
    raise AssertionError(name)


ARGS = {
    "sgd": {},
    "momentum": {"momentum": 0.8},
    "nesterov": {"momentum": 0.8},
    "adam": {"b1": 0.8, "b2": 0.95, "eps": 1e-6},
    "adamw": {"b1": 0.8, "b2": 0.95, "eps": 1e-6},
    "lion": {"b1": 0.8, "b2": 0.95},
}


@pytest.mark.parametrize("name", ARGS)
def test_two_steps_by_hand(name):
    p, g1, g2 = ({"kernel": tree(seed)["conv"]["kernel"]} for seed in (0, 1, 2))
    opt = make(name, params=p, lr=LR, weight_decay=WD, **ARGS[name])
    one, two = by_hand(name, p["kernel"], g1["kernel"], g2["kernel"])
    same(run(opt, p, [g1, g2]), [{"kernel": one}, {"kernel": two}])


MASK = trees.mask(P, r"(kernel|embedding)$")
MATRICES = jax.tree.map(lambda x: x.ndim > 1, P)


@pytest.mark.parametrize(
    "name, other",
    [
        ("adamw", lambda s: optax.adamw(s, weight_decay=WD, mask=MASK)),
        ("lion", lambda s: optax.lion(s, weight_decay=WD, mask=MASK)),
        ("lamb", lambda s: optax.lamb(s, weight_decay=WD, mask=MASK)),
        ("lars", lambda s: optax.lars(LR, WD, weight_decay_mask=MASK, trust_ratio_mask=MATRICES)),
        ("adafactor", lambda s: optax.adafactor(s)),
        (
            "muon",
            lambda s: optax.contrib.muon(
                s,
                consistent_rms=0.2,
                muon_weight_dimension_numbers=jax.tree.map(lambda _: None, P)
                | {
                    "conv": {"kernel": optax.contrib.MuonDimensionNumbers((0, 1, 2), (3,)), "bias": None},
                    "attn": {"query": {"kernel": optax.contrib.MuonDimensionNumbers((0,), (1, 2))}},
                },
            ),
        ),
    ],
)
def test_equals_the_composition_of_optax(name, other):
    varying = name != "lars"  # optax's has the learning rate inside the momentum
    schedule = {"schedule": "cosine", "total_steps": 5} if varying else {}
    decay = 0.0 if name in ("adafactor", "muon") else WD  # optax's adafactor does not multiply decay by the rate
    opt = make(name, lr=LR, weight_decay=decay, **schedule)
    reference = other(optax.cosine_decay_schedule(LR, 5))
    same(run(opt, P, [G, tree(2)]), run(reference, P, [G, tree(2)]))


def test_muon_orthogonalises_convolutions_as_matrices():
    p = {"conv": {"kernel": np.zeros((2, 2, 3, 4), np.float32)}}
    g = {"conv": {"kernel": np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)}}
    opt = make("muon", params=p, lr=1.0, optimizer_args={"consistent_rms": None})
    u = -run(opt, p, [g])[0]["conv"]["kernel"].reshape(12, 4)
    values = np.linalg.svd(u, compute_uv=False)
    assert 0.6 < values.min() and values.max() < 1.3  # Newton-Schulz ends near 1, by design not at it
    left, _, right = np.linalg.svd(g["conv"]["kernel"].reshape(12, 4), full_matrices=False)
    assert np.sum(u * (left @ right)) / np.linalg.norm(u) / 2 > 0.95


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_decoupled_decay_is_multiplied_by_the_rate(name):
    g = [G]
    (plain,), (decayed,) = (run(make(name, lr=LR, weight_decay=wd), P, g) for wd in (0.0, 0.5))
    same(
        jax.tree.map(lambda a, b: b - a, plain, decayed),
        jax.tree.map(lambda p, m: -LR * 0.5 * p * m, P, MASK),
        atol=1e-6,
    )


# --- clipping, freezing, multipliers ---


@pytest.mark.parametrize("clip", [0.5, 1e3])
def test_clip_norm_is_that_of_trained_parameters(clip):
    g = {**G, "norm": jax.tree.map(lambda x: 1e6 * x, G["norm"])}
    (after,) = run(make("sgd", lr=1.0, freeze="^norm/", clip_norm=clip), P, [g])
    norm = math.sqrt(sum(np.sum(x.astype(np.float64) ** 2) for n, x in trees.flatten(G).items() if "norm/" not in n))
    expected = jax.tree.map(lambda p, x: p - x * min(1, clip / norm), P, G)
    same(after, {**expected, "norm": P["norm"]})


def test_clip_comes_before_coupled_decay():
    (after,) = run(make("sgd", lr=1.0, clip_norm=0.5, weight_decay=0.1, decay=None), P, [G])
    norm = math.sqrt(sum(np.sum(x.astype(np.float64) ** 2) for x in jax.tree.leaves(G)))
    same(after, jax.tree.map(lambda p, g: p - g * 0.5 / norm - 0.1 * p, P, G))


def test_freezing_does_not_change_the_rest():
    adamw = functools.partial(make, "adamw", lr=LR, weight_decay=WD)
    free, frozen = (run(opt, P, [G, G])[-1] for opt in (adamw(), adamw(freeze="^(?!head/)")))
    same(frozen["head"], free["head"], rtol=1e-6)
    for n, x in trees.flatten(frozen).items():
        assert n.startswith("head/") or x.tobytes() == trees.flatten(P)[n].tobytes()


def test_lr_multipliers_first_match_wins():
    m = (("^head/bias$", 0.0), ("bias$", 64.0), ("^head/", 0.5))
    plain, multiplied = (run(make("adamw", lr=1e-3, weight_decay=0.1, lr_multipliers=x), P, [G])[0] for x in ((), m))
    factors = {n: 1.0 for n in trees.flatten(P)} | {"head/bias": 0.0, "head/kernel": 0.5}
    factors |= {"conv/bias": 64.0, "norm/bias": 64.0}
    for n, factor in factors.items():
        p, a, b = (trees.flatten(t)[n] for t in (P, plain, multiplied))
        np.testing.assert_allclose(b - p, factor * (a - p), rtol=1e-3, atol=1e-6)


def test_shapes_are_enough_and_the_schedule_is_the_one_used():
    opt = make("sgd", params=jax.eval_shape(lambda: P), lr=0.2, batch_size=64, base_batch=256, schedule="linear")
    assert float(opt.schedule(0)) == pytest.approx(0.2 * 64 / 256)
    one, two = run(opt, P, [G, G])
    same(jax.tree.map(jnp.subtract, one, P), jax.tree.map(lambda g: -opt.schedule(0) * g, G), atol=1e-6)
    same(jax.tree.map(jnp.subtract, two, one), jax.tree.map(lambda g: -opt.schedule(1) * g, G), atol=1e-6)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("adamm", {}, "unknown optimizer 'adamm'. Did you mean 'adam'"),
        ("adam", {"momentum": 0.9}, "'adam' takes no 'momentum'; it takes b1, b2, eps"),
        ("sgd", {"b1": 0.9}, "'sgd' takes no 'b1'; it takes no arguments"),
        ("lars", {"optimizer_args": {"trust": 1}}, "it takes momentum, trust_coefficient, eps"),
        ("lars", {"optimizer_args": {"trust_coefficient": "1"}}, "of type str; it takes float"),
        ("momentum", {"momentum": 1.0}, "optim.momentum is 1.0"),
        ("adam", {"b2": -0.1}, "optim.b2 is -0.1"),
        ("sgd", {"lr": -1.0}, "lr is -1.0"),
        ("sgd", {"lr": math.nan}, "lr is nan"),
        ("sgd", {"weight_decay": -1e-4}, "weight_decay is -0.0001"),
        ("sgd", {"weight_decay": 0.1, "decay": "kernal$"}, "'kernal\\$' matches none of the 8 names"),
        ("sgd", {"freeze": "heads"}, "'heads' matches none"),
        ("sgd", {"freeze": "."}, "freezes every parameter"),
        ("sgd", {"clip_norm": 0.0}, "clip_norm is 0.0"),
        ("sgd", {"lr_multipliers": (("bias$", -1.0),)}, "lr_multipliers has -1.0"),
        ("sgd", {"lr_multipliers": (("biass$", 1.0),)}, "'biass\\$' matches none"),
        ("sgd", {"total_steps": 0}, "total_steps is 0"),
        ("sgd", {"warmup": 101}, "longer than the whole training of 100"),
        ("sgd", {"warmup": -1}, "warmup is -1"),
        ("sgd", {"warmup": 1.0}, "fraction of training below 1"),
        ("sgd", {"warmup": 2, "warmup_epochs": 2.0, "steps_per_epoch": 10}, "give one"),
        ("sgd", {"warmup_epochs": 2.0}, "needs the epoch's length"),
        ("sgd", {"warmup_epochs": 20, "steps_per_epoch": 10}, "200 updates, longer"),
        ("sgd", {"base_batch": 256}, "needs the batch size"),
        ("sgd", {"schedule": "cosin"}, "unknown schedule 'cosin'. Did you mean 'cosine'"),
        ("sgd", {"schedule": "cosine", "schedule_args": {"alpha": 0.1}}, "unknown key schedule_args.alpha.*: final"),
        ("sgd", {"schedule": "cosine", "schedule_args": {"final": 2.0}}, "final is 2.0"),
        ("sgd", {"schedule": "step", "schedule_args": {"boundaries": (200,)}}, "200 updates, longer"),
        ("sgd", {"schedule": "step", "schedule_args": {"boundaries": (5,)}, "warmup": 6}, "after the warm-up"),
        ("sgd", {"schedule": "step", "schedule_args": {"factor": -1.0}}, "factor is -1.0"),
        ("sgd", {"schedule": "rsqrt", "schedule_args": {"timescale": 0}}, "timescale is 0"),
        ("sgd", {"schedule": "rsqrt", "schedule_args": {"cooldown": 0.9}, "warmup": 0.2}, "longer than training"),
        ("sgd", {"schedule": "one_cycle", "warmup": 5}, "has its own warm-up"),
        ("sgd", {"schedule": "one_cycle", "schedule_args": {"shape": "line"}}, "Did you mean 'linear'"),
    ],
)
def test_bad_requests(name, change, message):
    with pytest.raises(BadRequest, match=message):
        make(name, **{"lr": 0.1, **change})


# --- schedules ---

HALF = math.sqrt(0.5)


@pytest.mark.parametrize(
    "name, kwargs, points",
    [
        ("constant", {}, {0: 1, 99: 1}),
        ("constant", {"cooldown": 0.2}, {80: 1, 90: 0.5, 95: 0.25, 100: 0}),
        ("constant", {"warmup_steps": 4}, {0: 0.25, 1: 0.5, 3: 1, 4: 1, 99: 1}),
        ("constant", {"warmup_steps": 0.1}, {0: 0.1, 4: 0.5, 9: 1, 10: 1}),
        ("constant", {"warmup_steps": 1}, {0: 1, 1: 1}),
        ("step", {}, {0: 1, 49: 1, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01}),
        ("step", {"boundaries": (0.3, 60), "factor": 0.5, "warmup_steps": 10}, {0: 0.1, 29: 1, 30: 0.5, 60: 0.25}),
        ("step", {"boundaries": (0.301, 0.302)}, {29: 1, 30: 0.01}),
        ("cosine", {}, {0: 1, 25: (1 + HALF) / 2, 50: 0.5, 75: (1 - HALF) / 2, 100: 0}),
        ("cosine", {"final": 0.2}, {0: 1, 50: 0.6, 100: 0.2, 200: 0.2}),
        ("cosine", {"warmup_steps": 20}, {0: 0.05, 19: 1, 20: 1, 40: (1 + HALF) / 2, 60: 0.5, 100: 0}),
        ("cosine", {"warmup_steps": 100}, {0: 0.01, 99: 1}),
        ("linear", {"final": 0.1, "warmup_steps": 50}, {0: 0.02, 49: 1, 50: 1, 75: 0.55, 100: 0.1}),
        ("rsqrt", {"timescale": 20, "warmup_steps": 10}, {0: 0.1, 9: 1, 10: 1, 30: HALF, 70: 0.5}),
        ("rsqrt", {"timescale": 20, "warmup_steps": 10, "cooldown": 60}, {30: HALF, 40: 0.4**0.5, 70: 0.25, 100: 0}),
        ("one_cycle", {"peak": 0.2, "start": 0.1, "final": 0.05}, {0: 0.1, 10: 0.55, 20: 1, 60: 0.525, 100: 0.05}),
        ("one_cycle", {"peak": 20, "start": 0.0}, {0: 0, 5: 0.25, 20: 1, 60: 0.5, 100: 0}),
        (
            "one_cycle",
            {"peak": 0.2, "start": 0.1, "final": 0.05, "shape": "cosine"},
            {0: 0.1, 5: 0.1 + 0.9 * (1 - HALF) / 2, 10: 0.55, 20: 1, 60: 0.525, 100: 0.05},
        ),
    ],
)
def test_schedules_at_points(name, kwargs, points):
    schedule = make_schedule(name, lr=0.4, total_steps=100, **kwargs)
    values = np.array([schedule(t) for t in points])
    np.testing.assert_allclose(values, 0.4 * np.array(list(points.values())), rtol=2e-5, atol=1e-7)
    traced = jax.jit(jax.vmap(lambda t: jnp.asarray(schedule(t), jnp.float32)))(jnp.array(list(points)))
    np.testing.assert_allclose(traced, values, rtol=1e-5, atol=1e-7)


def test_one_cycle_equals_that_of_optax():
    ours = make_schedule("one_cycle", lr=0.4, total_steps=50, peak=0.3, start=1 / 25, final=1 / 25e4, shape="cosine")
    theirs = optax.cosine_onecycle_schedule(50, 0.4)
    for t in range(0, 50, 7):
        np.testing.assert_allclose(ours(t), theirs(t), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total_steps", [1, 2, 7])
def test_short_trainings_are_finite(name, total_steps):
    for warmup in {0, 0.3, 1} if name != "one_cycle" else {0}:
        schedule = make_schedule(name, lr=0.1, total_steps=total_steps, warmup_steps=warmup)
        values = np.array([schedule(t) for t in range(total_steps + 1)])
        assert np.isfinite(values).all() and (values >= 0).all() and (values <= 0.1 + 1e-7).all() and values[0] > 0


def test_warmup_in_epochs():
    schedule = make("sgd", lr=1.0, warmup_epochs=1.5, steps_per_epoch=10).schedule
    np.testing.assert_allclose([schedule(t) for t in (0, 14, 15)], [1 / 15, 1, 1], rtol=1e-6)


# --- moving average ---


def test_ema_by_hand():
    key = jax.random.key(3)
    ema = {"w": jnp.array([1.0, 2.0]), "n": jnp.array(1), "key": jax.random.key(0), "half": jnp.ones(1, jnp.bfloat16)}
    new = {"w": jnp.array([3.0, 0.0]), "n": jnp.array(8), "key": key, "half": jnp.zeros(1, jnp.bfloat16)}
    out = ema_update(ema, new, 0.75)
    np.testing.assert_allclose(out["w"], [1.5, 1.5])
    assert int(out["n"]) == 8 and out["key"] == key and out["half"].dtype == jnp.bfloat16
    for t, decay in [(0, 0.1), (2, 0.25), (1000, 0.75)]:
        out = jax.jit(functools.partial(ema_update, decay=0.75))(ema, new, step=t)
        np.testing.assert_allclose(out["w"], [decay * 1 + (1 - decay) * 3, decay * 2], rtol=1e-6)


def test_ema_of_equal_values_stays_equal_to_the_bit():
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert np.asarray(ema_update({"x": jnp.asarray(x)}, {"x": x}, 0.9993, 17)["x"]).tobytes() == x.tobytes()
