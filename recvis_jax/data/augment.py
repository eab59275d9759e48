"""Augmentation on the device, per batch, inside jit: crop, flip, colour, erasing, mixup, cutmix; and normalisation.

A pipeline is a string such as `'pad_crop(4)|flip|erase(0.25)|mixup(0.2)'`. What happens to an example depends only on
the key, its `slot` in the global batch, its content and, if pairs are mixed, its partner. So on one kind of hardware
the result is identical, bit for bit, however the batch is split over devices, hosts or micro-batches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key, Num, PRNGKeyArray

from recvis_jax.data import augment_fields, augment_images, specs
from recvis_jax.data.fields import Field, spatial
from recvis_jax.errors import BadRequest, choose

Batch = dict[str, Any]
PairOperation = Callable[[Any, Batch], Batch]
_ALPHA = (1e-3, 1e3)  # of Beta(alpha, alpha); its quantiles are inaccurate beyond

MOST_LEVEL = 1e6  # of means and deviations of pixels in [0, 1]
# Mean and standard deviation of pixels in [0, 1] per channel, over the training images.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5,), (0.5,)),  # to [-1, 1]
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "digits": ((0.3053,), (0.3760,)),  # scikit-learn's load_digits, divided by 16
}


def parse(
    spec: str | None, num_classes: int | None = None, fields: Sequence[Field] = (), visible: float = 0.0
) -> Callable[[PRNGKeyArray | Array, Batch], Batch]:
    """Builds a device pipeline.

    Args:
      spec: operations joined by `|`, see `OPERATIONS`; None or an empty string only converts the images to float32.
      num_classes: length of soft labels; needed if `mixup` or `cutmix` get integer labels.
      fields: of the batch; those that lie in the image (boxes, masks, points, maps, frames) move with it.
      visible: smallest share of a box's area, from 0 to 1, that must stay inside for the box to be kept. A dropped box
        becomes padding, together with all that belongs to it.

    Returns:
      f(key, batch) -> batch, for use under jit. The batch holds `image` (b h w c), uint8 or float in [0, 1]; `slot`
      (b) int32; for mixing also `label` (b) int or (b k) float and, if some rows are padding, `mask` (b) bool. The
      result has images float32 in [0, 1], and after mixing labels (b k) float32; all other entries are untouched.

    Raises:
      BadRequest: a pipeline that cannot be built; and from f, when traced, a batch that does not fit it.
    """
    steps = specs.parse(spec, OPERATIONS, "device operation", _HOST_ONLY)
    specs.number(visible, "visible", 0, 1)
    mixing = [step.name for step in steps if step.name in PAIR_OPERATIONS]
    lying = spatial(fields)
    for step in steps:
        if lying and step.name in (*PAIR_OPERATIONS, "rotate"):
            raise BadRequest(f"{step.name} works on images alone: {', '.join(f.name for f in lying)} cannot follow it.")
        if lying and (video := [f.name for f in lying if f.kind in ("video", "image")]):
            raise BadRequest(f"device operations move one image per example, and not {video[0]!r} as well.")

    def augment(key: PRNGKeyArray | Array, batch: Batch) -> Batch:
        if "image" not in batch and not steps:
            return batch
        batch = {**batch, "image": augment_images.rounded(to_float(batch["image"]))}
        if not steps:
            return batch
        if "slot" not in batch:
            raise BadRequest(f"augmentation needs batch['slot']; the batch has {', '.join(sorted(batch))}.")
        if mixing:
            batch["label"] = _soft_labels(batch, num_classes, mixing[0])
        # A key per operation, then per example or pair, all drawn at once: random generators are slow to compile.
        slots = [batch["slot"] // 2 if step.name in PAIR_OPERATIONS else batch["slot"] for step in steps]
        keys = _fold_in(
            _fold_in(jnp.broadcast_to(_threefry(key), len(steps)), jnp.arange(len(steps))), jnp.stack(slots)
        )
        windows = []
        for step, own in zip(steps, keys, strict=True):
            if step.name in PAIR_OPERATIONS:
                batch = step.built(own[::2], batch)
            elif isinstance(step.built, augment_images.Moving):
                windows.append(step.built.draw(own, *batch["image"].shape[1:3]))
                batch = {**batch, "image": step.built.show(batch["image"], windows[-1])}
            else:
                batch = {**batch, "image": step.built(own, batch["image"])}
        return augment_fields.follow(batch, windows, fields, visible) if lying and windows else batch

    return augment


def to_float(images: Num[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Converts uint8 images to float32 in [0, 1]; float images are assumed to be in [0, 1] already."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) * np.float32(1 / 255)  # compilers turn a division into this; 255 gives 1.0
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise BadRequest(f"images are uint8, or float in [0, 1], not {images.dtype}.")
    return images.astype(jnp.float32)


def statistics(stats: str | tuple | list, channels: int | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns (mean, standard deviation), one number per channel or one for all, for a name in STATISTICS or a pair.

    Raises:
      BadRequest: an unknown name, something other than a pair, or a length that differs from `channels`.
    """
    if isinstance(stats, str):
        found = choose(STATISTICS, stats, "pixel statistics")
    else:
        found = _statistics_of_pair(stats)
    mean, std = found
    if channels and (len(mean) not in (1, channels) or len(std) not in (1, channels)):
        raise BadRequest(f"pixel statistics {stats!r} have {len(mean)} channels, the images have {channels}.")
    return found


