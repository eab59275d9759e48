# %% [markdown]
# # 3. Layers and their arithmetic
#
# **Takes about half a minute on two cores.** Data: photographs of scikit-image.
#
# A convolutional network is a pile of few kinds of layers. This part computes each of them by hand on numbers small
# enough to follow, holds the result against the library, and then counts: sizes, parameters, multiplications, and how
# much of the image one number has seen.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import linen as nn
from skimage import data as photographs

import recvis_jax as rv
from recvis_jax import operations
from recvis_jax.models import norms
from recvis_jax.vis import plot, structure

plt.rcParams["figure.constrained_layout.use"] = True

# %% [markdown]
# ## The convolution by hand: 5 x 5 by 3 x 3
#
# A *kernel* is a small matrix of weights. It is laid over each place of the image; numbers that lie on each other are
# multiplied, and the products added up. The place moves by one, and again. Here is the lecture's example.

# %%
image = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]])
kernel = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])


def by_hand(image, kernel):
    k = len(kernel)
    places = range(len(image) - k + 1)
    return np.array([[(image[i : i + k, j : j + k] * kernel).sum() for j in places] for i in places])


answer = by_hand(image, kernel)
assert answer.tolist() == [[4, 3, 4], [2, 4, 3], [2, 3, 4]]
plot.numbers({"image, 5 x 5": image, "kernel, 3 x 3": kernel, "output, 3 x 3": answer})

# %% [markdown]
# One step of it, the place in row 1 and column 2 (counted from 0). Nine products, of which the kernel's zeros take
# four away:

# %%
window = image[1:4, 2:5]
assert (window * kernel).sum() == answer[1, 2] == 3
marks = {"image": (1, 2, 3, 3), "output": (1, 2, 1, 1)}
steps = {"image": image, "window": window, "kernel": kernel, "products": window * kernel, "output": answer}
plot.numbers(steps, marked=marks)

# %% [markdown]
# The library's convolution takes a batch of images with channels, `(b, h, w, c)`, and kernels `(rows, columns,
# channels in, channels out)`. It gives the same nine numbers.

# %%
x, w = jnp.asarray(image, jnp.float32)[None, :, :, None], jnp.asarray(kernel, jnp.float32)[:, :, None, None]
numbers = ("NHWC", "HWIO", "NHWC")
theirs = operations.convolve(x, w, (1, 1), "VALID", dimension_numbers=numbers)
assert theirs.shape == (1, 3, 3, 1) and np.array_equal(theirs[0, :, :, 0], answer)

# %% [markdown]
# (Mathematicians turn the kernel around first and call *this* a correlation. Networks learn their kernels, so they
# would only learn them turned around.)
#
# ## What kernels do to a photograph
#
# Before networks, people wrote kernels by hand: the mean of the neighbours blurs; the centre minus its neighbours
# sharpens; the right side minus the left finds upright edges. A network finds such kernels by itself:
# part 5.

# %%
kernels = {
    "blur": np.full((5, 5), 1 / 25),
    "sharpen": np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
    "upright edges": np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]),
    "level edges": np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]]),
}
camera = photographs.camera()[::2, ::2] / np.float32(255)
flat = np.full((9, 9), 0.5)
assert np.allclose([by_hand(flat, k)[0, 0] for k in kernels.values()], [0.5, 0.5, 0, 0])

# %%
filtered = [by_hand(camera, k) for k in kernels.values()]
shown = [np.clip(f, 0, 1) if i < 2 else np.clip(0.5 + f / 3, 0, 1) for i, f in enumerate(filtered)]
plot.grid([camera, *shown], ["photograph", *kernels], size=2.0)

# %% [markdown]
# A convolution treats all places alike. So if the image moves, the output moves with it: *equivariance*. That is what
# the multi-layer perceptron of [part 2](02_networks.py) lacked.

# %%
moved = np.roll(camera, 7, axis=1)
first, second = by_hand(camera, kernels["level edges"]), by_hand(moved, kernels["level edges"])
assert np.allclose(np.roll(first, 7, axis=1)[:, 10:-10], second[:, 10:-10])

# %% [markdown]
# ## Channels
#
# A colour image has three channels, so a kernel has three, too: its result is *one* number per place, the sum over
# rows, columns and channels. A layer has many kernels; each makes a channel of the output. A layer with k x k kernels
# from `i` to `o` channels has `k k i o` weights and `o` biases, however large the image is.

