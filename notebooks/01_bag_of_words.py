# %% [markdown]
# # 1. The bag of visual words, and how it is a network
#
# **Takes about half a minute on two cores.** Data: six pictures of scikit-image, cut into windows.
#
# Before 2012 the best way to recognise an image was this: describe small patches by hand-made numbers, count which
# kinds of patches there are, and let a linear classifier read the counts. We build it step by step. In the end we see
# that each step is a layer of a network, only that nobody had trained them *together*.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from matplotlib.collections import LineCollection
from skimage import color
from skimage import data as photographs

import recvis_jax as rv
from recvis_jax.classical import encoding, kmeans, local, phow
from recvis_jax.evaluation import svm
from recvis_jax.vis import descriptors, plot, vocabulary

plt.rcParams["figure.constrained_layout.use"] = True

# %% [markdown]
# ## A bag of words
#
# The idea comes from texts. Forget the order of the words and count them: the counts still say what the text is about.

# %%
texts = ["the dog bites the man", "the man bites the dog", "the ship sails the sea"]
words = sorted(set(" ".join(texts).split()))
counts = np.array([[text.split().count(word) for word in words] for text in texts])
assert np.array_equal(counts[0], counts[1])  # who bites whom is lost
assert counts[0] @ counts[1] > counts[0] @ counts[2]  # what it is about is not
print(words, *counts, sep="\n")

# %% [markdown]
# An image has no words, so they must be found first. Our images are windows of 64 x 64 pixels from six pictures.
# Training windows come from the left half of a picture, test windows from its right half.


# %%
def windows(picture, half, every):
    middle = picture.shape[1] // 2
    part = picture[:, middle:] if half else picture[:, :middle]
    tops, lefts = (range(0, n - 63, every) for n in part.shape)
    return np.stack([part[t : t + 64, i : i + 64] for t in tops for i in lefts]).astype(np.float32)


names = ["brick", "grass", "gravel", "coins", "immunohistochemistry", "hubble_deep_field"]
pictures = [getattr(photographs, name)() for name in names]
pictures = [color.rgb2gray(p)[:512] if p.ndim == 3 else p / 255 for p in pictures]
classes = ["brick", "grass", "gravel", "coins", "tissue", "galaxies"]

# %%
train, test = ([windows(p, half, 48) for p in pictures] for half in (0, 1))
train_y, test_y = (np.repeat(np.arange(6), [len(w) for w in part]) for part in (train, test))
plot_of = [w[5 * i] for i in range(2) for w in train]
train, test = np.concatenate(train), np.concatenate(test)
assert train.shape[1:] == (64, 64) and set(train_y) == set(test_y) == set(range(6))
plot.grid(plot_of, classes * 2, columns=6)

# %% [markdown]
# Pixels themselves are no good features here: where a stone lies in the window is chance. A linear classifier on the
# 4,096 pixels learns the training windows by heart and is lost on the others.

# %%
flat = [part.reshape(len(part), -1) for part in (train, test)]
on_pixels = svm.fit(flat[0], train_y, num_classes=6, c=0.01)
pixels_seen, pixels_new = svm.accuracy(on_pixels, flat[0], train_y), svm.accuracy(on_pixels, flat[1], test_y)
print(f"{len(train)} windows: {100 * pixels_seen:.0f} % of the training windows, {100 * pixels_new:.0f} % of new ones")
assert pixels_seen > 0.95 and pixels_new < 0.7

# %% [markdown]
# ## Step 1: describe patches (SIFT)
#
# Lowe's SIFT (1999) describes a patch by the directions in which its brightness changes: 4 x 4 cells, in each a
# histogram of eight directions, 128 numbers. Then the vector is normalised, so contrast and brightness drop out. The
# arms of the stars below are the eight numbers of a cell.

# %%
brick = jnp.asarray(train[:1, :, :, None])
one = phow.phow(brick, sizes=(8,), step=32, contrast=0.0)
assert one.descriptors.shape[2] == 128
glyphs = descriptors.glyphs(
    *(np.asarray(part[0, -1:]) for part in (one.descriptors, local.pixels(one, 64, 64), one.scales))
)
_, place = plt.subplots(figsize=(4, 4))
place.imshow(train[0], cmap="gray")
place.add_collection(LineCollection(list(glyphs.grids), colors="yellow", linewidths=0.6))
place.add_collection(LineCollection(list(glyphs.arms), colors="red", linewidths=1.4))
place.set_axis_off()
plt.show()

