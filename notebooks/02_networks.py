# %% [markdown]
# # 2. From the perceptron to the network
#
# **Takes about half a minute on two cores.** Data: scikit-learn's 1,797 handwritten digits, and a photograph of
# scikit-image.
#
# A computer that looks at an image sees numbers. This part turns numbers into answers: first with one neuron, then
# with a layer of neurons, then with layers behind layers. On the way we see *why* there must be something bent between
# the layers, and how far one hidden layer reaches.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from skimage import data as photographs
from sklearn.datasets import load_digits, make_circles

import recvis_jax as rv
from recvis_jax.models import layers
from recvis_jax.vis import plot

plt.rcParams["figure.constrained_layout.use"] = True

# %% [markdown]
# ## Images are numbers
#
# A grey image is a matrix with one number per pixel, here from 0 (black) to 16 (white). Nothing else is there. What we
# recognise at once as a zero is, for the program, these 64 numbers.

# %%
digits = load_digits()
zero = digits.images[0].astype(int)
assert zero.shape == (8, 8) and zero.max() == 15 and digits.target[0] == 0
plot.numbers({"the first digit, as the program sees it": zero}, limits=(0, 16))

# %% [markdown]
# A colour image is three such matrices, one each for red, green and blue. The axes are rows, columns and channels:
# `(h, w, c)`. On disk each number takes one byte, so it lies between 0 and 255; networks are given it as a fraction.

# %%
cat = photographs.chelsea()
assert cat.shape == (300, 451, 3) and cat.dtype == np.uint8
channels = [np.where(np.arange(3) == c, cat, 0).astype(np.uint8) for c in range(3)]
plot.grid([cat, *channels], ["(300, 451, 3)", "red", "green", "blue"], size=2.2)

# %% [markdown]
# The numbers along one row are a curve. Eyes, fur and background are hills and valleys: *recognition* means to find
# out from such curves what they belong to, wherever it lies, and however bright the day was.

# %%
row = cat[115].mean(axis=1)
assert row[:20].mean() > 100 > row[150:170].mean()  # background, then the eye
plt.figure(figsize=(7, 2))
plt.plot(row)
plt.xlabel("column")
plt.ylabel("brightness")
plt.title("row 115, through both eyes", fontsize=10)
plt.show()

# %% [markdown]
# ## One neuron: the perceptron
#
# Rosenblatt's perceptron (1958) multiplies each input by a weight, adds them up with a bias, and says 1 if the sum is
# positive, else 0:
#
# $$ y = [\, w_1 x_1 + \dots + w_d x_d + b > 0 \,] $$
#
# Learning is as simple: go through the examples; where the answer is wrong, add the input to the weights if the answer
# should have been 1, and subtract it if it should have been 0.


# %%
def perceptron(x, y, rounds=20):
    x, w = np.c_[x, np.ones(len(x))], np.zeros(x.shape[1] + 1)  # the last input is always 1: the bias
    for _ in range(rounds):
        for inputs, wanted in zip(x, y, strict=True):
            w += (wanted - float(inputs @ w > 0)) * inputs
    return w, (x @ w > 0).astype(int)


corners = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
tables = {"and": [0, 0, 0, 1], "or": [0, 1, 1, 1], "exclusive or": [0, 1, 1, 0]}
learnt = {name: perceptron(corners, wanted) for name, wanted in tables.items()}

# %% [markdown]
# It learns *and* and *or*. It cannot learn *exclusive or*, and more rounds do not help: what one neuron says changes
# along one straight line, and no line has both diagonals' corners on different sides (Minsky and Papert, 1969).