# %%
colour = jnp.asarray(photographs.astronaut()[None, ::4, ::4] / np.float32(255))
layer = nn.Conv(features=8, kernel_size=(3, 3), padding="VALID")
variables = layer.init(jax.random.key(0), colour)
out = layer.apply(variables, colour)
weights, bias = variables["params"]["kernel"], variables["params"]["bias"]
assert colour.shape == (1, 128, 128, 3) and weights.shape == (3, 3, 3, 8) and out.shape == (1, 126, 126, 8)
assert weights.size + bias.size == 3 * 3 * 3 * 8 + 8 == 224

# %%
one = sum(by_hand(np.asarray(colour[0, :, :, c]), np.asarray(weights[:, :, c, 5])) for c in range(3))
assert np.allclose(out[0, :, :, 5], one + bias[5], atol=1e-5)
plot.grid([colour[0], *np.moveaxis(np.asarray(out[0]), -1, 0)][:6], ["3 channels", *[f"output {i}" for i in range(5)]])

# %% [markdown]
# A fully connected layer with the same inputs and outputs would need a weight from every input number to every output
# number. The two things that a convolution assumes, *neighbours belong together* and *every place is alike*, save a
# factor of ten million here.

# %%
connected = (128 * 128 * 3 + 1) * (126 * 126 * 8)
assert connected // 224 > 10_000_000
print(f"convolution {224:,} parameters, fully connected {connected:,}")

# %% [markdown]
# ## Output sizes
#
# A kernel of `k` fits at `n - k + 1` places. `p` rows of zeros on each side (*padding*) add `2 p`, and a *stride* `s`
# takes every s-th place only:
#
# $$ \text{out} = \left\lfloor \frac{n + 2p - k}{s} \right\rfloor + 1 $$


# %%
def size(n, k, s=1, p=0):
    return (n + 2 * p - k) // s + 1


def measured(n, k, s, p):
    conv = nn.Conv(1, (k, k), strides=s, padding=p)
    return jax.eval_shape(conv.init_with_output, jax.random.key(0), jnp.zeros((1, n, n, 1)))[0].shape[1]


cases = [(n, k, s, p) for n in (5, 28, 32, 224) for k in (1, 3, 5, 7) for s in (1, 2, 4) for p in (0, 1, 3) if k <= n]
assert all(size(*case) == measured(*case) for case in cases)
print(len(cases), "cases agree; AlexNet's first layer, (227 - 11) / 4 + 1 =", size(227, 11, 4))

# %% [markdown]
# Drawn for the 5 x 5 example: without padding, with a border of zeros (the output is as large as the image: "same"),
# and with stride 2.

# %%
padded = np.pad(image, 1)
same, strided = by_hand(padded, kernel), by_hand(padded, kernel)[::2, ::2]
assert same.shape == (5, 5) and strided.shape == (3, 3) == (size(5, 3, 2, 1),) * 2
assert np.array_equal(same[1:-1, 1:-1], answer)
plot.numbers({"padded by 1": padded, "output, stride 1": same, "output, stride 2": strided})

# %% [markdown]
# ## Pooling
#
# Pooling has no weights: it takes the maximum, or the mean, of each window. Feature maps become smaller, and a feature
# may move a little without a change.

# %%
maps = np.array([[1, 3, 2, 1], [4, 6, 5, 0], [3, 1, 1, 0], [1, 2, 2, 4]], np.float32)
largest = np.asarray(operations.max_pool(maps[None, :, :, None], 2))[0, :, :, 0]
mean = np.asarray(operations.avg_pool(maps[None, :, :, None], 2))[0, :, :, 0]
assert largest.tolist() == [[6, 5], [3, 4]] and mean.tolist() == [[3.5, 2], [1.75, 1.75]]
plot.numbers({"4 x 4": maps, "max, 2 x 2": largest, "mean, 2 x 2": mean}, marked={"4 x 4": (0, 0, 2, 2)})

# %%
dot = np.zeros((1, 8, 8, 1), np.float32)
dot[0, 2, 2] = 1
pooled = [operations.max_pool(np.roll(dot, by, axis=2), 4) for by in (0, 1, 2)]
assert np.array_equal(pooled[0], pooled[1])  # a move by one pixel stays within its window
assert not np.array_equal(pooled[0], pooled[2])  # one by two leaves it: only small moves are forgiven