# %% [markdown]
# The same patch in half the light, or with a veil of fog over it, has the same descriptor:

# %%
darker, veiled = (phow.phow(x, sizes=(8,), step=32, contrast=0.0).descriptors for x in (0.5 * brick, 0.5 + 0.3 * brick))
assert np.allclose(one.descriptors, darker, atol=0.03) and np.allclose(one.descriptors, veiled, atol=0.03)

# %% [markdown]
# We take descriptors on a grid, every four pixels and in two sizes: a few hundred for each window. `root` takes their
# square roots (RootSIFT), which was found to be a better measure of distance.


# %%
@jax.jit
def describe(images):
    return phow.phow(images[..., None], sizes=(4, 6), step=4, root=True)


found, found_test = describe(train), describe(test)
n = found.descriptors.shape[1]
assert found.descriptors.shape == (len(train), n, 128)
print(f"{n} descriptors a window, {len(train) * n:,} in all")

# %% [markdown]
# ## Step 2: learn a vocabulary (k-means)
#
# Similar patches are put into the same group: *k-means* chooses `k` centres, gives each descriptor to the nearest
# centre, moves each centre to the mean of its descriptors, and begins again. The centres are the **visual words**.

# %%
every = np.asarray(found.descriptors).reshape(-1, 128)
trace = []
words = kmeans.fit(every[::3], 96, seed=0, passes=15, keep=lambda state: trace.append(float(state.inertia)))
assert words.centers.shape == (96, 128) and all(np.diff(trace) <= 1e-6)
plt.figure(figsize=(4, 2))
plt.plot(trace, "o-", ms=3)
plt.xlabel("pass")
plt.ylabel("mean squared distance")
plt.show()

# %% [markdown]
# What do words look like? For eight of them, a row each, the six training patches that lie nearest, each from another
# window and each stretched to full contrast. There are joints of bricks, points of light, edges,
# round shapes, and the noise of flat areas: parts, not objects.


# %%
def nearness(x):
    return -((x[:, None] - words.centers[chosen]) ** 2).sum(-1)


spread = np.argsort(-np.asarray(words.counts))[6::11][:8]
chosen = jnp.asarray(spread)
nearest = vocabulary.nearest(nearness, [(found.descriptors, found.mask)], 6)
sides, positions = 4 * np.asarray(found.scales), np.asarray(found.positions)
patches = [
    vocabulary.patch(train[i, :, :, None], positions[i, p], float(sides[i, p]), 24)
    for i, p in zip(nearest.images.ravel(), nearest.places.ravel(), strict=True)
]
patches = [(p - p.min()) / (p.max() - p.min()) for p in patches]
assert len(patches) == 48
plot.grid(patches, columns=6, size=0.8)

# %% [markdown]
# ## Step 3: count
#
# Each window becomes a histogram: how often is each word the nearest one?

# %%
encode = jax.jit(encoding.make(rv.classical.ENCODERS["hard"](root=True, norm="l2")))
bags, bags_test = (np.asarray(encode(words, f.descriptors, f.positions, f.mask)) for f in (found, found_test))
assert bags.shape == (len(train), 96) and np.allclose((bags**2).sum(1), 1, atol=1e-5)
_, places = plt.subplots(2, 3, figsize=(9, 3), sharex=True, sharey=True)
for k, place in enumerate(places.flat):
    place.bar(range(96), (bags[train_y == k] ** 2).mean(0), width=1.0)
    place.set_title(classes[k], fontsize=9)
plt.show()

# %% [markdown]
# The order is gone. Shuffle the descriptors of a window in any way: the histogram does not change by a bit.

# %%
order = np.random.default_rng(0).permutation(n)
shuffled = encode(words, found.descriptors[:5, order], found.positions[:5, order], found.mask[:5, order])
assert np.allclose(shuffled, bags[:5], atol=1e-6)

# %% [markdown]
# ## Step 4: classify
#
# A linear support vector machine reads the histograms: one weight for each word and class.

# %%
machine = svm.fit(bags, train_y, num_classes=6, c=10.0)
accuracy = svm.accuracy(machine, bags_test, test_y)
print(f"pixels {100 * pixels_new:.0f} %, bag of visual words {100 * accuracy:.0f} % of the new windows")
assert accuracy > 0.9 > pixels_new

# %% [markdown]
# How many words are enough? With two words a window is a single number; from some thirty words on, little is won.