# %%
right = {name: int((learnt[name][1] == wanted).sum()) for name, wanted in tables.items()}
assert right["and"] == right["or"] == 4 and right["exclusive or"] < 4
_, places = plt.subplots(1, 3, figsize=(8, 2.6), sharey=True)
y, x = np.mgrid[-0.3:1.3:200j, -0.3:1.3:200j]
for place, (name, (w, _)) in zip(places, learnt.items(), strict=True):
    place.contourf(x, y, w[0] * x + w[1] * y + w[2], levels=[-99, 0, 99], colors=["#cfe0f5", "#f7d0c8"])
    place.scatter(*corners.T, c=tables[name], cmap="coolwarm", s=90, edgecolors="black", zorder=2)
    place.set_title(f"{name}: {right[name]} of 4", fontsize=10)
plt.show()

# %% [markdown]
# ## Ten neurons read digits
#
# One neuron per class, and the class of the largest sum: that is a *linear classifier*. It has 64 weights and a bias
# for each of ten classes. `fit` finds them by gradient descent, which is the matter of [part 4](04_training.py).

# %%
pixels = (digits.images * (255 / 16)).astype(np.uint8)
data = rv.data.from_arrays(pixels, digits.target, test=0.25)
linear = rv.fit(rv.models.create("linear", num_classes=10), data, optax.adam(1e-2), epochs=15, progress=False)
accuracy = linear.evaluate("test")["accuracy"]
parameters = sum(p.size for p in jax.tree.leaves(linear.params))
assert parameters == 10 * (64 + 1) and 0.93 < accuracy < 0.98
print(f"{parameters} parameters, {100 * accuracy:.0f} % of the test digits are right")

# %% [markdown]
# The weights of a class have a place for each pixel, so they can be drawn as an image: a *template*. Red pixels speak
# for the class, blue ones against it. The template of the zero wants an empty centre.

# %%
templates = np.asarray(linear.params["head"]["kernel"]).T.reshape(10, 8, 8)
most = np.abs(templates).max()
assert templates[0, 3:5, 3:5].mean() < 0
plot.grid(templates, [f"weights of {k}" for k in range(10)], columns=5, limits=(-most, most), colours="coolwarm")

# %% [markdown]
# ## Layers behind layers, and why they must be bent
#
# What if we give the sums of a first layer to a second one? Nothing is won: a matrix times a matrix is a matrix, so
# two linear layers are one linear layer in disguise.

# %%
keys = jax.random.split(jax.random.key(0), 3)
first, second, x = (jax.random.normal(k, s) for k, s in zip(keys, [(64, 32), (32, 10), (5, 64)], strict=True))
two_layers = (x @ first) @ second
one_layer = x @ (first @ second)
assert np.allclose(two_layers, one_layer, rtol=1e-4, atol=1e-3)
print("two layers and one layer differ by at most", f"{float(abs(two_layers - one_layer).max()):.0e}")

# %% [markdown]
# So each hidden unit gets an *activation function*, anything that is not a straight line. Two rings of points show the
# difference. Both nets below have a hidden layer of 16 units; only the second has a bend (`relu`, $\max(0, x)$).


# %%
def rings(activation):
    net = rv.models.create("mlp", num_classes=2, hidden=(16,), activation=activation)
    return rv.fit(net, ring_data, optax.adam(0.02), steps=200, progress=False)


points, ring = make_circles(400, noise=0.06, factor=0.45, random_state=0)
scaled = ((points + 1.5) / 3).astype(np.float32)  # a point is an "image" of 1 x 2 numbers in [0, 1]
ring_data = rv.data.from_arrays(scaled[:, None], ring, test=0.25)
runs = {name: rings(name) for name in ("identity", "relu")}
found = {name: run.evaluate("test")["accuracy"] for name, run in runs.items()}
assert found["identity"] < 0.7 and found["relu"] > 0.97