# %% [markdown]
# ## A whole network counted: LeNet-5
#
# LeCun's network of 1998 for 32 x 32 digits. `structure.layers` reads the program of a model and tells of each layer
# the output, the parameters, the multiplications and the receptive field. We count the parameters ourselves first.

# %%
by_layer = {
    "conv 5x5, 1 to 6": 5 * 5 * 1 * 6 + 6,
    "conv 5x5, 6 to 16": 5 * 5 * 6 * 16 + 16,
    "dense 400 to 120": (5 * 5 * 16 + 1) * 120,
    "dense 120 to 84": (120 + 1) * 84,
    "dense 84 to 10": (84 + 1) * 10,
}
lenet = rv.models.create("lenet5", num_classes=10)
blank = jnp.zeros((1, 28, 28, 1))
variables = jax.eval_shape(lambda: lenet.init(jax.random.key(0), blank, train=False))  # shapes, and no numbers
total = sum(p.size for p in jax.tree.leaves(variables["params"]))
assert total == sum(by_layer.values()) == 61_706
print(by_layer)

# %%
found = structure.layers(lambda v, x: lenet.apply(v, x, train=False)[0], variables, (28, 28, 1))
for part in found:
    print(f"{part.name:10s} {part.shape!s:14s} {part.parameters:7,d} parameters {part.macs:9,d} multiplications")
convolutions = [part for part in found if "conv" in part.name]
assert sum(part.parameters for part in convolutions) < 0.05 * total
assert sum(part.macs for part in convolutions) > 0.8 * sum(part.macs for part in found)

# %% [markdown]
# It is so in most networks of that time: nearly all *parameters* are in the fully connected layers, nearly all
# *multiplications* in the convolutions, whose few weights are used again at every place.

# %%
_, places = plt.subplots(1, 2, figsize=(8, 2.2), sharey=True)
named = [part for part in found if part.macs]
for place, what in zip(places, ("parameters", "macs"), strict=True):
    place.barh([part.name for part in named][::-1], [getattr(part, what) for part in named][::-1])
    place.set_title({"macs": "multiplications"}.get(what, what), fontsize=10)
    place.locator_params(axis="x", nbins=4)
plt.show()

# %% [markdown]
# ## Receptive fields
#
# How much of the image has one number of a deep layer seen? Each 3 x 3 layer adds two pixels, times the strides of all
# layers before:
#
# $$ r_{l} = r_{l-1} + (k_l - 1) \prod_{i<l} s_i $$
#
# It can also be *measured*: the gradient of one output with respect to the image is zero wherever it does not look.


# %%
def fields(layers):
    """Receptive fields after each of the layers (kernel, stride)."""
    field, jump, out = 1, 1, []
    for k, s in layers:
        field, jump = field + (k - 1) * jump, jump * s
        out.append(field)
    return out