# %%
def with_words(k):
    small = kmeans.fit(every[::9], k, seed=0, passes=6)
    a, b = (np.asarray(encode(small, f.descriptors, f.positions, f.mask)) for f in (found, found_test))
    return svm.accuracy(svm.fit(a, train_y, num_classes=6, c=10.0), b, test_y)


sizes = [2, 8, 32, 128]
reached = [with_words(k) for k in sizes]
assert reached[0] < 0.85 < max(reached[2:])
plt.figure(figsize=(4, 2.2))
plt.semilogx(sizes, reached, "o-", base=2)
plt.xlabel("words")
plt.ylabel("test accuracy")
plt.show()

# %% [markdown]
# **Where** things are can be brought back roughly: a *spatial pyramid* counts the words of each quarter of the image
# separately. For textures it does not matter; for a face or a shoe it does (README: Fashion-MNIST).

# %%
pyramid = encoding.make(rv.classical.ENCODERS["hard"](root=True, norm="l2"), "1x1+2x2")
assert pyramid(words, found.descriptors[:2], found.positions[:2], found.mask[:2]).shape == (2, 96 * (1 + 4))

# %% [markdown]
# ## It is a network
#
# Look at the steps again, now with the eyes of [part 3](03_layers.py):
#
# | bag of visual words | network |
# |---|---|
# | differences of neighbouring pixels, in eight directions | convolution with eight fixed kernels |
# | only what points in the direction counts | rectification |
# | histogram in 4 x 4 cells | pooling |
# | normalise the 128 numbers | normalisation |
# | nearest word | 1 x 1 convolution, then softmax (or argmax) |
# | histogram of the image | global average pooling |
# | support vector machine | fully connected layer |
#
# The fifth row is exact. The nearest word minimises $|x - c|^2 = |x|^2 - 2 c^\top x + |c|^2$, and $|x|^2$ is the same
# for all words: so the word with the largest $2 c^\top x - |c|^2$ wins, weights and a bias. With *soft* assignment,
# where near words share a descriptor, argmax becomes softmax:

# %%
sharpness = 20.0
soft = encoding.make(rv.classical.ENCODERS["soft"](sharpness=sharpness))
theirs = soft(words, found.descriptors[:8], found.positions[:8], found.mask[:8])

weights, bias = 2 * sharpness * words.centers.T, -sharpness * (words.centers**2).sum(1)
layer = found.descriptors[:8] @ weights + bias  # a 1 x 1 convolution: the same weights at every place
network = jax.nn.softmax(layer).mean(axis=1)  # softmax, and global average pooling
assert np.allclose(theirs, network, atol=1e-5)
plt.figure(figsize=(6, 2))
plt.plot(np.asarray(theirs[0]), lw=4, color="lightgray", label="bag of words, soft")
plt.plot(np.asarray(network[0]), lw=1, label="network")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# So why not *train* the words, by the classifier's own loss? Here is the second half of the bag as a network. It
# begins with the words of k-means, and gradient descent moves words and classifier together.


# %%
def first(*_):
    return weights[None, None]


class TrainedBag(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        codes = jax.nn.softmax(nn.Conv(96, (1, 1), kernel_init=first, bias_init=lambda *_: bias, name="words")(x))
        histogram = codes.mean((1, 2))
        return nn.Dense(6, name="classifier")(96 * histogram), {"features": histogram}


as_maps = [np.asarray(f.descriptors[:, None, ::2]) for f in (found, found_test)]  # (b, 1, places, 128)
data = rv.data.from_arrays(as_maps[0], train_y, test=(as_maps[1], test_y), statistics=((0.0,) * 128, (1.0,) * 128))

# %%
run = rv.fit(TrainedBag(), data, optax.adam(0.01), epochs=20, batch_size=32, progress=False)
end_to_end = run.evaluate("test")["accuracy"]
print(f"pixels {pixels_new:.2f}, words by k-means {accuracy:.2f}, words trained with the classifier {end_to_end:.2f}")
assert end_to_end > 0.9

# %% [markdown]
# On 315 windows this is no better than k-means; the more data, the more it pays. And SIFT is still made by hand. Train
# *that*, too, from the pixels on, and it is a convolutional network. How this is done begins
# with [part 2](02_networks.py).
#
# **Try yourself**: replace `"hard"` by `"fisher"` in step 3 (it wants a mixture, `rv.classical.gmm`). On a whole data
# set: `python -m recvis_jax.features --config=configs/fashion_mnist/fisher.py`.
