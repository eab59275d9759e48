# %% [markdown]
# # 4. Training
#
# **Takes about a minute and a half on two cores.** Data: scikit-learn's handwritten digits.
#
# A network is a function with many numbers in it; training finds good ones. This part walks down a surface that can be
# drawn, derives the gradient of a small network by hand, looks at losses, and then makes on purpose what usually
# happens by accident: six ways in which learning curves go, and what helps against each.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import recvis_jax as rv
from recvis_jax.tasks import losses

plt.rcParams["figure.constrained_layout.use"] = True

# %% [markdown]
# ## Walking down a surface
#
# The smallest network: one weight, one bias, $\hat y = w x + b$. The loss is the mean squared error over 256 points.
# It has a value for each pair $(w, b)$: a surface over a plane, and training is a walk on it.

# %%
rng = np.random.default_rng(0)
x = rng.normal(0.5, 1, 256).astype(np.float32)
y = (1.5 * x - 0.5 + rng.normal(0, 1, 256)).astype(np.float32)


@jax.jit
def loss(wb, x, y):
    return jnp.mean((wb[0] * x + wb[1] - y) ** 2)


best = np.linalg.lstsq(np.c_[x, np.ones(256)], y, rcond=None)[0]
slope = jax.jit(jax.grad(loss))
assert np.allclose(slope(jnp.asarray(best, jnp.float32), x, y), 0, atol=1e-4)

# %% [markdown]
# The **gradient** points uphill, so each step goes a little the other way. From all examples, the direction is exact
# and dear. From *one* example it is cheap and wrong, but right on average. A **mini-batch** lies in between: its error
# falls with the square root of its size.


# %%
def walk(size, rate=0.12, steps=80):
    draws, path = np.random.default_rng(1), [np.array([-1.5, 2.5], np.float32)]
    for _ in range(steps):
        rows = draws.choice(256, size, replace=False)
        path.append(path[-1] - rate * np.asarray(slope(path[-1], x[rows], y[rows])))
    return np.stack(path)


paths = {"all 256 examples": walk(256), "one example": walk(1), "mini-batches of 16": walk(16)}
ends = {name: np.linalg.norm(path[-20:] - best, axis=1).mean() for name, path in paths.items()}
assert ends["all 256 examples"] < ends["mini-batches of 16"] < ends["one example"]

# %%
grid = np.stack(np.meshgrid(np.linspace(-2.2, 3.5, 60), np.linspace(-2.5, 3.2, 60)), axis=-1).astype(np.float32)
surface = jax.vmap(jax.vmap(lambda wb: loss(wb, x, y)))(grid)
_, places = plt.subplots(1, 3, figsize=(10, 3.3), sharey=True)
for place, (name, path) in zip(places, paths.items(), strict=True):
    place.contour(grid[..., 0], grid[..., 1], surface, levels=np.geomspace(1.05, 25, 12), colors="lightgray")
    place.plot(*path.T, ".-", ms=3, lw=0.8)
    place.plot(*best, "r*", ms=10)
    place.set_title(name, fontsize=10)
    place.set_xlabel("w")
places[0].set_ylabel("b")
plt.show()

# %% [markdown]
# All three have made 80 steps; but the third has looked at 16 times fewer examples than the first. That is why
# everyone uses mini-batches.
#
# ## The learning rate
#
# Too small, and the walk takes for ever; too large, and each step jumps across the valley to a higher place. On a
# quadratic surface the border is known: 2 over the largest curvature (eigenvalue of the second derivatives).

# %%
curvature = float(np.linalg.eigvalsh(jax.hessian(loss)(jnp.asarray(best, jnp.float32), x, y)).max())
rates = {"too small": 0.01 / curvature, "good": 1 / curvature, "nearly too large": 1.9 / curvature}
rates |= {"too large": 2.05 / curvature}
falls = {name: [float(loss(wb, x, y)) for wb in walk(256, rate, 40)] for name, rate in rates.items()}
assert falls["good"][-1] < falls["too small"][-1] and falls["too large"][-1] > falls["too large"][0]
plt.figure(figsize=(6, 2.6))
for name, fall in falls.items():
    plt.semilogy(fall, label=f"{name}: {rates[name]:.3f}")
plt.xlabel("step")
plt.ylabel("loss")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# Surfaces of real networks are long valleys: steep across, flat along. **Momentum** keeps a running mean of the
# gradients, so that what alternates cancels; **Adam** divides each parameter's step by the size of its own gradients.
# Here is a valley a hundred times steeper in one direction.


