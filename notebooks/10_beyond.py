# %% [markdown]
# # 10. Beyond classification: boxes and masks
#
# **Runs in about two minutes on two cores.** Data: scenes that are composed from scikit-learn's handwritten digits.
#
# "What is in this picture?" has one answer. "What is *where*?" has a set of answers, of unknown size and without an
# order. That changes three things: the output, the loss (which prediction is compared with which object?), and the
# measure (what is a right box?). We do the last two by hand, train a small detector, and then name every single pixel.

# %%
from itertools import permutations

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import recvis_jax as rv
from recvis_jax.data import scenes
from recvis_jax.data.fields import Field
from recvis_jax.evaluation import coco_ap
from recvis_jax.tasks import boxes, matching
from recvis_jax.tasks.detect import set_losses
from recvis_jax.vis import boxes as drawn
from recvis_jax.vis import plot

# %% [markdown]
# ## How well do two boxes agree?
#
# **Intersection over union**: the area that both share over the area that either covers. 1 for equal boxes, 0 for
# separate ones. For the two below: the overlap is 4x3 = 12, the union 6x5 + 6x5 - 12 = 48, so IoU = 0.25.

# %%
a, b = np.array([0.0, 0, 6, 5]), np.array([2.0, 2, 8, 7])  # x0 y0 x1 y1
iou, generalised = boxes.overlaps(jnp.asarray(a), jnp.asarray(b))
assert np.isclose(iou, 12 / 48)
both = drawn.over(np.full((9, 10, 1), 40, np.uint8), np.stack([a, b]) + 1, scale=16)
plot.grid([both], ["IoU = 12 / 48"], size=2)

# %% [markdown]
# As a loss, IoU has a flaw: for all separate boxes it is 0, near or far, and so is its gradient. The **generalised**
# IoU subtracts the empty part of the smallest box around both. It still says "nearer" when nothing overlaps. Below,
# one box moves away from the other:

# %%
distance = np.linspace(0, 20, 81)
moved = jnp.asarray(a + distance[:, None] * np.array([1, 0, 1, 0]), jnp.float32)
iou, generalised = boxes.overlaps(moved, jnp.asarray(a, jnp.float32))
gradient = jax.vmap(jax.grad(lambda box: boxes.overlaps(box, jnp.asarray(a, jnp.float32))[1]))(moved)
assert np.allclose(iou[distance > 6], 0) and (np.diff(np.asarray(generalised)) < 0).all()
assert jnp.abs(gradient[distance > 6.5]).sum(1).min() > 0
fig, axes = plt.subplots(figsize=(5, 2.6), layout="constrained")
axes.plot(distance, iou, label="IoU")
axes.plot(distance, generalised, label="generalised IoU")
axes.axvline(6, color="gray", ls=":")
axes.set(xlabel="distance of two boxes that are 6 wide", ylim=(-0.7, 1.05))
axes.legend()
plt.show()

# %% [markdown]
# ## Who answers for which object? Matching by hand
#
# DETR always gives the same number of predictions, say 3 *queries*. The picture has 2 objects. Before there can be a
# loss, each object must be given a query of its own. The cost of a pair is small when the query names the right class
# with confidence and its box is near:
#
# $$\text{cost} = -p(\text{class}) + 5\,|b - b'|_1 - 2\,\mathrm{GIoU}(b, b')$$
#
# A box is centre, width and height, as fractions of the picture. Below, a row for each query and a column for each
# object. Query 0 is between both objects, a little nearer to the first.

# %%
true = np.array([[0.3, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2]])  # of class 0, of class 1
queries = np.array([[0.42, 0.5, 0.2, 0.2], [0.3, 0.2, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]])
p = np.array([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])  # the last column is "no object"


def cost(query, k):
    corners = [boxes.corners(jnp.asarray(x)) for x in (queries[query], true[k])]
    return float(-p[query, k] + 5 * np.abs(queries[query] - true[k]).sum() - 2 * boxes.overlaps(*corners)[1])


table = np.array([[cost(q, k) for k in (0, 1)] for q in range(3)])
theirs = matching.costs(jnp.log(p), jnp.asarray(queries), jnp.array([0, 1]), jnp.asarray(true))
np.testing.assert_allclose(theirs, table, rtol=1e-4)
plot.numbers({"cost": table}, colours="Blues_r", form=".2f", size=0.8)

# %% [markdown]
# Query 0 is the cheapest for *both* objects, but may have only one. With 3 queries and 2 objects there are 6 ways; we
# try them all. The *Hungarian algorithm* finds the same best one without trying (100 queries and 10 objects have
# $10^{19}$ ways).

# %%
assert (table.argmin(0) == 0).all()
ways = {way: table[way[0], 0] + table[way[1], 1] for way in permutations(range(3), 2)}
for way, total in sorted(ways.items(), key=lambda item: item[1]):
    print(f"object 0 to query {way[0]}, object 1 to query {way[1]}: {total:.2f}")
best = min(ways, key=ways.get)
assert matching.assign(jnp.asarray(table), jnp.ones(2, bool)).tolist() == list(best)

