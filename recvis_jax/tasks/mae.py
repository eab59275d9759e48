"""Masked autoencoding: predict the patches that the encoder did not see."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from recvis_jax import errors
from recvis_jax.evaluation import metrics
from recvis_jax.tasks import masking
from recvis_jax.tasks.applying import initialiser
from recvis_jax.tasks.task import Task


def mae(
    model: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    norm_targets: bool = True,
    sampling: str = "random",
) -> Task:
    """Pairs a masked autoencoder with the mean squared error of its masked patches.

    In training, an image's mask is a function of (seed, step, slot in the batch). In evaluation it depends only on the
    image's pixels, so it is the same in every evaluation, however the images are batched.

    Args:
      model: `models.mae.MAE`: `__call__(image, *, train, noise) -> (patches (b n d), acts)` with `acts["mask"]`.
      image_shape: (h, w, c) of the model's input.
      norm_targets: whether the values of every target patch are normalised to mean 0 and standard deviation 1.
      sampling: a name of `masking.SAMPLERS`: 'random', 'block' or 'grid'.

    Reference: He et al. 2022, "Masked autoencoders are scalable vision learners", section 3.
    """
    p = getattr(model, "patch_size", None)
    if p is None or not hasattr(model, "mask_ratio"):
        raise errors.BadRequest(
            f"task 'mae' trains masked autoencoders, such as mae_b16; {type(model).__name__} has no patches to mask."
        )
    if not model.mask_ratio:
        raise errors.BadRequest("task 'mae' needs model.mask_ratio above 0; at 0 there is no patch to predict.")
    sampler = errors.choose(masking.SAMPLERS, sampling, "task.sampling")

    def apply(params, model_state, image, keys, train):
        size = (image.shape[1] // p, image.shape[2] // p)
        noise = masking.noise_of(sampler, keys, size)
        return model.apply({"params": params, **model_state}, image, train=train, noise=noise)

    def loss(params, model_state, batch, key):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["slot"])
        pred, acts = apply(params, model_state, batch["image"], keys, True)
        found = patch_loss(pred, target_patches(batch["image"], p, norm_targets), acts["mask"])
        return {"loss": found}, model_state, {}

    def predict(params, model_state, batch):
        image = batch["image"]
        pred, acts = apply(params, model_state, image, masking.keys_of(image), False)
        target = target_patches(image, p, norm_targets)
        return {"prediction": pred, "mask": acts["mask"], "loss": patch_loss(pred, target, acts["mask"])}

    def figure(params, model_state, batch):
        image = batch["image"]
        found = predict(params, model_state, batch)
        raw, pred = target_patches(image, p, False), found["prediction"]
        if norm_targets:  # undo the normalisation with the true patch's mean and variance
            pred = pred * jnp.sqrt(raw.var(-1, keepdims=True, ddof=1) + 1e-6) + raw.mean(-1, keepdims=True)
        masked, size = found["mask"][..., None] > 0, image.shape[1:3]
        seen, pasted = jnp.where(masked, 0.0, raw), jnp.where(masked, pred, raw)  # visible patches are not predicted
        return {"masked": to_images(seen, p, size), "reconstruction": to_images(pasted, p, size), "original": image}

    return Task(
        init=initialiser(model, image_shape),
        loss=loss,
        predict=predict,
        metrics={"loss": metrics.loss(None)},
        best=("loss", "min"),
        figure=figure,
    )


def target_patches(image: Float[Array, "b h w c"], patch_size: int, norm: bool) -> Float[Array, "b n d"]:
    """Returns the patches to predict; values of a patch are in the order (row, column, channel).

    Args:
      image: the model's input.
      patch_size: rows and columns of a patch.
      norm: whether every patch is normalised, with the unbiased variance plus 1e-6 as in the reference code.
    """
    b, h, w, c = image.shape
    x = image.astype(jnp.float32).reshape(b, h // patch_size, patch_size, w // patch_size, patch_size, c)
    x = x.swapaxes(2, 3).reshape(b, -1, patch_size * patch_size * c)
    if norm:
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + 1e-6)
    return x


def to_images(patches: Float[Array, "b n d"], patch_size: int, size: tuple[int, int]) -> Float[Array, "b h w c"]:
    """Assembles patches, row by row, into images of `size` (h, w)."""
    (h, w), b = size, len(patches)
    x = patches.reshape(b, h // patch_size, w // patch_size, patch_size, patch_size, -1)
    return x.swapaxes(2, 3).reshape(b, h, w, -1)


def patch_loss(
    pred: Float[Array, "b n d"], target: Float[Array, "b n d"], mask: Float[Array, "b n"]
) -> Float[Array, "b"]:
    """Returns the mean squared error over an image's masked patches; predictions for visible patches are ignored.

    Args:
      pred, target: values of every patch.
      mask: 1 for a masked patch, 0 for a visible one.
    """
    error = jnp.square(pred.astype(jnp.float32) - target).mean(-1)
    return jnp.where(mask > 0, error, 0).sum(-1) / mask.sum(-1)