def seen(layers, n=63):
    net = nn.Sequential([nn.Conv(1, (k, k), strides=s, kernel_init=nn.initializers.ones) for k, s in layers])
    x = jnp.zeros((1, n, n, 1))
    centre = jax.grad(
        lambda x: (y := net.init_with_output(jax.random.key(0), x)[0])[0, len(y[0]) // 2, len(y[0]) // 2, 0]
    )
    return np.asarray(centre(x))[0, :, :, 0]


# %%
stacks = {"3x3": [(3, 1)], "two 3x3": [(3, 1)] * 2, "three 3x3": [(3, 1)] * 3, "one 7x7": [(7, 1)]}
stacks["3x3, stride 2, then 3x3"] = [(3, 2), (3, 1)]
looked = {name: seen(layers) for name, layers in stacks.items()}
sides = {name: int((look > 0).any(axis=0).sum()) for name, look in looked.items()}
assert sides == {name: fields(layers)[-1] for name, layers in stacks.items()}
cut = [look[22:41, 22:41] / look.max() for look in looked.values()]
plot.grid(cut, [f"{name}:\n{side} x {side}" for name, side in sides.items()], size=1.7, colours="magma")

# %% [markdown]
# Three layers of 3 x 3 see 7 x 7 pixels, as one layer of 7 x 7 does, with 27 weights (per pair of channels) instead of
# 49, and with three activations instead of one. That is the idea of VGG (2014). The pictures also show that the centre
# counts more: many paths lead from there to the output, and only one from a corner.

# %%
assert fields([(3, 1)] * 3)[-1] == fields([(7, 1)])[-1] == 7 and 3 * 9 == 27 < 49
vgg = [(3, 1), (3, 1), (2, 2)] * 2 + [(3, 1), (3, 1), (3, 1), (2, 2)] * 3  # convolutions and 2 x 2 pools of VGG-16
assert fields(vgg)[-1] == 212
plt.figure(figsize=(5, 2.2))
plt.step(range(1, len(vgg) + 1), fields(vgg), where="mid")
plt.axhline(224, color="gray", ls=":")
plt.xlabel("layer of VGG-16, pools included")
plt.ylabel("receptive field")
plt.show()

# %% [markdown]
# ## Normalisation
#
# Sums of many inputs drift: one channel may lie around 100, another around 0.01, and a single learning rate cannot
# serve both. A normalisation layer subtracts a mean and divides by a standard deviation, then scales and shifts by two
# learnt numbers per channel. The kinds differ in *what the mean is taken over*.

# %%
b, places_, c = 4, 6, 8
areas = {"batch": (slice(None), slice(None), 2), "layer": (1, slice(None), slice(None))}
areas |= {"group": (1, slice(None), slice(0, 4)), "instance": (1, slice(None), 2)}
pictures = []
for area in areas.values():
    block = np.full((b, places_, c), 0.2)
    block[area] = 1
    pictures.append(np.concatenate([np.pad(example, 1, constant_values=0) for example in block], axis=1))
plot.grid(pictures, [f"{name} norm" for name in areas], size=3.0, columns=2, colours="Blues", limits=(0, 1.2))

# %% [markdown]
# Each block is one of four examples, with its places as rows and its channels as columns; blue are the numbers that
# share one mean. Batch norm mixes the *examples*, so it behaves differently in training (this batch) and evaluation
# (running averages). The others do not.

# %%
x = 3 + 5 * jax.random.normal(jax.random.key(1), (16, 6, 6, 8)) * jnp.arange(1, 9)


def normalised(kind):
    norm = norms.make_norm(kind, norm_groups=2)(name="norm")
    state = norm.init(jax.random.key(0), x, train=True)
    return norm.apply(state, x, train=True, mutable=["batch_stats"])[0]


kinds = {kind: normalised(kind) for kind in ("batch", "layer", "group", "instance")}
per_channel = kinds["batch"]
assert np.allclose(per_channel.mean((0, 1, 2)), 0, atol=1e-4) and np.allclose(per_channel.std((0, 1, 2)), 1, atol=1e-2)
for kind, groups in (("layer", 1), ("group", 2), ("instance", 8)):
    parts = kinds[kind].reshape(16, 6 * 6, groups, 8 // groups)  # within each example
    assert np.allclose(parts.mean((1, 3)), 0, atol=1e-3) and np.allclose(parts.std((1, 3)), 1, atol=1e-2)

# %% [markdown]
# And the effect: the histogram of three channels before and after batch norm.

# %%
_, places = plt.subplots(1, 2, figsize=(8, 2.2))
for place, (title, values) in zip(places, {"before": x, "after batch norm": per_channel}.items(), strict=True):
    place.hist([np.ravel(values[..., c]) for c in (0, 3, 7)], bins=40, histtype="step", label=["0", "3", "7"])
    place.set_title(title, fontsize=10)
places[0].legend(title="channel", fontsize=8)
plt.show()

# %% [markdown]
# ## The last layer: softmax
#
# Ten sums become ten probabilities: $p_k = e^{s_k} / \sum_j e^{s_j}$. They are positive and add up to 1, and adding
# the same number to all sums changes nothing, which is how the library avoids numbers that are too large.

# %%
sums = jnp.array([2.0, 1.0, 0.1])
p = operations.softmax(sums)
assert np.allclose(p, np.exp(sums) / np.exp(sums).sum(), atol=1e-6) and np.isclose(p.sum(), 1)
assert np.allclose(p, operations.softmax(sums + 1000), atol=1e-3)
print(np.asarray(p).round(2))

# %% [markdown]
# **Try yourself**: `python -m recvis_jax.describe --model=vgg16` prints such a table for any model of the library.
# Which layer of VGG-16 has most of its 138 million parameters?