def _statistics_of_pair(stats: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not isinstance(stats, (tuple, list)) or len(stats) != 2:
        raise BadRequest(f"pixel statistics are a name or a pair (mean, std), not {stats!r}.")
    mean, std = (tuple(v) if isinstance(v, (tuple, list)) else (v,) for v in stats)
    if not mean or len({len(mean), len(std), 1}) > 2 or not std:
        raise BadRequest(f"pixel statistics {stats!r}: mean and std differ in length.")
    means = tuple(specs.number(v, "mean", -MOST_LEVEL, MOST_LEVEL) for v in mean)
    return means, tuple(specs.number(v, "std", 1 / MOST_LEVEL, MOST_LEVEL) for v in std)


def normalise(images: Num[Array, "b h w c"], stats: str | tuple | list) -> Float[Array, "b h w c"]:
    """Subtracts the mean and divides by the standard deviation, per channel.

    Args:
      images: uint8, or float in [0, 1].
      stats: a name in `STATISTICS`, or a pair (mean, std) of numbers or tuples, on the scale of [0, 1].

    Returns:
      float32 images.

    Raises:
      BadRequest: unknown statistics, or a number of channels that differs from the images'.
    """
    mean, std = statistics(stats, images.shape[-1])
    return (to_float(images) - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def denormalise(images: Float[Array, "*b h w c"], stats: str | tuple | list) -> Float[Array, "*b h w c"]:
    """Undoes `normalise` and clips to [0, 1], for figures."""
    mean, std = statistics(stats)
    return jnp.clip(images * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32), 0, 1)


def mixup(alpha: float) -> PairOperation:
    """Blends the image and the label of each example with its partner's: lambda x + (1 - lambda) x_partner.

    Partners are neighbours, slots 2 i and 2 i + 1, and share one lambda ~ Beta(alpha, alpha); so nothing crosses a
    device boundary as long as every device holds an even number of examples. Padding is never mixed in.

    Reference: Zhang et al. 2018, "mixup: beyond empirical risk minimization".
    """
    specs.number(alpha, "alpha", *_ALPHA)
    return lambda keys, batch: _mix(keys, batch, alpha, alpha, 0.0)


def cutmix(alpha: float) -> PairOperation:
    """Pastes a box of the partner's image; labels are weighted by the exact area that is left.

    The box covers 1 - lambda of the image, lambda ~ Beta(alpha, alpha), before it is clipped at the border. Partners
    are as in `mixup`, and share the box and lambda.

    Reference: Yun et al. 2019, "CutMix: regularization strategy to train strong classifiers".
    """
    specs.number(alpha, "alpha", *_ALPHA)
    return lambda keys, batch: _mix(keys, batch, alpha, alpha, 1.0)


def mixup_cutmix(mixup_alpha: float, cutmix_alpha: float, switch: float = 0.5) -> PairOperation:
    """Applies `cutmix` with probability `switch`, else `mixup`; chosen for every pair.

    Reference: Touvron et al. 2021, "Training data-efficient image transformers", section 6.
    """
    specs.number(mixup_alpha, "mixup_alpha", *_ALPHA)
    specs.number(cutmix_alpha, "cutmix_alpha", *_ALPHA)
    specs.number(switch, "switch", 0, 1)
    return lambda keys, batch: _mix(keys, batch, mixup_alpha, cutmix_alpha, switch)


PAIR_OPERATIONS: dict[str, Callable[..., PairOperation]] = {
    "mixup": mixup,
    "cutmix": cutmix,
    "mixup_cutmix": mixup_cutmix,
}
OPERATIONS: dict[str, Callable[..., Any]] = {**augment_images.OPERATIONS, **PAIR_OPERATIONS}
_HOST_ONLY = dict.fromkeys(
    (
        "randaugment",
        "resize",
        "random_resize",
        "resize_crop",
        "resize_pad",
        "pad",
        "central_crop",
        "random_crop",
        "random_size_crop",
        "random_zoom",
        "grayscale",
        "to_rgb",
    ),
    "it works on single uint8 images on the host; put it into the host pipeline (data/transforms).",
)


def _mix(keys: Key[Array, "pairs"], batch: Batch, mixup_alpha: float, cutmix_alpha: float, switch: float) -> Batch:
    """Mixes neighbours: a pair gets cutmix with probability `switch`, else mixup."""
    images, labels = batch["image"], batch["label"]
    b, h, w, _ = images.shape
    u = augment_images.uniforms(keys, 4)
    cut = u[:, 0] < switch
    keep = jnp.where(cut, _beta(u[:, 1], cutmix_alpha), _beta(u[:, 1], mixup_alpha))
    if "mask" in batch:
        keep = jnp.where(batch["mask"].reshape(b // 2, 2).all(axis=1), keep, 1.0)

    pasted = _cut_boxes(keep, u[:, 2], u[:, 3], h, w) & cut[:, None, None, None]
    kept = augment_images.rounded((h * w - pasted.sum(axis=(1, 2, 3))).astype(jnp.float32) / (h * w))
    mixed = _blend(images, jnp.where(cut, 1.0, keep))
    mixed = jnp.where(jnp.repeat(pasted, 2, axis=0), _partner(images), mixed)
    return {**batch, "image": mixed, "label": _blend(labels, jnp.where(cut, kept, keep))}


def _partner(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Swaps neighbours."""
    return x.reshape(x.shape[0] // 2, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def _blend(x: Float[Array, "b ..."], keep: Float[Array, "pairs"]) -> Float[Array, "b ..."]:
    """Returns keep x + (1 - keep) x_partner, and exactly x where keep is 1."""
    keep = jnp.repeat(keep, 2).reshape(-1, *[1] * (x.ndim - 1))
    return x + augment_images.rounded((1 - keep) * (_partner(x) - x))


def _cut_boxes(
    keep: Float[Array, "pairs"], u_row: Float[Array, "pairs"], u_column: Float[Array, "pairs"], h: int, w: int
) -> Bool[Array, "pairs {h} {w} 1"]:
    """Marks boxes with sides sqrt(1 - keep) of the image's around centres anywhere in it."""
    side = jnp.sqrt(1 - keep)
    half_h, half_w = ((n * side / 2).astype(jnp.int32) for n in (h, w))
    row, column = (u_row * h).astype(jnp.int32), (u_column * w).astype(jnp.int32)
    return augment_images.box_mask(row - half_h, row + half_h, column - half_w, column + half_w, h, w)


def _beta(u: Float[Array, "n"], alpha: float) -> Float[Array, "n"]:
    """Maps u, uniform in [0, 1), to Beta(alpha, alpha) through a table of its 4,096-quantiles.

    Rejection sampling on the device would compile to a loop whose last bits depend on the batch size.
    """
    import scipy.special  # takes a tenth of a second; only mixup and cutmix need it

    quantiles = scipy.special.betaincinv(alpha, alpha, (np.arange(4096) + 0.5) / 4096)
    return jnp.asarray(quantiles, jnp.float32)[(u * 4096).astype(jnp.int32)]


def _soft_labels(batch: Batch, num_classes: int | None, name: str) -> Float[Array, "b k"]:
    """Returns the labels as (b k), after checking that the batch can be mixed."""
    b = batch["image"].shape[0]
    if b % 2:
        raise BadRequest(f"{name} mixes neighbours, so it needs an even batch (on each device), not {b}.")
    if "label" not in batch:
        raise BadRequest(f"{name} needs batch['label']; the batch has {', '.join(sorted(batch))}.")
    labels = batch["label"]
    if labels.ndim == 2:
        return labels.astype(jnp.float32)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise BadRequest(f"{name} takes labels (b) int or (b k), not {labels.dtype} of shape {labels.shape}.")
    if not num_classes:
        raise BadRequest(f"{name} makes soft labels from integer labels, so it needs the number of classes.")
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)


def _threefry(key: PRNGKeyArray | Array) -> PRNGKeyArray:
    """Makes any key a threefry key.

    With the hardware generators ('rbg'), a vmapped draw need not depend on each key alone, so a split batch would be
    augmented differently. The first half of their state is itself a threefry key.
    """
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return jax.random.wrap_key_data(data[:2], impl="threefry2x32")


def _fold_in(keys: Key[Array, "n"], numbers: Int[Array, "n *b"]) -> Key[Array, "n *b"]:
    """Folds each row of `numbers` into the key of that row."""
    fold = jax.random.fold_in if numbers.ndim == 1 else jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold)(keys, numbers)