# %%
_, places = plt.subplots(1, 2, figsize=(7, 3.3))
y, x = np.mgrid[0:1:120j, 0:1:120j]
plane = np.stack([x, y], axis=-1).reshape(-1, 1, 2).astype(np.float32)
for place, (name, run) in zip(places, runs.items(), strict=True):
    place.contourf(x, y, run.predict(plane)[:, 1].reshape(x.shape), levels=np.linspace(0, 1, 11), cmap="coolwarm")
    place.scatter(*scaled.T, c=ring, cmap="coolwarm", s=8, edgecolors="black", linewidths=0.3)
    place.set_title(f"{name}: {100 * found[name]:.0f} % right", fontsize=10)
plt.show()

# %% [markdown]
# ## The activations
#
# `sigmoid` and `tanh` came first: soft versions of the perceptron's step. Their slopes vanish far from zero. In a deep
# net the slopes of all layers are multiplied, and the sigmoid's is at most 1/4: ten layers leave at most a millionth
# of the gradient. `relu` has slope 1 wherever it is open; `gelu` and `silu` are its smooth relatives of today.

# %%
names = ["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "silu"]
x = jnp.linspace(-4, 4, 201)
_, places = plt.subplots(1, 6, figsize=(11, 1.9), sharey=True)
for place, name in zip(places, names, strict=True):
    bent = layers.activation(name)
    place.plot(x, bent(x), label="value")
    place.plot(x, jax.vmap(jax.grad(bent))(x), "--", label="slope")
    place.set_title(name, fontsize=10)
    place.set_ylim(-1.2, 2.5)
places[0].legend(fontsize=7)
plt.show()

# %%
steepest = {name: float(jax.vmap(jax.grad(layers.activation(name)))(x).max()) for name in names}
assert np.allclose([steepest[name] for name in ("sigmoid", "tanh", "relu")], [0.25, 1, 1], atol=1e-3)
assert steepest["sigmoid"] ** 10 < 1.1e-6
print({name: round(value, 3) for name, value in steepest.items()})

# %% [markdown]
# ## How far one hidden layer reaches: universal approximation
#
# A sum of relus is a line with bends: each hidden unit puts a bend at a place of its choice and changes the slope
# there. So with enough hidden units one layer comes as near to any continuous function as you like (Cybenko 1989;
# Hornik 1991). Here are the weights written down by hand: bends at equal distances, slopes of the wanted curve.


# %%
def by_hand(x, wanted, units):
    """One hidden layer of relus that meets `wanted` at units + 1 equally spaced points of [0, 1]."""
    bends = np.linspace(0, 1, units + 1)
    slopes = np.diff(wanted(bends)) * units
    hidden = np.maximum(0, x[:, None] - bends[:-1])  # first layer: weights 1, biases -bends
    return wanted(0.0) + hidden @ np.diff(slopes, prepend=0)  # second layer: the changes of slope


def curve(x):
    return 0.5 + 0.3 * np.sin(2 * np.pi * x) + 0.15 * np.cos(5 * np.pi * x)


# %%
x = np.linspace(0, 1, 1001)
_, places = plt.subplots(1, 4, figsize=(11, 2.4), sharey=True)
for place, units in zip(places, (2, 4, 8, 32), strict=True):
    place.plot(x, curve(x), color="lightgray", lw=4)
    place.plot(x, by_hand(x, curve, units))
    place.set_title(f"{units} hidden units", fontsize=10)
plt.show()

# %% [markdown]
# Twice the units, a quarter of the error: a bent line misses a smooth curve by the square of the distance between the
# bends. The theorem says that weights *exist*; it promises neither that they are few nor that training finds them.

# %%
errors = {units: np.abs(by_hand(x, curve, units) - curve(x)).max() for units in (16, 32, 64, 128, 256)}
ratios = [errors[n] / errors[2 * n] for n in (16, 32, 64, 128)]
assert np.allclose(ratios[1:], 4, atol=0.3)
plt.figure(figsize=(4, 2.4))
plt.loglog(list(errors), list(errors.values()), "o-", base=2)
plt.xlabel("hidden units")
plt.ylabel("largest error")
plt.show()

# %% [markdown]
# Gradient descent finds weights, too, from noisy points alone. A point is an image of one pixel, and the label is a
# number, so `fit` minimises the squared error.

# %%
rng = np.random.default_rng(0)
at = rng.uniform(0, 1, 256).astype(np.float32)
noisy = (curve(at) + rng.normal(0, 0.03, 256)).astype(np.float32)
samples = rv.data.from_arrays(at[:, None, None], noisy)
net = rv.models.create("mlp", num_classes=1, hidden=(64, 64), activation="gelu")
fitted = rv.fit(net, samples, optax.adam(optax.cosine_decay_schedule(0.01, 600)), steps=600, progress=False)
drawn = fitted.predict(x.astype(np.float32)[:, None, None])[:, 0]
assert np.sqrt(np.mean((drawn - curve(x)) ** 2)) < 0.03

# %%
plt.figure(figsize=(5, 2.6))
plt.plot(x, curve(x), color="lightgray", lw=4, label="the curve")
plt.plot(at, noisy, ".", ms=3, color="gray", label="what the net saw")
plt.plot(x, drawn, label="what it learnt")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## A multi-layer perceptron on digits
#
# A hidden layer between pixels and classes: 64 numbers, 64 hidden units, 10 classes. Its parameters are counted layer
# by layer, (inputs + 1 bias) times outputs.

# %%
mlp = rv.models.create("mlp", num_classes=10, hidden=(64,))
run = rv.fit(mlp, data, optax.adam(5e-3), epochs=15, progress=False)
better = run.evaluate("test")["accuracy"]
parameters = sum(p.size for p in jax.tree.leaves(run.params))
assert parameters == (64 + 1) * 64 + (64 + 1) * 10 == 4810
assert better > accuracy
print(f"linear {100 * accuracy:.1f} %, with a hidden layer {100 * better:.1f} % of the test digits")

# %% [markdown]
# A hidden unit has weights for all pixels as well. They are no templates of digits any more: each looks at a few
# spots, pieces of strokes that several digits share, and the second layer adds them up.

# %%
hidden = np.asarray(rv.vis.first_filters(run.forward, run.variables, (8, 8, 1)))[..., 0]
assert hidden.shape == (64, 8, 8)
loud = np.argsort(-np.abs(hidden).max((1, 2)))[:16]
most = np.abs(hidden[loud]).max()
plot.grid(hidden[loud], columns=8, limits=(-most, most), colours="coolwarm", size=1.1)

# %% [markdown]
# ## What it cannot do
#
# To this net a pixel is a number at a place; it does not know which pixels are neighbours. If all images are scrambled
# in the same way, it learns just as well. And a digit that moves by two pixels is a different input altogether.

# %%
order = np.random.default_rng(0).permutation(64)
scrambled = pixels.reshape(-1, 64)[:, order].reshape(-1, 8, 8)
strewn = rv.data.from_arrays(scrambled, digits.target, test=0.25)
other = rv.fit(mlp, strewn, optax.adam(5e-3), epochs=15, progress=False).evaluate("test")["accuracy"]
rows = data.test.read(range(data.test.length))
shifted = np.stack([np.roll(row["image"], 2, axis=1) for row in rows])
moved = np.mean(run.predict(shifted).argmax(1) == [row["label"] for row in rows])
print(f"as they are {better:.3f}, scrambled {other:.3f}, moved by two pixels {moved:.3f}")
assert abs(other - better) < 0.02 and moved < 0.5

# %%
plot.grid([pixels[0], scrambled[0], np.roll(pixels[0], 2, axis=1)], ["a zero", "scrambled", "moved"])

# %% [markdown]
# Neighbourhood, and the same answer at every place, must be built into the layers. That is the convolution,
# [part 3](03_layers.py).
#
# **Try yourself**: give `rings` a hidden layer of 2, then of 3 units. How many lines does it take to fence in a ring?