# %% [markdown]
# Greedily, object 0 would take query 0, and object 1 pay dearly. Together it is better that object 0 goes to query 1,
# which knows its class and is a little off. The query that nobody got learns to say "no object". That is why DETR
# needs no clean-up of double boxes: a second box for the same object is punished, in training.
#
# The loss of the picture follows: for the matched queries the negative logarithm of the probability of their class,
# for the others that of "no object", with a tenth of the weight (there are many of them); and L1 and 1 - GIoU of the
# matched boxes.

# %%
losses = set_losses(jnp.log(p), jnp.asarray(queries), jnp.array([0, 1]), jnp.asarray(true), jnp.ones(2, bool))
(spare,) = set(range(3)) - set(best)
np.testing.assert_allclose(
    losses["classes"], -np.log(p[best[0], 0]) - np.log(p[best[1], 1]) - 0.1 * np.log(p[spare, 2]), rtol=1e-4
)
np.testing.assert_allclose(losses["l1"], sum(np.abs(queries[q] - true[k]).sum() for k, q in enumerate(best)), rtol=1e-4)
print({name: round(float(value), 3) for name, value in losses.items()}, "; query without an object:", spare)

# %% [markdown]
# ## Scenes to learn from
#
# 1 to 4 digits of different sizes on a texture, 32x32 pixels, with the box and the mask of each. The package composes
# them as it composes `fashion_scenes`, from other pictures; we shrink them to a third.

# %%
digits = load_digits()
pictures = (digits.images * (255 / 16)).astype(np.uint8)
shrunk = lambda image: image.reshape(32, 3, 32, 3).mean((1, 3))


def example(seed, first, last):
    made = scenes.compose(np.random.default_rng(seed), pictures[first:last], digits.target[first:last])
    image = shrunk(made.image[..., 0]).round().astype(np.uint8)[..., None]
    masks = np.stack([shrunk(m.astype(float)) > 0.5 for m in made.masks])
    corners = made.boxes[:, [1, 0, 3, 2]].astype(np.float32) / 3
    return {"image": image, "boxes": corners, "labels": made.classes.astype(np.int32), "masks": masks}


# %%
train = [example((0, i), 0, 1500) for i in range(2000)]
test = [example((1, i), 1500, 1797) for i in range(200)]  # of digits that training does not have
fields = [
    Field("image", "image", (32, 32, 1), "uint8"),
    Field("boxes", "boxes", (None, 4), "float32", most=4),
    Field("labels", "label", (None,), "int32", most=4, padding=-1, of="boxes"),
    Field("masks", "masks", (None, 32, 32), "bool", most=4, of="boxes"),
]
names = [str(k) for k in range(10)]
data = rv.data.from_examples(train, fields, test=test, class_names=names, statistics=((0.35,), (0.25,)))
show = lambda e, **kw: drawn.over(e["image"], e["boxes"], e["labels"], names=names, scale=4, **kw)
plot.grid([show(e, masks=e["masks"]) for e in train[:6]], columns=6, size=1.7)

# %% [markdown]
# ## A detector
#
# DETR learns slowly: its authors trained it for 500 epochs, because attention has to find out what "near" means
# (`configs/fashion_scenes/detr.py`, hours). For this minute we take a *dense* detector, which needs no matching: a map
# says for each class where a centre is, and at each place there is a size (Zhou et al. 2019, "Objects as points"). A
# place whose neighbours are all smaller is a box.

# %%
trunk = dict(name="resnet20", depth=8, width=16)
model = rv.models.create("centre_r18", num_classes=10, backbone=trunk, stride=2, width=32)
task = rv.tasks.centre(model, image_shape=data.image_shape, num_classes=10, fields=data.info.fields)
task = task._replace(metrics={**task.metrics, "voc": coco_ap.voc(10)})  # and PASCAL VOC's measure
steps = 350
tx = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(optax.warmup_cosine_decay_schedule(0.0, 5e-3, 40, steps)))
run = rv.fit(model, data, tx, steps=steps, batch_size=32, task=task, progress=False)
measured = run.evaluate("test")
assert measured["voc_AP"] > 0.5
print({k: round(v, 3) for k, v in measured.items() if np.ndim(v) == 0})

# %%
held = np.stack([e["image"] for e in test])
found = run.detect(held)
answers = [
    {"image": e["image"], "boxes": found["boxes"][i][s > 0.3], "labels": found["labels"][i][s > 0.3]}
    for i, (e, s) in enumerate(zip(test, found["scores"]))
]
plot.grid(
    [*(show(e) for e in test[:6]), *(show(e) for e in answers[:6])], ["true"] * 6 + ["found"] * 6, columns=6, size=1.7
)

# %% [markdown]
# ## Is that good? Average precision by hand
#
# Rank all boxes found, the most confident first. A box is *right* if it overlaps an object of its class by more than
# half, and that object has not been found before. Going down the list, **precision** is the share of right ones so
# far, **recall** the share of all objects found so far. The **average precision** of a class is the area under that
# curve. We do it for one class:


