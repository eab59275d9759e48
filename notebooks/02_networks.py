# %% [markdown]
# # 2. From the perceptron to the network
#
# **Runs in under a minute on two cores.** Data: scikit-learn's 1,797 handwritten digits and scikit-image's photographs.
#
# A computer that looks at an image sees numbers. This part turns numbers into answers: first with one neuron, then with
# a layer of them, then with layers behind layers. On the way we see *why* the layers need something bent between them.

# %%
import matplotlib.pyplot as plt
import numpy as np
from skimage import data as photographs
from sklearn.datasets import load_digits

import recvis_jax as rv
from recvis_jax.vis import plot

# %% [markdown]
# ## Images are numbers
#
# A grey image is a matrix: one number per pixel, here from 0 (black) to 16 (white). Nothing else is there. What we
# recognise at once as a zero is, for the program, these 64 numbers.

# %%
digits = load_digits()
pixels = (digits.images * (255 / 16)).astype(np.uint8)
data = rv.data.from_arrays(pixels, digits.target, test=0.2)
zero = digits.images[0].astype(int)
assert data.image_shape == (8, 8, 1)
assert zero.shape == (8, 8) and zero.max() == 15 and digits.target[0] == 0
plot.numbers({"the first digit, as the program sees it": zero}, limits=(0, 16))

# %% [markdown]
# A colour image is three such matrices, one each for red, green and blue. The axes are rows, columns and channels:
# `(h, w, c)`. On disk a number takes a byte, so it is between 0 and 255; networks are given the same as fractions.

# %%
cat = photographs.chelsea()
assert cat.shape == (300, 451, 3) and cat.dtype == np.uint8
channels = [np.where(np.arange(3) == c, cat, 0).astype(np.uint8) for c in range(3)]
plot.grid([cat, *channels], ["(300, 451, 3)", "red", "green", "blue"], size=2.2)

# %% [markdown]
# The numbers along one row of the image are a curve: bright fur is high, the dark pupil is a valley.

# %%
row = cat[115].mean(axis=1)
assert row[:100].mean() > 60
plt.figure(figsize=(7, 2))
plt.plot(row)
plt.xlabel("column")
plt.ylabel("brightness")
plt.show()