# %%
def descend(optimizer, steps=60):
    at, path = jnp.array([-4.0, 1.0]), [(-4.0, 1.0)]
    state = optimizer.init(at)
    for _ in range(steps):
        moved, state = optimizer.update(jnp.array([0.02, 2.0]) * at, state)
        at = optax.apply_updates(at, moved)
        path.append(tuple(np.asarray(at)))
    return np.array(path)


routes = {"gradient descent": optax.sgd(0.9), "momentum": optax.sgd(0.2, momentum=0.9), "Adam": optax.adam(0.2)}
routes = {name: descend(optimizer) for name, optimizer in routes.items()}
heights = {name: 0.01 * route[-1, 0] ** 2 + route[-1, 1] ** 2 for name, route in routes.items()}
assert heights["momentum"] < heights["gradient descent"] and heights["Adam"] < heights["gradient descent"]

# %%
a, b = np.meshgrid(np.linspace(-4.5, 1.5, 80), np.linspace(-1.2, 1.2, 60))
_, places = plt.subplots(1, 3, figsize=(10, 2.2), sharey=True)
for place, (name, route) in zip(places, routes.items(), strict=True):
    place.contour(a, b, 0.01 * a**2 + b**2, levels=12, colors="lightgray")
    place.plot(*route.T, ".-", ms=3, lw=0.8)
    place.set_title(f"{name}: {heights[name]:.0e}", fontsize=10)
plt.show()

# %% [markdown]
# ## Backpropagation by hand
#
# A network of two layers on eight digits, forwards:
#
# $$ a = x W_1 + b_1, \quad h = \max(0, a), \quad s = h W_2 + b_2, \quad p = \mathrm{softmax}(s), \quad L = -\log p_y $$
#
# Backwards, the chain rule from the loss to the input. Each line needs only the line before it and what the forward
# pass has kept. The first is the nicest result of all: the derivative of softmax and cross entropy is *prediction
# minus truth*.

# %%
digits = load_digits()
pixels = (digits.images * (255 / 16)).astype(np.uint8)
inputs, labels = jnp.asarray(digits.data[:8] / 16, jnp.float32), digits.target[:8]
keys = jax.random.split(jax.random.key(0), 2)
params = {"w1": 0.2 * jax.random.normal(keys[0], (64, 20)), "b1": jnp.zeros(20)}
params |= {"w2": 0.2 * jax.random.normal(keys[1], (20, 10)), "b2": jnp.zeros(10)}