# %%
def overlap(i, box, k):
    objects = test[i]["boxes"][test[i]["labels"] == k]
    return np.append(coco_ap.overlaps(box[None], objects, np.zeros(len(objects), bool)), 0.0)


def judged(k):
    order = np.argsort(-found["scores"], axis=None)
    taken, right = set(), []
    for i, q in zip(*np.unravel_index(order, found["scores"].shape)):
        if found["labels"][i, q] == k:
            iou = overlap(i, found["boxes"][i, q], k)
            right.append(iou.max() > 0.5 and (i, iou.argmax()) not in taken)
            taken |= {(i, iou.argmax())} if right[-1] else set()
    return np.array(right)


# %%
right = judged(3)
objects = sum((e["labels"] == 3).sum() for e in test)
precision, recall = right.cumsum() / np.arange(1, len(right) + 1), right.cumsum() / objects
fig, axes = plt.subplots(figsize=(4.2, 3), layout="constrained")
axes.plot(recall, precision, lw=1, label="as ranked")
envelope = np.maximum.accumulate(precision[::-1])[::-1]
axes.fill_between(recall, envelope, alpha=0.25, step="pre", label="area: average precision")
axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.05), title=f"class 3, {objects} objects")
axes.legend(fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# From right to left, precision is replaced by the best that is still to come (a later, better point could have been
# chosen). The package's PASCAL VOC measure gives the same number; COCO's AP does it at ten overlaps, 0.5 to 0.95,
# which also asks for exact boxes.

# %%
by_hand = float((np.diff(recall, prepend=0) * envelope).sum())
np.testing.assert_allclose(by_hand, measured["voc_AP_per_class"][3], atol=1e-6)
print(f"class 3: {by_hand:.3f} by hand; mean of all classes {measured['voc_AP']:.3f}; COCO's AP {measured['AP']:.3f}")

# %% [markdown]
# ## A class for every pixel
#
# Segmentation is classification at each place: the features of the trunk, a 1x1 convolution, and the scores enlarged
# to the image. Here each pixel is background or one of ten digits.

# %%
deeper = dict(name="resnet20", depth=14, width=16)
segmenter = rv.models.create(
    "fcn_r50", num_classes=11, backbone=deeper, layer="stage2/block2", head="linear", dropout=0.0
)
task = rv.tasks.segment(segmenter, image_shape=data.image_shape, num_classes=10, fields=data.info.fields)
steps = 200
tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 40, steps))
named = rv.fit(segmenter, data, tx, steps=steps, batch_size=32, task=task, progress=False)
per_pixel = named.evaluate("test")
print({k: round(v, 3) for k, v in per_pixel.items() if np.ndim(v) == 0})

# %%
maps = named.detect(held)["map"]
truth = np.zeros_like(maps)
for i, e in enumerate(test):
    for mask, label in zip(e["masks"], e["labels"]):
        truth[i][mask] = label + 1
palette = np.array([(0, 0, 0), *map(drawn.colour, range(10))], np.uint8)  # black for the background
rows = [*(e["image"].repeat(3, 2) for e in test[:6]), *palette[truth[:6]], *palette[maps[:6]]]
plot.grid(rows, ["image"] * 6 + ["true"] * 6 + ["found"] * 6, columns=6, size=1.4)

# %% [markdown]
# Accuracy per pixel flatters: most pixels are background. The **mean IoU** counts per class, over all images together,
# how many pixels truth and prediction share, and how many either has. By hand, from one confusion matrix:

# %%
counts = np.zeros((11, 11))
np.add.at(counts, (truth.ravel(), maps.ravel()), 1)
shared, either = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
np.testing.assert_allclose((shared / either).mean(), per_pixel["mIoU"], rtol=1e-5)
flat, right = counts[0].sum() / counts.sum(), shared.sum() / counts.sum()
print(f"right pixels {right:.3f} (of background alone {flat:.3f}), mean IoU {(shared / either).mean():.3f}")

# %% [markdown]
# ## What is open
#
# The package ends here; vision does not. Each of the following changes one of the three things from the beginning of
# this part:
#
# | task | the answer is | the loss compares | measured by |
# |---|---|---|---|
# | instance masks (Mask R-CNN) | a box and a mask per object | masks of matched boxes | AP with IoU of masks |
# | pose | points with visibility | heat maps around points | share of points near enough (PCK, OKS) |
# | depth | a number per pixel | logarithms, up to one factor per image | relative error |
# | captions | a sentence | the next word, as in [part 8](08_attention.py) | overlap of word groups (CIDEr) |
# | images and texts (CLIP) | a similarity | all pairs of the batch | classes named by sentences |
# | video | one answer over time | as for images | must beat a single frame, and frames in random order |
#
# None of them is built here yet. Boxes, points, masks, maps and words are declared as fields of the data already
# (`docs/library.md`), and an objective is one file of pure functions (`recvis_jax/tasks/`): a good first contribution.
#
# ## To try
#
# * `rv.models.create("detr_tiny", ...)` with `rv.tasks.detect` asks queries instead. How long does it need?
# * Detect at `stride=4`. Which digits are lost?
# * Your own pictures with boxes: `docs/library.md`, "Your own boxes and masks".