def network(p, x):
    return jnp.maximum(0, x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def mean_loss(p):
    return losses.softmax_cross_entropy(network(p, inputs), labels).mean()


# %%
def by_hand(p, x, y):
    a = x @ p["w1"] + p["b1"]
    h = jnp.maximum(0, a)
    ds = (jax.nn.softmax(h @ p["w2"] + p["b2"]) - jax.nn.one_hot(y, 10)) / len(y)  # prediction minus truth
    dh = ds @ p["w2"].T
    da = dh * (a > 0)  # what was cut off learns nothing
    return {"w1": x.T @ da, "b1": da.sum(0), "w2": h.T @ ds, "b2": ds.sum(0)}


mine, jaxs = by_hand(params, inputs, labels), jax.grad(mean_loss)(params)
apart = {name: float(jnp.abs(mine[name] - jaxs[name]).max()) for name in params}
print({name: f"{value:.0e}" for name, value in apart.items()})
assert all(np.allclose(mine[name], jaxs[name], atol=1e-6) for name in params)

# %% [markdown]
# Equal to rounding. `jax.grad` does the same: it keeps the forward pass and multiplies backwards. A third way needs no
# calculus, and two evaluations *per parameter*: turn one weight a little up and a little down.

# %%
step = np.zeros((20, 10), np.float32)
step[3, 2] = 1e-2
up, down = (mean_loss(params | {"w2": params["w2"] + sign * step}) for sign in (1, -1))
numeric = float(up - down) / 2e-2
assert np.isclose(numeric, float(mine["w2"][3, 2]), atol=1e-4)
print(f"by turning the weight {numeric:.5f}, by hand {float(mine['w2'][3, 2]):.5f}")

# %% [markdown]
# ## Losses
#
# What "wrong" costs. For classes: **cross entropy**, $-\log p_y$. It costs much to be sure and wrong. If one takes the
# squared error of a probability instead, the slope vanishes just where the network is most wrong. For numbers: the
# squared error follows every outlier, the absolute error and Huber's loss do not.

# %%
s = jnp.linspace(-6, 6, 121)[:, None]
two = jnp.concatenate([s, 0 * s], axis=1)
truth = jnp.zeros(121, int)
entropy = losses.softmax_cross_entropy(two, truth)
squared = losses.l2(jax.nn.softmax(two)[:, :1], jnp.ones((121, 1)))
zero = jnp.zeros((121, 1))
_, places = plt.subplots(1, 2, figsize=(9, 2.6))
places[0].plot(s, entropy, label="cross entropy")
places[0].plot(s, squared, label="squared error of the probability")
places[0].set_xlabel("score of the right class")
for name in ("l2", "l1", "huber"):
    places[1].plot(s, getattr(losses, name)(s, zero), label=name)
places[1].set_xlabel("prediction minus truth")
places[1].set_ylim(0, 8)
[place.legend(fontsize=8) for place in places]
plt.show()

# %%
steep = [
    float(jax.grad(lambda s, f=f: f(s))(-6.0))
    for f in (
        lambda s: losses.softmax_cross_entropy(jnp.array([[s, 0.0]]), jnp.array([0]))[0],
        lambda s: (jax.nn.sigmoid(s) - 1) ** 2,
    )
]
assert np.isclose(steep[0], -1, atol=0.01) and abs(steep[1]) < 0.01
values = jnp.array([1.0, 2.0, 3.0, 4.0, 100.0])
costs = {
    f: [float(getattr(losses, f)(jnp.full((5, 1), c), values[:, None]).mean()) for c in range(101)]
    for f in ("l2", "l1")
}
assert np.argmin(costs["l2"]) == 22 == np.mean(values) and np.argmin(costs["l1"]) == 3 == np.median(values)

# %% [markdown]
# ## Six learning curves
#
# The most useful picture of a training: the loss on training data and on validation data, step by step. Six things
# that happen again and again, here made on purpose. `run.diagnose()` looks at the curves, the predictions and the
# images, and says in words what it sees.


# %%
def learn(images, targets, val, rate, epochs, hidden=(64,), **kw):
    data = rv.data.from_arrays(images, targets, val=val)
    net = rv.models.create("mlp", num_classes=10, hidden=hidden)
    steps = max(1, round(epochs * data.train.length / kw.get("batch_size", 128)))
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    return rv.fit(net, data, optimizer, steps=steps, progress=False, **kw)


targets, order = digits.target, np.random.default_rng(0).permutation(1797)
eighty, rest = order[:80], order[80:680]
new = (pixels[rest], targets[rest])
runs = {
    "a good fit": learn(pixels, targets, 0.25, 5e-3, 20),
    "underfitting": learn(pixels, targets, 0.25, 1e-2, 20, hidden=(2,)),
    "overfitting": learn(pixels[eighty], targets[eighty], new, 1e-2, 60, (256,), batch_size=20, eval_every=5.0),
}

# %%
dark = (pixels[1000:] // 3, targets[1000:])
data = rv.data.from_arrays(pixels, targets, val=0.25)
plain = rv.models.create("mlp", num_classes=10, hidden=(64,))
runs |= {
    "stopped too early": rv.fit(plain, data, optax.adam(1e-3), epochs=4, progress=False),
    "rate too high": rv.fit(plain, data, optax.adam(1.0), epochs=20, progress=False),
    "validation unrepresentative": learn(pixels[:1000], targets[:1000], dark, 5e-3, 20),
}
findings = {name: run.diagnose() for name, run in runs.items()}
print({name: [f.name for f in found] for name, found in findings.items()})

# %%
_, places = plt.subplots(2, 3, figsize=(10, 4.8))
for place, (name, run) in zip(places.flat, runs.items(), strict=True):
    for split, colour in (("train", "C0"), ("val", "C1")):
        points = [(r["step"], r["loss"]) for r in run.history if r["split"] == split]
        place.plot(*zip(*points, strict=True), color=colour, label={"train": "training", "val": "validation"}[split])
    place.set_title(name, fontsize=10)
    place.set_ylim(0, min(8, place.get_ylim()[1]))
places[0, 0].legend(fontsize=8)
plt.show()

# %% [markdown]
# What the diagnosis says of each, and what it advises:

# %%
for name, found in findings.items():
    print(f"{name.upper()}: {found[0].title}\n   {found[0].why}\n   {found[0].advice}".rstrip())
firsts = {name: found[0].name for name, found in findings.items()}
assert firsts.pop("a good fit") == "fine"
assert all(name == found for name, found in firsts.items())

# %% [markdown]
# ## Regularisers, one by one
#
# 300 digits to learn from, and one label in four is a random number. The network is large enough to learn all of that
# by heart, the nonsense, too. Each regulariser makes it harder in a way of its own; the 1,197 test digits have true
# labels.


# %%
few, held, many = order[:300], order[300:600], order[600:]
draws = np.random.default_rng(1)
noisy = np.where(draws.uniform(size=300) < 0.25, draws.integers(0, 10, 300), targets[few])


def regularised(decay=0.0, augment="", smoothing=0.0, val=None, **net):
    test = (pixels[many], targets[many])
    data = rv.data.from_arrays(pixels[few], noisy, val=val, test=test, augment=augment)
    model = rv.models.create("mlp", num_classes=10, hidden=(256,), **net)
    task = rv.task(model, data, label_smoothing=smoothing)
    adam = optax.adamw(optax.cosine_decay_schedule(5e-3, 300), weight_decay=decay)
    return rv.fit(model, data, adam, steps=300, batch_size=50, task=task, progress=False)


# %%
tried = {
    "none": regularised(),
    "label smoothing": regularised(smoothing=0.2),
    "dropout": regularised(dropout=0.5),
    "early stop": regularised(val=(pixels[held], targets[held])),  # keeps the state that was best on these
    "augmentation": regularised(augment="pad_crop(1)"),
    "weight decay": regularised(decay=5.0),
    "all at once": regularised(5.0, "pad_crop(1)", 0.2, dropout=0.5),
}
learnt, known = ({k: run.evaluate(split)["accuracy"] for k, run in tried.items()} for split in ("train", "test"))

# %%
assert learnt["none"] > 0.99  # the nonsense is known by heart
assert all(known[name] > known["none"] for name in ("dropout", "early stop", "augmentation", "weight decay"))
assert known["weight decay"] > known["none"] + 0.05 and known["all at once"] < known["weight decay"] - 0.05
_, place = plt.subplots(figsize=(7, 2.8))
at = np.arange(len(tried))[::-1]
place.barh(at + 0.2, list(learnt.values()), 0.4, label="300 training digits, with their noisy labels")
place.barh(at - 0.2, list(known.values()), 0.4, label="test digits")
place.set_yticks(at, list(tried))
place.set(xlim=(0.6, 1.3), xticks=[0.6, 0.7, 0.8, 0.9, 1.0], xlabel="accuracy")
place.legend(fontsize=7)
plt.show()

# %% [markdown]
# A regulariser works if the *training* accuracy comes down to about 80 %, for more of these labels cannot be known.
# Weight decay and augmentation do it best here; dropout and label smoothing, alone and at this strength, still let
# much nonsense in. And all of them at once are too much: the network underfits. Each has a strength, to be chosen on
# validation data.
#
# ## Polynomials of degree M
#
# The same story with a handle to turn (after Bishop, 2006): ten noisy points of a sine, and a polynomial of degree M.

# %%
rng = np.random.default_rng(3)
t = np.linspace(0, 1, 10)
observed = np.sin(2 * np.pi * t) + rng.normal(0, 0.25, 10)
fresh = np.linspace(0, 1, 200)
wanted = np.sin(2 * np.pi * fresh) + rng.normal(0, 0.25, 200)


def polynomial(t, y, degree, ridge=0.0):
    powers = np.vander(t, degree + 1, increasing=True)
    padded = np.vstack([powers, np.sqrt(ridge) * np.eye(degree + 1)])
    return np.linalg.lstsq(padded, np.r_[y, np.zeros(degree + 1)], rcond=None)[0]


def rms(weights, t, y):
    return float(np.sqrt(np.mean((np.polynomial.polynomial.polyval(t, weights) - y) ** 2)))


# %%
_, places = plt.subplots(1, 4, figsize=(11, 2.4), sharey=True)
for place, degree in zip(places, (0, 1, 3, 9), strict=True):
    fitted = polynomial(t, observed, degree)
    place.plot(fresh, np.sin(2 * np.pi * fresh), color="lightgray", lw=3)
    place.plot(fresh, np.polynomial.polynomial.polyval(fresh, fitted))
    place.plot(t, observed, "o", ms=4)
    place.set_ylim(-2, 2)
    place.set_title(f"M = {degree}", fontsize=10)
plt.show()

# %% [markdown]
# Degree 0 and 1 underfit. Degree 3 is right. Degree 9 meets all ten points and knows nothing: between them it swings
# wildly, with weights of many thousands. The error on training points falls and falls with M; that on new points
# falls and then rises.

# %%
fits = [polynomial(t, observed, degree) for degree in range(10)]
seen, new = ([rms(w, a, b) for w in fits] for a, b in ((t, observed), (fresh, wanted)))
assert all(np.diff(seen) < 1e-6) and seen[9] < 1e-6 and np.argmin(new) in (3, 4, 5) and new[9] > 1.5 * min(new)
assert np.abs(fits[9]).max() > 1000 * np.abs(fits[1]).max()
_, places = plt.subplots(1, 3, figsize=(11, 2.6))
for values, name in ((seen, "ten points"), (new, "new points")):
    places[0].plot(range(10), values, "o-", ms=4, label=name)
places[0].set(xlabel="degree M", ylabel="error", ylim=(0, 1.2))
places[0].legend(fontsize=8)
strengths = np.geomspace(1e-14, 10, 40)
decayed = [polynomial(t, observed, 9, ridge) for ridge in strengths]
places[1].semilogx(strengths, [rms(w, t, observed) for w in decayed])
places[1].semilogx(strengths, [rms(w, fresh, wanted) for w in decayed])
places[1].set(xlabel="weight decay, M = 9", ylim=(0, 1.2))
hundred = np.linspace(0, 1, 100)
large = polynomial(hundred, np.sin(2 * np.pi * hundred) + rng.normal(0, 0.25, 100), 9)
places[2].plot(fresh, np.polynomial.polynomial.polyval(fresh, large))
places[2].set_title("M = 9, a hundred points", fontsize=10)
plt.show()

# %% [markdown]
# Two cures, both known from above: **weight decay** (middle) gives the polynomial of degree 9 the error of degree 3,
# and **more data** (right) makes the ninth degree harmless.

# %%
assert min(rms(w, fresh, wanted) for w in decayed) < 1.1 * min(new)
assert rms(large, fresh, wanted) < 1.1 * min(new)

# %% [markdown]
# ## A quiz, answered by code
#
# Think first, then read the cell.
#
# 1. *What is the loss of a network of ten classes before training?* It guesses: $\ln 10 = 2.303$. A much larger first
#    loss means that something is wrong with the initial weights or the input's scale.

# %%
small = rv.models.create("linear", num_classes=10)
unborn = rv.fit(small, data, optax.sgd(0.0), steps=1, progress=False)
guessing = rv.task(small, data)
assert abs(float(losses.softmax_cross_entropy(jnp.zeros((1, 10)), jnp.array([3]))[0]) - np.log(10)) < 1e-6
assert abs(unborn.evaluate("val")["loss"] - np.log(10)) < 0.7

# %% [markdown]
# 2. *All weights start at zero. What happens to the hidden layer?* Nothing, ever: no gradient reaches it.

# %%
zeros = jax.tree.map(jnp.zeros_like, params)
nothing = jax.grad(mean_loss)(zeros)
assert not nothing["w1"].any() and not nothing["w2"].any() and nothing["b2"].any()

# %% [markdown]
# 3. *And if they all start at the same number?* All hidden units stay copies of each other: one unit, twenty times.

# %%
equal = jax.grad(mean_loss)(jax.tree.map(lambda w: jnp.full_like(w, 0.1), params))["w1"]
assert equal.any() and np.allclose(equal, equal[:, :1])

# %% [markdown]
# 4. *The batch is four times as large. How much less noise has the gradient?* Half: the square root of four.


# %%
def noise(size):
    draws = [rng.choice(256, size) for _ in range(400)]
    return np.std([slope(jnp.zeros(2), x[rows], y[rows]) for rows in draws], axis=0).mean()


assert abs(noise(8) / noise(32) - 2) < 0.35

# %% [markdown]
# 5. *An image shows a cat and a dog. Softmax or sigmoid?* Sigmoid: softmax shares out a single certainty.

# %%
both = jnp.array([8.0, 8.0, -8.0])
assert np.allclose(jax.nn.softmax(both)[:2], 0.5) and (jax.nn.sigmoid(both)[:2] > 0.999).all()

# %% [markdown]
# 6. *Does dropout change what a trained network says?* No: it is on in training only, and there the kept units are
#    scaled up so that the mean stays.

# %%
dropped = tried["dropout"]
once, again = (dropped.predict(pixels[:50]) for _ in range(2))
assert np.array_equal(once, again)
ones = jnp.ones((1000, 100)) * jax.random.bernoulli(jax.random.key(0), 0.5, (1000, 100)) / 0.5
assert abs(float(ones.mean()) - 1) < 0.02

# %% [markdown]
# 7. *How many steps are ten epochs of 1,348 images in batches of 128?* $10 \cdot 1348 / 128$, rounded.

# %%
counted = rv.fit(small, data, optax.sgd(0.1), epochs=10, progress=False)
assert data.train.length == 1348 and counted.history[-1]["step"] == round(10 * 1348 / 128) == 105

# %% [markdown]
# **Try yourself**: find the largest rate with which `learn` still reaches 95 %. Then give it momentum and look again.
